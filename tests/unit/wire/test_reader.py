"""The bounds-checked cursor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader


def reader(raw: bytes) -> Reader:
    return Reader(raw, what="bytes", clause="test", truncated=Reason.LOG_TRUNCATED)


def test_it_reads_what_is_there() -> None:
    cursor = reader(bytes(range(1, 12)))
    assert (cursor.u8(), cursor.u16le(), cursor.u32le()) == (1, 0x0302, 0x07060504)
    assert (cursor.offset, cursor.remaining) == (7, 4)
    assert cursor.uint(2, "big") == 0x0809
    assert cursor.rest() == b"\x0a\x0b"
    cursor.end(Reason.LOG_FORMAT)


@pytest.mark.parametrize("count", [4, 1 << 62, -1])
def test_it_never_reads_past_the_end_nor_backwards(count: int) -> None:
    cursor = reader(b"abc")
    with pytest.raises(FormatError) as error:
        cursor.take(count)
    assert (error.value.reason, error.value.offset) == (Reason.LOG_TRUNCATED, 0)
    assert cursor.rest() == b"abc"


def test_bytes_after_the_end_are_refused() -> None:
    cursor = reader(b"ab")
    cursor.u8()
    with pytest.raises(FormatError) as error:
        cursor.end(Reason.TRAILING_BYTES)
    assert (error.value.reason, error.value.offset) == (Reason.TRAILING_BYTES, 1)


@given(st.binary(max_size=40), st.lists(st.integers(0, 12), max_size=10))
def test_pieces_are_the_bytes(raw: bytes, sizes: list[int]) -> None:
    cursor, taken = reader(raw), b""
    for size in sizes:
        if size > cursor.remaining:
            with pytest.raises(FormatError):
                cursor.take(size)
        else:
            taken += cursor.take(size)
    assert taken + cursor.rest() == raw
