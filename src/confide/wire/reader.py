"""The one place where hostile binary is sliced: a bounds-checked cursor.

No crypto, no policy, no I/O. `raw` is hostile; every read is checked before it happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from struct import Struct

__all__ = ["Reader"]

_Order = Literal["little", "big"]


class Reader:
    """
    A cursor over `raw` that raises `FormatError` instead of reading past the end.

    `what` and `clause` go into the error; `truncated` is the reason used for short input.
    """

    __slots__ = ("_clause", "_end", "_pos", "_raw", "_truncated", "_what")

    def __init__(self, raw: bytes, *, what: str, clause: str, truncated: Reason) -> None:
        self._raw = raw
        self._pos = 0
        self._end = len(raw)
        self._what = what
        self._clause = clause
        self._truncated = truncated

    @property
    def offset(self) -> int:
        """Bytes consumed so far."""
        return self._pos

    @property
    def remaining(self) -> int:
        """Bytes left."""
        return self._end - self._pos

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        start = self._pos
        end = start + count
        if count < 0 or end > self._end:
            raise FormatError(
                f"{self._what}: {count} bytes wanted, {self.remaining} left",
                reason=self._truncated,
                clause=self._clause,
                offset=start,
            )
        self._pos = end
        return self._raw[start:end]

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """Return the fields of the next `layout.size` bytes."""
        return layout.unpack(self.take(layout.size))

    def peek(self) -> bytes:
        """Return everything that is left, without consuming it."""
        return self._raw[self._pos :]

    def uint(self, size: int, order: _Order) -> int:
        """Return the next `size` bytes as an unsigned integer."""
        return int.from_bytes(self.take(size), order)

    def u8(self) -> int:
        """Return one byte."""
        return self.uint(1, "little")

    def u16le(self) -> int:
        """Return two bytes, little-endian."""
        return self.uint(2, "little")

    def u32le(self) -> int:
        """Return four bytes, little-endian."""
        return self.uint(4, "little")

    def rest(self) -> bytes:
        """Return everything that is left."""
        return self.take(self.remaining)

    def end(self, reason: Reason) -> None:
        """Refuse with `reason` when bytes are left."""
        if self.remaining:
            raise FormatError(
                f"{self._what}: {self.remaining} bytes after the end",
                reason=reason,
                clause=self._clause,
                offset=self._pos,
            )
