"""Lines of a file as its bytes come, with bounded memory. docs/protocols/dataset.md 1.1, 1.2.

Bytes are hostile. A line that is too long is skipped, and its number is still counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_ROW_BYTES", "Line", "LineSplitter"]

# From: docs/protocols/dataset.md 1.2.
MAX_ROW_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its LF: `number` counts from 1; `raw` is None where it is too long."""

    number: int
    raw: bytes | None = field(repr=False)


class LineSplitter:
    """Pieces of a file in, whole lines out. At most one line of `max_bytes` is held."""

    __slots__ = ("_held", "_max_bytes", "_number", "_size")

    def __init__(self, *, max_bytes: int = MAX_ROW_BYTES) -> None:
        self._max_bytes = max_bytes
        self._held: list[bytes] = []
        self._size = 0
        self._number = 0

    def feed(self, data: bytes) -> Iterator[Line]:
        """Take the next bytes; yield the lines that they end."""
        end = data.find(b"\n")
        if end < 0:
            self._hold(data)
            return
        self._hold(data[:end])
        yield self._line()
        start = end + 1
        # Lines that begin and end in one piece: each is cut when it is wanted.
        while (end := data.find(b"\n", start)) >= 0:
            self._number += 1
            whole = end - start <= self._max_bytes
            yield Line(self._number, data[start:end] if whole else None)
            start = end + 1
        self._hold(data[start:])

    def end(self) -> Iterator[Line]:
        """The file has ended: yield the last line, if it has no LF."""
        if self._size:
            yield self._line()

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._max_bytes:
            self._held.clear()
        elif piece:
            self._held.append(piece)

    def _line(self) -> Line:
        whole = self._size <= self._max_bytes
        raw = b"".join(self._held) if whole else None
        self._held.clear()
        self._size = 0
        self._number += 1
        return Line(self._number, raw)
