"""QUIC variable-length integers (RFC 9000 §16), and the queue that streamed formats read from.

`ByteQueue` is the incremental twin of `wire/reader.py`: the only place where hostile streamed
bytes are cut. It knows nothing of formats and holds what its owner has not consumed yet; the
owner bounds it by consuming or refusing after each `append`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confide.wire.reader import Reader

__all__ = ["MAX_VARINT", "ByteQueue", "encode_varint", "read_varint"]

# From: RFC 9000 §16, table 4.
MAX_VARINT = 2**62 - 1
_VALUE_MASK = {1: 0x3F, 2: 0x3FFF, 4: 0x3FFF_FFFF, 8: MAX_VARINT}
# Consumed bytes leave the front only when this many gathered: a `del` per read is quadratic.
_COMPACT_BYTES = 65536


def encode_varint(value: int) -> bytes:
    """Return the shortest encoding of `value`; `ValueError` outside 0 to 2^62 - 1."""
    if value < 0 or value > MAX_VARINT:
        raise ValueError("a QUIC varint holds 0 to 2^62 - 1")
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")


def read_varint(reader: Reader) -> int:
    """Read one varint of any encoding length from `reader`; raises its `FormatError`."""
    first = reader.u8()
    size = 1 << (first >> 6)
    value = first & 0x3F
    return value if size == 1 else (value << (8 * (size - 1))) | reader.uint(size - 1, "big")


class ByteQueue:
    """Bytes that have arrived and are not consumed: append at the end, take from the front."""

    __slots__ = ("_data", "_start")

    def __init__(self) -> None:
        self._data = bytearray()
        self._start = 0

    def __len__(self) -> int:
        return len(self._data) - self._start

    def append(self, data: bytes) -> None:
        """Add `data` at the end."""
        self._data += data

    def take(self, count: int) -> bytes:
        """Remove and return the first `count` bytes; `IndexError` when fewer are held."""
        start, held = self._start, len(self._data)
        end = start + count
        if count < 0 or end > held:
            raise IndexError("not that many bytes are queued")
        self._start = end
        taken = bytes(memoryview(self._data)[start:end])
        if end == held:
            self._data.clear()
            self._start = 0
        elif end > _COMPACT_BYTES:
            del self._data[:end]
            self._start = 0
        return taken

    def peek(self, count: int) -> bytes:
        """Return at most `count` bytes from the front and leave them."""
        return bytes(memoryview(self._data)[self._start : self._start + count])

    def peek_varint(self) -> tuple[int, int] | None:
        """Return (value, encoded size) of the varint at the front; None when it is incomplete."""
        start, held = self._start, len(self._data)
        if start == held:
            return None
        size = 1 << (self._data[start] >> 6)
        end = start + size
        if end > held:
            return None
        return int.from_bytes(self._data[start:end], "big") & _VALUE_MASK[size], size

    def take_varint(self) -> int | None:
        """Remove and return the varint at the front; None (and nothing taken) when incomplete."""
        found = self.peek_varint()
        if found is None:
            return None
        value, size = found
        self.take(size)
        return value
