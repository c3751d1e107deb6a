"""The keysets of a running node: the current one, and the one before during the overlap.

Clause: docs/protocols/binding.md §1.6. A request is answered with the keyset it was sealed to, from
its first byte to its receipt, whatever happens to the current keyset meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from confide.channel.keys import key_ring
from confide.channel.succession import Succession, issue_succession
from confide.node.keys import make_node_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.channel.keys import KeyRing
    from confide.node.attester import Attester
    from confide.node.keys import NodeKeys
    from confide.ports import Clock, Entropy

__all__ = [
    "LIFETIME",
    "OVERLAP",
    "ROTATE_AFTER",
    "Identity",
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
    attester: Attester
    since: datetime


class NodeIdentity:
    """
    What a node is and how it proves it, over rotations.

    `attester` is any attester of this machine: its ports are used for every keyset.
    """

    def __init__(
        self, keys: NodeKeys, attester: Attester, *, clock: Clock, entropy: Entropy, simulated: bool
    ) -> None:
        self._clock = clock
        self._entropy = entropy
        self.simulated = simulated
        self.current = Identity(keys, replace(attester, keyset=keys.keyset), clock.now())
        self._previous: Identity | None = None
        self._overlap_until: datetime | None = None
        self._listeners: list[Callable[[KeyRing], None]] = []

    @property
    def clock(self) -> Clock:
        """The node's clock."""
        return self._clock

    @property
    def entropy(self) -> Entropy:
        """The node's randomness."""
        return self._entropy

    def on_rotation(self, listener: Callable[[KeyRing], None]) -> None:
        """Have `listener` called with the keys to open requests with, at every change."""
        self._listeners.append(listener)

    def ring(self) -> KeyRing:
        """Return the keys that open requests now: current, and previous during the overlap."""
        return key_ring(tuple(pair for known in self.known() for pair in known.keys.seal))

    def for_key(self, key_id: int) -> Identity:
        """Return the identity with a key of this id; the current one where none has."""
        for known in self.known():
            if any(key_id == key.id for key in known.keys.keyset.keys):
                return known
        return self.current

    def known(self) -> tuple[Identity, ...]:
        """Return the current identity, then the one before during the overlap."""
        return (self.current,) if self._previous is None else (self.current, self._previous)

    def tick(self) -> None:
        """Do what time asks for: end an overlap, rotate. Called now and then, and before use."""
        now = self._clock.now()
        if self._overlap_until is not None and now > self._overlap_until:
            self._previous = self._overlap_until = None
            self._tell()
        if now - self.current.since >= ROTATE_AFTER:
            self.rotate()

    def rotate(self) -> Succession:
        """Make new keys current, sign the succession, keep the old ones for the overlap."""
        now, old = self._clock.now(), self.current
        used = {key.id for known in self.known() for key in known.keys.keyset.keys}
        keys = make_node_keys(
            role=old.keys.keyset.role,
            software=old.keys.keyset.software,
            now=now,
            lifetime=LIFETIME,
            entropy=self._entropy,
            used_ids=frozenset(used),
            faces=old.keys.faces,
        )
        self._overlap_until = min(now + OVERLAP, old.keys.keyset.not_after)
        succession = issue_succession(
            old.keys.signer.signer,
            old=old.keys.keyset.digest,
            new=keys.keyset.digest,
            overlap_until=self._overlap_until,
        )
        attester = replace(old.attester, keyset=keys.keyset, succession=succession)
        self._previous, self.current = old, Identity(keys, attester, now)
        self._tell()
        return succession

    def _tell(self) -> None:
        for listener in self._listeners:
            listener(self.ring())
