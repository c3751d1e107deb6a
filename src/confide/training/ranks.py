"""The seats of a job on several nodes: what each proves, and admitting them together. Pure.

Performs steps seat/1 to seat/5 of docs/protocols/training-ranks.md 4.3. What seats offer is
hostile; Expectation, roots, time and what the job is are the admitting node's own. `AdmittedSeats`
is what rows and certificates are released to.

What it does not prove: that an admitted seat computes what it should. That is for a replay.
"""

from __future__ import annotations

import hashlib
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Final

from confide.appraisal.eventlog import run_commitment
from confide.appraisal.known import Known
from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.errors import Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.receipts.held import appraise_held
from confide.training.boots import RUN_EVENT, machine_digest
from confide.training.seeds import u64
from confide.training.shares import MAX_SEATS
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation
    from confide.training.shares import Engine
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle
    from confide.wire.json import JsonValue

__all__ = [
    "SEAT_STEPS",
    "AdmittedSeats",
    "Seat",
    "SeatOffer",
    "Seating",
    "admit_seats",
    "seat_claim",
    "seat_nonce",
]

_DOC: Final = "docs/protocols/training-ranks.md#4"
_TYPE: Final = "confide/training-rank/v1"
_NONCE: Final = b"confide/training-rank-nonce/v1\0"
_SEAL = object()


@dataclass(frozen=True, slots=True)
class Seating:
    """
    The job that seats are wanted for, as seat 0 knows it.

    `plan` is the digest of the plan, `base` and `world` are members of it. `boot` is the number of
    the boot of seat 0, `keyset` and `software` are its own; `nonce` is the owner's. `engine` is
    what the job asks for.
    """

    job: bytes
    nonce: bytes
    plan: bytes
    base: bytes
    world: int
    boot: int
    keyset: bytes
    software: bytes
    engine: Engine


@dataclass(frozen=True, slots=True)
class SeatOffer:
    """
    What one seat says of itself: ranks, TLS key, engine of its links, evidence. Hostile.

    `key` is the SHA-256 of the SPKI, None where one seat has all ranks.
    """

    ranks: int
    key: bytes | None
    engine: Engine
    evidence: EvidenceBundle


@dataclass(frozen=True, slots=True)
class Seat:
    """What was proven of one seat: ranks, keys, engine, machine, GPUs (UEIDs), evidence."""

    first: int
    ranks: int
    key: bytes | None
    engine: Engine
    keyset: bytes
    machine: bytes
    gpus: tuple[str, ...]
    evidence: bytes


@dataclass(frozen=True, slots=True)
class AdmittedSeats:
    """
    Seats that were proven together, in order. Only `admit_seats` makes one.

    `nodes` hold the keysets to seal rows to.
    """

    seats: tuple[Seat, ...]
    nodes: tuple[VerifiedNode, ...]
    findings: tuple[Finding, ...] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `admit_seats`."""
        if seal is not _SEAL:
            raise TypeError("only admit_seats makes AdmittedSeats")

    def seat_of(self, rank: int) -> Seat:
        """Return the seat that has `rank`; `LookupError` for none."""
        return next(each for each in self.seats if each.first <= rank < each.first + each.ranks)


@dataclass(slots=True)
class _State:
    seating: Seating
    offers: Sequence[SeatOffer]
    expectation: Expectation | None
    roots: Roots
    now: datetime
    known: Known
    nested: list[Finding] = field(default_factory=list)
    # What earlier steps established; a step that needs one lists that step in `needs`.
    nodes: list[VerifiedNode] = field(default_factory=list)


def seat_claim(
    seating: Seating, *, seat: int, first: int, ranks: int, key: bytes | None, engine: Engine
) -> bytes:
    """Return the claim with which a seat is proven (4.2)."""
    document: JsonValue = {
        "type": _TYPE,
        "job": seating.job.hex(),
        "plan": seating.plan.hex(),
        "boot": seating.boot,
        "seat": seat,
        "first": first,
        "ranks": ranks,
        "world": seating.world,
        "key": None if key is None else key.hex(),
        "engine": engine,
    }
    return hashlib.sha256(jcs(document)).digest()


def seat_nonce(nonce: bytes, *, boot: int, seat: int) -> bytes:
    """Return the nonce of the evidence of a seat; `nonce` is the owner's."""
    return hashlib.sha256(_NONCE + nonce + u64(boot) + u64(seat)).digest()


def admit_seats(
    seating: Seating,
    offers: Sequence[SeatOffer],
    *,
    expectation: Expectation,
    roots: Roots,
    now: datetime,
    known: Known | None = None,
) -> AdmittedSeats:
    """
    Admit `offers`, in the order of their ranks, to the job of `seating`: all, or none.

    Performs seat/1 to seat/5. The caller releases nothing to anybody before, and afterwards only
    to the keysets and TLS keys in the result. Raises `TrainingRejected` with every finding.
    """
    if not 1 <= len(offers) <= MAX_SEATS:
        raise _rejected("seat/4", f"{len(offers)} seats")
    state = _State(seating, offers, expectation, roots, now, known or Known())
    findings = run_steps(SEAT_STEPS, state, subject="seats")
    everything = (*findings, *state.nested)
    if any(finding.status is not Status.PASS for finding in findings):
        raise TrainingRejected(everything)
    return AdmittedSeats(_proven(state), tuple(state.nodes), everything, seal=_SEAL)


