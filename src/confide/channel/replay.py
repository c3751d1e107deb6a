"""The replay window of a node (channel.md §4): a request is admitted once, while it is new.

A plain value over a table of bytes: `now` is an argument and nothing else is read. The table may be
shared by several processes; then `guard` keeps them apart (4.5). It refuses rather than forgets.

The table is the latest instant seen, and buckets of slots: a tag of 8 bytes for each, then the
last second in which each is taken. A keyed hash says which bucket and which tag, so that nobody
can fill the bucket of somebody else. A slot is written tag first: a writer that dies in between
leaves it free, and the request that it was for was not admitted.
"""

from __future__ import annotations

import math
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from confide.errors import Reason, RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from datetime import datetime

__all__ = ["NONCE_BYTES", "ReplayPolicy", "ReplayWindow"]

# From: channel.md 4.1.
NONCE_BYTES = 32
_LATEST = struct.Struct("<d")
_BUCKET_SLOTS = 64
_TAG_BYTES = 8
_FREE_BYTES = 4


@dataclass(frozen=True, slots=True)
class ReplayPolicy:
    """
    How old or early a request may be, and how many slots there are for live nonces.

    300 s is the skew Kerberos allows (RFC 4120 §8.2). 2^20 slots are 12.6 MB, touched as they are
    used. At 1,500 requests a second, which one process does not reach, a bucket of 64 has 27
    taken on average, and more than 64 once in 10^9.
    """

    window_seconds: int = 300
    max_entries: int = 1 << 20

    def __post_init__(self) -> None:
        if self.window_seconds <= 0 or self.max_entries <= 0:
            raise ValueError("a replay window has a length and room")

    @property
    def table_bytes(self) -> int:
        """How large the table of such a window is."""
        return _LATEST.size + self.buckets * self.bucket_slots * (_TAG_BYTES + _FREE_BYTES)

    @property
    def bucket_slots(self) -> int:
        """How many slots one bucket has."""
        return min(self.max_entries, _BUCKET_SLOTS)

    @property
    def buckets(self) -> int:
        """How many buckets there are."""
        return self.max_entries // self.bucket_slots


class ReplayWindow:
    """
    The nonces that could still be presented again, of all keys; they are kept apart by key id.

    `secret` is 32 random bytes. `table` is of `policy.table_bytes`, zeros at first; whoever shares
    it shares `secret` and the lock that `guard` takes, or raises `Unavailable`.
    """

    __slots__ = ("_buckets", "_free", "_guard", "_secret", "_slots", "_table", "_window")

    def __init__(
        self,
        policy: ReplayPolicy,
        *,
        secret: bytes,
        table: memoryview | None = None,
        guard: AbstractContextManager[None] | None = None,
    ) -> None:
        self._table = memoryview(bytearray(policy.table_bytes)) if table is None else table
        if len(self._table) != policy.table_bytes or len(secret) != 32:
            raise ValueError("a replay window has a table of its size and a secret of 32 bytes")
        self._guard = guard or nullcontext()
        self._secret = secret
        self._window = float(policy.window_seconds)
        self._slots, self._buckets = policy.bucket_slots, policy.buckets
        self._free = struct.Struct(f"<{self._slots}I")

    def admit(self, key_id: int, nonce: bytes, issued_at: datetime, *, now: datetime) -> None:
        """
        Admit a request once, or raise `RemoteProtocolError`.

        `issued_at` and `nonce` are the client's, authenticated by the seal; both times are aware.
        The reasons are `request-time`, `replayed` and `node-busy`.
        """
        if len(nonce) != NONCE_BYTES:
            raise ValueError("a request nonce has 32 bytes")
        hashed = blake2b(bytes((key_id,)) + nonce, key=self._secret, digest_size=16).digest()
        try:
            with self._guard:
                self._admit(hashed, issued_at.timestamp(), now.timestamp())
        except Unavailable as error:
            raise _busy("the replay window cannot be read now") from error

    def _admit(self, hashed: bytes, issued: float, now: float) -> None:
        # A clock that steps back must not bring expired nonces back to life.
        now = max(now, *_LATEST.unpack_from(self._table, 0))
        _LATEST.pack_into(self._table, 0, now)
        if abs(now - issued) > self._window:
            raise RemoteProtocolError(
                "the request's time is outside the window",
                reason=Reason.REQUEST_TIME,
                status_hint=409,
            )
        bucket = int.from_bytes(hashed[_TAG_BYTES:], "little") % self._buckets
        tags_at = _LATEST.size + bucket * self._slots * (_TAG_BYTES + _FREE_BYTES)
        free_at = tags_at + self._slots * _TAG_BYTES
        ends = self._free.unpack_from(self._table, free_at)
        tag = hashed[:_TAG_BYTES]
        # A nonce is live at its last instant too: an age of exactly the window is accepted.
        tags = bytes(self._table[tags_at:free_at])
        if tag in tags and any(ends[slot] >= now for slot in _places(tags, tag)):
            raise RemoteProtocolError(
                "the request was seen before", reason=Reason.REPLAYED, status_hint=409
            )
        slot = next((slot for slot, end in enumerate(ends) if end < now), None)
        if slot is None:
            raise _busy("the replay window is full")
        at = tags_at + slot * _TAG_BYTES
        self._table[at : at + _TAG_BYTES] = tag
        # Whole seconds, upwards: no nonce is forgotten early.
        end = math.ceil(issued + self._window)
        struct.pack_into("<I", self._table, free_at + slot * _FREE_BYTES, end)


def _places(tags: bytes, tag: bytes) -> list[int]:
    """Return the slots whose tag is `tag`: none, but for a request that was seen."""
    found: list[int] = []
    at = tags.find(tag)
    while at >= 0:
        if at % _TAG_BYTES == 0:
            found.append(at // _TAG_BYTES)
        at = tags.find(tag, at + 1)
    return found


def _busy(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(what, reason=Reason.NODE_BUSY, status_hint=503)
