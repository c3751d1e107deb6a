"""Server-sent events, clause by clause of WHATWG HTML §9.2.5 and §9.2.6."""

from __future__ import annotations

import pytest

from confide.errors import FormatError, LocalProtocolError, Reason
from confide.wire.sse import SseEvent, SseLimits, SseParser, SseSilence, encode_event


def _parse(stream: bytes) -> list[SseEvent | SseSilence]:
    parser = SseParser()
    return [*parser.feed(stream), *parser.close()]


def _events(stream: bytes) -> list[tuple[str, bytes]]:
    return [(item.name, item.data) for item in _parse(stream) if isinstance(item, SseEvent)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        pytest.param(b"data: one\n\n", [("", b"one")], id="one space is taken off"),
        pytest.param(b"data:  one\n\n", [("", b" one")], id="only one space"),
        pytest.param(b"data:one\n\n", [("", b"one")], id="no space"),
        pytest.param(b"data: a\ndata: b\n\n", [("", b"a\nb")], id="lines join with LF"),
        pytest.param(b"data: a\r\ndata: b\r\n\r\n", [("", b"a\nb")], id="CRLF"),
        pytest.param(b"data: a\rdata: b\r\r", [("", b"a\nb")], id="CR"),
        pytest.param(b"data: a\ndata: b\r\r\n", [("", b"a\nb")], id="mixed line ends"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [("", b"a")], id="BOM"),
        pytest.param(b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [("", b"a")], id="BOM only at start"),
        pytest.param(b": hi\ndata: a\n\n", [("", b"a")], id="comment"),
        pytest.param(b"event: x\ndata: a\n\ndata: b\n\n", [("x", b"a"), ("", b"b")], id="name"),
        pytest.param(b"data\n\n", [("", b"")], id="a bare data field dispatches"),
        pytest.param(b"data\ndata\n\n", [("", b"\n")], id="two bare data fields"),
        pytest.param(b"event: x\n\n", [], id="no data, no event"),
        pytest.param(b"other: x\nDATA: y\n\n", [], id="unknown fields; names have a case"),
        pytest.param(b"data: a\n", [], id="an unfinished block is not an event"),
        pytest.param(b"data: \xff\n\n", [("", b"\xff")], id="data stays bytes"),
        pytest.param(b'data: {"a": "data: b"}\n\n', [("", b'{"a": "data: b"}')], id="colon"),
    ],
)
def test_interpretation(stream: bytes, expected: list[tuple[str, bytes]]) -> None:
    assert _events(stream) == expected


def test_id_is_reported_and_never_holds_nul() -> None:
    first, second = _parse(b"id: 7\ndata: a\n\nid: 8\x00\ndata: b\n\n")
    assert isinstance(first, SseEvent)
    assert isinstance(second, SseEvent)
    assert (first.last_id, second.last_id) == ("7", None)


def test_every_byte_is_in_one_item_or_in_the_tail() -> None:
    stream = b"\xef\xbb\xbf: ping\r\n\r\ndata: a\n\n\nid: 1\n\ndata: unfinished"
    parser = SseParser()
    items = [*parser.feed(stream), *parser.close()]
    assert b"".join(item.raw for item in items) + parser.tail == stream
    assert [type(item) for item in items] == [SseSilence, SseEvent, SseSilence, SseSilence]
    assert parser.tail == b"data: unfinished"


def test_a_final_lone_cr_waits_for_its_lf() -> None:
    parser = SseParser()
    assert list(parser.feed(b"data: a\r\r")) == []
    (event,) = parser.feed(b"\n")
    assert event.raw == b"data: a\r\r\n"


def test_a_final_lone_cr_is_released_by_the_end() -> None:
    parser = SseParser()
    assert list(parser.feed(b"data: a\r\r")) == []
    (event,) = parser.close()
    assert event.raw == b"data: a\r\r"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_event_is_given_out_with_its_last_byte(end: bytes) -> None:
    block = b"data: a" + end + end
    parser = SseParser()
    assert list(parser.feed(block[:-1])) == []
    assert [item.raw for item in parser.feed(block[-1:])] == [block]


def test_items_not_taken_are_not_lost() -> None:
    parser = SseParser()
    first = next(iter(parser.feed(b"data: a\n\ndata: b\n\n")))
    (second,) = parser.feed(b"")
    assert (first.raw, second.raw) == (b"data: a\n\n", b"data: b\n\n")


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("stream", "limits"),
    [
        (b"data: a\n\n" + b"x" * 33 + b"\n", SseLimits(max_line_bytes=32)),
        (b"data: a\n\n" + b"x" * 33, SseLimits(max_line_bytes=32)),
        (b"data: a\n\n" + b"data: xx\n" * 5 + b"\n", SseLimits(max_event_bytes=40)),
        (b"data: a\n\n" + b"data: xx\n" * 5, SseLimits(max_event_bytes=40)),
    ],
)
def test_caps_hold_however_the_stream_is_cut(stream: bytes, limits: SseLimits, size: int) -> None:
    parser = SseParser(limits)
    seen: list[bytes] = []

    def run() -> None:
        for start in range(0, len(stream), size):
            seen.extend(item.raw for item in parser.feed(stream[start : start + size]))

    with pytest.raises(FormatError) as caught:
        run()
    assert caught.value.reason is Reason.STREAM_FORMAT
    assert seen == [b"data: a\n\n"]
    with pytest.raises(FormatError):
        list(parser.feed(b"\n\n"))


def test_exactly_at_the_caps_passes() -> None:
    parser = SseParser(SseLimits(max_line_bytes=7, max_event_bytes=10))
    assert len(list(parser.feed(b"data: a\n\n: x\n: y\n\ndata: b\r\n\n"))) == 3


def test_feeding_after_the_end_is_our_bug() -> None:
    parser = SseParser()
    list(parser.close())
    with pytest.raises(LocalProtocolError):
        parser.feed(b"data")


def test_encoding() -> None:
    assert encode_event(b"{}") == b"data: {}\n\n"
    assert encode_event(b"a\r\nb\rc", name="n", event_id="1") == (
        b"event: n\nid: 1\ndata: a\ndata: b\ndata: c\n\n"
    )
    assert encode_event(b"") == b"data: \n\n"


@pytest.mark.parametrize("name", ["a\nb", "a\r", "a\0"])
def test_a_name_cannot_smuggle_a_line(name: str) -> None:
    with pytest.raises(ValueError, match="line end"):
        encode_event(b"x", name=name)
    with pytest.raises(ValueError, match="line end"):
        encode_event(b"x", event_id=name)
