"""Every endpoint through the node, with its receipt: docs/protocols/inference.md §1, §3, §7, §8."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from model_places import inner_node

from confide.inference.digest import Finish
from confide.inference.passing import PassRoutes, parse_pass_route

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from engine_peers import Peer

_FORM = "multipart/form-data; boundary=mark"
_UPLOAD = (
    b'--mark\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--mark\r\nContent-Disposition: form-data; name="%b"; filename="f"\r\n'
    b"Content-Type: audio/wav\r\n\r\nRIFF\x00\xff\r\n--mark--\r\n"
)
_TEXTS = {"model": "m", "text_1": "a", "text_2": "b"}
_RANKED = {"model": "m", "query": "q", "documents": ["a"]}
_JSON = "application/json"
_ASKED: list[tuple[str, Any, str]] = [
    ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]}, _JSON),
    ("/v1/completions", {"model": "m", "prompt": "x"}, _JSON),
    ("/v1/responses", {"model": "m", "input": "x"}, _JSON),
    ("/v1/embeddings", {"model": "m", "input": "x"}, _JSON),
    ("/v1/rerank", _RANKED, _JSON),
    ("/rerank", _RANKED, _JSON),
    ("/v1/score", _TEXTS, _JSON),
    ("/tokenize", {"model": "m", "prompt": "x"}, _JSON),
    ("/detokenize", {"model": "m", "tokens": [1]}, _JSON),
    ("/v1/audio/speech", {"model": "m", "input": "x", "voice": "v"}, _JSON),
    ("/v1/images/generations", {"model": "m", "prompt": "x"}, _JSON),
    ("/v1/audio/transcriptions", _UPLOAD % b"file", _FORM),
    ("/v1/audio/translations", _UPLOAD % b"file", _FORM),
    ("/v1/images/edits", _UPLOAD % b"image[]", _FORM),
    ("/v1/messages", {"model": "m", "messages": []}, _JSON),
    ("/v1/messages/count_tokens", {"model": "m", "messages": []}, _JSON),
    ("/v1/moderations", {"model": "m", "input": "x"}, _JSON),
    ("/v2/rerank", _RANKED, _JSON),
    ("/classify", {"model": "m", "input": "x"}, _JSON),
    ("/pooling", {"model": "m", "input": "x"}, _JSON),
]


def run(main: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


class Recorder:
    """An engine that keeps what it saw and answers one thing."""

    def __init__(self, body: bytes = b"{}", kind: str = _JSON, status: int = 200) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self._answer = body, kind, status

    async def __call__(self, peer: Peer) -> None:
        body, kind, status = self._answer
        while True:
            line, headers, given = await peer.request()
            if line.startswith("GET /health"):
                await peer.answer(b"")
                continue
            self.seen.append((line, headers, given))
            await peer.answer(body, status=status, head=f"content-type: {kind}\r\n")


def sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(("path", "body", "kind"), _ASKED, ids=[path for path, _, _ in _ASKED])
def test_every_endpoint_passes_the_very_bytes_both_ways(path: str, body: Any, kind: str) -> None:
    sent = body if isinstance(body, bytes) else b" " + json.dumps(body).encode()
    engine = Recorder(b'{"answer":  1}\n')

    async def main() -> None:
        async with inner_node(engine) as inner:
            got = await inner.ask(path, sent, kind=kind)
            assert (got.status, got.body) == (200, b'{"answer":  1}\n')
            record = inner.record(got.envelope)
            assert record.endpoint == path
            assert (record.request_digest, record.forwarded_digest) == (sha(sent), None)
            assert record.response_digest == record.upstream_digest == sha(got.body)
            assert (record.transformations, record.finish) == ((), Finish.COMPLETE)
            assert record.carriage.request_type == (None if kind == _JSON else kind)

    run(main())
    ((line, headers, given),) = engine.seen
    assert (line, given) == (f"POST {path} HTTP/1.1", sent)
    assert headers["content-type"] == kind
    assert not {"authorization", "cookie", "x-api-key"} & headers.keys()


@pytest.mark.parametrize(("path", "body", "kind"), _ASKED, ids=[path for path, _, _ in _ASKED])
def test_another_model_reaches_no_engine_by_any_endpoint(path: str, body: Any, kind: str) -> None:
    if isinstance(body, bytes):
        sent = body.replace(b"\r\nm\r\n", b"\r\nother\r\n")
    else:
        sent = json.dumps({**body, "model": "other"}).encode()
    engine = Recorder()

    async def main() -> None:
        async with inner_node(engine) as inner:
            got = await inner.ask(path, sent, kind=kind)
            assert (got.status, got.code) == (404, "model_not_found")
            assert inner.record(got.envelope).upstream_digest is None

    run(main())
    assert engine.seen == []


def test_speech_comes_back_as_bytes_with_its_type_and_a_receipt_before_it() -> None:
    audio = bytes(range(256)) * 64 + b'"model":"up"'

    async def main() -> None:
        async with inner_node(Recorder(audio, "audio/mpeg; rate=1"), upstream_name="up") as inner:
            got = await inner.ask("/v1/audio/speech", {"model": "m", "input": "x", "voice": "v"})
            assert (got.status, got.body) == (200, audio)
            assert got.headers["content-type"] == "audio/mpeg"
            record = inner.record(got.envelope)
            assert record.carriage.response_type == "audio/mpeg"
            assert record.response_digest == record.upstream_digest == sha(audio)

    run(main())


@pytest.mark.parametrize(
    ("path", "kind", "returned"),
    [
        ("/v1/embeddings", "text/html", "application/octet-stream"),
        ("/v1/embeddings", "audio/mpeg", "application/octet-stream"),
        ("/v1/audio/speech", "text/plain", "application/octet-stream"),
        ("/classify", "text/html", "application/octet-stream"),
        ("/classify", "nonsense", "application/octet-stream"),
        ("/classify", "text/csv", "text/csv"),
    ],
)
def test_a_type_that_an_endpoint_does_not_have_is_not_returned(
    path: str, kind: str, returned: str
) -> None:
    body = {path: body for path, body, _ in _ASKED}[path]

    async def main() -> None:
        async with inner_node(Recorder(b"x", kind)) as inner:
            got = await inner.ask(path, body)
            assert (got.headers["content-type"], got.body) == (returned, b"x")
            changed = ("media-type",) if returned != kind else ()
            assert inner.record(got.envelope).transformations == changed

    run(main())


def test_subtitles_come_back_as_such() -> None:
    async def main() -> None:
        async with inner_node(Recorder(b"WEBVTT", "text/vtt")) as inner:
            got = await inner.ask("/v1/audio/transcriptions", _UPLOAD % b"file", kind=_FORM)
            assert (got.headers["content-type"], got.body) == ("text/vtt", b"WEBVTT")

    run(main())


def test_an_upload_under_another_name_is_told() -> None:
    engine = Recorder(b'{"text":"hi","model":"up"}')
    sent = _UPLOAD % b"file"
    forwarded = sent.replace(b"\r\n\r\nm\r\n", b"\r\n\r\nup\r\n")

    async def main() -> None:
        async with inner_node(engine, upstream_name="up") as inner:
            got = await inner.ask("/v1/audio/transcriptions", sent, kind=_FORM)
            assert got.body == b'{"text":"hi","model":"m"}'
            record = inner.record(got.envelope)
            assert record.forwarded_digest == sha(forwarded)
            assert record.transformations == ("model-name",)

    run(main())
    assert engine.seen[0][2] == forwarded


_ADMINISTRATION = [
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/load_model"),
    ("POST", "/sleep"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/shutdown"),
    ("GET", "/metrics"),
    ("GET", "/health"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/responses/resp_1"),
    ("GET", "/v1/files"),
    ("POST", "/v1/chat/completions/"),
    ("POST", "//v1/chat/completions"),
    ("POST", "/v1/../sleep"),
    ("POST", "/v1/chat/completions/../../../sleep"),
    ("POST", "/v1%2Fchat%2Fcompletions"),
    ("POST", "/%73leep"),
    ("POST", "/v1/messages/%2e%2e/%2e%2e/sleep"),
    ("POST", "/V1/messages"),
    ("PUT", "/v1/messages"),
    ("DELETE", "/v1/models/m"),
    ("POST", "/v1/unknown"),
    ("BREW", "/v1/unknown"),
]


@pytest.mark.parametrize(("method", "path"), _ADMINISTRATION)
def test_what_nobody_listed_reaches_no_engine_and_has_a_receipt(method: str, path: str) -> None:
    engine = Recorder()

    async def main() -> None:
        async with inner_node(engine) as inner:
            got = await inner.ask(path, {"model": "m"}, method=method)
            assert (got.status, got.code) == (404, "not_found")
            record = inner.record(got.envelope)
            assert (record.endpoint, record.upstream_digest) == ("unlisted", None)

    run(main())
    assert engine.seen == []


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_listed_route_passes_method_query_type_and_status(method: str) -> None:
    engine = Recorder(b"\x00\x01", "application/x-thing", 201)
    passing = PassRoutes(frozenset([parse_pass_route(f"{method} /v1/thing")]))

    async def main() -> None:
        async with inner_node(engine, passing=passing) as inner:
            got = await inner.ask(
                "/v1/thing?model=m&a=%2F%20", b"\xff", method=method, kind="application/x-in"
            )
            assert (got.status, got.body) == (201, b"\x00\x01")
            assert got.headers["content-type"] == "application/x-thing"
            carriage = inner.record(got.envelope).carriage
            assert (carriage.method, carriage.query) == (method, sha(b"model=m&a=%2F%20"))
            assert carriage.request_type == "application/x-in"
            assert carriage.response_type == "application/x-thing"

    run(main())
    ((line, headers, given),) = engine.seen
    assert (line, given) == (f"{method} /v1/thing?model=m&a=%2F%20 HTTP/1.1", b"\xff")
    assert headers["content-type"] == "application/x-in"


def test_a_listed_route_that_the_engine_lacks() -> None:
    async def main() -> None:
        async with inner_node(Recorder(b"no such thing here", status=404)) as inner:
            got = await inner.ask("/v1/messages", {"model": "m"})
            assert (got.status, got.code) == (404, "unsupported_endpoint")
            assert b"no such thing" not in got.body
            assert inner.record(got.envelope).transformations == ("error-body",)

    run(main())


def test_a_listed_route_streams_as_it_comes() -> None:
    events = b"event: message_start\ndata: {}\n\n"

    async def main() -> None:
        async with inner_node(Recorder(events, "text/event-stream")) as inner:
            got = await inner.ask("/v1/messages", {"model": "m", "stream": True})
            assert got.body == events
            assert inner.record(got.envelope).streamed

    run(main())


def test_the_receipt_says_which_engine_of_a_pool_answered_by_its_place_alone() -> None:
    async def main() -> None:
        async with inner_node(Recorder(), Recorder()) as inner:
            inner.pool._members[0].active = 7
            got = await inner.ask("/v1/completions", {"model": "m", "prompt": "x"})
            assert inner.record(got.envelope).carriage.member == 1
            assert b"127.0.0.1" not in got.envelope.payload

    run(main())


def test_parts_of_a_form_are_read_once_whatever_their_size() -> None:
    """An upload of the largest size goes through, one byte more does not."""
    room = 32 * 1024 * 1024 - len(_UPLOAD % b"file")
    full = (_UPLOAD % b"file").replace(b"RIFF", b"RIFF" + b"\n" * room)
    engine = Recorder()

    async def main() -> None:
        async with inner_node(engine) as inner:
            got = await inner.ask("/v1/audio/transcriptions", full, kind=_FORM)
            assert got.status == 200
            got = await inner.ask("/v1/audio/transcriptions", full + b" ", kind=_FORM)
            assert (got.status, got.code) == (413, "request_too_large")

    run(main())
    assert [given for _, _, given in engine.seen] == [full]
