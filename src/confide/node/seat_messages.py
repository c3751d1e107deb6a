"""What two training nodes say to each other about a seat, inside the sealed channel. Pure.

docs/protocols/training-ranks.md 4.7. Each side takes the other's words as hostile: what counts is
the evidence among them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from confide.errors import Reason, Unavailable
from confide.trainer.order_form import data_value, read_data_name
from confide.training.plan import parse_plan
from confide.training.ranks import SeatOffer
from confide.training.recipe_file import parse_recipe
from confide.training.rows import MAX_ROWS
from confide.training.shares import ENGINES, MAX_SEATS, MAX_WORLD
from confide.wire.evidence import evidence_document, parse_evidence_file
from confide.wire.json import JsonLimits, JsonValue, Members, b64encode, jcs, parse_json

if TYPE_CHECKING:
    from confide.trainer.order_form import DataName
    from confide.training.plan import TrainingPlan
    from confide.training.recipe import Recipe
    from confide.training.shares import Engine
    from confide.wire.evidence import EvidenceBundle

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_THREADS",
    "SEATS",
    "Cluster",
    "SeatAdmission",
    "SeatFault",
    "SeatInvitation",
    "SeatOrder",
    "TakenSeat",
    "parse_admission",
    "parse_invitation",
    "parse_seat_order",
    "parse_taken_seat",
]

SEATS: Final = "/v1/seats"
MAX_THREADS: Final = 1024
# The evidence of 64 seats with a GPU each, and room.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
_REASON: Final = Reason.TRAINING_FORMAT
_TYPE: Final = "confide/training-seat/v1"
_MAX_HOST: Final = 253
_MAX_RECIPE_CHARS: Final = 1024 * 1024


class SeatFault(Unavailable):
    """Another node does not sit at this job: `seat_refused`, or not any more: `seat_lost`."""

    def __init__(self, code: Literal["seat_refused", "seat_lost"], message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class SeatInvitation:
    """
    Which seat of which job is offered. `expectation` is in its canonical form.

    `nonce` is the owner's, `keyset` the one of seat 0; `threads` are those of every rank.
    """

    expectation: bytes
    job: bytes
    nonce: bytes
    plan: TrainingPlan
    keyset: bytes
    boot: int
    seat: int
    first: int
    ranks: int
    threads: int
    engine: Engine

    def encode(self) -> bytes:
        """Return the message."""
        return jcs(
            {
                "type": _TYPE,
                "expectation": b64encode(self.expectation),
                "job": self.job.hex(),
                "nonce": self.nonce.hex(),
                "plan": self.plan.value(),
                "keyset": self.keyset.hex(),
                "boot": self.boot,
                "seat": self.seat,
                "first": self.first,
                "ranks": self.ranks,
                "threads": self.threads,
                "engine": self.engine,
            }
        )


@dataclass(frozen=True, slots=True)
class TakenSeat:
    """What the invited node answers: its name for the seat, TLS key (x ‖ y), address, evidence."""

    id: str
    point: bytes
    address: tuple[str, int]
    evidence: EvidenceBundle

    def value(self) -> dict[str, JsonValue]:
        """Return the message as a value."""
        return {
            "id": self.id,
            "key": self.point.hex(),
            "address": _address(self.address),
            "evidence": evidence_document(self.evidence),
        }


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a Ray cluster is found, and the token that it asks of everybody (6.3)."""

    address: tuple[str, int]
    token: bytes = field(repr=False)

    def value(self) -> JsonValue:
        """Return it as part of a message."""
        return {"address": _address(self.address), "token": self.token.hex()}


@dataclass(frozen=True, slots=True)
class SeatAdmission:
    """
    What every seat offered, and what one of them goes to its neighbours with. PEM.

    `after` is where the next seat listens; with Ray, `cluster` is where seat 0 does, and a secret.
    """

    offers: tuple[SeatOffer, ...]
    authority: str
    certificate: str
    after: tuple[str, int]
    cluster: Cluster | None = None

    def encode(self) -> bytes:
        """Return the message."""
        return jcs(
            {
                "offers": [
                    {
                        "ranks": offer.ranks,
                        "key": None if offer.key is None else offer.key.hex(),
                        "engine": offer.engine,
                        "evidence": evidence_document(offer.evidence),
                    }
                    for offer in self.offers
                ],
                "authority": self.authority,
                "certificate": self.certificate,
                "after": _address(self.after),
                "cluster": None if self.cluster is None else self.cluster.value(),
            }
        )


