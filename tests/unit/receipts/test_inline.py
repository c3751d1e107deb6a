"""The inline receipt: stripped from any split of the stream, and no event waits for it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from confide.errors import FormatError
from confide.receipts.inline import (
    ReceiptStripper,
    decode_inline,
    encode_inline,
    inline_comment,
)
from confide.wire.dsse import Envelope

ENVELOPE = Envelope(b'{"a":1}', (("3", b"s" * 64),))
COMMENT = inline_comment(ENVELOPE)
TEXT = encode_inline(ENVELOPE)
MARK = b"\n: confide-receipt "
EVENTS = (
    b'data: {"choices":[]}\n\n',
    b": keep-alive\n\n",
    b"event: x\r\ndata: : confide-receipt \r\n\r\n",
    b": confide\n\n",
    b"\n",
    b"data: [DONE]\n\n",
)
# Pieces that are nearly the mark, at and away from the start of a line.
PIECES = st.sampled_from(
    [b"\n", b"\r\n", b":", b": ", b": confide", b": confide-receipt", b"data: x", b" ", b"\n\n"]
)


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    return [raw[start:end] for start, end in itertools.pairwise(edges)]


def strip(pieces: list[bytes]) -> tuple[bytes, str | None]:
    stripper = ReceiptStripper()
    out = b"".join(stripper.feed(piece) for piece in pieces)
    held, text = stripper.finish()
    return out + held, text


@given(st.lists(st.sampled_from(EVENTS)), st.lists(st.integers(0, 5000), max_size=12))
def test_any_split_gives_the_same_bytes_and_the_receipt(
    events: list[bytes], cuts: list[int]
) -> None:
    body = b"".join(events)
    assert strip(split(body + COMMENT, cuts)) == (body, TEXT)
    assert strip(split(body, cuts)) == (body, None)


@given(st.lists(PIECES, max_size=20).map(b"".join), st.lists(st.integers(0, 200), max_size=12))
def test_near_misses_come_through_unchanged(body: bytes, cuts: list[int]) -> None:
    assume(MARK not in b"\n" + body)
    assert strip(split(body, cuts)) == (body, None)
    assert strip([body[at : at + 1] for at in range(len(body))]) == (body, None)


@given(st.binary(max_size=120), st.lists(st.integers(0, 200), max_size=8))
def test_the_split_never_matters(body: bytes, cuts: list[int]) -> None:
    raw = body + b"\n" + COMMENT
    assert strip(split(raw, cuts)) == strip([raw])
    assert strip(split(raw, cuts))[0] == body + b"\n"


@pytest.mark.parametrize("count", range(1, len(EVENTS) + 1))
def test_a_complete_event_is_never_delayed(count: int) -> None:
    stripper = ReceiptStripper()
    for event in EVENTS[:count]:
        assert stripper.feed(event) == event
    assert stripper.feed(COMMENT) == b""
    assert stripper.finish() == (b"", TEXT)


def test_only_what_could_be_the_mark_is_held() -> None:
    stripper = ReceiptStripper()
    assert stripper.feed(b"data: a\n\n: conf") == b"data: a\n\n"
    assert stripper.feed(b"used\n\n") == b": confused\n\n"
    assert stripper.finish() == (b"", None)


def test_the_mark_inside_a_line_is_data() -> None:
    raw = b"data: see : confide-receipt abc\n\n"
    assert strip([raw]) == (raw, None)


def test_a_stream_of_nothing_but_the_receipt() -> None:
    assert strip([COMMENT]) == (b"", TEXT)
    assert strip([COMMENT[at : at + 1] for at in range(len(COMMENT))]) == (b"", TEXT)


def test_everything_after_the_mark_is_the_receipt_whatever_it_is() -> None:
    body, text = strip([b"data: a\n\n" + COMMENT + b"data: smuggled\n\n"])
    assert body == b"data: a\n\n"
    assert text is not None
    with pytest.raises(FormatError):
        decode_inline(text)


def test_an_endless_receipt_takes_bounded_memory_and_is_none() -> None:
    stripper = ReceiptStripper()
    stripper.feed(COMMENT[:20])
    for _ in range(40):
        assert stripper.feed(b"A" * 65536) == b""
    assert len(stripper._tail) <= 64 * 1024 + 1
    _, text = stripper.finish()
    assert text is not None
    with pytest.raises(FormatError):
        decode_inline(text)


def test_the_receipt_reads_back() -> None:
    assert decode_inline(TEXT) == ENVELOPE


@pytest.mark.parametrize("text", ["", "e30=", "!!", TEXT[:-4], TEXT + "\n", "bnVsbA=="])
def test_what_is_no_receipt_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        decode_inline(text)
