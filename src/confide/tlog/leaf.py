"""Blinded entries: what the log holds of a receipt, and how its holder opens it. log.md §1. Pure.

Randomness is an argument. The log's readers learn nothing from an entry but that there is one.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from confide.errors import LogRejected, Reason
from confide.rats import Finding, Status

__all__ = ["BLINDING_BYTES", "ENTRY_BYTES", "LeafOpening", "open_entry"]

# From: log.md 1.1.
BLINDING_BYTES = 32
ENTRY_BYTES = 32
_DOMAIN: Final = b"confide/log-entry/v1\0"
_CLAUSE: Final = "docs/protocols/log.md#1.4"


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


def open_entry(entry: bytes, *, blinding: bytes, digest: bytes) -> LeafOpening:
    """
    Establish that `entry` commits to `digest` under `blinding`.

    Raises `LogRejected` with `tlog-leaf`. **Does not check** that the entry is in any log.
    """
    if len(blinding) == BLINDING_BYTES and len(digest) == 32:
        opening = LeafOpening(blinding, digest)
        if hmac.compare_digest(opening.entry, entry):
            return opening
    detail = "blinding and digest do not give the entry"
    raise LogRejected(
        (Finding(Status.FAIL, "log-leaf/1", _CLAUSE, "log entry", detail, Reason.TLOG_LEAF),)
    )
