"""The keysets of a running node: the current one, and the one before during the overlap.

Clause: docs/protocols/binding.md §1.6. A request is answered with the keyset it was sealed to, from
its first byte to its receipt, whatever happens to the current keyset meanwhile: who opens requests
is told whose every key is, and the request keeps that `Identity` for as long as it lasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from confide.channel.keys import key_ring
from confide.channel.succession import Succession, issue_succession
from confide.node.keys import make_node_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confide.channel.keys import KeyRing
    from confide.node.attester import Attests
    from confide.node.keys import NodeKeys
    from confide.ports import Clock, Entropy

__all__ = [
    "LIFETIME",
    "OVERLAP",
    "ROTATE_AFTER",
    "Identity",
    "NextKeys",
    "NodeIdentity",
]

# From: docs/protocols/binding.md §1.6.
LIFETIME = timedelta(hours=24)
ROTATE_AFTER = timedelta(hours=12)
OVERLAP = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Identity:
    """One keyset and the attester that speaks for it. `since` is when it became current."""

    keys: NodeKeys
    attester: Attests
    since: datetime


@dataclass(frozen=True, slots=True)
class NextKeys:
    """Keys that are to become the current ones, and the word of those before them."""

    keys: NodeKeys
    succession: Succession
    made: datetime


class NodeIdentity:
    """
    What a node is and how it proves it, over rotations.

    `attester` is any attester of this machine: its ports are used for every keyset. Where a worker
    is told of new keys by its parent (docs/protocols/workers.md §3), `rotates` is False.
    """

    def __init__(
        self,
        keys: NodeKeys,
        attester: Attests,
        *,
        clock: Clock,
        entropy: Entropy,
        simulated: bool,
        rotates: bool = True,
    ) -> None:
        self._clock = clock
        self._entropy = entropy
        self._rotates = rotates
        self.simulated = simulated
        self.current = Identity(keys, attester.for_keyset(keys.keyset), clock.now())
        self._previous: Identity | None = None
        self._overlap_until: datetime | None = None
        self._listeners: list[Callable[[KeyRing, Mapping[int, Identity]], None]] = []

    @property
    def clock(self) -> Clock:
        """The node's clock."""
        return self._clock

    @property
    def entropy(self) -> Entropy:
        """The node's randomness."""
        return self._entropy

    @property
    def due(self) -> bool:
        """Whether it is time for new keys."""
        return self._clock.now() - self.current.since >= ROTATE_AFTER

    def following(self, attester: Attests) -> NodeIdentity:
        """Return the same keys for a worker, with its own way to evidence. It does not rotate."""
        same = NodeIdentity(
            self.current.keys,
            attester,
            clock=self._clock,
            entropy=self._entropy,
            simulated=self.simulated,
            rotates=False,
        )
        same.current = Identity(self.current.keys, same.current.attester, self.current.since)
        if self._previous is not None:
            keys, since = self._previous.keys, self._previous.since
            same._previous = Identity(keys, attester.for_keyset(keys.keyset), since)
            same._overlap_until = self._overlap_until
        return same

    def on_rotation(self, listener: Callable[[KeyRing, Mapping[int, Identity]], None]) -> None:
        """Have `listener` called with `ring` and `owners`, at every change."""
        self._listeners.append(listener)

    def ring(self) -> KeyRing:
        """Return the keys that open requests now: current, and previous during the overlap."""
        return key_ring(tuple(pair for known in self.known() for pair in known.keys.seal))

    def owners(self) -> Mapping[int, Identity]:
        """Return whose each key of `ring` is, by its id."""
        return {key_id: known for known in self.known() for key_id, _ in known.keys.seal}

    def known(self) -> tuple[Identity, ...]:
        """Return the current identity, then the one before during the overlap."""
        return (self.current,) if self._previous is None else (self.current, self._previous)

    def tick(self) -> None:
        """Do what time asks for: end an overlap, rotate. Called now and then, and before use."""
        now = self._clock.now()
        if self._overlap_until is not None and now > self._overlap_until:
            self._previous = self._overlap_until = None
            self._tell()
        if self._rotates and self.due:
            self.rotate()

    def rotate(self) -> Succession:
        """Make new keys current, sign the succession, keep the old ones for the overlap."""
        following = self.propose(self._clock.now(), self._entropy)
        self.adopt(following)
        return following.succession

    def propose(self, now: datetime, entropy: Entropy) -> NextKeys:
        """Draw the keys that follow the current ones: the same for the same time and randomness."""
        old = self.current.keys
        # No key id of a keyset that is known now, in whichever process.
        used = {key.id for known in self.known() for key in known.keys.keyset.keys}
        keys = make_node_keys(
            role=old.keyset.role,
            software=old.keyset.software,
            now=now,
            lifetime=LIFETIME,
            entropy=entropy,
            used_ids=frozenset(used),
            faces=old.faces,
        )
        succession = issue_succession(
            old.signer.signer,
            old=old.keyset.digest,
            new=keys.keyset.digest,
            overlap_until=min(now + OVERLAP, old.keyset.not_after),
        )
        return NextKeys(keys, succession, now)

    def adopt(self, following: NextKeys) -> None:
        """Make `following` current; those that were current go on for the overlap."""
        old, succession = self.current, following.succession
        attester = old.attester.for_keyset(following.keys.keyset, succession)
        self._previous = old
        self._overlap_until = succession.overlap_until
        self.current = Identity(following.keys, attester, following.made)
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener(self.ring(), self.owners())
