"""Runtime event log of RTMR3: typed events whose digests are recomputed, never believed.

Format: docs/protocols/eventlog.md §1, the JSON log of dstack (version 1 and 2 digests). Our own
nodes write version 2. `raw` is hostile: the quote, not the log, is signed. Replaying and reading
meaning out of the log is `appraisal/eventlog.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from confide.errors import FormatError, Reason
from confide.wire.json import JsonValue, Members, jcs

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "RUNTIME_EVENT_TYPE",
    "LogEntry",
    "RuntimeEvent",
    "encode_log",
    "extend_register",
    "parse_log",
]

# From: docs/protocols/eventlog.md §1.2 (dstack `DSTACK_RUNTIME_EVENT_TYPE`).
RUNTIME_EVENT_TYPE = 0x08000001
_RUNTIME_REGISTER = 3
_MAX_ENTRIES = 16_384
_CLAUSE = "docs/protocols/eventlog.md#1"


def extend_register(register: bytes, digest: bytes) -> bytes:
    """Return SHA-384(`register` ‖ `digest`), both 48 bytes: what the TDX module does."""
    return hashlib.sha384(register + digest).digest()


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """
    An event that software extends into RTMR3: a name and the exact payload bytes.

    `version` is the form of the digest that was extended; our own nodes write 2.
    """

    name: str
    payload: bytes
    version: Literal[1, 2] = 2

    def preimage(self) -> bytes:
        """Return the version 2 preimage: canonical JSON of name, payload and type."""
        return jcs({"name": self.name, "payload": self.payload.hex(), "type": RUNTIME_EVENT_TYPE})

    def digest(self, version: Literal[1, 2] | None = None) -> bytes:
        """Return the 48-byte digest that is extended, in its own form or in `version`."""
        if (version or self.version) == 2:
            return hashlib.sha384(self.preimage()).digest()
        head = RUNTIME_EVENT_TYPE.to_bytes(4, "little")
        return hashlib.sha384(b":".join((head, self.name.encode(), self.payload))).digest()


@dataclass(frozen=True, slots=True)
class LogEntry:
    """
    One parsed entry.

    `register` is 0..3. `digest` is the supplied one, empty where none was given; for runtime
    events it is only ever compared with the recomputed one. `event` is an unauthenticated label
    unless `event_type` is RUNTIME_EVENT_TYPE.
    """

    register: int
    event_type: int
    digest: bytes
    event: RuntimeEvent
    version: Literal[1, 2]
    preimage: bytes | None


def encode_log(events: Sequence[RuntimeEvent]) -> list[JsonValue]:
    """Return the JSON entries of `events`, all extended into RTMR3, each in its own form."""
    return [
        {
            "imr": 3,
            "event_type": RUNTIME_EVENT_TYPE,
            "digest": event.digest().hex(),
            "event": event.name,
            "event_payload": event.payload.hex(),
            "version": event.version,
            **({"preimage": event.preimage().hex()} if event.version == 2 else {}),
        }
        for event in events
    ]


def parse_log(value: JsonValue) -> tuple[LogEntry, ...]:
    """
    Parse the JSON array of a runtime log.

    Raises `FormatError` with LOG_FORMAT, or LOG_REGISTER for a register outside 0..3.
    Does not check digests, order or meaning, nor the type of what stands in register 3.
    """
    if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
        raise FormatError(
            f"runtime log: not an array of at most {_MAX_ENTRIES} entries",
            reason=Reason.LOG_FORMAT,
            clause=_CLAUSE,
        )
    return tuple(_parse_entry(entry, index) for index, entry in enumerate(value))


def _parse_entry(value: JsonValue, index: int) -> LogEntry:
    entry = Members(value, what=f"runtime log entry {index}", reason=Reason.LOG_FORMAT)
    # Any other number is a register that does not exist, not a malformed log.
    register = entry.integer("imr", low=-(2**53))
    if not 0 <= register <= _RUNTIME_REGISTER:
        raise FormatError(
            f"runtime log entry {index}: register {register}",
            reason=Reason.LOG_REGISTER,
            clause=_CLAUSE,
        )
    event_type = entry.integer("event_type", high=0xFFFFFFFF)
    digest = entry.hexes("digest")
    # In register 3 another type is refused by the replay, with or without a digest.
    recomputed = event_type == RUNTIME_EVENT_TYPE or register == _RUNTIME_REGISTER
    if len(digest) not in ((0, 48) if recomputed else (48,)):
        entry.refuse(f"digest of {len(digest)} bytes")
    name = entry.text("event", max_chars=256)
    if not name.isprintable():
        entry.refuse("event name is not printable")
    payload = entry.hexes("event_payload")
    version: Literal[1, 2] = 1
    if entry.has("version") and not entry.null("version"):
        version = 2 if entry.integer("version", low=1, high=2) == 2 else 1
    preimage = None
    if entry.has("preimage") and not entry.null("preimage"):
        # Version 1 has no preimage; an empty one says no more than none.
        preimage = entry.hexes("preimage") or (None if version == 1 else b"")
    entry.end()
    event = RuntimeEvent(name, payload, version)
    return LogEntry(register, event_type, digest, event, version, preimage)
