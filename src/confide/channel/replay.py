"""The replay window of a node (channel.md §4): a request is admitted once, while it is new.

A plain value with state: `now` is an argument and nothing else is read. One window serves all keys
of a process; nonces are kept apart by key id. It refuses rather than forgets.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta

from confide.errors import Reason, RemoteProtocolError

__all__ = ["NONCE_BYTES", "ReplayPolicy", "ReplayWindow"]

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
