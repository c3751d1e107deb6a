"""The Attester: turns a statement into evidence through the ports. One definition for both nodes.

Order matters and is the protocol (docs/protocols/binding.md §2): statement without `devices` →
GPU nonce → device reports → statement with `devices` → REPORTDATA → quote. Nothing else on the
node can ask for a quote. This module proves nothing; `appraisal/` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from confide.appraisal.binding import Statement, devices_digest
from confide.wire.evidence import EvidenceBundle, NvidiaEndorsements
from confide.wire.rtmr_log import encode_log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from confide.appraisal.binding import Purpose
    from confide.channel.succession import Succession
    from confide.ports import CollateralSource, GpuEvidenceSource, QuoteSource, ReferenceSource
    from confide.wire.evidence import GpuEvidence
    from confide.wire.keyset import Keyset
    from confide.wire.rtmr_log import RuntimeEvent

__all__ = ["Attester", "Devices"]


@dataclass(frozen=True, slots=True)
class Devices:
    """The GPUs of a node: where reports come from, and the endorsements to send along."""

    source: GpuEvidenceSource
    references: ReferenceSource


@dataclass(frozen=True, slots=True)
class Attester:
    """
    Evidence for one keyset. `devices` is None on a node without GPUs.

    `unchanged` is asked first, every time: it raises when something that was measured at boot is
    no longer what it was, and there is no evidence then. `succession` says which keyset this one
    followed, where it followed one.
    """

    keyset: Keyset
    quotes: QuoteSource
    collateral: CollateralSource
    devices: Devices | None
    unchanged: Callable[[], Awaitable[None]] | None = None
    succession: Succession | None = None

    async def attest(
        self, *, purpose: Purpose, nonce: bytes, expectation: bytes, claim: bytes | None = None
    ) -> EvidenceBundle:
        """
        Return fresh evidence for one statement. Digests and nonce are 32 bytes.

        Raises `Unavailable` when a device or Intel's collateral cannot be reached, and what
        `unchanged` raises.
        """
        if self.unchanged is not None:
            await self.unchanged()
        statement = Statement(purpose, nonce, self.keyset.digest, expectation, claim)
        collected: tuple[GpuEvidence, ...] = ()
        endorsements = NvidiaEndorsements((), ())
        if self.devices is not None:
            collected = await self.devices.source.collect(statement.gpu_nonce)
            endorsements = await self.devices.references.endorsements(collected)
            statement = replace(statement, devices=devices_digest(collected))
        quote, events = await self.quotes.quote(statement.report_data)
        return EvidenceBundle(
            statement=statement.document(),
            keyset=self.keyset.document(),
            quote=quote,
            collateral=await self.collateral.collateral(quote),
            firmware_log=self.quotes.firmware_log(),
            runtime_log=encode_log(events),
            devices=collected,
            endorsements=endorsements,
            succession=None if self.succession is None else self.succession.document(),
        )

    async def quote_for_face(self, report_data: bytes) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
        """
        Return a quote over the report data of another protocol, and the runtime log at its time.

        For faces that are on alone (binding.md 2.7): no form of theirs can be that of a statement.
        Raises what `unchanged` raises, and `Unavailable`.
        """
        if self.unchanged is not None:
            await self.unchanged()
        return await self.quotes.quote(report_data)