def _proven(state: _State) -> tuple[Seat, ...]:
    seats: list[Seat] = []
    for offer, node in zip(state.offers, state.nodes, strict=True):
        first = sum(each.ranks for each in seats)
        gpus = _gpus(node)
        seats.append(
            Seat(
                first=first,
                ranks=offer.ranks,
                key=offer.key,
                engine=offer.engine,
                keyset=node.keyset.digest,
                machine=machine_digest(node.platform, gpus),
                gpus=gpus,
                evidence=node.evidence,
            )
        )
    return tuple(seats)


def _gpus(node: VerifiedNode) -> tuple[str, ...]:
    return tuple(device.ueid for device in established(node.gpus).devices)


def _step_1(state: _State) -> str:
    """Each seat is as the Expectation wants it, and quoted this claim and nonce."""
    seating, first = state.seating, 0
    for seat, offer in enumerate(state.offers):
        claim = seat_claim(
            seating,
            seat=seat,
            first=first,
            ranks=offer.ranks,
            key=offer.key,
            engine=offer.engine,
        )
        first += offer.ranks
        node = appraise_held(
            state,
            offer.evidence,
            subject=f"training-node (boot {seating.boot}, seat {seat})",
            role="model",
            purpose="claim",
            nonce=seat_nonce(seating.nonce, boot=seating.boot, seat=seat),
            claim=claim,
            now=state.now,
        )
        state.nodes.append(node)
    return f"{len(state.nodes)} seats"


def _step_2(state: _State) -> str:
    wanted = run_commitment(RUN_EVENT, run=state.seating.job, digest=state.seating.plan)
    for node in state.nodes:
        if not node.events.has_run_event(RUN_EVENT, wanted):
            raise Refused(Reason.TRAINING_PLAN, "RTMR3 of a seat does not hold this job and plan")
    return state.seating.plan.hex()


def _step_3(state: _State) -> str:
    for node in state.nodes:
        model = node.events.model
        if model is None or model.weights != state.seating.base:
            raise Refused(Reason.MODEL_MISMATCH, "a seat measured another base model")
        if node.events.node.software != state.seating.software:
            raise Refused(Reason.NODE_SOFTWARE_MISMATCH, "a seat runs other software than seat 0")
    return state.seating.base.hex()


def _step_4(state: _State) -> str:
    counts, world = [offer.ranks for offer in state.offers], state.seating.world
    if any(count < 1 for count in counts) or sum(counts) != world:
        raise Refused(Reason.TRAINING_MACHINE, "the seats do not have all ranks once each")
    if any((offer.key is None) != (len(counts) == 1) for offer in state.offers):
        raise Refused(Reason.TRAINING_MACHINE, "seats have TLS keys exactly where there are more")
    if any(offer.engine != state.seating.engine for offer in state.offers):
        raise Refused(Reason.TRAINING_MACHINE, "a seat links its ranks by another engine")
    if state.seating.engine != "ring" and len(counts) == 1:
        raise Refused(Reason.TRAINING_MACHINE, "one seat has no links to other seats")
    if state.nodes[0].keyset.digest != state.seating.keyset:
        raise Refused(Reason.TRAINING_MACHINE, "seat 0 is another node than the one of the job")
    return f"{world} ranks"


def _step_5(state: _State) -> str:
    keysets = [node.keyset.digest for node in state.nodes]
    keys = [offer.key for offer in state.offers]
    gpus = [gpu for node in state.nodes for gpu in _gpus(node)]
    for what, each in (("keyset", keysets), ("TLS key", keys), ("GPU", gpus)):
        if len(set(each)) != len(each):
            raise Refused(Reason.TRAINING_MACHINE, f"one {what} serves two seats")
    return f"{len(keysets)} keysets, {len(gpus)} GPUs"


def _rejected(step: str, detail: str) -> TrainingRejected:
    reason = Reason.TRAINING_MACHINE
    return TrainingRejected((Finding(Status.FAIL, step, _DOC, "seats", detail, reason),))


def _steps() -> tuple[Step[_State], ...]:
    def step(number: int, run: Callable[[_State], str], *needs: int) -> Step[_State]:
        return Step(f"seat/{number}", _DOC, run, tuple(f"seat/{need}" for need in needs))

    return (
        step(1, _step_1),
        step(2, _step_2, 1),
        step(3, _step_3, 1),
        step(4, _step_4, 1),
        step(5, _step_5, 1),
    )


SEAT_STEPS = _steps()
