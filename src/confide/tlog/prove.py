"""Proofs out of tiles. log.md §5.5. Pure: says which tiles it needs, and takes their bytes.

Every tile is checked against the root before one of its hashes is used: partial tiles together give
the root, and a full tile hashes to one hash of the tile above it. So a tile that was changed,
on a disk or on its way, is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.crypto.merkle import (
    TileTree,
    consistency_nodes,
    consistency_proof,
    fold,
    inclusion_nodes,
    inclusion_proof,
    range_nodes,
)
from confide.errors import FormatError, LogRejected, Reason
from confide.rats import Finding, Status
from confide.tlog.log import edge_paths
from confide.wire.tiles import ENTRIES, TILE_HEIGHT, TILE_WIDTH, TilePath, parse_tile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from confide.wire.checkpoint import Checkpoint

__all__ = [
    "leaf_tile",
    "prove_consistency",
    "prove_inclusion",
    "tiles_for_consistency",
    "tiles_for_inclusion",
    "verify_tiles",
]

_CLAUSE: Final = "docs/protocols/log.md#5.5"


def _tile(level: int, index: int, size: int) -> TilePath:
    count = size >> (TILE_HEIGHT * level)
    return TilePath(level, index, min(TILE_WIDTH, count - index * TILE_WIDTH))


def leaf_tile(index: int, size: int) -> TilePath:
    """Return the tile of a tree of `size` leaves that holds the leaf hash at `index`."""
    return _tile(0, index // TILE_WIDTH, size)


def _tile_of(height: int, index: int, size: int) -> TilePath:
    level, rest = divmod(height, TILE_HEIGHT)
    return _tile(level, (index << rest) // TILE_WIDTH, size)


def _closed(paths: Iterable[TilePath], size: int) -> tuple[TilePath, ...]:
    """Add what authenticates `paths`: the partial tiles, and the tile above every full one."""
    found = {path for path in edge_paths(size) if path.level != ENTRIES}
    for each in paths:
        path = each
        while path not in found:
            found.add(path)
            path = _tile(path.level + 1, path.index // TILE_WIDTH, size)
    # Top first: each is checked against one that was checked before.
    return tuple(sorted(found, key=lambda path: (-path.level, path.index)))


def tiles_for_inclusion(index: int, size: int) -> tuple[TilePath, ...]:
    """Return the tiles that an inclusion proof is made from, the leaf's own among them."""
    nodes = (name for names in inclusion_nodes(index, size) for name in names)
    wanted = [_tile_of(height, at, size) for height, at in nodes]
    return _closed([leaf_tile(index, size), *wanted], size)


def tiles_for_consistency(old: int, new: int) -> tuple[TilePath, ...]:
    """Return the tiles that a consistency proof is made from."""
    nodes = (name for names in consistency_nodes(old, new) for name in names)
    return _closed([_tile_of(height, at, new) for height, at in nodes], new)


def verify_tiles(
    head: Checkpoint, files: Mapping[TilePath, bytes], *, known: Mapping[TilePath, TileTree]
) -> dict[TilePath, TileTree]:
    """
    Return the trees of `files` and `known`, each of `files` authenticated by the root of `head`.

    `files` are as one of the `tiles_for_…` names them; `known` are trees that this function
    returned for the same log before. Raises `LogRejected` with `tlog-tile`, naming the tile.
    """
    trees = dict(known)
    fresh = sorted((path for path in files if path not in trees), key=lambda path: -path.level)
    for path in fresh:
        try:
            trees[path] = TileTree(parse_tile(files[path], path))
        except FormatError as error:
            raise _refused(str(path), error.what) from error
    edges = [path for path in reversed(edge_paths(head.size)) if path.level != ENTRIES]
    if any(path in files for path in edges):
        _verify_edges(head, edges, trees)
    for path in fresh:
        if path.width == TILE_WIDTH:
            above = _tile(path.level + 1, path.index // TILE_WIDTH, head.size)
            if above not in trees:
                raise ValueError("a tile without the one above it")
            if trees[path].root() != trees[above].node(0, path.index % TILE_WIDTH):
                raise _refused(str(path), f"it does not hash to what {above} says")
        elif path not in edges:
            raise ValueError("a partial tile of another size")
    return trees


def _verify_edges(
    head: Checkpoint, edges: list[TilePath], trees: Mapping[TilePath, TileTree]
) -> None:
    nodes = [trees[path].node(*name) for path in edges for name in range_nodes(0, path.width)]
    if fold(nodes) != head.root:
        names = ", ".join(str(path) for path in edges)
        raise _refused(names, "the root does not follow from them")


def _refused(subject: str, detail: str) -> LogRejected:
    return LogRejected(
        (Finding(Status.FAIL, "log-tiles/1", _CLAUSE, subject, detail, Reason.TLOG_TILE),)
    )


class _Nodes:
    """Looks a node up in the tile that holds it."""

    __slots__ = ("_size", "_trees")

    def __init__(self, trees: Mapping[TilePath, TileTree], size: int) -> None:
        self._trees = trees
        self._size = size

    def __call__(self, height: int, index: int) -> bytes:
        path = _tile_of(height, index, self._size)
        rest = height % TILE_HEIGHT
        return self._trees[path].node(rest, index - (path.index << (TILE_HEIGHT - rest)))


def prove_inclusion(index: int, size: int, trees: Mapping[TilePath, TileTree]) -> tuple[bytes, ...]:
    """Return the inclusion proof of the leaf at `index`, from verified tiles."""
    return inclusion_proof(index, size, _Nodes(trees, size))


def prove_consistency(old: int, new: int, trees: Mapping[TilePath, TileTree]) -> tuple[bytes, ...]:
    """Return the consistency proof between two sizes, from verified tiles of the new one."""
    return consistency_proof(old, new, _Nodes(trees, new))
