"""The ordered transcript of a run: typed events under a hash chain. Pure.

Clauses: docs/protocols/receipt.md §2. Events hold digests, sizes and verdicts, never content.
Each kind has a closed set of members, so that a transcript says nothing its reader did not
understand. The chain is what evidence commits to; removing, adding or changing one event changes
the head.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from confide.errors import FormatError, LocalProtocolError, Reason
from confide.wire.json import JsonValue, Members, jcs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "COMPLETED",
    "GENESIS",
    "MAX_EVENTS",
    "RESULTS",
    "Event",
    "Field",
    "Transcript",
    "make_event",
    "parse_events",
    "transcript_head",
]

_DOMAIN = b"confide/transcript/v1\0"
GENESIS = bytes(32)
# A run of a chatty agent: tens of thousands of calls. The node refuses more (LIMIT_EXCEEDED).
MAX_EVENTS = 1 << 20

Field: TypeAlias = "bytes | int | str | bool | None"

# From: docs/protocols/receipt.md §2.2. Kind to member to type; `digest?` may be null.
_KINDS: dict[str, dict[str, str]] = {
    "run-started": {"mode": "text", "image": "digest"},
    "model-verified": {"keyset": "digest", "evidence": "digest", "nonce": "digest"},
    "input": {"path": "digest", "sha256": "digest", "bytes": "int"},
    # From: docs/protocols/state.md 2.3, 2.4.
    "secret-released": {"name": "text", "version": "digest", "receipt": "digest"},
    "state-opened": {"counter": "int", "digest": "digest", "receipt": "digest"},
    "agent-started": {"image": "digest"},
    "turn-in": {"sha256": "digest", "bytes": "int"},
    "turn-out": {"sha256": "digest", "bytes": "int"},
    "model-call": {
        "endpoint": "text",
        "request": "digest",
        "response": "digest?",
        "status": "int",
        "outcome": "text",
        "receipt": "digest?",
    },
    "egress": {
        "via": "text",
        "destination": "text",
        "allowed": "bool",
        "outcome": "text",
        "bytes_up": "int",
        "bytes_down": "int",
    },
    "agent-exited": {"end": "text", "status": "int?", "egress_unreported": "int"},
    "console": {"stream": "text", "sha256": "digest", "bytes": "int", "truncated": "bool"},
    "output": {"path": "digest", "sha256": "digest", "bytes": "int"},
    "output-refused": {"outcome": "text"},
    "scrubbed": {"where": "text", "count": "int"},
    "state-left-out": {"outcome": "text"},
    "state-saved": {"counter": "int", "digest": "digest", "receipt": "digest"},
    "state-kept": {"reason": "text"},
    "model-closed": {"evidence": "digest", "claim": "digest", "receipts": "int"},
    "run-finished": {"result": "text"},
}

# From: docs/protocols/receipt.md §2.3. State to kind to next state: what may follow what.
_ORDER: dict[str, dict[str, str]] = {
    "new": {"run-started": "opened"},
    "opened": {"input": "opened", "model-verified": "ready"},
    "ready": {
        "input": "ready",
        "secret-released": "ready",
        "state-opened": "ready",
        "agent-started": "running",
    },
    "running": {
        "model-call": "running",
        "egress": "running",
        "turn-in": "running",
        "turn-out": "running",
        "agent-exited": "exited",
    },
    "exited": {
        "console": "exited",
        "output": "exited",
        "output-refused": "exited",
        "scrubbed": "exited",
        "state-left-out": "exited",
        "state-saved": "exited",
        "state-kept": "exited",
        "model-closed": "closed",
    },
    "closed": {},
    "finished": {},
}
COMPLETED = "completed"
# From: docs/protocols/receipt.md §2.4: how a run can end. Only `completed` needs the whole path.
RESULTS = (COMPLETED, "agent-failed", "agent-killed", "cancelled", "node-failed")


def _next_state(state: str, event: Event) -> str | None:
    if event.kind != "run-finished":
        return _ORDER[state].get(event.kind)
    result = event["result"]
    if state in ("new", "finished") or result not in RESULTS:
        return None
    return "finished" if state == "closed" or result != COMPLETED else None


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its kind and its members (digests as 32 bytes)."""

    kind: str
    members: tuple[tuple[str, Field], ...]

    def __getitem__(self, name: str) -> Field:
        """Return member `name`; `KeyError` where the kind has none."""
        return dict(self.members)[name]

    def digest(self, name: str) -> bytes:
        """Return member `name`, a digest that is present."""
        value = self[name]
        if not isinstance(value, bytes):
            raise TypeError(f"{name} is not a digest")
        return value

    def document(self, index: int) -> dict[str, JsonValue]:
        """Return the JSON document of this event at position `index`."""
        document: dict[str, JsonValue] = {"seq": index, "kind": self.kind}
        for name, value in self.members:
            document[name] = value.hex() if isinstance(value, bytes) else value
        return document


