"""The HTTP engine client against engines that misbehave on real sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from engine_peers import Engine, Peer

from confide.adapters.upstream_http import HttpUpstream, UpstreamConfig
from confide.errors import ConfigurationError, Unavailable
from confide.inference.plan import Endpoint, EngineRoutes

if TYPE_CHECKING:
    from collections.abc import Coroutine

_PATH = "/v1/chat/completions"


def _run(main: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


async def _whole(upstream: HttpUpstream, body: bytes = b"{}") -> tuple[int, bytes]:
    answer = await upstream.forward(_PATH, body)
    try:
        return answer.status, b"".join([chunk async for chunk in answer.chunks()])
    finally:
        await answer.close()


def test_only_the_headers_we_choose_are_sent_and_one_connection_serves_many() -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def talk(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.answer(b"ok", head="set-cookie: a=b\r\nx-secret: s\r\n")

    async def main() -> None:
        engine = Engine(talk)
        async with engine.upstream() as upstream:
            assert await _whole(upstream, b'{"a":1}') == (200, b"ok")
            assert await _whole(upstream, b"x" * 600_000) == (200, b"ok")
        assert engine.connections == 1

    _run(main())
    line, headers, body = seen[0]
    assert (line, body) == (f"POST {_PATH} HTTP/1.1", b'{"a":1}')
    assert set(headers) <= {
        *("host", "content-type", "accept", "accept-encoding", "content-length", "user-agent"),
    }
    assert headers["accept-encoding"] == "identity"
    assert len(seen[1][2]) == 600_000
    assert "cookie" not in seen[1][1]


def test_chunks_come_as_they_are_sent() -> None:
    sent = asyncio.Event

    async def main() -> None:
        got_first = sent()

        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            await got_first.wait()
            await peer.send(b"6\r\nsecond\r\n0\r\n\r\n")

        async with Engine(talk).upstream() as upstream:
            answer = await upstream.forward(_PATH, b"{}")
            chunks = answer.chunks()
            assert await anext(chunks) == b"first"
            got_first.set()
            assert [chunk async for chunk in chunks] == [b"second"]
            await answer.close()

    _run(main())


def test_a_connection_lost_before_the_first_byte_is_tried_once_more() -> None:
    async def drop(peer: Peer) -> None:
        await peer.request()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"ok")

    async def main() -> None:
        engine = Engine(drop, serve)
        async with engine.upstream() as upstream:
            assert await _whole(upstream) == (200, b"ok")
        assert engine.connections == 2
        engine = Engine(drop)
        async with engine.upstream() as upstream:
            with pytest.raises(Unavailable):
                await upstream.forward(_PATH, b"{}")
        assert engine.connections == 2

    _run(main())


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
)
def test_an_answer_that_breaks_off_is_never_asked_for_again(begun: bytes) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(begun)

    async def main() -> None:
        engine = Engine(talk)
        async with engine.upstream() as upstream:
            with pytest.raises(Unavailable):
                await _whole(upstream)
        assert engine.connections == 1

    _run(main())


@pytest.mark.parametrize("garbage", [b"zz\r\n", b"-1\r\n", b"4\r\nhalfXX4\r\n", b"\x00" * 99])
@pytest.mark.parametrize("stays", [True, False])
def test_chunks_that_are_none_end_an_answer_at_once(garbage: bytes, *, stays: bool) -> None:
    """With minutes to wait, and whether or not the engine closes; `http_body` says why."""
    read = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await read.wait()
        await peer.send(garbage)
        if stays:
            await peer.gone()

    async def main() -> None:
        async with Engine(talk).upstream() as upstream:
            answer = await upstream.forward(_PATH, b"{}")
            pieces = answer.chunks()
            assert await anext(pieces) == b"half"
            read.set()
            with pytest.raises(Unavailable):
                _ = [piece async for piece in pieces]
            await answer.close()

    _run(main())


def test_an_answer_whose_connection_went_before_it_was_read() -> None:
    garbage = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
        await garbage.wait()
        await peer.send(b"zz\r\n")
        await peer.gone()
        garbage.clear()

    async def main() -> None:
        async with Engine(talk).upstream() as upstream:
            answer = await upstream.forward(_PATH, b"{}")
            garbage.set()
            while garbage.is_set():  # noqa: ASYNC110 - the engine has seen the end of it
                await asyncio.sleep(0)
            with pytest.raises(Unavailable):
                _ = [piece async for piece in answer.chunks()]
            await answer.close()

    _run(main())


def test_an_engine_that_falls_silent() -> None:
    async def before(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async def within(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\nhalf")
        await peer.gone()

    async def main() -> None:
        for talk, patience in ((before, "first_seconds"), (within, "idle_seconds")):
            waits = {"idle_seconds": 0.1, patience: 0.1}
            async with Engine(talk).upstream(**waits) as upstream:
                with pytest.raises(Unavailable):
                    await _whole(upstream)

    _run(main())


def test_an_answer_that_is_not_streamed_begins_when_it_is_complete() -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.3)
        await peer.answer(b"{}")

    async def main() -> None:
        async with Engine(talk).upstream(idle_seconds=0.1) as upstream:
            assert await _whole(upstream) == (200, b"{}")

    _run(main())


def test_an_answer_above_the_cap() -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"x" * 100)

    async def main() -> None:
        async with Engine(talk).upstream(max_answer_bytes=99) as upstream:
            with pytest.raises(Unavailable, match="99 bytes"):
                await _whole(upstream)
        async with Engine(talk).upstream(max_answer_bytes=100) as upstream:
            assert await _whole(upstream) == (200, b"x" * 100)

    _run(main())


def test_nobody_there() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        async with HttpUpstream(UpstreamConfig(base_url=f"http://127.0.0.1:{port}")) as upstream:
            with pytest.raises(Unavailable):
                await upstream.forward(_PATH, b"{}")
            with pytest.raises(Unavailable):
                await upstream.probe()

    _run(main())


@pytest.mark.parametrize("early", [True, False])
def test_cancelling_closes_the_engines_connection(*, early: bool) -> None:
    async def main() -> None:
        closed, begun = asyncio.Event(), asyncio.Event()

        async def talk(peer: Peer) -> None:
            await peer.request()
            if not early:
                await peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\nhalf")
            begun.set()
            await peer.gone()
            closed.set()

        async with Engine(talk).upstream() as upstream:
            call = asyncio.create_task(_whole(upstream))
            await begun.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await closed.wait()

    _run(main())


def test_an_answer_left_unread_closes_its_connection() -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def talk(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\nhalf")
            await peer.gone()
            closed.set()

        async with Engine(talk).upstream() as upstream:
            answer = await upstream.forward(_PATH, b"{}")
            await answer.close()
            await closed.wait()

    _run(main())


def test_encoded_answers_are_refused() -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"xx", head="content-encoding: gzip\r\n")

    async def main() -> None:
        async with Engine(talk).upstream() as upstream:
            with pytest.raises(Unavailable, match="encodes"):
                await upstream.forward(_PATH, b"{}")

    _run(main())


def test_redirects_are_not_followed() -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"", status=307, head="location: http://192.0.2.1/\r\n")

    async def main() -> None:
        async with Engine(talk).upstream() as upstream:
            assert await _whole(upstream) == (307, b"")

    _run(main())


@pytest.mark.parametrize(
    ("statuses", "routes"),
    [
        ((422, 400, 405, 200), (True, True, False, True)),
        ((404, 404, 500, 500), (False, False, True, False)),
    ],
)
def test_the_probe_tells_absent_from_present(
    statuses: tuple[int, ...], routes: tuple[bool, ...]
) -> None:
    paths = [_PATH, "/v1/completions", "/v1/responses", "/v1/models"]
    seen: list[bytes] = []

    async def talk(peer: Peer) -> None:
        while True:
            line, _headers, body = await peer.request()
            path = line.split()[1]
            seen.append(body)
            known = dict(zip(paths, statuses, strict=True))
            await peer.answer(b"", status=known.get(path, 501 if "audio" in path else 404))

    async def main() -> None:
        async with Engine(talk).upstream() as upstream:
            chat, completions, responses, models = routes
            assert await upstream.probe() == EngineRoutes(
                chat=chat, completions=completions, responses=responses, models=models
            )

    _run(main())
    assert seen == [b"[]"] * len(Endpoint) + [b""]


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1:8000",
        "http://engine:8000",
        "https://example.org/v1",
        "http://localhost.example.org",
        "ftp://127.0.0.1",
        "127.0.0.1:8000",
        "http://user:pass@127.0.0.1",
        "http://127.0.0.1/?key=1",
        "http://",
    ],
)
def test_plaintext_goes_nowhere_it_was_not_sent(url: str) -> None:
    with pytest.raises(ConfigurationError):
        UpstreamConfig(base_url=url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/v1/", "http://[::1]:1", "http://localhost:1/v1", "http://127.9.9.9"]
)
def test_loopback_is_allowed(url: str) -> None:
    assert not UpstreamConfig(base_url=url).root.endswith(("/", "/v1"))


def test_another_host_is_a_named_decision() -> None:
    config = UpstreamConfig(base_url="http://engine:8000/v1", allowed_hosts=("engine",))
    assert config.root == "http://engine:8000"
