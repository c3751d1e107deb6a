"""The one seat of a job whose ranks all run in this node: proven like any, for the record.

docs/protocols/training-ranks.md §4. Where other nodes join, `SeatParty.seat` is in its place.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from confide.training.ranks import Seating, SeatOffer, admit_seats, seat_claim, seat_nonce

if TYPE_CHECKING:
    from datetime import datetime

    from confide.expectation import Expectation
    from confide.node.identity import Identity
    from confide.training.boots import Turn
    from confide.training.plan import TrainingPlan
    from confide.training.ranks import AdmittedSeats
    from confide.training.shares import Engine
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle

__all__ = ["prove_only_seat", "seating_of"]


def seating_of(
    speaker: Identity,
    job: bytes,
    nonce: bytes,
    plan: TrainingPlan,
    turn: Turn,
    *,
    engine: Engine,
) -> Seating:
    """Return what seats are wanted for: `plan` in the boot that `turn` introduces, by `speaker`."""
    keyset = speaker.keys.keyset
    return Seating(
        job=job,
        nonce=nonce,
        plan=plan.digest,
        base=plan.base,
        world=plan.world,
        boot=turn.boot,
        keyset=keyset.digest,
        software=keyset.software,
        engine=engine,
    )


async def prove_only_seat(
    speaker: Identity,
    seating: Seating,
    plan: TrainingPlan,
    *,
    expectation: Expectation,
    roots: Roots,
    now: datetime,
) -> tuple[tuple[EvidenceBundle, ...], AdmittedSeats]:
    """
    Prove that all ranks of `plan` run here; return the evidence and what it proves.

    RTMR3 holds the job already. Raises `Rejected` where this node is not as `expectation` wants it,
    `Unavailable` where no evidence can be made.
    """
    bundle = await speaker.attester.attest(
        purpose="claim",
        nonce=seat_nonce(seating.nonce, boot=seating.boot, seat=0),
        expectation=expectation.digest,
        claim=seat_claim(seating, seat=0, first=0, ranks=plan.world, key=None, engine="ring"),
    )
    offers = [SeatOffer(plan.world, None, "ring", bundle)]
    admitted = await asyncio.to_thread(
        admit_seats, seating, offers, expectation=expectation, roots=roots, now=now
    )
    return (bundle,), admitted
