"""The nodes behind a relay: which keysets they have, whether they are there, how busy they are.

Clauses: docs/protocols/relay.md 2.3, 3.6, 3.10. What a node says of its keyset is believed as far
as routing goes: a request is sealed to a key, and whoever has not got it cannot open it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from confide.errors import Overloaded, Unavailable
from confide.wire.directory import Listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from confide.wire.directory import NodeHint, Role

__all__ = ["AskKeyset", "NodeEntry", "RelayLimits", "RelayNode", "RelayTable", "UnknownKeyset"]

# From: relay.md 2.3. A node keeps two keysets at once, for two hours.
_MAX_NAMES: Final = 4

AskKeyset: TypeAlias = Callable[[str], Awaitable[bytes | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """Sizes in bytes, times in seconds, requests in progress; relay.md 3.5, 3.6, 3.10."""

    request_bytes: int = (1 << 28) + (1 << 25)
    answer_bytes: int = 1 << 30
    evidence_bytes: int = 16 * 1024 * 1024
    piece_seconds: float = 30.0
    receive_seconds: float = 600.0
    node_requests: int = 64
    requests: int = 512
    health_seconds: float = 10.0
    max_health_seconds: float = 60.0
    retry_seconds: float = 1.0


class UnknownKeyset(Unavailable):
    """No node has this keyset."""


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """A node as its operator lists it. A pinned keyset is its alone; without, it names its own."""

    url: str
    role: Role
    model: str
    roots: str
    pinned: bytes | None = None


@dataclass(slots=True)
class RelayNode:
    """One node and what is known of it."""

    entry: NodeEntry
    names: list[bytes] = field(default_factory=list)
    up: bool = False
    in_progress: int = 0
    suspected: asyncio.Event = field(default_factory=asyncio.Event)

    def lost(self) -> None:
        """A connection failed: it is down until it answers."""
        self.up = False
        self.suspected.set()


class RelayTable:
    """All nodes of a relay. Belongs to one event loop; `watch` runs beside what it serves."""

    def __init__(
        self, entries: Sequence[NodeEntry], *, ask: AskKeyset, limits: RelayLimits | None = None
    ) -> None:
        self.limits = limits or RelayLimits()
        self.draining = False
        self._ask = ask
        self._nodes = [
            RelayNode(entry, [] if entry.pinned is None else [entry.pinned]) for entry in entries
        ]
        self._pinned = {node.entry.pinned: node for node in self._nodes if node.entry.pinned}
        self._in_progress = 0

    @property
    def in_progress(self) -> int:
        """How many requests are at nodes now."""
        return self._in_progress

    def drain(self) -> None:
        """Take no new requests."""
        self.draining = True

    def find(self, keyset: bytes) -> RelayNode | None:
        """Return the node that has `keyset`: who pins it, or who alone said so last."""
        if (pinned := self._pinned.get(keyset)) is not None:
            return pinned
        return next((node for node in self._nodes if keyset in node.names), None)

    @contextmanager
    def place(self, keyset: bytes) -> Iterator[RelayNode]:
        """
        Hold one place at the node that has `keyset`.

        Raises `UnknownKeyset`, and `Overloaded` where the node is down or enough is in progress.
        """
        node = self.find(keyset)
        if node is None:
            raise UnknownKeyset("no node has this keyset")
        if self.draining or self._in_progress >= self.limits.requests:
            raise Overloaded("the relay takes no more", retry_after=1, draining=self.draining)
        if not node.up:
            raise Overloaded("the node is down", retry_after=5)
        if node.in_progress >= self.limits.node_requests:
            raise Overloaded("the node has enough to do", retry_after=1, status_hint=429)
        node.in_progress += 1
        self._in_progress += 1
        try:
            yield node
        finally:
            node.in_progress -= 1
            self._in_progress -= 1

    def listed(self) -> tuple[Listed, ...]:
        """Return what is to be listed: each node under the keyset that it has now."""
        return tuple(
            Listed(node.names[-1], node.entry.role, node.entry.model, node.entry.roots)
            for node in self._nodes
            if node.names
        )

    def hint(self, keyset: bytes) -> NodeHint:
        """Return what is thought of the node with `keyset`."""
        node = self.find(keyset)
        return "up" if node is not None and node.up else "down"

    async def look(self) -> None:
        """Ask every node once."""
        await asyncio.gather(*(self._look_at(node) for node in self._nodes))

    async def watch(self) -> None:
        """Ask every node again and again, until cancelled."""
        await asyncio.gather(*(self._watch(node) for node in self._nodes))

    async def _watch(self, node: RelayNode) -> None:
        wait, failures = self.limits.health_seconds, 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await node.suspected.wait()
            node.suspected.clear()
            await self._look_at(node)
            failures = 0 if node.up else min(failures + 1, 16)
            wait = self.limits.health_seconds
            if failures:
                backed_off = self.limits.retry_seconds * 2 ** (failures - 1)
                wait = min(backed_off, self.limits.max_health_seconds)

    async def _look_at(self, node: RelayNode) -> None:
        said = await self._ask(node.entry.url)
        node.up = said is not None
        if said is None or node.entry.pinned is not None:
            return
        holder = self.find(said)
        if holder is not None and holder is not node:
            # Two nodes with one keyset: the second is not asked for anything.
            node.up = False
        elif said not in node.names[-1:]:
            node.names = [*(name for name in node.names if name != said), said][-_MAX_NAMES:]
