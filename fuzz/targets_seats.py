"""Targets: what training nodes say to each other of seats. docs/protocols/training-ranks.md 4.7."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from trainings import train

from confide.node.seat_messages import (
    Cluster,
    SeatAdmission,
    SeatInvitation,
    SeatOrder,
    TakenSeat,
    parse_admission,
    parse_invitation,
    parse_seat_order,
    parse_taken_seat,
)
from confide.trainer.order_form import DataName
from confide.training.plan import TrainingPlan
from confide.training.ranks import SeatOffer
from confide.training.recipe_file import parse_recipe_toml
from confide.wire.json import jcs
from fuzz.driver import Target

if TYPE_CHECKING:
    from confide.wire.evidence import EvidenceBundle

_RECIPE = parse_recipe_toml('base_model = "tiny"\nlearning_rate = 1e-3\n')
_ROWS = DataName("completion", bytes(32), bytes(32))
_PLAN = TrainingPlan(_RECIPE.digest, bytes(32), None, bytes(32), bytes(32), None, world=3)
_INVITATION = SeatInvitation(b"{}", bytes(32), bytes(32), _PLAN, bytes(32), 0, 1, 1, 2, 1, "ray")
_ORDER = SeatOrder(_RECIPE, _ROWS, _ROWS, 3, 1)


@cache
def _evidence() -> EvidenceBundle:
    return train().file.after


@cache
def _taken() -> tuple[bytes, ...]:
    taken = TakenSeat("11" * 32, bytes(64), ("127.0.0.1", 4000), _evidence())
    return (jcs(taken.value()),)


@cache
def _admission() -> tuple[bytes, ...]:
    offers = (SeatOffer(1, None, "ring", _evidence()), SeatOffer(2, bytes(32), "ray", _evidence()))
    told = SeatAdmission(offers, "authority", "certificate", ("127.0.0.1", 4000))
    clustered = replace(told, cluster=Cluster(("127.0.0.1", 4001), bytes(32)))
    return told.encode(), clustered.encode()


def _read_invitation(raw: bytes) -> None:
    found = parse_invitation(raw)
    assert parse_invitation(found.encode()) == found
    assert found.first + found.ranks <= found.plan.world


def _read_taken(raw: bytes) -> None:
    found = parse_taken_seat(raw)
    assert parse_taken_seat(jcs(found.value())) == found


def _read_admission(raw: bytes) -> None:
    found = parse_admission(raw)
    assert parse_admission(found.encode()) == found


def _read_order(raw: bytes) -> None:
    found = parse_seat_order(raw)
    assert parse_seat_order(found.encode()) == found


SEAT_TARGETS = (
    Target("seat-invitation", _read_invitation, lambda: (_INVITATION.encode(),), json_values=True),
    Target("seat-taken", _read_taken, _taken, json_values=True),
    Target("seat-admission", _read_admission, _admission, json_values=True),
    Target("seat-order", _read_order, lambda: (_ORDER.encode(),), json_values=True),
)
