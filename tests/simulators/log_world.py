"""A transparency log in memory: keys, witnesses, a disk whose power can be cut at any operation."""

from __future__ import annotations

import errno
import hashlib
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.log_files import FileLog
from confide.adapters.witness_files import WitnessFiles
from confide.crypto.cosign import NoteSigner
from confide.crypto.merkle import EMPTY_ROOT, hash_node
from confide.errors import RemoteProtocolError, Unavailable
from confide.node.log_keeper import LogKeeper
from confide.node.witness_app import WitnessService
from confide.wire.checkpoint import Checkpoint, SignedCheckpoint
from confide.wire.note import Note, SignatureType, parse_signature_lines
from confide.wire.tiles import ENTRIES, TilePath, parse_bundle
from confide.wire.tlog_policy import LogEntry, LogPolicy, Quorum, WitnessEntry
from confide.wire.witness import SIZE_TYPE, WitnessReply, parse_size_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from confide.wire.note import VerifierKey
    from confide.wire.witness import AddCheckpoint

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ORIGIN = "log.example/confide"


def signer(name: str = ORIGIN, kind: SignatureType = SignatureType.ED25519) -> NoteSigner:
    """The key that goes with a name."""
    return NoteSigner(name, kind, hashlib.sha256(f"{name}/{kind}".encode()).digest())


LOG = signer()
WITNESSES = (
    signer("witness.example/a", SignatureType.COSIGNATURE),
    signer("witness.example/b", SignatureType.ML_DSA_44),
    signer("witness.example/c", SignatureType.COSIGNATURE),
)


def policy(quorum: int, *witnesses: NoteSigner) -> LogPolicy:
    """A policy that believes `LOG`, and `quorum` of these witnesses."""
    known = tuple(WitnessEntry(f"w{n}", each.key) for n, each in enumerate(witnesses))
    return LogPolicy((LogEntry(LOG.key),), known, Quorum(quorum, known))


def entry(number: int) -> bytes:
    """An entry like any other."""
    return hashlib.sha256(b"entry %d" % number).digest()


def tree_root(leaves: Iterable[bytes]) -> bytes:
    """RFC 6962 §2.1, word by word."""
    hashes = list(leaves)
    if not hashes:
        return EMPTY_ROOT
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return hash_node(tree_root(hashes[:k]), tree_root(hashes[k:]))


def signed(
    head: Checkpoint, *cosigners: NoteSigner, by: NoteSigner = LOG, seconds: int | None = None
) -> SignedCheckpoint:
    """A head with its signature and cosignatures of the time `seconds`, or `NOW`."""
    at = int(NOW.timestamp()) if seconds is None else seconds
    lines = (by.sign_checkpoint(head), *(each.cosign(head, seconds=at) for each in cosigners))
    return SignedCheckpoint(Note(head.text(), lines), head)


@dataclass(slots=True)
class FixedClock:
    """The time stands until it is set."""

    at: datetime = NOW

    def now(self) -> datetime:
        return self.at


def chance(seed: object) -> random.Random:
    """Chance that can be had again."""
    return random.Random(str(seed))  # noqa: S311 - nothing here is secret


class PowerCut(BaseException):
    """The machine is off."""


@dataclass(slots=True)
class _File:
    data: bytes
    synced: bytes | None = None  # None: nothing of it need be on the disk


_FOLDER = _File(b"", b"")


