"""Length hiding (channel.md §5): buckets for whole messages, fixed-size cells for streams.

Both stay inside standard Binary HTTP: buckets are its zero padding, cells are a coding of the
content that a field announces. They hide lengths, not the number or the moments of chunks; a
cadence, which a second field asks for, hides the moments while a stream lasts.
"""

from __future__ import annotations

from dataclasses import dataclass

from confide.errors import ConfigurationError, FormatError, Reason
from confide.wire.reader import Reader
from confide.wire.varint import ByteQueue

__all__ = [
    "CADENCE_FIELD",
    "CELLS_FIELD",
    "MAX_CELL_BYTES",
    "MIN_CELL_BYTES",
    "CellDecoder",
    "PaddingPolicy",
    "StreamShape",
    "cell_room",
    "encode_cell",
    "encode_cells",
    "parse_cadence",
    "parse_cell_bytes",
    "shape_of",
]

CELLS_FIELD = b"confide-cells"
# From: channel.md 5.2: a cell and its BHTTP length fit one sealed chunk of 16384 bytes.
MIN_CELL_BYTES = 64
MAX_CELL_BYTES = 16128
# From: channel.md 5.4.
CADENCE_FIELD = b"confide-cadence"
_MIN_CADENCE = 10
_MAX_CADENCE = 1000
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


def parse_cadence(value: bytes) -> int:
    """Return the milliseconds a `confide-cadence` field asks for; `FormatError` beyond 10..1000."""
    if value.isdigit() and len(value) <= 4:
        interval = int(value)
        if _MIN_CADENCE <= interval <= _MAX_CADENCE and value == b"%d" % interval:
            return interval
    raise FormatError(
        "cadence: milliseconds from 10 to 1000 were expected",
        reason=Reason.CHANNEL_FORMAT,
        clause="channel.md 5.4",
    )


@dataclass(frozen=True, slots=True)
class StreamShape:
    """What a client asks for in answers: cells of `cell_bytes`, and one every `cadence_ms`."""

    cell_bytes: int
    cadence_ms: int | None = None

    def __post_init__(self) -> None:
        """Refuse what a node would refuse."""
        if not MIN_CELL_BYTES <= self.cell_bytes <= MAX_CELL_BYTES:
            raise ValueError(f"a cell has {MIN_CELL_BYTES} to {MAX_CELL_BYTES} bytes")
        if self.cadence_ms is not None and not _MIN_CADENCE <= self.cadence_ms <= _MAX_CADENCE:
            raise ValueError(f"a cadence has {_MIN_CADENCE} to {_MAX_CADENCE} milliseconds")


def shape_of(cells: int | None, cadence_ms: int | None) -> StreamShape | None:
    """Return the shape that two options ask for; `ConfigurationError` for one that cannot be."""
    if cells is None and cadence_ms is None:
        return None
    if cells is None:
        raise ConfigurationError("a cadence is one of cells: name their size")
    try:
        return StreamShape(cells, cadence_ms)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def cell_room(cell_bytes: int) -> int:
    """Return how much data fits a cell."""
    return cell_bytes - _LENGTH_BYTES


def encode_cell(data: bytes, cell_bytes: int) -> bytes:
    """Return one cell of exactly `cell_bytes` bytes; of no data is a cell as well."""
    room = cell_room(cell_bytes)
    if len(data) > room:
        raise ValueError("more data than fits a cell")
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data + bytes(room - len(data))


def encode_cells(data: bytes, cell_bytes: int) -> tuple[bytes, ...]:
    """Return `data` as cells of exactly `cell_bytes` bytes; no cell for no data."""
    room = cell_room(cell_bytes)
    pieces = (data[start : start + room] for start in range(0, len(data), room))
    return tuple(encode_cell(piece, cell_bytes) for piece in pieces)


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
