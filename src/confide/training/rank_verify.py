"""Holding the seats that a training record names to their evidence: part of record/6. Pure.

Clause: docs/protocols/training-ranks.md 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from confide.appraisal.steps import Refused, established
from confide.errors import Reason, Rejected
from confide.training.boots import introductions
from confide.training.ranks import Seating, SeatOffer, admit_seats

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.appraisal.known import Known
    from confide.expectation import Expectation
    from confide.rats import Finding
    from confide.training.predicates import HardwareOfBoot
    from confide.training.ranks import Seat
    from confide.training.record import TrainingRecord
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle

__all__ = ["NamedSeats", "require_seats"]


class _Verifying(Protocol):
    roots: Roots
    now: datetime | None
    expectation: Expectation | None
    known: Known
    nested: list[Finding]


@dataclass(frozen=True, slots=True)
class NamedSeats:
    """Of each boot: the seats that the record names, and the evidence that came along. Hostile."""

    seats: Sequence[Sequence[Seat]]
    evidence: Sequence[Sequence[EvidenceBundle]]


def require_seats(
    state: _Verifying,
    record: TrainingRecord,
    named: NamedSeats,
    boots: Sequence[HardwareOfBoot],
) -> str:
    """
    Require that every rank of every boot was proven, in the seats that the record names.

    `boots` are proven: seat 0 of each has to be the boot itself. Raises `Refused` with the first
    reason; all findings go into `state`.
    """
    if record.plan.world == 1:
        if named.seats or named.evidence:
            raise Refused(Reason.TRAINING_MACHINE, "seats in a job of one rank")
        return "1 rank"
    counted = [len(seats) for seats in named.seats]
    if counted != [len(each) for each in named.evidence] or len(counted) != len(boots):
        raise Refused(Reason.TRAINING_MACHINE, "statement and evidence count other seats")
    for boot, index in enumerate(introductions(record.turns)):
        own = record.turns[index].at
        _require_boot(state, record, named, boots[boot], boot=boot, own=own)
    engine = named.seats[0][0].engine
    return f"{record.plan.world} ranks in {max(counted)} seat(s), linked by {engine}"


def _require_boot(
    state: _Verifying,
    record: TrainingRecord,
    named: NamedSeats,
    hardware: HardwareOfBoot,
    *,
    boot: int,
    own: datetime,
) -> None:
    seating = Seating(
        job=record.job,
        nonce=record.nonce,
        plan=record.plan.digest,
        base=record.plan.base,
        world=record.plan.world,
        boot=boot,
        keyset=hardware.keyset,
        software=record.software,
        # A job has one: that of its first boot.
        engine=named.seats[0][0].engine,
    )
    offers = [
        SeatOffer(seat.ranks, seat.key, seat.engine, bundle)
        for seat, bundle in zip(named.seats[boot], named.evidence[boot], strict=True)
    ]
    try:
        admitted = admit_seats(
            seating,
            offers,
            expectation=established(state.expectation),
            roots=state.roots,
            now=own if state.now is None else state.now,
            known=state.known,
        )
    except Rejected as error:
        state.nested.extend(error.findings)
        raise Refused(error.reason, str(error.failures[0])) from error
    state.nested.extend(admitted.findings)
    if admitted.seats != tuple(named.seats[boot]):
        raise Refused(Reason.TRAINING_MACHINE, "another seat than the statement names")
    if admitted.seats[0].machine != hardware.machine:
        raise Refused(Reason.TRAINING_MACHINE, "seat 0 is on another machine than its boot")
