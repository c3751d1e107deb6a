"""What a training node proves about one job of an image: itself before, the record after.

docs/protocols/training-image.md §4. Everything is appraised here as its verifier will do it: a node
that cannot prove itself says so before the image is started, and no record is handed out that does
not hold.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from confide.appraisal.eventlog import run_commitment
from confide.appraisal.node import appraise_node
from confide.errors import Unavailable
from confide.training.boot_verify import hardware_of
from confide.training.boots import RUN_EVENT, boot_nonce
from confide.training.image_recipe import image_boot_claim
from confide.training.image_record import ImageRecord, issue_image_record
from confide.training.image_verify import verify_image_record
from confide.training.record_file import RecordFile
from confide.trust.roots import encode_roots_file
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from confide.agents.sandbox import SandboxExit
    from confide.expectation import Expectation
    from confide.inference.weights import WeightsManifest
    from confide.node.identity import Identity, NodeIdentity
    from confide.ports import QuoteSource
    from confide.training.image_recipe import ImagePlan
    from confide.training.predicates import HardwareOfBoot
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle

__all__ = ["ImageProof", "ProvenNode"]


class ProvenNode(Protocol):
    """What a training node is made of; `weights` is the digest of the measured base."""

    @property
    def identity(self) -> NodeIdentity:
        """Its keysets, clock and randomness."""
        ...

    @property
    def guest(self) -> QuoteSource:
        """Its machine."""
        ...

    @property
    def roots(self) -> Roots:
        """The roots that it works under."""
        ...

    @property
    def weights(self) -> bytes:
        """The digest of its base."""
        ...


@dataclass(frozen=True, slots=True)
class _Boot:
    """The one boot of a job, proven: who speaks, since when, with which evidence."""

    speaker: Identity
    at: datetime
    bundle: EvidenceBundle
    hardware: HardwareOfBoot


@dataclass(slots=True)
class ImageProof:
    """The proof of one job: `introduce` before the image is started, `record` at the end."""

    node: ProvenNode
    job: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    expectation: Expectation
    _boot: _Boot | None = None

    async def introduce(self, plan: ImagePlan) -> None:
        """
        Measure job and plan, and prove this boot; once.

        Raises the rejections of an appraisal where this node does not meet the Expectation,
        `Unavailable` where no evidence can be made.
        """
        identity = self.node.identity
        identity.tick()
        speaker = identity.current
        # The record judges the evidence at the time that the claim names: what endorses the
        # hardware has to be there by then.
        await speaker.attester.attest(
            purpose="channel",
            nonce=identity.entropy.token(32),
            expectation=self.expectation.digest,
        )
        payload = run_commitment(RUN_EVENT, run=self.job, digest=plan.digest)
        await self.node.guest.extend(RuntimeEvent(RUN_EVENT, payload))
        at = self._now()
        claim = image_boot_claim(job=self.job, plan=plan.digest, at=at)
        nonce = boot_nonce(self.nonce, 0)
        bundle = await speaker.attester.attest(
            purpose="claim", nonce=nonce, expectation=self.expectation.digest, claim=claim
        )
        proven = await asyncio.to_thread(
            appraise_node,
            bundle,
            subject="this node",
            role="model",
            purpose="claim",
            nonce=nonce,
            claim=claim,
            expectation=self.expectation,
            roots=self.node.roots,
            now=at,
        )
        self._boot = _Boot(speaker, at, bundle, hardware_of(proven))

    def _now(self) -> datetime:
        return self.node.identity.clock.now().replace(microsecond=0)

    async def record(
        self,
        plan: ImagePlan,
        *,
        root: bytes,
        end: SandboxExit,
        manifest: WeightsManifest,
        sealed: Mapping[str, bytes],
    ) -> RecordFile:
        """
        Sign the record, quote it, and verify it as a stranger would.

        `root` is that of the rows as they were written. Raises `Rejected` for a record that does
        not hold: nobody gets it then.
        """
        boot = self._boot
        if boot is None:
            raise Unavailable("the boot of this job was not proven")
        keys = boot.speaker.keys
        record = ImageRecord(
            job=self.job,
            nonce=self.nonce,
            keyset=keys.keyset.digest,
            expectation=self.expectation.digest,
            software=keys.keyset.software,
            started=boot.at,
            finished=self._now(),
            plan=plan,
            dataset_root=root,
            sealed=dict(sealed),
            outputs={},
            statements={},
            end=end.kind,
            status=end.status,
        )
        issued = await asyncio.to_thread(
            issue_image_record, keys.signer, record, manifest=manifest, boot=boot.hardware
        )
        after = await boot.speaker.attester.attest(
            purpose="claim",
            nonce=self.nonce,
            expectation=self.expectation.digest,
            claim=issued.record.digest,
        )
        roots = self.node.roots
        file = RecordFile(
            expectation=self.expectation.canonical(),
            record=issued.record,
            statements=issued.statements,
            boots=(boot.bundle,),
            after=after,
            roots=encode_roots_file(roots) if roots.simulated else b"",
            log=None,
        )
        await asyncio.to_thread(
            verify_image_record,
            file,
            roots=roots,
            now=None,
            expectation=self.expectation,
            nonce=self.nonce,
            outputs={},
        )
        return file
