"""Binary HTTP in both forms and directions: cuts, truncation, limits, refusals."""

from __future__ import annotations

import pytest

from confide.errors import FormatError, Reason
from confide.wire.bhttp import (
    BhttpEvent,
    BhttpLimits,
    Content,
    End,
    MessageKind,
    RequestHead,
    ResponseHead,
    encode_content,
    encode_end,
    encode_known_request,
    encode_known_response,
    encode_request_head,
    encode_response_head,
)
from confide.wire.bhttp_decoder import BhttpDecoder

REQUEST = RequestHead("POST", "https", "confide.invalid", "/v1/x?y", ((b"a", b"1"), (b"b", b"")))
RESPONSE = ResponseHead(201, ((b"x-a", b"v w"),))
TRAILERS = ((b"x-sum", b"7"),)
INDETERMINATE = (
    encode_request_head(REQUEST)
    + encode_content(b"hello")
    + encode_content(b"!")
    + encode_end(TRAILERS)
)
KNOWN = encode_known_request(REQUEST, b"hello!", TRAILERS)


def decode(
    raw: bytes,
    kind: MessageKind = MessageKind.REQUEST,
    size: int = 1 << 20,
    limits: BhttpLimits | None = None,
) -> list[BhttpEvent]:
    decoder = BhttpDecoder(kind, limits)
    events = [e for at in range(0, len(raw), size) for e in decoder.feed(raw[at : at + size])]
    return [*events, *decoder.end()]


def content(events: list[BhttpEvent]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Content))


@pytest.mark.parametrize("raw", [KNOWN, INDETERMINATE, KNOWN + bytes(9), INDETERMINATE + bytes(9)])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_requests_in_any_cuts(raw: bytes, size: int) -> None:
    events = decode(raw, size=size)
    assert events[0] == REQUEST
    assert content(events) == b"hello!"
    assert events[-1] == End(TRAILERS)
    assert sum(isinstance(event, End) for event in events) == 1


def test_content_surfaces_before_its_chunk_is_whole() -> None:
    decoder = BhttpDecoder(MessageKind.REQUEST)
    decoder.feed(encode_request_head(REQUEST))
    assert decoder.feed(b"\x05he") == (Content(b"he"),)
    assert decoder.feed(b"llo") == (Content(b"llo"),)


def test_responses_with_informational_ones_before() -> None:
    early = b"\x40\x67" + b"\x04link\x01x" + b"\0"  # 103 and one field, indeterminate
    raw = (
        b"\x03" + early + encode_response_head(RESPONSE)[1:] + encode_content(b"ok") + encode_end()
    )
    for size in (1, 1000):
        events = decode(raw, MessageKind.RESPONSE, size)
        assert events[:2] == [ResponseHead(103, ((b"link", b"x"),)), RESPONSE]
        assert content(events) == b"ok"
    known = encode_known_response(RESPONSE, b"ok", TRAILERS)
    assert decode(known, MessageKind.RESPONSE) == [RESPONSE, Content(b"ok"), End(TRAILERS)]


def test_empty_content_encodes_to_nothing() -> None:
    assert encode_content(b"") == b""


@pytest.mark.parametrize("known", [True, False])
def test_an_empty_message_may_be_cut_after_any_section(known: bool) -> None:
    head = RequestHead("GET", "https", "a", "/", ())
    raw = encode_known_request(head, b"") if known else encode_request_head(head) + encode_end()
    # After the control data, the fields, the content, the trailers (RFC 9292 §3.8).
    control = len(encode_request_head(head)) - 1
    allowed = set(range(control, control + 4))
    for cut in range(len(raw) + 1):
        if cut in allowed:
            assert decode(raw[:cut]) == [head, End(())]
        else:
            with pytest.raises(FormatError):
                decode(raw[:cut])


@pytest.mark.parametrize("raw", [KNOWN, INDETERMINATE])
def test_a_cut_message_never_reads_as_the_whole_one(raw: bytes) -> None:
    # At a section it reads as a message with less in it: why the seal marks the end.
    whole = decode(raw)
    for cut in range(len(raw)):
        try:
            events = decode(raw[:cut])
        except FormatError:
            continue
        assert events != whole
        assert content(events) in {b"", b"hello!"}


