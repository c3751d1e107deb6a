"""What a training node proves about one job: itself, each boot before it trains, the record after.

docs/protocols/training-record.md §1, §2. A boot is one keyset: a job keeps the keys it began with
as long as they hold. New keys are another boot, and so is each attempt that other nodes sit at.
Everything is appraised here as its verifier will do it, so that a node which cannot prove itself
says so before it has worked for days.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from confide.appraisal.eventlog import run_commitment
from confide.appraisal.node import appraise_node
from confide.errors import FormatError, Rejected, Unavailable
from confide.expectation import parse_expectation
from confide.node.train_seats import prove_only_seat, seating_of
from confide.training.account import MAX_BOOTS
from confide.training.boot_verify import hardware_of
from confide.training.boots import (
    RUN_EVENT,
    Turn,
    boot_claim,
    boot_nonce,
    turns_head,
)
from confide.training.job_request import JobRefused
from confide.training.record import (
    TrainingOutput,
    TrainingRecord,
    issue_training_record,
    listed_checkpoints,
)
from confide.training.record_file import RecordFile
from confide.training.record_verify import verify_record
from confide.trust.roots import encode_roots_file
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.appraisal.binding import Purpose
    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation
    from confide.node.identity import Identity, NodeIdentity
    from confide.node.seat_party import SeatParty
    from confide.ports import QuoteSource
    from confide.training.account import Account
    from confide.training.boots import TurnKind
    from confide.training.job_request import JobRequest
    from confide.training.predicates import HardwareOfBoot
    from confide.training.ranks import Seat
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle
    from confide.wire.json import JsonValue

__all__ = ["JobProof", "Made", "ProvenBase", "prove_met", "require_met"]

# Time to end a step, write the checkpoint and make the record under keys that still hold.
_MARGIN: Final = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class ProvenBase:
    """What a training node is made of: its identity, its machine, its roots, the measured base."""

    identity: NodeIdentity
    guest: QuoteSource
    roots: Roots
    model: str
    weights: bytes


@dataclass(frozen=True, slots=True)
class Made:
    """What came out of a job, as the record names it. `owner_log` is the digest of that log."""

    output: TrainingOutput
    sealed: Mapping[str, bytes]
    owner_log: bytes
    privacy: Mapping[str, str] | None


def _told(error: Rejected) -> str:
    first = error.failures[0]
    return f"{first.step}: {first.detail}"


async def require_met(request: JobRequest, node: ProvenBase) -> Expectation:
    """Return the Expectation of a job, which this node was just found to meet. As `prove_met`."""
    return (await prove_met(request.expectation, node, param="confide.expectation"))[0]


async def prove_met(raw: bytes, node: ProvenBase, *, param: str) -> tuple[Expectation, bytes]:
    """
    Return the Expectation in `raw`, which this node was just found to meet, and its machine.

    Raises `JobRefused` about `param`, saying what to do (training-node.md 2.2), `Unavailable`
    without evidence.
    """

    def refused(message: str) -> JobRefused:
        return JobRefused(f"{param}: {message}", param=param, code="expectation_mismatch")

    try:
        expectation = parse_expectation(raw)
    except FormatError as error:
        raise refused(f"{error.what}; make it with confide expect") from error
    if expectation.hardware.roots != node.roots.name:
        raise refused(
            f"it names roots {expectation.hardware.roots}, this node works under "
            f"{node.roots.name}; make one for this node"
        )
    if expectation.model.name != node.model:
        raise refused(f"it names another model than {node.model}; make one for this node")
    if expectation.model.weights != node.weights.hex():
        raise refused(
            f"it names other weights than this node's base, {node.weights.hex()}: set "
            "model.weights to that, or ask a node that has the base you want"
        )
    nonce = node.identity.entropy.token(32)
    bundle = await node.identity.current.attester.attest(
        purpose="channel", nonce=nonce, expectation=expectation.digest
    )
    try:
        proven = await _appraise(
            bundle,
            expectation,
            node,
            purpose="channel",
            nonce=nonce,
            claim=None,
            now=node.identity.clock.now(),
        )
    except Rejected as error:
        raise refused(
            f"this node does not meet it ({_told(error)}); mend that, or ask another node"
        ) from error
    return expectation, _hardware(proven).machine


async def _appraise(
    bundle: EvidenceBundle,
    expectation: Expectation,
    node: ProvenBase,
    *,
    purpose: Purpose,
    nonce: bytes,
    claim: bytes | None,
    now: datetime,
) -> VerifiedNode:
    return await asyncio.to_thread(
        appraise_node,
        bundle,
        subject="this node",
        role="model",
        purpose=purpose,
        nonce=nonce,
        claim=claim,
        expectation=expectation,
        roots=node.roots,
        now=now,
    )


def _hardware(proven: VerifiedNode) -> HardwareOfBoot:
    if proven.gpus is None:
        raise Unavailable("this node has no GPU to name")
    return hardware_of(proven)


@dataclass(slots=True)
class JobProof:
    """The boots of one job. `introduce` before each process may go, `record` once at the end."""

    node: ProvenBase
    request: JobRequest
    job: bytes = field(repr=False)
    expectation: Expectation
    boots: list[EvidenceBundle] = field(default_factory=list)
    hardware: list[HardwareOfBoot] = field(default_factory=list)
    # Of each boot, where the job has several ranks: what was proven of them, and with what.
    seats: list[tuple[Seat, ...]] = field(default_factory=list)
    seated: list[tuple[EvidenceBundle, ...]] = field(default_factory=list)
    speaker: Identity | None = None
    # Who sits at the present attempt; None where this node has all ranks.
    party: SeatParty | None = None

    def expiring(self) -> bool:
        """Whether the keys of the present boot end soon: then the job goes on as another boot."""
        if self.speaker is None:
            return False
        left = self.speaker.keys.keyset.not_after - self.node.identity.clock.now()
        return left < _MARGIN

    async def introduce(self, account: Account) -> Turn | None:
        """
        Prove the boot that goes on with `account`; None where it is the one before.

        Raises `Rejected` where this node does not meet the Expectation any more, `Unavailable`
        where no evidence can be made. The account then is as it was.
        """
        identity = self.node.identity
        identity.tick()
        speaker = self._speaker()
        # Other nodes are seated anew for each attempt, as each boot is (training-ranks.md 4.5).
        if self.speaker is not None and speaker is self.speaker and self.party is None:
            if account.turns[-1].kind == "paused":
                account.turns.append(account.turn("resumed", boot=self._boot, at=self._at(account)))
            return None
        number = len(self.boots)
        if number >= MAX_BOOTS:
            raise Unavailable(f"a job has at most {MAX_BOOTS} boots")
        # The record judges this evidence at the time that the turn names: what endorses the
        # hardware has to be there by then.
        machine = await self._machine(speaker)
        if self.party is not None:
            await self.party.meet(self.expectation, self.node.roots)
        kind: TurnKind = "started"
        if number:
            kind = "restarted" if machine == self.hardware[-1].machine else "moved"
        turn = account.turn(kind, boot=number, at=self._at(account))
        bundle, hardware = await self._prove(account, turn, speaker)
        if hardware.machine != machine:
            raise Unavailable("the machine changed while it was proven")
        if account.plan.world > 1:
            await self._seat(account, turn, speaker)
        account.turns.append(turn)
        self.boots.append(bundle)
        self.hardware.append(hardware)
        self.speaker = speaker
        return turn

    def machine_facts(self) -> dict[str, JsonValue]:
        """Return what the event chain says of the last boot's machine (training-node.md 7.7)."""
        last = self.hardware[-1]
        return {
            "boot": self._boot,
            "machine": last.machine.hex(),
            "evidence": last.evidence.hex(),
        }

    @property
    def _boot(self) -> int:
        return len(self.boots) - 1

    def interrupted(self, account: Account) -> None:
        """Note that the job was interrupted and may go on: a turn, where none says so yet."""
        if account.turns and account.turns[-1].kind != "paused":
            account.turns.append(account.turn("paused", boot=self._boot, at=self._at(account)))

    def _speaker(self) -> Identity:
        if self.speaker is not None and not self.expiring():
            return self.speaker
        return self.node.identity.current

    def _now(self) -> datetime:
        return self.node.identity.clock.now().replace(microsecond=0)

    def _at(self, account: Account) -> datetime:
        # The clock of the machine before may be a little ahead: turns do not go back in time.
        return max([self._now(), *(turn.at for turn in account.turns[-1:])])

    async def _machine(self, speaker: Identity) -> bytes:
        """Return the digest of this machine, as it is proven now."""
        nonce = self.node.identity.entropy.token(32)
        bundle = await speaker.attester.attest(
            purpose="channel", nonce=nonce, expectation=self.expectation.digest
        )
        proven = await _appraise(
            bundle,
            self.expectation,
            self.node,
            purpose="channel",
            nonce=nonce,
            claim=None,
            now=self.node.identity.clock.now(),
        )
        return _hardware(proven).machine

    async def _prove(
        self, account: Account, turn: Turn, speaker: Identity
    ) -> tuple[EvidenceBundle, HardwareOfBoot]:
        plan = account.plan.digest
        payload = run_commitment(RUN_EVENT, run=self.job, digest=plan)
        await self.node.guest.extend(RuntimeEvent(RUN_EVENT, payload))
        claim = boot_claim(
            job=self.job,
            plan=plan,
            turn=turn,
            turns=turns_head(account.start, [*account.turns, turn]),
        )
        nonce = boot_nonce(self.request.nonce, turn.boot)
        bundle = await speaker.attester.attest(
            purpose="claim", nonce=nonce, expectation=self.expectation.digest, claim=claim
        )
        proven = await _appraise(
            bundle,
            self.expectation,
            self.node,
            purpose="claim",
            nonce=nonce,
            claim=claim,
            now=turn.at,
        )
        return bundle, _hardware(proven)

    async def _seat(self, account: Account, turn: Turn, speaker: Identity) -> None:
        seating = seating_of(
            speaker,
            self.job,
            self.request.nonce,
            account.plan,
            turn,
            engine=self.request.engine,
        )
        take = prove_only_seat if self.party is None else self.party.seat
        bundles, admitted = await take(
            speaker,
            seating,
            account.plan,
            expectation=self.expectation,
            roots=self.node.roots,
            now=turn.at,
        )
        self.seats.append(admitted.seats)
        self.seated.append(bundles)

    async def record(self, account: Account, made: Made) -> RecordFile:
        """
        Sign the record, quote it, and verify it as a stranger would.

        Raises `Rejected` for a record that does not hold: nobody gets it then.
        """
        speaker = self.speaker
        if speaker is None:
            raise Unavailable("no boot of this job was proven")
        keys = speaker.keys
        record = TrainingRecord(
            job=self.job,
            nonce=self.request.nonce,
            keyset=keys.keyset.digest,
            expectation=self.expectation.digest,
            software=keys.keyset.software,
            started=account.turns[0].at,
            finished=self._at(account),
            plan=account.plan,
            dataset_root=account.root,
            environment=account.environment,
            privacy=made.privacy,
            steps=len(account.steps),
            planned=account.planned,
            head=account.head,
            events_head=account.events_head,
            turns=tuple(account.turns),
            turns_head=turns_head(account.start, account.turns),
            checkpoints=listed_checkpoints(account.checkpoints, account.turns),
            owner_log=made.owner_log,
            sealed=made.sealed,
            outputs={},
            statements={},
        )
        issued = await asyncio.to_thread(
            issue_training_record,
            keys.signer,
            record,
            output=made.output,
            boots=self.hardware,
            seats=self.seats,
        )
        after = await speaker.attester.attest(
            purpose="claim",
            nonce=self.request.nonce,
            expectation=self.expectation.digest,
            claim=issued.record.digest,
        )
        roots = self.node.roots
        file = RecordFile(
            expectation=self.expectation.canonical(),
            record=issued.record,
            statements=issued.statements,
            boots=tuple(self.boots),
            after=after,
            roots=encode_roots_file(roots) if roots.simulated else b"",
            log=None,
            seats=tuple(self.seated),
        )
        await asyncio.to_thread(
            verify_record,
            file,
            roots=roots,
            now=None,
            expectation=self.expectation,
            nonce=self.request.nonce,
            outputs={},
        )
        return file
