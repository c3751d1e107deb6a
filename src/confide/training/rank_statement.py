"""The statement `ranks` beside a training record: which seats of which boots trained. Pure.

Clause: docs/protocols/training-ranks.md 5.1. Bytes to value and back; believes nothing
(`rank_verify` does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.training.predicates import HARDWARE as ATTRIBUTES
from confide.training.predicates import SCAI, Descriptor, about_one, read_attribute
from confide.training.ranks import Seat
from confide.training.shares import ENGINES, MAX_SEATS, MAX_WORLD
from confide.wire.dsse import encode_statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.wire.json import JsonValue

__all__ = ["encode_ranks", "parse_ranks"]

_MAX_BOOTS: Final = 16
_MAX_GPUS: Final = 16

_Boots = tuple[tuple[Seat, ...], ...]


def encode_ranks(merged: bytes, boots: Sequence[Sequence[Seat]]) -> bytes:
    """Return the SCAI statement about `merged` (digest of the output): each boot's seats."""
    attributes = [
        attribute
        for boot, seats in enumerate(boots)
        for number, seat in enumerate(seats)
        for attribute in _attributes(f"boot/{boot}/seat/{number}", seat)
    ]
    return encode_statement(SCAI, (("merged", merged),), {"attributes": attributes})


def _attributes(target: str, seat: Seat) -> list[JsonValue]:
    conditions: tuple[dict[str, JsonValue], ...] = (
        {
            "machine": seat.machine.hex(),
            "first": seat.first,
            "ranks": seat.ranks,
            "key": None if seat.key is None else seat.key.hex(),
            "engine": seat.engine,
        },
        {"gpus": list(seat.gpus)},
    )
    return [
        {
            "attribute": name,
            "target": Descriptor(target, seat.keyset).document(),
            "conditions": condition,
            "evidence": Descriptor("evidence", seat.evidence).document(),
        }
        for name, condition in zip(ATTRIBUTES, conditions, strict=True)
    ]


def parse_ranks(payload: bytes) -> tuple[bytes, _Boots]:
    """Return what `encode_ranks` was given. Raises `FormatError`; believes nothing."""
    subject, predicate = about_one(payload, SCAI, "merged")
    items = predicate.items("attributes", max_items=2 * _MAX_BOOTS * MAX_SEATS)
    predicate.end()
    if not items or len(items) % 2:
        predicate.refuse("the attributes are not two for each seat")
    boots: list[list[Seat]] = []
    for at in range(0, len(items), 2):
        seat, is_first = _read_seat(items[at : at + 2], boots)
        if is_first:
            boots.append([])
        boots[-1].append(seat)
    return subject, tuple(map(tuple, boots))


def _read_seat(pair: Sequence[JsonValue], before: Sequence[Sequence[Seat]]) -> tuple[Seat, bool]:
    """Read two attributes: of the next seat of the last boot, or the first one of the next."""
    next_boot = f"boot/{len(before)}/seat/0"
    is_first = not before or _target(pair[0]) == next_boot
    target = next_boot if is_first else f"boot/{len(before) - 1}/seat/{len(before[-1])}"
    tdx, gpu = (
        read_attribute(value, name, target) for value, name in zip(pair, ATTRIBUTES, strict=True)
    )
    seat = Seat(
        first=tdx[2].integer("first", high=MAX_WORLD - 1),
        ranks=tdx[2].integer("ranks", low=1, high=MAX_WORLD),
        key=None if tdx[2].null("key") else tdx[2].hexes("key", 32),
        engine=tdx[2].choice("engine", ENGINES),
        keyset=tdx[0],
        machine=tdx[2].hexes("machine", 32),
        gpus=gpu[2].texts("gpus", max_items=_MAX_GPUS),
        evidence=tdx[1],
    )
    tdx[2].end()
    gpu[2].end()
    if tdx[:2] != gpu[:2]:
        tdx[2].refuse("the two attributes of a seat differ in keyset or evidence")
    return seat, is_first


def _target(value: JsonValue) -> JsonValue:
    """Return the name of the target, where there is one: only to tell where a boot begins."""
    target = value.get("target") if isinstance(value, dict) else None
    return target.get("name") if isinstance(target, dict) else None
