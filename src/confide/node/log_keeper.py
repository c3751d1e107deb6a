"""One log: its store, its key, its edge and the tiles it read lately. Blocking, one writer.

docs/protocols/log.md §8. `append` belongs into a worker thread; everything else is for the thread
that owns the keeper. The order of what is made durable is written in `append` and nowhere else.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from confide.crypto.cosign import verify_note_signature
from confide.crypto.errors import BadSignature
from confide.errors import ConfigurationError, LogRejected, Reason, Unavailable
from confide.rats import Finding, Status
from confide.tlog.log import EMPTY_EDGE, Edge, Growth, edge_paths, grow, restore_edge
from confide.tlog.prove import (
    prove_consistency,
    prove_inclusion,
    tiles_for_consistency,
    tiles_for_inclusion,
    verify_tiles,
)
from confide.wire.checkpoint import HASH_BYTES, SignedCheckpoint, parse_checkpoint
from confide.wire.note import Note
from confide.wire.tiles import TILE_WIDTH, TilePath
from confide.wire.tlog_proof import TlogProof

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.crypto.cosign import NoteSigner
    from confide.crypto.merkle import TileTree
    from confide.ports import LogStore
    from confide.wire.checkpoint import Checkpoint

__all__ = ["CHECKPOINT", "LogKeeper"]

CHECKPOINT: Final = "checkpoint"
_HEAD: Final = "head"
# Some 40 KiB each.
_MAX_TREES: Final = 256
_MAX_RECENT: Final = 512


class LogKeeper:
    """The writer of one log. Made by `open`."""

    def __init__(
        self, store: LogStore, signer: NoteSigner, edge: Edge, head: SignedCheckpoint
    ) -> None:
        self._store = store
        self._signer = signer
        self._edge = edge
        self._head = head
        self._dead = False
        self._trees: OrderedDict[TilePath, TileTree] = OrderedDict()
        self._recent: OrderedDict[TilePath, bytes] = OrderedDict()

    @classmethod
    def open(cls, store: LogStore, signer: NoteSigner) -> LogKeeper:
        """
        Continue the log in `store`, or begin one.

        Raises `LogRejected` naming a tile that does not fit (8.5), `ConfigurationError` where the
        log has another key, `FormatError` for a head that is none, `Unavailable`.
        """
        raw = store.read(_HEAD)
        if raw is None:
            if store.read(CHECKPOINT) is not None:
                raise ConfigurationError("the log has a checkpoint, and its head is gone")
            head = _sign(EMPTY_EDGE.head(signer.key.name), signer)
            store.replace(_HEAD, head.encode())
            return cls(store, signer, EMPTY_EDGE, head)
        head = parse_checkpoint(raw)
        _verify_own(head, signer)
        files = {path: store.read(str(path)) for path in edge_paths(head.head.size)}
        found = {path: data for path, data in files.items() if data is not None}
        return cls(store, signer, restore_edge(head.head, found), head)

    @property
    def head(self) -> SignedCheckpoint:
        """The newest durable head, signed by the log alone."""
        return self._head

    @property
    def origin(self) -> str:
        """The name of the log."""
        return self._signer.key.name

    def published(self) -> SignedCheckpoint | None:
        """Return the public checkpoint, None where there is none yet."""
        raw = self._store.read(CHECKPOINT)
        return None if raw is None else parse_checkpoint(raw)

    def publish(self, checkpoint: SignedCheckpoint) -> None:
        """Replace the public checkpoint; durable when this returns."""
        self._store.replace(CHECKPOINT, checkpoint.encode())

    def append(self, entries: Sequence[bytes]) -> Growth:
        """
        Append `entries`; all are durable when this returns (8.1).

        Raises `Unavailable`, and from then on always: what a failed sync left is unknown (8.6).
        """
        if self._dead:
            raise Unavailable("the log stopped after a failed write; start it again")
        growth = grow(self._edge, entries)
        head = _sign(growth.edge.head(self.origin), self._signer)
        self._dead = True
        # Tiles first, the head after them: a head never covers what a cut may take away.
        self._store.add([(str(path), data) for path, data in growth.files])
        self._store.replace(_HEAD, head.encode())
        self._dead = False
        self._edge, self._head = growth.edge, head
        full = [str(path) for path, _ in growth.files if path.width == TILE_WIDTH]
        with suppress(Unavailable):
            # Only room on the disk: what is left over is covered by the full tile.
            self._store.discard_partial(full)
        return growth

    def remember(self, growth: Growth) -> None:
        """Keep the tiles just written at hand: proofs for their entries are asked for next."""
        for path, data in growth.files:
            self._recent[path] = data
        while len(self._recent) > _MAX_RECENT:
            self._recent.popitem(last=False)

    def prove(self, index: int, at: SignedCheckpoint) -> TlogProof:
        """
        Return the proof file of the entry at `index`, without a blinding.

        `at` is a head of this log. Raises `LogRejected` naming a corrupt tile, `Unavailable`.
        """
        trees = self._verified(tiles_for_inclusion(index, at.head.size), at.head)
        return TlogProof(index, prove_inclusion(index, at.head.size, trees), at)

    def consistency(self, old: int, at: SignedCheckpoint) -> tuple[bytes, ...]:
        """Return the consistency proof from size `old` to `at`. Raises as `prove` does."""
        trees = self._verified(tiles_for_consistency(old, at.head.size), at.head)
        return prove_consistency(old, at.head.size, trees)

    def _verified(self, paths: Sequence[TilePath], head: Checkpoint) -> dict[TilePath, TileTree]:
        known = {path: self._trees[path] for path in paths if path in self._trees}
        fresh = {path: self._tile(path) for path in paths if path not in known}
        trees = verify_tiles(head, fresh, known=known)
        for path in trees:
            self._trees[path] = trees[path]
            self._trees.move_to_end(path)
        while len(self._trees) > _MAX_TREES:
            self._trees.popitem(last=False)
        return trees

    def _tile(self, path: TilePath) -> bytes:
        raw = self._recent.get(path)
        if raw is None:
            raw = self._store.read(str(path))
        if raw is None:
            # 2.5: a partial tile may be gone once the full one is there.
            raw = (self._store.read(str(path.full)) or b"")[: path.width * HASH_BYTES]
        return raw


def _sign(head: Checkpoint, signer: NoteSigner) -> SignedCheckpoint:
    return SignedCheckpoint(Note(head.text(), (signer.sign_checkpoint(head),)), head)


def _verify_own(head: SignedCheckpoint, signer: NoteSigner) -> None:
    if head.head.origin != signer.key.name:
        raise ConfigurationError("the log in this directory has another name than the key")
    for line in head.note.signatures:
        if (line.name, line.key_id) == (signer.key.name, signer.key.key_id):
            try:
                verify_note_signature(signer.key, line, head)
            except BadSignature as error:
                detail = "the head is not what was signed"
                clause = "docs/protocols/log.md#8.5"
                reason = Reason.TLOG_SIGNATURE
                raise LogRejected(
                    (Finding(Status.FAIL, "log-store/2", clause, _HEAD, detail, reason),)
                ) from error
            return
    raise ConfigurationError("the log in this directory was written with another key")
