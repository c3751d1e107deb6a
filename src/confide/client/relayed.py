"""The candidates of a session behind a relay: what its signed directory lists, each to be proven.

Clauses: docs/protocols/relay.md 4.3 to 4.6. One candidate is one keyset. The directory says where
to ask; every candidate is appraised through the relay before anything else is sent.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from confide.adapters.directory_http import fetch_directory
from confide.channel.directory import VerifiedDirectory, verify_directory
from confide.client.held import HeldNode
from confide.errors import ConfigurationError, DirectoryRejected, FormatError, Unavailable
from confide.wire.directory import path_of_node
from confide.wire.note import parse_verifier_key

if TYPE_CHECKING:
    from datetime import datetime

    import httpx2

    from confide.adapters.carrier import Carrier
    from confide.client.held import TrustPolicy
    from confide.ports import Clock, Entropy
    from confide.wire.directory import Listed, NodeHint
    from confide.wire.note import VerifierKey

__all__ = ["Relay", "RelayedNodes", "relay_of"]

# From: relay.md 4.6.
_LATEST: Final = timedelta(minutes=5)
_RETRY: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay and the key of its operator. No directory below sequence `floor` is believed."""

    url: str
    key: VerifierKey
    floor: int = 0


class RelayedNodes:
    """Follows the directory of one relay. Belongs to one event loop."""

    def __init__(
        self,
        relay: Relay,
        policy: TrustPolicy,
        http: httpx2.AsyncClient,
        clock: Clock,
        entropy: Entropy,
        *,
        carrier: Carrier | None = None,
    ) -> None:
        if policy.continuity:
            raise ConfigurationError("continuity follows one node; behind a relay there is none")
        self._relay = relay
        self._policy = policy
        self._http = http
        self._clock = clock
        self._entropy = entropy
        self._carrier = carrier
        self._fetching = asyncio.Lock()
        self._held: VerifiedDirectory | None = None
        self._refresh_at: datetime | None = None
        self._nodes: dict[bytes, HeldNode] = {}

    @property
    def sequence(self) -> int:
        """The sequence of the directory that is held, or the floor: what to keep for next time."""
        return self._relay.floor if self._held is None else self._held.directory.sequence

    async def current(self) -> list[HeldNode]:
        """
        Return the candidates of a directory in force.

        Raises `FormatError` and `DirectoryRejected` for one that is not believed, `Unavailable`
        where none can be had.
        """
        held, now = self._held, self._clock.now()
        if held is None or self._refresh_at is None or now >= self._refresh_at:
            await self._fetch(held)
        held = self._held
        if held is None or not _in_force(held, self._clock.now()):
            raise Unavailable("the directory that was held has ended")
        return list(self._nodes.values())

    async def renewed(self) -> list[HeldNode]:
        """Return the candidates of a directory that is fetched now; none where it cannot be."""
        try:
            await self._fetch(self._held)
        except Unavailable:
            return []
        return list(self._nodes.values())

    async def close(self) -> None:
        """End what runs in the background."""
        for node in self._nodes.values():
            await node.close()

    async def _fetch(self, known: VerifiedDirectory | None) -> None:
        async with self._fetching:
            if self._held is not known:
                return  # somebody else just did
            now = self._clock.now()
            try:
                answer = await fetch_directory(self._http, self._relay.url)
            except Unavailable:
                if known is None or not _in_force(known, now):
                    raise
                self._refresh_at = now + _RETRY
                return
            now = self._clock.now()
            try:
                found = verify_directory(
                    answer.note,
                    key=self._relay.key,
                    now=now,
                    floor=self._relay.floor,
                    held=known,
                )
            except DirectoryRejected:
                # It is met again by the next request: nothing that was refused is waited out.
                self._refresh_at = now
                raise
            self._held = found
            self._refresh_at = now + min((found.directory.not_after - now) / 2, _LATEST)
            self._list(found, dict(answer.hints))

    def _list(self, found: VerifiedDirectory, hints: dict[bytes, NodeHint]) -> None:
        fitting = [node for node in found.directory.nodes if self._fits(node)]
        # The relay's word orders them, and no more.
        fitting.sort(key=lambda node: hints.get(node.keyset) != "up")
        self._nodes = {
            node.keyset: self._nodes.get(node.keyset) or self._candidate(node.keyset)
            for node in fitting
        }

    def _fits(self, node: Listed) -> bool:
        policy = self._policy
        wanted = (policy.expectation.model.name, policy.roots.name)
        return node.role == "model" and (node.model, node.roots) == wanted

    def _candidate(self, keyset: bytes) -> HeldNode:
        url = self._relay.url + path_of_node(keyset)
        return HeldNode(
            url, self._policy, self._http, self._clock, self._entropy, keyset, self._carrier
        )


def relay_of(url: str | None, directory_key: str | None) -> Relay | None:
    """Return the relay that two options name; `ConfigurationError` for one without the other."""
    if url is None and directory_key is None:
        return None
    if url is None or directory_key is None:
        raise ConfigurationError("a relay needs its address and the key of its operator")
    try:
        return Relay(url, parse_verifier_key(directory_key))
    except FormatError as error:
        raise ConfigurationError(f"the key of the relay's operator: {error.what}") from error


def _in_force(held: VerifiedDirectory, now: datetime) -> bool:
    return held.directory.not_before <= now <= held.directory.not_after
