"""Chunking invariance: however a stream is cut, the same items, bytes and digest come out."""

from __future__ import annotations

import hashlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from confide.errors import FormatError
from confide.inference.models import ServedModel
from confide.inference.responses_answer import ResponseContext
from confide.inference.responses_stream import ResponsesStream
from confide.inference.rewrite import ModelRenamer, rename_model
from confide.wire.sse import SseEvent, SseLimits, SseParser, SseSilence, encode_event

# Streams made of the bytes that matter, and of anything.
_PIECES = [
    *(b"data: ", b"event: x", b"id: 1", b":", b"\r", b"\n", b"\r\n", b"\n\n", b"\xef\xbb\xbf"),
    *(b"a", b"\xff", b'"model":"up"', b'"model" : "up@main"', b'\\"model\\":\\"up\\"'),
]
_STREAMS = st.lists(st.sampled_from(_PIECES), max_size=40).map(b"".join) | st.binary(max_size=200)
_SERVED = ServedModel(
    name="public", weights_digest="", manifest_digest="", upstream_name="up", created=0
)
_CHAT = b"".join(
    b"data: " + data + b"\r\n\r\n"
    for data in (
        b'{"choices":[{"delta":{"role":"assistant"}}]}',
        b'{"choices":[{"delta":{"content":"caf\xc3\xa9"}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f"}}]}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}',
        b'{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}',
        b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}',
        b"[DONE]",
    )
)


def _cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[a:b] for a, b in pairwise(places)]


_CUTS = st.lists(st.integers(min_value=0, max_value=4000), max_size=12)


def _parse(chunks: list[bytes]) -> tuple[list[SseEvent | SseSilence], bytes]:
    parser = SseParser()
    items = [item for chunk in chunks for item in parser.feed(chunk)]
    items += parser.close()
    return items, parser.tail


@given(_STREAMS, _CUTS)
def test_items_do_not_depend_on_the_cuts(stream: bytes, cuts: list[int]) -> None:
    whole, tail = _parse([stream])
    pieces, pieces_tail = _parse(_cut(stream, cuts))
    assert (pieces, pieces_tail) == (whole, tail)
    digest = hashlib.sha256(b"".join(item.raw for item in pieces) + pieces_tail)
    assert digest.digest() == hashlib.sha256(stream).digest()


@given(_STREAMS, _CUTS)
def test_caps_do_not_depend_on_the_cuts(stream: bytes, cuts: list[int]) -> None:
    def run(chunks: list[bytes]) -> tuple[list[bytes], bool]:
        parser = SseParser(SseLimits(max_line_bytes=12, max_event_bytes=30))
        seen: list[bytes] = []
        try:
            for chunk in chunks:
                seen.extend(item.raw for item in parser.feed(chunk))
            seen.extend(item.raw for item in parser.close())
        except FormatError:
            return seen, True
        return seen, False

    assert run(_cut(stream, cuts)) == run([stream])


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_what_is_encoded_is_parsed(datas: list[bytes]) -> None:
    items, tail = _parse([b"".join(encode_event(data, name="n") for data in datas)])
    normal = [data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for data in datas]
    assert [item.data for item in items if isinstance(item, SseEvent)] == normal
    assert tail == b""


@given(_STREAMS, _CUTS)
def test_renaming_a_stream_is_renaming_the_whole(stream: bytes, cuts: list[int]) -> None:
    renamer = ModelRenamer(_SERVED)
    out = b"".join(renamer.feed(chunk) for chunk in _cut(stream, cuts)) + renamer.close()
    assert out == b"".join(rename_model(line, _SERVED) for line in stream.splitlines(keepends=True))


def _map(chunks: list[bytes]) -> bytes:
    context = ResponseContext(token="ab", created_at=1, model="public", echo={})
    mapper = ResponsesStream(context)
    return b"".join((mapper.start(), *(mapper.feed(chunk) for chunk in chunks), mapper.close()))


@given(_CUTS)
def test_the_mapped_stream_does_not_depend_on_the_cuts(cuts: list[int]) -> None:
    assert _map(_cut(_CHAT, cuts)) == _map([_CHAT])


@given(_STREAMS, _CUTS)
def test_whatever_the_engine_sends_a_mapped_stream_ends_once(
    stream: bytes, cuts: list[int]
) -> None:
    ends = (b"response.completed", b"response.incomplete", b"response.failed")
    items, tail = _parse([_map(_cut(_CHAT[: len(stream) * 3] + stream, cuts))])
    names = [item.name.encode() for item in items if isinstance(item, SseEvent)]
    assert tail == b""
    assert [name for name in names if name in ends] == names[-1:]
