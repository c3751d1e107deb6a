"""Blinded entries: what the log holds of a receipt, and how its holder opens it. log.md §1. Pure.

Randomness is an argument. The log's readers learn nothing from an entry but that there is one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from confide.errors import Reason
from confide.wire.checkpoint import parse_decimal
from confide.wire.json import Members, jcs, parse_json

__all__ = [
    "BLINDING_BYTES",
    "ENTRY_BYTES",
    "LeafOpening",
    "PendingEntry",
    "parse_pending",
]

# From: log.md 1.1.
BLINDING_BYTES = 32
ENTRY_BYTES = 32
_DOMAIN: Final = b"confide/log-entry/v1\0"
_PENDING: Final = "confide/log-pending/v1"


@dataclass(frozen=True, slots=True)
class LeafOpening:
    """What opens one entry: its blinding and the digest of what was logged. Keep it with both."""

    blinding: bytes = field(repr=False)
    digest: bytes

    def __post_init__(self) -> None:
        if len(self.blinding) != BLINDING_BYTES or len(self.digest) != 32:
            raise ValueError("a blinding and a digest have 32 bytes each")

    @property
    def entry(self) -> bytes:
        """The 32 bytes that go into the log."""
        return hashlib.sha256(_DOMAIN + self.blinding + self.digest).digest()


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """
    An entry that is not final yet: sent or to be sent, at `index` where the log took it.

    `policy` is the SHA-256 of the policy file under which it is to become final: an index means
    something in one log only. Whoever loses the opening can log the digest again, and never prove
    this entry.
    """

    opening: LeafOpening
    policy: bytes
    index: int | None = None

    def encode(self) -> bytes:
        """Return what to keep until the entry is final."""
        return jcs(
            {
                "type": _PENDING,
                "blinding": self.opening.blinding.hex(),
                "digest": self.opening.digest.hex(),
                "policy": self.policy.hex(),
                "index": None if self.index is None else str(self.index),
            }
        )


def parse_pending(raw: bytes) -> PendingEntry:
    """Parse what `PendingEntry.encode` returned. Raises `FormatError`."""
    value = parse_json(raw, what="pending log entry", reason=Reason.TLOG_FORMAT)
    members = Members(value, what="pending log entry", reason=Reason.TLOG_FORMAT)
    members.choice("type", (_PENDING,))
    opening = LeafOpening(members.hexes("blinding", 32), members.hexes("digest", 32))
    policy = members.hexes("policy", 32)
    index = None
    if not members.null("index"):
        index = parse_decimal(members.text("index"), what="pending log entry index")
    members.end()
    return PendingEntry(opening, policy, index)
