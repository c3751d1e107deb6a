"""Reading a whole log again: every tile and bundle against the head. log.md §8.5.

From the root down, so that what does not fit is the tile itself and never the one above it. Memory
does not grow with the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.crypto.merkle import TileTree, hash_leaf
from confide.errors import FormatError, LogRejected, Reason
from confide.rats import Finding, Status
from confide.tlog.log import edge_paths, restore_edge
from confide.tlog.prove import verify_tiles
from confide.wire.tiles import (
    ENTRIES,
    TILE_WIDTH,
    TilePath,
    parse_bundle,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.ports import LogStore
    from confide.wire.checkpoint import Checkpoint

__all__ = ["check_log"]

_STEP: Final = "log-store/4"
_CLAUSE: Final = "docs/protocols/log.md#8.5"


def check_log(store: LogStore, head: Checkpoint) -> Iterator[Finding]:
    """
    Yield a finding for every tile and bundle of `head` that does not fit, none where all do.

    What stands below a tile that does not fit is not looked at. Raises `Unavailable`.
    """
    edges = {path: store.read(str(path)) for path in edge_paths(head.size)}
    try:
        restore_edge(head, {path: raw for path, raw in edges.items() if raw is not None})
    except LogRejected as error:
        yield from error.failures
        return
    for path in edge_paths(head.size):
        if path.level != ENTRIES:
            tree = verify_tiles(head, _edge_tiles(edges), known={})[path]
            yield from _below(store, head, path, tree)


def _edge_tiles(edges: dict[TilePath, bytes | None]) -> dict[TilePath, bytes]:
    return {path: raw for path, raw in edges.items() if raw is not None and path.level != ENTRIES}


def _below(store: LogStore, head: Checkpoint, path: TilePath, tree: TileTree) -> Iterator[Finding]:
    """Yield what does not fit below the tile at `path`, which does."""
    if path.level == 0:
        yield from _bundle(store, path, tree)
        return
    for number in range(path.width):
        child = TilePath(path.level - 1, path.index * TILE_WIDTH + number)
        try:
            raw = store.read(str(child))
            known = {path: tree}
            trees = verify_tiles(head, {child: raw or b""}, known=known)
        except LogRejected as error:
            yield from error.failures
            continue
        yield from _below(store, head, child, trees[child])


def _bundle(store: LogStore, path: TilePath, tree: TileTree) -> Iterator[Finding]:
    bundle = TilePath(ENTRIES, path.index, path.width)
    detail = "its entries do not hash to the tile beside it"
    try:
        entries = parse_bundle(store.read(str(bundle)) or b"", bundle)
        if all(hash_leaf(entry) == tree.node(0, at) for at, entry in enumerate(entries)):
            return
    except FormatError as error:
        detail = error.what
    yield Finding(Status.FAIL, _STEP, _CLAUSE, str(bundle), detail, Reason.TLOG_TILE)
