"""Engines that fail, over real sockets: an honest answer, a receipt, bounded memory. §3, §9."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from model_places import Inner, inner_node

from confide.adapters.upstream_pool import PoolLimits
from confide.inference.digest import Finish
from confide.inference.plan import Endpoint, EngineRoutes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from engine_peers import Peer
    from model_places import Got

_CHAT = "/v1/chat/completions"
_ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
_STREAMED = {**_ASKED, "stream": True}
_CHUNK = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
_HEAD = b"HTTP/1.1 200 X\r\ncontent-type: %b\r\n"
_EVENTS = _HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n"
_WHOLE = _HEAD % b"application/json"
_MB = 1024 * 1024


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def run(main: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


def saying(*pieces: bytes, hangs: bool = False) -> Any:
    """An engine that sends these bytes for any request, and closes, or stays silent."""

    async def talk(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)
        if hangs:
            await peer.gone()

    return talk


async def until(holds: Callable[[], bool]) -> None:
    """Let the others run until it holds."""
    while not holds():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)


async def failed(inner: Inner, got: Got) -> None:
    """What every failure has: a receipt about exactly the bytes that were returned."""
    record = inner.record(got.envelope)
    assert record.finish is Finish.UPSTREAM_FAILED
    assert record.response_digest == hashlib.sha256(got.body).hexdigest()
    assert record.status == got.status
    assert inner.pool._members[0].active == 0


@pytest.mark.parametrize(
    ("talk", "status", "code"),
    [
        pytest.param(saying(), 503, "engine_unavailable", id="dies before the first byte"),
        pytest.param(saying(b"HTTP/1.1 200 X\r\nconte"), 503, "engine_unavailable", id="in head"),
        pytest.param(saying(b"not HTTP at all\r\n\r\n"), 503, "engine_unavailable", id="no HTTP"),
        pytest.param(
            saying(b"HTTP/1.1 200 X\r\n" + b"a: b\r\n" * 5000 + b"\r\n"),
            503,
            "engine_unavailable",
            id="too many headers",
        ),
        pytest.param(
            saying(b"HTTP/1.1 200 X\r\na: " + b"b" * 100_000 + b"\r\n\r\n"),
            503,
            "engine_unavailable",
            id="a long header",
        ),
        pytest.param(
            saying(_WHOLE + b"content-length: 100\r\n\r\n{"),
            502,
            "engine_failed",
            id="length above",
        ),
        pytest.param(
            saying(_WHOLE + b"content-length: x\r\n\r\n{}"),
            503,
            "engine_unavailable",
            id="no length",
        ),
        pytest.param(
            saying(_WHOLE + b"transfer-encoding: chunked\r\n\r\nzz\r\n"),
            503,
            "engine_unavailable",
            id="garbage for chunks",
        ),
        pytest.param(
            saying(_EVENTS.replace(b"200", b"500") + chunk(b"trace") + b"0\r\n\r\n"),
            502,
            "engine_failed",
            id="5xx",
        ),
        pytest.param(
            saying(_WHOLE + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nxx"),
            503,
            "engine_unavailable",
            id="an encoding nobody asked for",
        ),
    ],
)
@pytest.mark.parametrize("asked", [_ASKED, _STREAMED])
def test_nothing_was_returned_yet(talk: Any, status: int, code: str, asked: dict[str, Any]) -> None:
    async def main() -> None:
        async with inner_node(talk) as inner:
            got = await inner.ask(_CHAT, asked)
            assert (got.status, got.code) == (status, code)
            assert b"trace" not in got.body
            await failed(inner, got)

    run(main())


@pytest.mark.parametrize("hangs", [False, True])
def test_a_stream_that_breaks_or_stalls_ends_with_an_event(*, hangs: bool) -> None:
    async def main() -> None:
        talk = saying(_EVENTS + chunk(_CHUNK) + chunk(_CHUNK[:20]), hangs=hangs)
        async with inner_node(talk, idle_seconds=0.2) as inner:
            got = await inner.ask(_CHAT, _STREAMED)
            assert got.status == 200
            assert got.body.startswith(_CHUNK + _CHUNK[:20] + b'\n\ndata: {"error"')
            await failed(inner, got)
            assert inner.record(got.envelope).transformations == ("error-event",)

    run(main())


def test_an_engine_that_never_answers_is_given_up() -> None:
    async def main() -> None:
        async with inner_node(saying(hangs=True), first_seconds=0.1, idle_seconds=0.1) as inner:
            got = await inner.ask(_CHAT, _ASKED)
            assert (got.status, got.headers["retry-after"]) == (503, "1")
            await failed(inner, got)

    run(main())


def test_more_than_the_length_is_no_answer() -> None:
    async def main() -> None:
        async with inner_node(saying(_WHOLE + b"content-length: 2\r\n\r\n{}smuggled")) as inner:
            got = await inner.ask(_CHAT, _ASKED)
            assert (got.status, got.code) == (503, "engine_unavailable")
            await failed(inner, got)

    run(main())


_GARBAGE = [
    b"data: {not json}\n\n",
    b"\xff\xfe\x00 data\r\r\n\n",
    b'data: {"choices":[{"delta":{"content":"a","content":"b"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":NaN}}]}\n\n',
    b"data: " + b"[" * 100_000 + b"\n\n",
    b'data: {"choices": 7}\n\n',
]


@pytest.mark.parametrize("garbage", _GARBAGE)
def test_garbage_in_a_stream_passes_as_bytes_and_breaks_what_must_be_read(garbage: bytes) -> None:
    async def main() -> None:
        talk = saying(_EVENTS + chunk(garbage) + b"0\r\n\r\n")
        async with inner_node(talk) as inner:
            got = await inner.ask(_CHAT, _STREAMED)
            assert got.body == garbage
            assert inner.record(got.envelope).response_digest == hashlib.sha256(garbage).hexdigest()
        chat = EngineRoutes.of(frozenset((Endpoint.CHAT,)), models=True)
        async with inner_node(talk, routes=chat) as inner:
            got = await inner.ask("/v1/responses", {"model": "m", "input": "hi", "stream": True})
            assert b"response.failed" in got.body
            await failed(inner, got)

    run(main())


@pytest.mark.parametrize("garbage", [b"{", b"\xff", b'{"a":1,"a":2}', b"[" * 100_000, b"NaN"])
def test_a_whole_answer_that_must_be_read_and_cannot_be(garbage: bytes) -> None:
    async def main() -> None:
        head = _WHOLE + b"content-length: %d\r\n\r\n" % len(garbage)
        chat = EngineRoutes.of(frozenset((Endpoint.CHAT,)), models=True)
        async with inner_node(saying(head + garbage), routes=chat) as inner:
            got = await inner.ask("/v1/responses", {"model": "m", "input": "hi"})
            assert (got.status, got.code) == (502, "engine_failed")
            await failed(inner, got)

    run(main())


@pytest.mark.parametrize(("upstream_name", "most"), [("m", 24), ("up", 24)])
def test_a_line_of_100_mb_is_cut_in_bounded_memory(upstream_name: str, most: int) -> None:
    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(_EVENTS + chunk(b"data: "))
        piece = chunk(b"x" * 65536)
        for _ in range(1600):
            await peer.send(piece)
        await peer.send(b"0\r\n\r\n")

    async def main() -> None:
        async with inner_node(endless, upstream_name=upstream_name) as inner:
            call = inner.call(_CHAT)
            call.give(json.dumps(_STREAMED).encode())
            sent = 0

            async def drop(message: Any) -> None:
                nonlocal sent
                sent += len(message.get("body", b""))

            call._send = drop  # type: ignore[method-assign]
            tracemalloc.start()
            try:
                await call.run()
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < most * _MB
            assert sent < 66 * _MB
            (record,) = inner.receipts()
            assert record.finish is Finish.UPSTREAM_FAILED

    run(main())


def test_an_answer_of_single_bytes_is_held_in_bounded_memory() -> None:
    async def dripping(peer: Peer) -> None:
        await peer.request()
        await peer.send(_WHOLE + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(40):
            await peer.send(b"1\r\n \r\n" * 5000)
        await peer.send(b"2\r\n{}\r\n0\r\n\r\n")

    async def main() -> None:
        async with inner_node(dripping) as inner:
            tracemalloc.start()
            try:
                got = await inner.ask(_CHAT, _ASKED)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert got.body == b" " * 200_000 + b"{}"
            assert peak < 12 * _MB

    run(main())


def test_a_storm_of_5xx_has_a_receipt_each_and_ends_with_the_storm() -> None:
    storm = [True]

    async def talk(peer: Peer) -> None:
        while True:
            line, _headers, _body = await peer.request()
            bad = storm[0] and "/health" not in line
            await peer.answer(
                b"{}", status=500 if bad else 200, head="content-type: application/json\r\n"
            )

    async def main() -> None:
        async with inner_node(talk) as inner:
            for got in [await inner.ask(_CHAT, _ASKED) for _ in range(25)]:
                assert (got.status, got.code) == (502, "engine_failed")
                await failed(inner, got)
            storm[0] = False
            assert (await inner.ask(_CHAT, _ASKED)).status == 200
            assert len(inner.receipts()) == 26

    run(main())


def test_too_many_calls_are_refused_with_a_receipt_that_says_nothing_was_forwarded() -> None:
    async def main() -> None:
        limits = PoolLimits(max_active=1, max_waiting=0)
        async with inner_node(saying(hangs=True), limits=limits) as inner:
            first = asyncio.ensure_future(inner.ask(_CHAT, _ASKED))
            await until(lambda: inner.pool._members[0].active == 1)
            got = await inner.ask(_CHAT, _ASKED)
            assert (got.status, got.code, got.headers["retry-after"]) == (429, "node_busy", "2")
            record = inner.record(got.envelope)
            assert (record.forwarded_digest, record.upstream_digest) == (None, None)
            assert record.status == 429
            first.cancel()

    run(main())


def test_a_node_that_drains_begins_nothing_and_says_so() -> None:
    async def main() -> None:
        async with inner_node(saying(_WHOLE + b"content-length: 2\r\n\r\n{}")) as inner:
            inner.node.drain()
            for path in (_CHAT, "/v1/messages"):
                got = await inner.ask(path, _ASKED)
                assert (got.status, got.code) == (503, "node_draining")
                assert int(got.headers["retry-after"]) > 0
                assert inner.record(got.envelope).upstream_digest is None

    run(main())


@pytest.mark.parametrize("path", [_CHAT, "/v1/embeddings", "/v1/audio/speech", "/v1/messages"])
@pytest.mark.parametrize(
    "phase", ["waiting for a place", "before the head", "in a held answer", "in a stream"]
)
def test_a_caller_that_leaves_closes_the_engine_in_every_phase(path: str, phase: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        _CHAT: _STREAMED,
        "/v1/embeddings": {"model": "m", "input": "hi"},
        "/v1/audio/speech": {"model": "m", "input": "hi", "voice": "v", "stream_format": "sse"},
        "/v1/messages": _STREAMED,
    }
    body = bodies[path]
    if phase == "in a stream" and path == "/v1/embeddings":
        return  # it has none

    async def main() -> None:
        reached, closed = asyncio.Event(), asyncio.Event()

        async def talk(peer: Peer) -> None:
            await peer.request()
            if phase == "in a held answer":
                await peer.send(_WHOLE + b"content-length: 9\r\n\r\n{")
            elif phase == "in a stream":
                await peer.send(_EVENTS + chunk(_CHUNK))
            reached.set()
            await peer.gone()
            closed.set()

        limits = PoolLimits(max_active=1)
        async with inner_node(talk, limits=limits) as inner:
            member = inner.pool._members[0]
            if phase == "waiting for a place":
                member.active = 1
            call = inner.call(path)
            call.give(json.dumps(body).encode())
            running = asyncio.ensure_future(call.run())
            if phase == "waiting for a place":
                await until(lambda: len(inner.pool._waiting) == 1)
            elif phase == "in a stream":
                await call.answering.wait()
            else:
                await reached.wait()
            call.leave()
            await running
            (record,) = inner.receipts()
            assert record.finish is Finish.CLIENT_CANCELLED
            assert record.endpoint == path
            assert record.status == (200 if phase == "in a stream" else 499)
            if phase == "waiting for a place":
                assert not inner.pool._waiting
            else:
                await closed.wait()
                assert member.active == 0

    run(main())


def test_a_caller_that_leaves_before_its_request_is_whole_has_no_receipt() -> None:
    async def main() -> None:
        async with inner_node(saying()) as inner:
            call = inner.call(_CHAT)
            call.give(b'{"model"', more=True)
            call.leave()
            await call.run()
            assert (inner.receipts(), call.got.status) == ([], 0)

    run(main())


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfe",
        b'{"model":"m","messages":[],"model":"m"}',
        b'{"model":"m","messages":[{"role":"user","content":"a","content":"b"}]}',
        b'{"model":"m","temperature":NaN}',
        b'{"model":"m","temperature":1e999}',
        b'{"model":"m","messages":' + b"[" * 100_000,
        b'{"model":"m","messages":[{"role":"\\ud800"}]}',
        b"[" * 8_000_000,
        b" " * (8 * _MB + 1),
    ],
)
@pytest.mark.parametrize("path", [_CHAT, "/v1/embeddings", "/tokenize", "/v1/messages"])
def test_what_no_request_may_be_is_refused_with_a_receipt(raw: bytes, path: str) -> None:
    async def main() -> None:
        async with inner_node(saying()) as inner:
            got = await inner.ask(path, raw)
            assert got.status in (400, 413)
            record = inner.record(got.envelope)
            assert record.upstream_digest is None
            assert record.response_digest == hashlib.sha256(got.body).hexdigest()

    run(main())
