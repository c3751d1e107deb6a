"""What node and broker say to each other about a sealed state. Bytes to values and back. Pure.

Clause: docs/protocols/state.md §4. `raw` is hostile on both ends. A MAC says that whoever sent a
body holds the secret of that lease; it says nothing about which lease is open.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.errors import FormatError, Reason
from confide.wire.json import Members, jcs, parse_json
from confide.wire.release_receipt import NO_STATE

if TYPE_CHECKING:
    from collections.abc import Iterable


__all__ = [
    "CLOSE_LABEL",
    "ID_BYTES",
    "LEASE_HEADER",
    "MAX_CLOSE_BYTES",
    "MAX_HEAD_BYTES",
    "MAX_SAVE_BYTES",
    "MAX_STATE_BYTES",
    "SAVE_LABEL",
    "SECRET_BYTES",
    "OpenAnswer",
    "SaveAnswer",
    "SaveHead",
    "encode_close",
    "lease_mac",
    "parse_close",
    "parse_head_size",
    "parse_open_answer",
    "parse_save_answer",
    "parse_save_head",
]

# From: state.md 1.4 and 4.8: 64 MiB of files, and what packing and sealing add.
MAX_STATE_BYTES: Final = 65 * 1024 * 1024
MAX_HEAD_BYTES: Final = 1024
MAX_SAVE_BYTES: Final = 4 + MAX_HEAD_BYTES + MAX_STATE_BYTES
MAX_CLOSE_BYTES: Final = 1024
ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
LEASE_HEADER: Final = "confide-lease"
SAVE_LABEL: Final = b"confide/state-save/v1\0"
CLOSE_LABEL: Final = b"confide/state-close/v1\0"
_CLAUSE: Final = "docs/protocols/state.md#4.2"
_REASON: Final = Reason.BROKER_FORMAT


@dataclass(frozen=True, slots=True)
class OpenAnswer:
    """What opens a state, and the lease under which it is saved. `until` is in Unix seconds."""

    counter: int
    digest: bytes
    lease: bytes
    until: int
    key: bytes = field(repr=False)
    lease_secret: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the JSON. Secret: it travels inside a JWE alone."""
        return jcs(
            {
                "counter": self.counter,
                "digest": self.digest.hex(),
                "key": self.key.hex(),
                "lease": self.lease.hex(),
                "lease_secret": self.lease_secret.hex(),
                "until": self.until,
            }
        )


def parse_open_answer(raw: bytes) -> OpenAnswer:
    """Parse what a JWE of the broker held. Raises `FormatError` with BROKER_FORMAT."""
    members = _members(raw, "answer to an opening")
    answer = OpenAnswer(
        counter=members.integer("counter"),
        digest=members.hexes("digest", 32),
        lease=members.hexes("lease", ID_BYTES),
        until=members.integer("until"),
        key=members.hexes("key", SECRET_BYTES),
        lease_secret=members.hexes("lease_secret", SECRET_BYTES),
    )
    members.end()
    if (answer.counter == 0) != (answer.digest == NO_STATE):
        members.refuse("a counter without a state, or a state without a counter")
    return answer


@dataclass(frozen=True, slots=True)
class SaveHead:
    """What a save says about itself: the lease it is made under, and what it becomes."""

    lease: bytes
    counter: int
    digest: bytes

    def encode(self) -> bytes:
        """Return the head of a save body: `u32 length ‖ JSON`; the sealed state follows."""
        said = {
            "counter": self.counter,
            "digest": self.digest.hex(),
            "lease": self.lease.hex(),
        }
        raw = jcs(said)
        return len(raw).to_bytes(4, "big") + raw


def parse_head_size(raw: bytes) -> int:
    """Return the length of the JSON from the first four bytes of a save body. `FormatError`."""
    size = int.from_bytes(raw, "big")
    if len(raw) != 4 or not 0 < size <= MAX_HEAD_BYTES:
        raise FormatError(
            f"save body: a head of more than {MAX_HEAD_BYTES} bytes, or none",
            reason=_REASON,
            clause=_CLAUSE,
        )
    return size


def parse_save_head(raw: bytes) -> SaveHead:
    """Parse the JSON of a save body. Raises `FormatError` with BROKER_FORMAT."""
    members = _members(raw, "save body")
    head = SaveHead(
        lease=members.hexes("lease", ID_BYTES),
        counter=members.integer("counter", low=1),
        digest=members.hexes("digest", 32),
    )
    members.end()
    return head


@dataclass(frozen=True, slots=True)
class SaveAnswer:
    """What was saved: its counter, its digest."""

    counter: int
    digest: bytes

    def encode(self) -> bytes:
        """Return the JSON."""
        return jcs({"counter": self.counter, "digest": self.digest.hex()})


def parse_save_answer(raw: bytes) -> SaveAnswer:
    """Parse the answer to a save. Raises `FormatError` with BROKER_FORMAT."""
    members = _members(raw, "answer to a save")
    answer = SaveAnswer(members.integer("counter", low=1), members.hexes("digest", 32))
    members.end()
    return answer


def encode_close(lease: bytes) -> bytes:
    """Return the body that gives `lease` back."""
    return jcs({"lease": lease.hex()})


def parse_close(raw: bytes) -> bytes:
    """Return the lease that a body gives back. Raises `FormatError` with BROKER_FORMAT."""
    members = _members(raw, "close body")
    lease = members.hexes("lease", ID_BYTES)
    members.end()
    return lease


def lease_mac(secret: bytes, label: bytes, pieces: Iterable[bytes | memoryview]) -> bytes:
    """Return HMAC-SHA-256 over `label` and a body, given in pieces (4.2)."""
    mac = hmac.new(secret, label, hashlib.sha256)
    for piece in pieces:
        mac.update(piece)
    return mac.digest()


def _members(raw: bytes, what: str) -> Members:
    return Members(parse_json(raw, what=what, reason=_REASON), what=what, reason=_REASON)