@pytest.mark.parametrize(
    "field",
    [
        (b"Upper", b"x"),
        (b":path", b"/"),
        (b"", b"x"),
        (b"sp ace", b"x"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"te", b"trailers"),
        (b"upgrade", b"h2c"),
        (b"x", b"a\r\nb"),
        (b"x", b"a\0"),
        (b"x", b" a"),
        (b"x", b"a\t"),
        (b"x", b"\x7f"),
    ],
)
def test_fields_outside_the_profile(field: tuple[bytes, bytes]) -> None:
    head = RequestHead("GET", "https", "a", "/", (field,))
    with pytest.raises(ValueError, match="field"):
        encode_request_head(head)
    start = encode_request_head(RequestHead("GET", "https", "a", "/", ()))[:-1]
    name, value = field
    line = bytes([len(name)]) + name + bytes([len(value)]) + value
    if name:
        with pytest.raises(FormatError):
            decode(start + line + b"\0\0\0")


@pytest.mark.parametrize(
    "head",
    [
        RequestHead("G T", "https", "a", "/", ()),
        RequestHead("", "https", "a", "/", ()),
        RequestHead("GET", "HTTPS", "a", "/", ()),
        RequestHead("GET", "https", "a b", "/", ()),
        RequestHead("GET", "https", "a", "no-slash", ()),
        RequestHead("GET", "https", "a", "/a b", ()),
        RequestHead("GET", "https", "a", "/\r\n", ()),
        RequestHead("GET", "https", "a", "/é", ()),
    ],
)
def test_control_data_outside_the_profile(head: RequestHead) -> None:
    with pytest.raises(ValueError, match="request"):
        encode_request_head(head)
    parts = (text.encode() for text in (head.method, head.scheme, head.authority, head.path))
    raw = b"\x02" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0\0\0"
    with pytest.raises(FormatError):
        decode(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x04",
        b"\x01\x40\xc8",  # a response where a request is expected
        KNOWN + b"\0\x01",
        encode_known_request(
            RequestHead("GET", "https", "a", "/", ((b"content-length", b"2"),)), b"x"
        ),
        encode_known_request(
            RequestHead("GET", "https", "a", "/", ((b"content-length", b"x"),)), b""
        ),
        encode_known_request(
            RequestHead(
                "GET", "https", "a", "/", ((b"content-length", b"1"), (b"content-length", b"2"))
            ),
            b"x",
        ),
    ],
)
def test_malformed_requests(raw: bytes) -> None:
    for size in (1, 1000):
        with pytest.raises(FormatError):
            decode(raw, size=size)


@pytest.mark.parametrize("raw", [b"\x01\x32", b"\x01\x42\x58", b"\x01\x40\x67", b"\x03\x40\x67\0"])
def test_malformed_responses(raw: bytes) -> None:
    # Status 50, 600, and 103 alone.
    with pytest.raises(FormatError):
        decode(raw, MessageKind.RESPONSE)


def test_statuses_that_are_none_are_not_written() -> None:
    for status in (99, 600):
        with pytest.raises(ValueError, match="status"):
            encode_response_head(ResponseHead(status, ()))


def test_nothing_follows_the_end() -> None:
    decoder = BhttpDecoder(MessageKind.REQUEST)
    decoder.feed(KNOWN)
    decoder.end()
    with pytest.raises(FormatError):
        decoder.feed(b"\0")


LIMITS = BhttpLimits(
    max_field_bytes=100, max_fields=3, max_content_bytes=8, max_padding_bytes=4, max_informational=1
)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (KNOWN + bytes(5), MessageKind.REQUEST),
        (encode_known_request(REQUEST, b"123456789"), MessageKind.REQUEST),
        (encode_request_head(REQUEST) + b"\x04abcd\x05", MessageKind.REQUEST),
        (
            encode_request_head(RequestHead("GET", "https", "a", "/", ((b"a", b"1"),) * 4)),
            MessageKind.REQUEST,
        ),
        (
            encode_request_head(RequestHead("GET", "https", "a", "/", ((b"a", b"1" * 99),))),
            MessageKind.REQUEST,
        ),
        (
            encode_known_request(RequestHead("GET", "https", "a", "/", ((b"a", b"1" * 99),)), b""),
            MessageKind.REQUEST,
        ),
        (b"\x03" + b"\x40\x67\0" * 2, MessageKind.RESPONSE),
    ],
)
def test_limits(raw: bytes, kind: MessageKind) -> None:
    for size in (1, 1000):
        with pytest.raises(FormatError) as caught:
            decode(raw, kind, size, LIMITS)
        assert caught.value.reason is Reason.LIMIT_EXCEEDED


def test_a_field_that_never_ends_is_refused_at_once() -> None:
    decoder = BhttpDecoder(MessageKind.REQUEST, LIMITS)
    decoder.feed(b"\x02\x03GET\x05https\x01a\x01/")
    with pytest.raises(FormatError) as caught:
        decoder.feed(b"\x01a\xbf\xff\xff\xff")
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
