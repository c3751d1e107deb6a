"""Sealed states around a broker: a clock that is set, a store that fails, saves as nodes make."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from memory_store import MemoryStore

from confide.broker.state_wire import (
    CLOSE_LABEL,
    SAVE_LABEL,
    OpenAnswer,
    SaveHead,
    encode_close,
    lease_mac,
)
from confide.broker.vault import Vault
from confide.errors import Unavailable
from confide.node.broker_state import StateDesk
from confide.node.broker_store import SealedStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.broker.record import Change, Summary

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MASTER = bytes(range(32))
RESOURCE = "acme/state/notes"
WALL_SECONDS = 600
# So small that a few words are several pieces.
PIECE_BYTES = 8


@dataclass(slots=True)
class SetClock:
    """The time stands until it is moved."""

    at: datetime = NOW

    def now(self) -> datetime:
        return self.at

    def move(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass(slots=True)
class Counting:
    """Randomness that never repeats."""

    given: int = 0

    def token(self, size: int) -> bytes:
        self.given += 1
        return hashlib.shake_256(b"%d" % self.given).digest(size)


class PowerCut(BaseException):
    """The machine is off."""


@dataclass(slots=True)
class FailingStore(MemoryStore):
    """
    A store whose change number `at` goes wrong: `cut` ends the process, else it is `Unavailable`.

    `written` says whether the change was made all the same: both can be after a failure.
    """

    at: int = -1
    cut: bool = False
    written: bool = False
    changes: int = 0

    def __post_init__(self) -> None:
        MemoryStore.__init__(self)

    def apply(self, changes: Sequence[Change], summary: Summary | None = None) -> bool:
        number, self.changes = self.changes, self.changes + 1
        if number != self.at:
            return MemoryStore.apply(self, changes, summary)
        if self.written:
            MemoryStore.apply(self, changes, summary)
        if self.cut:
            raise PowerCut
        raise Unavailable("the disk failed")


@dataclass(slots=True)
class World:
    """One store, and as many broker processes on it as are asked for."""

    memory: MemoryStore = field(default_factory=MemoryStore)
    clock: SetClock = field(default_factory=SetClock)
    entropy: Counting = field(default_factory=Counting)
    piece_bytes: int = PIECE_BYTES

    def __post_init__(self) -> None:
        if not self.memory.rows:
            self.store().begin(b"header", [])

    def store(self) -> SealedStore:
        return SealedStore(self.memory, Vault(MASTER), self.entropy)

    def desk(self) -> StateDesk:
        """A broker process that just started."""
        return StateDesk(
            self.store(), entropy=self.entropy, clock=self.clock, piece_bytes=self.piece_bytes
        )

    def pieces(self) -> int:
        """How many pieces are stored, of any state."""
        return sum(kind == "state-blob" for kind, _ in self.memory.rows)


def open_at(desk: StateDesk, session: bytes, resource: str = RESOURCE) -> OpenAnswer:
    return desk.open(resource, session=session, wall_seconds=WALL_SECONDS).answer


def read_at(desk: StateDesk, session: bytes, resource: str = RESOURCE) -> bytes:
    return b"".join(desk.blob(resource, session=session).pieces)


def save_body(
    opened: OpenAnswer, sealed: bytes, *, counter: int | None = None, digest: bytes | None = None
) -> tuple[bytes, bytes]:
    """The body of a save and its MAC, as the node that opened would make them."""
    head = SaveHead(
        opened.lease,
        opened.counter + 1 if counter is None else counter,
        hashlib.sha256(sealed).digest() if digest is None else digest,
    )
    body = head.encode() + sealed
    return body, lease_mac(opened.lease_secret, SAVE_LABEL, [body])


def save_at(
    desk: StateDesk, opened: OpenAnswer, sealed: bytes, resource: str = RESOURCE
) -> tuple[int, bytes]:
    body, mac = save_body(opened, sealed)
    answer = desk.save(resource, io.BytesIO(body), mac=mac)
    return answer.counter, answer.digest


def close_at(desk: StateDesk, opened: OpenAnswer, resource: str = RESOURCE) -> None:
    body = encode_close(opened.lease)
    desk.close(resource, body, mac=lease_mac(opened.lease_secret, CLOSE_LABEL, [body]))