@dataclass(slots=True)
class MemoryDisk:
    """
    A file system that keeps what it must and forgets what it may.

    Operation number `cut` raises `PowerCut` instead of happening, `fails` an error of the disk.
    What was not synced may be there after a cut or not, torn or whole: `after_cut` decides.
    """

    cut: int = -1
    fails: int = -1
    operations: int = 0
    locked: set[Path] = field(default_factory=set)
    names: dict[Path, _File] = field(default_factory=dict)
    durable: dict[Path, _File] = field(default_factory=dict)
    # (name, what it names from now on, None for removed) in order, until its directory is synced.
    pending: list[tuple[Path, _File | None]] = field(default_factory=list)
    handles: dict[int, _File] = field(default_factory=dict)

    def _operate(self) -> None:
        number, self.operations = self.operations, self.operations + 1
        if number == self.cut:
            raise PowerCut
        if number == self.fails:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _name(self, path: Path, what: _File | None) -> None:
        if what is None:
            self.names.pop(path, None)
        else:
            self.names[path] = what
        self.pending.append((path, what))

    def lock(self, path: Path) -> int:
        if path in self.locked:
            raise BlockingIOError
        self.locked.add(path)
        return -1

    def unlock(self, _handle: int) -> None:
        self.locked.clear()

    def read(self, path: Path) -> bytes | None:
        found = self.names.get(path)
        return None if found is None or found is _FOLDER else found.data

    def make_directory(self, path: Path) -> bool:
        self._operate()
        if path in self.names:
            return False
        self._name(path, _FOLDER)
        return True

    def write(self, path: Path, data: bytes) -> int:
        self._operate()
        if path.parent not in self.names and path.parent != Path("/"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        file = _File(data)
        self._name(path, file)
        handle = len(self.handles)
        self.handles[handle] = file
        return handle

    def sync(self, handle: int) -> None:
        self._operate()
        self.handles[handle].synced = self.handles[handle].data

    def rename(self, old: Path, new: Path) -> None:
        self._operate()
        self._name(new, self.names[old])
        self._name(old, None)

    def sync_directory(self, path: Path) -> None:
        self._operate()
        kept = []
        for name, what in self.pending:
            if name.parent != path:
                kept.append((name, what))
            elif what is None:
                self.durable.pop(name, None)
            else:
                self.durable[name] = what
        self.pending = kept

    def remove_directory(self, path: Path) -> None:
        self._operate()
        for name in [name for name in self.names if path in (name, *name.parents)]:
            self._name(name, None)

    def after_cut(self, chance: random.Random, *, survives: float) -> MemoryDisk:
        """The disk when the power is back; each thing not synced survives with this probability."""
        names = dict(self.durable)
        for name, what in self.pending:
            if chance.random() >= survives:
                continue
            if what is None:
                names.pop(name, None)
            else:
                names[name] = what
        found: dict[Path, _File] = {}
        for name in sorted(names, key=lambda name: len(name.parts)):
            if name.parent == Path("/") or name.parent in found:
                found[name] = self._left(names[name], chance, survives=survives)
        return MemoryDisk(names=dict(found), durable=found)

    @staticmethod
    def _left(file: _File, chance: random.Random, *, survives: float) -> _File:
        if file is _FOLDER:
            return file
        data = file.synced
        if data is None:
            torn = chance.choice((file.data[: len(file.data) // 2], bytes(len(file.data)), b""))
            data = file.data if chance.random() < survives else torn
        return _File(data, data)


FOLDER = Path("/log")


def open_log(disk: MemoryDisk, by: NoteSigner = LOG) -> LogKeeper:
    """The log on `disk`, opened or begun."""
    return LogKeeper.open(FileLog(FOLDER, disk=disk), by)


def logged(disk: MemoryDisk, size: int) -> list[bytes]:
    """The first `size` entries as the bundles on `disk` have them."""
    found: list[bytes] = []
    for index in range((size + 255) // 256):
        path = TilePath(ENTRIES, index, min(256, size - 256 * index))
        raw = disk.read(FOLDER / "public" / str(path))
        if raw is None:
            whole = disk.read(FOLDER / "public" / str(path.full)) or b""
            raw = whole[: 34 * path.width]
        found += parse_bundle(raw, path)
    return found


class LocalWitness:
    """The `Witness` port without HTTP, over a service and state of its own."""

    def __init__(
        self, by: NoteSigner, *, logs: Sequence[VerifierKey] = (LOG.key,), clock: FixedClock
    ) -> None:
        self.signer = by
        self.disk = MemoryDisk()
        self.state = WitnessFiles(Path("/witness"), disk=self.disk)
        self.service = WitnessService((by,), logs=logs, state=self.state, clock=clock)
        self.asked: list[AddCheckpoint] = []
        self.down = False

    @property
    def key(self) -> VerifierKey:
        return self.signer.key

    async def add_checkpoint(self, request: AddCheckpoint) -> WitnessReply:
        self.asked.append(request)
        if self.down:
            raise Unavailable("no answer")
        answer = self.service.answer(request.encode())
        if answer.status == 200:
            return WitnessReply(parse_signature_lines(answer.body))
        if answer.content_type == SIZE_TYPE:
            return WitnessReply((), parse_size_body(answer.body))
        raise RemoteProtocolError(f"the witness refused with {answer.status}")


def signed_head(size: int) -> Checkpoint:
    """A head of `LOG` that no honest log has."""
    return Checkpoint(ORIGIN, size, hashlib.sha256(b"%d" % size).digest())