def make_event(kind: str, members: Mapping[str, Field]) -> Event:
    """Return an event; `ValueError` when `members` are not exactly those of `kind`."""
    expected = _KINDS[kind]
    if set(members) != set(expected):
        raise ValueError(f"{kind} has members {', '.join(expected)}")
    event = Event(kind, tuple((name, members[name]) for name in expected))
    _parse_event(event.document(0), 0)
    return event


def _advance(head: bytes, document: dict[str, JsonValue]) -> bytes:
    return hashlib.sha256(_DOMAIN + head + jcs(document)).digest()


class Transcript:
    """An append-only list of events with its running head. One writer."""

    __slots__ = ("_documents", "_events", "_head", "_state")

    def __init__(self) -> None:
        self._state = "new"
        self._events: list[Event] = []
        self._documents: list[JsonValue] = []
        self._head = GENESIS

    @property
    def head(self) -> bytes:
        """The 32-byte head over everything appended so far."""
        return self._head

    @property
    def finished(self) -> bool:
        """Whether `run-finished` stands at the end."""
        return self._state == "finished"

    @property
    def running(self) -> bool:
        """Whether the agent has started and not yet exited."""
        return self._state == "running"

    @property
    def events(self) -> tuple[Event, ...]:
        """The events in order."""
        return tuple(self._events)

    def append(self, kind: str, **members: Field) -> Event:
        """
        Append an event.

        Raises `ValueError` for members that are not those of `kind`, `LocalProtocolError` for an
        event that may not stand here.
        """
        if len(self._events) >= MAX_EVENTS:
            raise LocalProtocolError(f"more than {MAX_EVENTS} transcript events")
        event = make_event(kind, members)
        following = _next_state(self._state, event)
        if following is None:
            raise LocalProtocolError(f"{kind} may not follow in state {self._state}")
        self._state = following
        document = event.document(len(self._events))
        self._head = _advance(self._head, document)
        self._events.append(event)
        self._documents.append(document)
        return event

    def documents(self) -> list[JsonValue]:
        """The JSON documents in order."""
        return list(self._documents)


def transcript_head(events: Sequence[Event]) -> bytes:
    """Return the head over `events`."""
    head = GENESIS
    for index, event in enumerate(events):
        head = _advance(head, event.document(index))
    return head


def parse_events(items: list[JsonValue]) -> tuple[Event, ...]:
    """
    Parse a complete transcript: contiguous numbers, known kinds, exact members, lawful order.

    Raises `FormatError` with TRANSCRIPT_BROKEN.
    """
    events: list[Event] = []
    state = "new"
    for index, item in enumerate(items):
        event = _parse_event(item, index)
        following = _next_state(state, event)
        if following is None:
            raise _broken(f"event {index}: {event.kind} may not stand here")
        state = following
        events.append(event)
    if state != "finished":
        raise _broken("no run-finished at the end")
    return tuple(events)


def _broken(what: str) -> FormatError:
    return FormatError(
        f"transcript: {what}", reason=Reason.TRANSCRIPT_BROKEN, clause="docs/protocols/receipt.md#2"
    )


def _parse_event(value: JsonValue, index: int) -> Event:
    members = Members(value, what=f"transcript event {index}", reason=Reason.TRANSCRIPT_BROKEN)
    if members.integer("seq") != index:
        raise _broken(f"event {index}: another number stands there")
    kind = members.choice("kind", tuple(_KINDS))
    found = tuple(
        (name, _parse_field(members, name, field)) for name, field in _KINDS[kind].items()
    )
    members.end()
    return Event(kind, found)


def _parse_field(members: Members, name: str, field: str) -> Field:
    if field.endswith("?") and members.null(name):
        return None
    match field.rstrip("?"):
        case "digest":
            return members.hexes(name, 32)
        case "int":
            return members.integer(name, low=-(2**31))
        case "bool":
            return members.boolean(name)
        case _:
            return members.text(name, max_chars=512)
