"""The replay windows of a node: a request is admitted once (channel.md §4, ehbp-face.md §4).

Plain values with state: `now` is an argument and nothing else is read. One window serves all keys
of a process; what was seen is kept apart by key id. They refuse rather than forget.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from confide.errors import Reason, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["NONCE_BYTES", "ReplayPolicy", "ReplayWindow", "SeenKeys"]

# From: channel.md 4.1.
NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class ReplayPolicy:
    """
    How old or early a request may be, and how many live nonces are held.

    300 s is the skew Kerberos allows (RFC 4120 §8.2); 2^20 nonces are about 150 MB and 3,500
    requests a second.
    """

    window_seconds: int = 300
    max_entries: int = 1 << 20

    def __post_init__(self) -> None:
        if self.window_seconds <= 0 or self.max_entries <= 0:
            raise ValueError("a replay window has a length and room")


class ReplayWindow:
    """The nonces that could still be presented again."""

    __slots__ = ("_expiries", "_latest", "_policy", "_seen")

    def __init__(self, policy: ReplayPolicy) -> None:
        self._policy = policy
        self._seen: set[tuple[int, bytes]] = set()
        self._expiries: list[tuple[datetime, int, bytes]] = []
        self._latest: datetime | None = None

    def __len__(self) -> int:
        return len(self._seen)

    def admit(self, key_id: int, nonce: bytes, issued_at: datetime, *, now: datetime) -> None:
        """
        Admit a request once, or raise `RemoteProtocolError`.

        `issued_at` and `nonce` are the client's, authenticated by the seal; `now` is aware. The
        reasons are `request-time`, `replayed` and `node-busy`.
        """
        if len(nonce) != NONCE_BYTES:
            raise ValueError("a request nonce has 32 bytes")
        # A clock that steps back must not bring expired nonces back to life.
        now = self._latest = max(now, self._latest or now)
        window = timedelta(seconds=self._policy.window_seconds)
        self._expire(now)
        if abs(now - issued_at) > window:
            raise RemoteProtocolError(
                "the request's time is outside the window",
                reason=Reason.REQUEST_TIME,
                status_hint=409,
            )
        entry = (key_id, nonce)
        if entry in self._seen:
            raise RemoteProtocolError(
                "the request was seen before", reason=Reason.REPLAYED, status_hint=409
            )
        if len(self._seen) >= self._policy.max_entries:
            raise RemoteProtocolError(
                "the replay window is full", reason=Reason.NODE_BUSY, status_hint=503
            )
        self._seen.add(entry)
        heapq.heappush(self._expiries, (issued_at + window, key_id, nonce))

    def _expire(self, now: datetime) -> None:
        # A nonce is live at its expiry instant too: `admit` accepts an age of exactly the window.
        while self._expiries and self._expiries[0][0] < now:
            _, key_id, nonce = heapq.heappop(self._expiries)
            self._seen.discard((key_id, nonce))


# From: ehbp-face.md 4.2: about 90 bytes each, and more than 80 requests a second for half a day.
_MAX_SEEN = 1 << 22


class SeenKeys:
    """
    The encapsulated keys of requests that carry no time: each is admitted once under its key.

    Nothing tells when one could no longer come again, so each is remembered for as long as the
    key that opened it lives. A key under which `max_entries` came is used up.
    """

    __slots__ = ("_max_entries", "_seen")

    def __init__(self, max_entries: int = _MAX_SEEN) -> None:
        self._max_entries = max_entries
        self._seen: dict[int, set[bytes]] = {}

    def __len__(self) -> int:
        return sum(len(seen) for seen in self._seen.values())

    def used_up(self, key_id: int) -> bool:
        """Whether nothing more is admitted under this key."""
        return len(self._seen.get(key_id, ())) >= self._max_entries

    def admit(self, key_id: int, enc: bytes) -> None:
        """
        Admit a request once, or raise `RemoteProtocolError`: `replayed`, `keyset-mismatch`.

        The latter tells a client to fetch the key anew: this one is used up.
        """
        # Half a digest: 2^22 of them collide with a probability of 2^-85, and then one is refused.
        entry = hashlib.sha256(enc).digest()[:16]
        seen = self._seen.setdefault(key_id, set())
        if entry in seen:
            raise RemoteProtocolError(
                "the request was seen before", reason=Reason.REPLAYED, status_hint=409
            )
        if self.used_up(key_id):
            raise RemoteProtocolError(
                "the key is used up", reason=Reason.KEYSET_MISMATCH, status_hint=422
            )
        seen.add(entry)

    def keep(self, key_ids: Collection[int]) -> None:
        """Forget what came under keys that are gone: nothing opens under them any more."""
        for key_id in self._seen.keys() - set(key_ids):
            del self._seen[key_id]