@dataclass(frozen=True, slots=True)
class SeatOrder:
    """What ranks train by; so many rows follow, a line each. No salt, no key, no recipient."""

    recipe: Recipe
    data: DataName
    validation: DataName | None
    rows: int
    validation_rows: int = field(default=0)

    def encode(self) -> bytes:
        """Return the message, without the line end."""
        return jcs(
            {
                "recipe": self.recipe.canonical().decode(),
                "data": data_value(self.data),
                "validation": None if self.validation is None else data_value(self.validation),
                "rows": self.rows,
                "validation_rows": self.validation_rows,
            }
        )


def parse_invitation(raw: bytes) -> SeatInvitation:
    """Read an invitation. Raises `FormatError`."""
    members = _members(raw, "seat invitation")
    members.choice("type", (_TYPE,))
    found = SeatInvitation(
        expectation=members.base64("expectation"),
        job=members.hexes("job", 32),
        nonce=members.hexes("nonce", 32),
        plan=parse_plan(members.value("plan")),
        keyset=members.hexes("keyset", 32),
        boot=members.integer("boot"),
        seat=members.integer("seat", low=1, high=MAX_SEATS - 1),
        first=members.integer("first", low=1, high=MAX_WORLD - 1),
        ranks=members.integer("ranks", low=1, high=MAX_WORLD),
        threads=members.integer("threads", low=1, high=MAX_THREADS),
        engine=members.choice("engine", ENGINES),
    )
    members.end()
    if found.first + found.ranks > found.plan.world:
        members.refuse("the ranks of the seat are not among those of the plan")
    return found


def parse_taken_seat(raw: bytes) -> TakenSeat:
    """Read the answer to an invitation. Raises `FormatError`."""
    members = _members(raw, "answer to a seat invitation")
    found = TakenSeat(
        id=members.hexes("id", 32).hex(),
        point=members.hexes("key", 64),
        address=_read_address(members.members("address")),
        evidence=parse_evidence_file(members.value("evidence")),
    )
    members.end()
    return found


def parse_admission(raw: bytes) -> SeatAdmission:
    """Read an admission. Raises `FormatError`."""
    members = _members(raw, "admission of seats")
    found = SeatAdmission(
        offers=tuple(
            _read_offer(Members(item, what="offer of a seat", reason=_REASON))
            for item in members.items("offers", max_items=MAX_SEATS)
        ),
        authority=members.text("authority"),
        certificate=members.text("certificate"),
        after=_read_address(members.members("after")),
        cluster=None if members.null("cluster") else _read_cluster(members.members("cluster")),
    )
    members.end()
    return found


def parse_seat_order(raw: bytes) -> SeatOrder:
    """Read the line before the rows. Raises `FormatError`."""
    members = _members(raw, "order of a seat")
    found = SeatOrder(
        recipe=parse_recipe(members.text("recipe", max_chars=_MAX_RECIPE_CHARS).encode()),
        data=read_data_name(members.members("data")),
        validation=None
        if members.null("validation")
        else read_data_name(members.members("validation")),
        rows=members.integer("rows", low=1, high=MAX_ROWS),
        validation_rows=members.integer("validation_rows", high=MAX_ROWS),
    )
    members.end()
    if (found.validation is None) != (found.validation_rows == 0):
        members.refuse("validation rows without a validation data set, or the other way round")
    return found


def _read_offer(members: Members) -> SeatOffer:
    offer = SeatOffer(
        ranks=members.integer("ranks", low=1, high=MAX_WORLD),
        key=None if members.null("key") else members.hexes("key", 32),
        engine=members.choice("engine", ENGINES),
        evidence=parse_evidence_file(members.value("evidence")),
    )
    members.end()
    return offer


def _read_cluster(members: Members) -> Cluster:
    found = Cluster(_read_address(members.members("address")), members.hexes("token", 32))
    members.end()
    return found


def _members(raw: bytes, what: str) -> Members:
    limits = JsonLimits(max_bytes=MAX_MESSAGE_BYTES)
    return Members(
        parse_json(raw, what=what, reason=_REASON, limits=limits), what=what, reason=_REASON
    )


def _address(address: tuple[str, int]) -> JsonValue:
    return {"host": address[0], "port": address[1]}


def _read_address(members: Members) -> tuple[str, int]:
    address = (
        members.text("host", max_chars=_MAX_HOST),
        members.integer("port", low=1, high=65535),
    )
    members.end()
    return address
