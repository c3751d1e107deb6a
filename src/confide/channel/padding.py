"""Length hiding (channel.md §5): buckets for whole messages, fixed-size cells for streams.

Both stay inside standard Binary HTTP: buckets are its zero padding, cells are a coding of the
content that a field announces. They hide lengths, not the number or the moments of chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader
from confide.wire.varint import ByteQueue

__all__ = [
    "CELLS_FIELD",
    "MAX_CELL_BYTES",
    "MIN_CELL_BYTES",
    "CellDecoder",
    "PaddingPolicy",
    "encode_cells",
    "parse_cell_bytes",
]

CELLS_FIELD = b"confide-cells"
# From: channel.md 5.2: a cell and its BHTTP length fit one sealed chunk of 16384 bytes.
MIN_CELL_BYTES = 64
MAX_CELL_BYTES = 16128
_LENGTH_BYTES = 2
_CLAUSE = "channel.md 5.2"


@dataclass(frozen=True, slots=True)
class PaddingPolicy:
    """
    Buckets of whole messages: a floor, then Padmé (PURBs, PoPETs 2019, §4): at most 12 % more.

    Padmé leaks O(log log n) bits of a length n; a power of two would leak as much and cost 100 %.
    """

    floor_bytes: int = 1024

    def __post_init__(self) -> None:
        if self.floor_bytes < 1:
            raise ValueError("a padding floor is at least one byte")

    def bucket(self, length: int) -> int:
        """Return the smallest bucket that holds `length` bytes."""
        length = max(length, self.floor_bytes)
        exponent = length.bit_length() - 1
        mask = (1 << (exponent - exponent.bit_length())) - 1 if exponent else 0
        return (length + mask) & ~mask

    def padding(self, length: int) -> bytes:
        """Return the zeros that bring a message of `length` bytes up to its bucket."""
        return bytes(self.bucket(length) - length)


def parse_cell_bytes(value: bytes) -> int:
    """Return the cell size a `confide-cells` field asks for; `FormatError` outside 64 to 16128."""
    if value.isdigit() and len(value) <= 5:
        size = int(value)
        if MIN_CELL_BYTES <= size <= MAX_CELL_BYTES:
            return size
    raise FormatError(
        "cells: a size from 64 to 16128 was expected",
        reason=Reason.CHANNEL_FORMAT,
        clause=_CLAUSE,
    )


def encode_cells(data: bytes, cell_bytes: int) -> tuple[bytes, ...]:
    """Return `data` as cells of exactly `cell_bytes` bytes; no cell for no data."""
    room = cell_bytes - _LENGTH_BYTES
    pieces = (data[start : start + room] for start in range(0, len(data), room))
    return tuple(
        len(piece).to_bytes(_LENGTH_BYTES, "big") + piece + bytes(room - len(piece))
        for piece in pieces
    )


class CellDecoder:
    """Take cells apart as they arrive; holds less than one cell."""

    __slots__ = ("_cell_bytes", "_queue")

    def __init__(self, cell_bytes: int) -> None:
        self._cell_bytes = cell_bytes
        self._queue = ByteQueue()

    def feed(self, data: bytes) -> bytes:
        """Return the data of the cells that `data` completes; `FormatError` for a bad cell."""
        self._queue.append(data)
        parts: list[bytes] = []
        while len(self._queue) >= self._cell_bytes:
            reader = Reader(
                self._queue.take(self._cell_bytes),
                what="cell",
                clause=_CLAUSE,
                truncated=Reason.CHANNEL_FORMAT,
            )
            parts.append(reader.take(reader.uint(_LENGTH_BYTES, "big")))
            if reader.rest().strip(b"\0"):
                raise FormatError(
                    "cell: padding that is not zero", reason=Reason.CHANNEL_FORMAT, clause=_CLAUSE
                )
        return b"".join(parts)

    def end(self) -> None:
        """The content ended: refuse a cell that is cut."""
        if len(self._queue):
            raise FormatError(
                "cell: the content ends inside one", reason=Reason.CHANNEL_TRUNCATED, clause=_CLAUSE
            )
