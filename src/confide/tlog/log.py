"""A growing log without I/O: entries in, files to write and a head to sign out. Pure.

docs/protocols/log.md §2, §8. `Edge` is all that appending needs and nothing else: O(log n) hashes.
`grow` returns a new one, so that a write that failed has changed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.crypto.merkle import Frontier, TileTree, fold, hash_leaf, range_nodes
from confide.errors import FormatError, LogRejected, Reason
from confide.rats import Finding, Status
from confide.tlog.leaf import ENTRY_BYTES
from confide.wire.checkpoint import HASH_BYTES, Checkpoint
from confide.wire.tiles import (
    ENTRIES,
    TILE_HEIGHT,
    TILE_WIDTH,
    TilePath,
    encode_bundle,
    parse_bundle,
    parse_tile,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["EMPTY_EDGE", "Edge", "Growth", "edge_paths", "grow", "restore_edge"]

_CLAUSE: Final = "docs/protocols/log.md#8.5"
_TILE_BYTES: Final = TILE_WIDTH * HASH_BYTES


@dataclass(frozen=True, slots=True)
class Edge:
    """
    The right edge of a log.

    `nodes` are the perfect subtrees, largest first; `tiles` the partial tile of each level, from
    the leaves up, maybe empty; `bundle` the partial entry bundle.
    """

    size: int
    nodes: tuple[bytes, ...]
    tiles: tuple[bytes, ...]
    bundle: bytes

    def head(self, origin: str) -> Checkpoint:
        """Return the head to sign."""
        return Checkpoint(origin, self.size, fold(self.nodes))


EMPTY_EDGE = Edge(0, (), (), b"")


@dataclass(frozen=True, slots=True)
class Growth:
    """
    What one batch does: the new edge, the index of its first entry, the files to make durable.

    None of `files` is covered by the old head (8.2).
    """

    edge: Edge
    first: int
    files: tuple[tuple[TilePath, bytes], ...]


def edge_paths(size: int) -> tuple[TilePath, ...]:
    """Return the partial tiles and the partial bundle of a tree of `size` leaves, leaves first."""
    found: list[TilePath] = []
    level = 0
    while count := size >> (TILE_HEIGHT * level):
        if width := count % TILE_WIDTH:
            found.append(TilePath(level, count // TILE_WIDTH, width))
            if level == 0:
                found.append(TilePath(ENTRIES, count // TILE_WIDTH, width))
        level += 1
    return tuple(found)


def grow(edge: Edge, entries: Iterable[bytes]) -> Growth:
    """Return what appending `entries` makes of `edge`; `ValueError` for one of another length."""
    frontier = Frontier(edge.size, edge.nodes)
    rows = [bytearray(tile) for tile in edge.tiles]
    bundle = bytearray(edge.bundle)
    files: list[tuple[TilePath, bytes]] = []
    for entry in entries:
        if len(entry) != ENTRY_BYTES:
            raise ValueError(f"an entry has {ENTRY_BYTES} bytes")
        bundle += encode_bundle((entry,))
        # Every eighth completed node is a hash of a tile: leaf, root of 256 leaves, and so on.
        for level, node in enumerate(frontier.append(hash_leaf(entry))[::TILE_HEIGHT]):
            if level == len(rows):
                rows.append(bytearray())
            row = rows[level]
            row += node
            if len(row) < _TILE_BYTES:
                continue
            index = (frontier.size >> (TILE_HEIGHT * level)) // TILE_WIDTH - 1
            files.append((TilePath(level, index), bytes(row)))
            row.clear()
            if level == 0:
                files.append((TilePath(ENTRIES, index), bytes(bundle)))
                bundle.clear()
    grown = Edge(frontier.size, frontier.nodes, tuple(bytes(row) for row in rows), bytes(bundle))
    before = set(edge_paths(edge.size))
    for path in edge_paths(grown.size):
        # By its path: what the old head covers is never written again.
        if path not in before:
            raw = grown.bundle if path.level == ENTRIES else grown.tiles[path.level]
            files.append((path, raw))
    return Growth(grown, edge.size, tuple(files))


def restore_edge(head: Checkpoint, files: Mapping[TilePath, bytes]) -> Edge:
    """
    Return the edge of a log whose head is `head`, from the tiles that `edge_paths` names.

    Raises `LogRejected` with `tlog-tile`, naming what is absent, of the wrong size, or does not
    give the root of `head`.
    """
    top = max((path.level for path in edge_paths(head.size)), default=-1)
    tiles = [b""] * (top + 1)
    nodes: list[bytes] = []
    bundle = b""
    for path in reversed(edge_paths(head.size)):
        raw = files.get(path)
        if raw is None:
            raise _refused(path, "absent")
        if path.level == ENTRIES:
            bundle = raw
            continue
        tiles[path.level] = raw
        tree = TileTree(_parsed(path, raw))
        nodes += [tree.node(*name) for name in range_nodes(0, path.width)]
    if fold(nodes) != head.root:
        raise _blame(head, files)
    for path in edge_paths(head.size):
        if path.level == ENTRIES and _leaves(path, bundle) != tiles[0]:
            raise _refused(path, "its entries do not hash to the tile beside it")
    return Edge(head.size, tuple(nodes), tuple(tiles), bundle)


def _parsed(path: TilePath, raw: bytes) -> bytes:
    try:
        return parse_tile(raw, path)
    except FormatError as error:
        raise _refused(path, error.what) from error


def _leaves(path: TilePath, bundle: bytes) -> bytes:
    try:
        return b"".join(hash_leaf(entry) for entry in parse_bundle(bundle, path))
    except FormatError as error:
        raise _refused(path, error.what) from error


def _blame(head: Checkpoint, files: Mapping[TilePath, bytes]) -> LogRejected:
    """Say which edge tile does not fit: the lowest where its bundle mends it, else all of them."""
    paths = edge_paths(head.size)
    tiles = [path for path in paths if path.level != ENTRIES]
    bundles = [path for path in paths if path.level == ENTRIES]
    if bundles:
        mended = {**files, tiles[0]: _leaves(bundles[0], files[bundles[0]])}
        nodes: list[bytes] = []
        for path in reversed(tiles):
            tree = TileTree(_parsed(path, mended[path]))
            nodes += [tree.node(*name) for name in range_nodes(0, path.width)]
        if fold(nodes) == head.root:
            return _refused(tiles[0], "its hashes are not those of its entries")
    names = ", ".join(str(path) for path in tiles) or "the head"
    return _refused(None, f"the root does not follow from {names}")


def _refused(path: TilePath | None, detail: str) -> LogRejected:
    subject = "right edge of the log" if path is None else str(path)
    return LogRejected(
        (Finding(Status.FAIL, "log-store/1", _CLAUSE, subject, detail, Reason.TLOG_TILE),)
    )
