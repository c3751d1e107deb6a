"""Tiles and entry bundles: their paths and their bytes. Verifies nothing.

Sources: C2SP tlog-tiles; docs/protocols/log.md §2. `raw` is hostile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from confide.errors import FormatError, Reason
from confide.wire.checkpoint import HASH_BYTES
from confide.wire.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ENTRIES",
    "TILE_HEIGHT",
    "TILE_WIDTH",
    "TilePath",
    "encode_bundle",
    "parse_bundle",
    "parse_tile",
    "parse_tile_path",
]

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
# The level of entry bundles, which stand beside the tiles of level 0.
ENTRIES = -1
_MAX_LEVEL: Final = 63
# A tree has fewer than 2^63 leaves.
_MAX_INDEX: Final = 1 << 63 >> TILE_HEIGHT
_CLAUSE: Final = "docs/protocols/log.md#2.2"
_REASON: Final = Reason.TLOG_FORMAT
_PATH: Final = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?\Z",
    re.ASCII,
)


def _refuse(what: str, clause: str = _CLAUSE) -> NoReturn:
    raise FormatError(what, reason=_REASON, clause=clause)


@dataclass(frozen=True, slots=True, order=True)
class TilePath:
    """
    One tile: level (`ENTRIES` for a bundle), index, and how many hashes or entries it holds.

    `ValueError` for what no tree has.
    """

    level: int
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        if not (
            ENTRIES <= self.level <= _MAX_LEVEL
            and 0 <= self.index < _MAX_INDEX
            and 1 <= self.width <= TILE_WIDTH
        ):
            raise ValueError("a tile that no tree has")

    def __str__(self) -> str:
        groups = [f"{self.index % 1000:03}"]
        rest = self.index // 1000
        while rest:
            groups.append(f"x{rest % 1000:03}")
            rest //= 1000
        level = "entries" if self.level == ENTRIES else str(self.level)
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{'/'.join(reversed(groups))}{partial}"

    @property
    def full(self) -> TilePath:
        """The tile that this one is, or will be, a part of."""
        return TilePath(self.level, self.index)

    def covered_by(self, size: int) -> bool:
        """Whether a tree of `size` leaves has all of this tile."""
        level = max(self.level, 0)
        return self.index * TILE_WIDTH + self.width <= size >> (TILE_HEIGHT * level)


def parse_tile_path(text: str) -> TilePath:
    """Parse `tile/L/N[.p/W]`. Raises `FormatError` for any other spelling."""
    found = _PATH.match(text)
    if found is None:
        _refuse("tile path: not tile/L/N or tile/L/N.p/W")
    level = ENTRIES if found["level"] == "entries" else int(found["level"])
    index = int(found["index"].replace("x", "").replace("/", ""))
    width = TILE_WIDTH if found["width"] is None else int(found["width"])
    if level > _MAX_LEVEL or index >= _MAX_INDEX or (found["width"] and width >= TILE_WIDTH):
        _refuse("tile path: a level, index or width out of range")
    path = TilePath(level, index, width)
    if str(path) != text:
        _refuse("tile path: another spelling than the one it has")
    return path


def parse_tile(raw: bytes, path: TilePath) -> bytes:
    """Return the hashes of the tile at `path`, one after the other.

    Raises `FormatError` (`tlog-tile`) by their length.
    """
    if len(raw) != HASH_BYTES * path.width:
        raise FormatError(
            f"{path}: {len(raw)} bytes instead of {HASH_BYTES * path.width}",
            reason=Reason.TLOG_TILE,
            clause="docs/protocols/log.md#2.3",
        )
    return raw


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """Return the bytes of an entry bundle."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def parse_bundle(raw: bytes, path: TilePath) -> tuple[bytes, ...]:
    """Return the entries of the bundle at `path`. Raises `FormatError` (`tlog-tile`)."""
    clause = "docs/protocols/log.md#2.4"
    reader = Reader(raw, what=str(path), clause=clause, truncated=Reason.TLOG_TILE)
    entries = tuple(reader.take(reader.uint(2, "big")) for _ in range(path.width))
    reader.end(Reason.TLOG_TILE)
    return entries
