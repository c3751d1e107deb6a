"""Targets: what node and broker say about sealed states. docs/protocols/state.md."""

from __future__ import annotations

import hashlib
import io
from functools import cache

import state_world as world

from confide.broker.lease import parse_state_record
from confide.broker.state_wire import (
    SAVE_LABEL,
    OpenAnswer,
    encode_close,
    lease_mac,
    parse_close,
    parse_head_size,
    parse_open_answer,
    parse_save_head,
)
from confide.errors import ReleaseRefused
from fuzz.driver import Target
from fuzz.pieces import fixed

_SEALED = b"a sealed state"


def _record(raw: bytes) -> None:
    record = parse_state_record(raw)
    assert parse_state_record(record.encode()) == record


def _open(raw: bytes) -> None:
    answer = parse_open_answer(raw)
    assert parse_open_answer(answer.encode()) == answer


@cache
def _records() -> tuple[bytes, ...]:
    place = world.World()
    desk = place.desk()
    found = []
    opened = world.open_at(desk, b"one")
    found.append(_stored(place))
    world.save_at(desk, opened, _SEALED)
    found.append(_stored(place))
    world.open_at(desk, b"two")
    return (*found, _stored(place))


def _stored(place: world.World) -> bytes:
    entry = place.store().get("state", world.RESOURCE)
    assert entry is not None
    return entry.value


@cache
def _opened() -> OpenAnswer:
    return world.open_at(world.World().desk(), b"one")


def _save_body(raw: bytes) -> None:
    """A body as it is, and one whose holder MACed whatever it is: what is saved is what it said."""
    place = world.World()
    desk = place.desk()
    opened = world.open_at(desk, b"one")
    try:
        desk.save(world.RESOURCE, io.BytesIO(raw), mac=hashlib.sha256(raw).digest())
    except ReleaseRefused:
        assert place.pieces() == 0
    mac = lease_mac(opened.lease_secret, SAVE_LABEL, [raw])
    answer = desk.save(world.RESOURCE, io.BytesIO(raw), mac=mac)
    state = raw[4 + parse_head_size(raw[:4]) :]
    assert (answer.counter, answer.digest) == (1, hashlib.sha256(state).digest())


def _bodies() -> tuple[bytes, ...]:
    return (world.save_body(_opened(), _SEALED)[0],)


def _heads() -> tuple[bytes, ...]:
    return tuple(raw[4 : 4 + parse_head_size(raw[:4])] for raw in _bodies())


BROKER_STATE_TARGETS: tuple[Target, ...] = (
    Target("state-record", _record, _records, json_values=True),
    Target("state-open-answer", _open, lambda: (_opened().encode(),), json_values=True),
    Target("state-save-head", parse_save_head, _heads, json_values=True),
    Target("state-save-body", _save_body, _bodies, tokens=(b"\0\0\0\x02{}", b'"counter":2')),
    Target("state-close-body", parse_close, fixed(encode_close(bytes(16))), json_values=True),
)
