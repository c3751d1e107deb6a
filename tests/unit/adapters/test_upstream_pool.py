"""Pools of engines on real sockets: docs/protocols/inference.md §9."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from engine_peers import Engine, Peer, routed

from confide.adapters.upstream_http import UpstreamConfig
from confide.adapters.upstream_pool import EnginePool, PoolLimits
from confide.errors import ConfigurationError, Overloaded, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    Answer = Callable[[Peer, bytes], Awaitable[None]]

_PATH = "/v1/chat/completions"
_FAST: dict[str, Any] = {
    "check_seconds": 0.02,
    "first_back_off_seconds": 0.02,
    "max_back_off_seconds": 0.05,
}


@asynccontextmanager
async def pool_of(
    *talks: Callable[[Peer], Awaitable[None]], seconds: float = 120.0, **limits: Any
) -> AsyncIterator[EnginePool]:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(Engine(talk).serving()) for talk in talks]
        configs = [
            UpstreamConfig(base_url=url, first_seconds=seconds, idle_seconds=seconds)
            for url in urls
        ]
        pool = EnginePool(configs, model="m", limits=PoolLimits(**{**_FAST, **limits}))
        yield await stack.enter_async_context(pool)


async def whole(pool: EnginePool, **how: Any) -> tuple[int, bytes, int | None]:
    answer = await pool.forward(_PATH, b"{}", **how)
    try:
        return answer.status, b"".join([c async for c in answer.chunks()]), answer.member
    finally:
        await answer.close()


async def until(pool: EnginePool, *, well: bool) -> None:
    """Wait until the watch finds the first engine to be so."""
    while pool._members[0].well is not well:  # noqa: ASYNC110 - the watch tells nobody
        await asyncio.sleep(0.01)


def run(main: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


def saying(word: bytes, *, status: int = 200) -> Answer:
    async def answer(peer: Peer, _body: bytes) -> None:
        await peer.answer(word, status=status)

    return answer


async def dropping(peer: Peer, _body: bytes) -> None:
    """Go away without a byte, as an engine that is killed does."""
    await peer.send(b"")
    raise ConnectionError


def test_calls_go_to_the_engine_with_the_fewest_in_progress() -> None:
    async def main() -> None:
        opened = asyncio.Event()

        async def held(peer: Peer, _body: bytes) -> None:
            await opened.wait()
            await peer.answer(b"slow")

        async with pool_of(routed(held), routed(saying(b"fast"))) as pool:
            await pool.probe()
            first = asyncio.ensure_future(whole(pool))
            await asyncio.sleep(0)
            others = [await whole(pool) for _ in range(3)]
            opened.set()
            assert others == [(200, b"fast", 1)] * 3
            assert await first == (200, b"slow", 0)

    run(main())


def test_one_engine_alone_has_no_place_to_name() -> None:
    async def main() -> None:
        async with pool_of(routed(saying(b"ok"))) as pool:
            await pool.probe()
            assert await whole(pool) == (200, b"ok", None)

    run(main())


@pytest.mark.parametrize("first", [dropping, saying(b"", status=503), saying(b"", status=429)])
def test_work_that_was_not_taken_goes_to_another_engine_once(first: Answer) -> None:
    async def main() -> None:
        async with pool_of(routed(first), routed(saying(b"ok"))) as pool:
            await pool.probe()
            assert await whole(pool) == (200, b"ok", 1)

    run(main())


def test_where_none_takes_it_the_last_answer_is_what_came() -> None:
    async def main() -> None:
        busy = routed(saying(b"busy", status=503))
        async with pool_of(busy, busy, busy) as pool:
            await pool.probe()
            status, _body, member = await whole(pool)
            assert (status, member) == (503, 1)

    run(main())


def test_what_may_have_had_an_effect_is_not_sent_again() -> None:
    async def main() -> None:
        async with pool_of(routed(dropping), routed(saying(b"ok"))) as pool:
            await pool.probe()
            with pytest.raises(Unavailable):
                await whole(pool, repeatable=False)

    run(main())


def test_a_failure_that_the_request_may_have_caused_is_not_spread() -> None:
    seen: list[bytes] = []

    async def note(peer: Peer, body: bytes) -> None:
        seen.append(body)
        await peer.answer(b"")

    async def main() -> None:
        async with pool_of(routed(saying(b"", status=500)), routed(note)) as pool:
            await pool.probe()
            assert (await whole(pool))[0] == 500

    run(main())
    assert seen == []


def test_an_engine_that_falls_silent_may_still_work_and_is_not_doubled() -> None:
    async def silent(peer: Peer, _body: bytes) -> None:
        await peer.gone()

    async def main() -> None:
        talks = routed(silent), routed(saying(b"ok"))
        async with pool_of(*talks, seconds=0.1) as pool:
            await pool.probe()
            with pytest.raises(Unavailable):
                await whole(pool)

    run(main())


def test_nothing_is_tried_again_after_the_first_byte() -> None:
    async def broken(peer: Peer, _body: bytes) -> None:
        await peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nhalf")
        raise ConnectionError

    async def main() -> None:
        async with pool_of(routed(broken), routed(saying(b"ok"))) as pool:
            await pool.probe()
            with pytest.raises(Unavailable, match="broke off"):
                await whole(pool)

    run(main())


def test_an_engine_that_is_gone_is_left_alone_until_it_is_back() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(Engine(routed(saying(b"other"))).serving())
            engine = Engine(routed(saying(b"here"), keep=False))
            server = await asyncio.start_server(engine._serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            configs = [UpstreamConfig(base_url=u) for u in (f"http://127.0.0.1:{port}", other)]
            pool = EnginePool(configs, model="m", limits=PoolLimits(**_FAST))
            await stack.enter_async_context(pool)
            try:
                await pool.probe()
                assert (await whole(pool))[1] == b"here"
            finally:
                server.close()
                await server.wait_closed()
            assert {(await whole(pool))[1] for _ in range(3)} == {b"other"}
            await until(pool, well=False)
            server = await asyncio.start_server(engine._serve, "127.0.0.1", port)
            try:
                await until(pool, well=True)
                assert (await whole(pool))[1] == b"here"
            finally:
                server.close()
                await server.wait_closed()

    run(main())


def test_an_engine_whose_health_fails_gets_no_calls_and_comes_back_by_itself() -> None:
    async def main() -> None:
        well = asyncio.Event()
        good = routed(saying(b"first"))

        async def ailing(peer: Peer) -> None:
            while True:
                line, _headers, body = await peer.request()
                path = line.split()[1]
                if path == "/health" and not well.is_set():
                    await peer.answer(b"", status=503)
                    continue
                await _replay(good, peer, line, body)

        async with pool_of(ailing, routed(saying(b"second"))) as pool:
            await pool.probe()
            await until(pool, well=False)
            assert {(await whole(pool))[1] for _ in range(4)} == {b"second"}
            well.set()
            await until(pool, well=True)
            assert (await whole(pool))[1] == b"first"

    run(main())


async def _replay(
    talk: Callable[[Peer], Awaitable[None]], peer: Peer, line: str, body: bytes
) -> None:
    """Let `talk` answer one request that was read already."""

    class Once(Peer):
        def __init__(self) -> None:
            self.left = [(line, dict[str, str](), body)]

        async def request(self) -> tuple[str, dict[str, str], bytes]:
            if not self.left:
                raise asyncio.IncompleteReadError(b"", None)
            return self.left.pop()

        async def send(self, raw: bytes) -> None:
            await peer.send(raw)

    try:
        await talk(Once())
    except asyncio.IncompleteReadError:
        return


def test_an_engine_that_comes_back_with_another_model_stays_out() -> None:
    async def main() -> None:
        async with pool_of(
            routed(saying(b"a"), root="/w"), routed(saying(b"b"), root="/w")
        ) as pool:
            await pool.probe()
            member = pool._members[0]
            member.described = {"id": "m", "object": "model", "root": "/other"}
            member.well = False
            member.suspected.set()
            assert {(await whole(pool))[1] for _ in range(3)} == {b"b"}
            await asyncio.sleep(0.2)
            assert not member.well

    run(main())


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (routed(saying(b""), root="/b"), "other things"),
        (routed(saying(b""), model="another"), "does not serve"),
    ],
)
def test_engines_of_different_models_are_no_pool(
    other: Callable[[Peer], Awaitable[None]], word: str
) -> None:
    async def main() -> None:
        async with pool_of(routed(saying(b""), root="/a"), other) as pool:
            with pytest.raises(ConfigurationError, match=word):
                await pool.probe()

    run(main())


def test_an_engine_that_lists_no_models_is_in_no_pool() -> None:
    async def bare(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.answer(b"no", status=404)

    async def main() -> None:
        async with pool_of(bare, bare) as pool:
            with pytest.raises(ConfigurationError, match="does not say"):
                await pool.probe()

    run(main())


def test_calls_beyond_the_bounds_are_refused_and_the_others_keep_their_order() -> None:
    order: list[bytes] = []

    async def main() -> None:
        opened = asyncio.Event()

        async def held(peer: Peer, body: bytes) -> None:
            order.append(body)
            await opened.wait()
            await peer.answer(body)

        async def call(word: bytes) -> bytes:
            answer = await pool.forward(_PATH, word)
            try:
                return b"".join([c async for c in answer.chunks()])
            finally:
                await answer.close()

        async with pool_of(routed(held), max_active=1, max_waiting=2) as pool:
            await pool.probe()
            calls = []
            for word in (b'{"n":0}', b'{"n":1}', b'{"n":2}'):
                calls.append(asyncio.ensure_future(call(word)))
                await asyncio.sleep(0)
            with pytest.raises(Overloaded) as caught:
                await call(b'{"n":3}')
            assert (caught.value.status_hint, caught.value.retry_after) == (429, 2)
            opened.set()
            assert await asyncio.gather(*calls) == [b'{"n":0}', b'{"n":1}', b'{"n":2}']
            assert (pool._members[0].active, len(pool._waiting)) == (0, 0)

    run(main())
    assert order == [b'{"n":0}', b'{"n":1}', b'{"n":2}']


def test_a_call_waits_so_long_and_one_that_leaves_gives_its_place_on() -> None:
    async def main() -> None:
        opened = asyncio.Event()

        async def held(peer: Peer, _body: bytes) -> None:
            await opened.wait()
            await peer.answer(b"ok")

        async with pool_of(routed(held), max_active=1, wait_seconds=0.05) as pool:
            await pool.probe()
            first = asyncio.ensure_future(whole(pool))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as caught:
                await whole(pool)
            assert caught.value.status_hint == 503
            leaving = asyncio.ensure_future(whole(pool))
            await asyncio.sleep(0)
            leaving.cancel()
            opened.set()
            assert (await first)[1] == b"ok"
            assert (await whole(pool))[1] == b"ok"
            assert (pool._members[0].active, len(pool._waiting)) == (0, 0)

    run(main())


def test_where_all_are_ill_calls_are_refused_at_once_and_waiting_ones_told() -> None:
    async def main() -> None:
        async def held(peer: Peer, _body: bytes) -> None:
            await peer.gone()

        async with pool_of(routed(held), max_active=1, check_seconds=60.0) as pool:
            await pool.probe()
            first = asyncio.ensure_future(whole(pool))
            await asyncio.sleep(0)
            second = asyncio.ensure_future(whole(pool))
            await asyncio.sleep(0)
            pool._members[0].well = False
            pool._wake()
            with pytest.raises(Unavailable, match="no engine is well"):
                await second
            with pytest.raises(Unavailable, match="no engine is well"):
                await whole(pool)
            first.cancel()

    run(main())


def test_a_storm_of_failures_does_not_take_an_engine_from_others() -> None:
    async def main() -> None:
        async def storm(peer: Peer, body: bytes) -> None:
            await peer.answer(b"", status=500 if body == b"{}" else 200)

        async with pool_of(routed(storm)) as pool:
            await pool.probe()
            assert {(await whole(pool))[0] for _ in range(20)} == {500}
            answer = await pool.forward(_PATH, b'{"good":1}')
            assert answer.status == 200
            await answer.close()
            assert pool._members[0].well

    run(main())


def test_a_pool_has_an_engine() -> None:
    with pytest.raises(ConfigurationError):
        EnginePool([], model="m")
