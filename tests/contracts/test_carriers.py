"""What carries sealed bytes: both ways of it, against servers that misbehave on real sockets."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from engine_peers import Engine

from confide.adapters.carrier import HttpxCarrier, NotSent
from confide.adapters.carrier_fast import FastCarrier
from confide.adapters.http_client import node_client
from confide.errors import Reason, RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from engine_peers import Peer, Talk

    from confide.adapters.carrier import Carrier

    Carriers = Callable[[], AbstractAsyncContextManager[Carrier]]

HEADERS = {"content-type": "message/ohttp-chunked-req", "accept-encoding": "identity"}
HASTY: dict[str, float | None] = {"connect": 5.0, "read": 0.1, "write": 5.0, "pool": 5.0}


@asynccontextmanager
async def over_httpx() -> AsyncIterator[Carrier]:
    async with node_client() as http:
        yield HttpxCarrier(http)


@asynccontextmanager
async def over_aiohttp() -> AsyncIterator[Carrier]:
    carrier = FastCarrier()
    try:
        yield carrier
    finally:
        await carrier.aclose()


@pytest.fixture(params=[over_httpx, over_aiohttp], ids=["httpx2", "aiohttp"])
def carriers(request: pytest.FixtureRequest) -> Carriers:
    made: Carriers = request.param
    return made


async def ask(
    carrier: Carrier,
    url: str,
    content: bytes = b"sealed",
    timeouts: Mapping[str, float | None] | None = None,
) -> tuple[int, str, bytes]:
    carried = await carrier.post(url, content, headers=HEADERS, timeouts=timeouts)
    try:
        body = b"".join([piece async for piece in carried.pieces()])
        return carried.status, carried.content_type, body
    finally:
        await carried.aclose()


def answering(raw: bytes) -> Talk:
    """Return a talk that answers each request with `raw`, byte for byte, and goes on."""

    async def talk(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(raw)

    return talk


def once(raw: bytes) -> Talk:
    """Return a talk that answers one request with `raw` and closes the connection."""

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(raw)

    return talk


def test_bytes_travel_as_they_are_and_one_connection_serves_many(carriers: Carriers) -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def talk(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            # Neither is for a carrier: cookies are not kept, bodies not decoded.
            head = "set-cookie: a=b\r\ncontent-encoding: gzip\r\ncontent-type: x/y\r\n"
            await peer.answer(b"as it is", head=head)

    async def main() -> None:
        engine = Engine(talk)
        async with engine.serving() as url, carriers() as carrier:
            for content in (b"sealed", b"x" * 600_000):
                assert await ask(carrier, url, content) == (200, "x/y", b"as it is")
        assert engine.connections == 1

    asyncio.run(main())
    assert [body for _, _, body in seen] == [b"sealed", b"x" * 600_000]
    for _, headers, _ in seen:
        assert headers["content-type"] == "message/ohttp-chunked-req"
        assert headers["accept-encoding"] == "identity"
        assert "cookie" not in headers


def test_a_body_may_come_in_pieces(carriers: Carriers) -> None:
    async def talk(peer: Peer) -> None:
        _, headers, _ = await peer.request()
        assert headers["transfer-encoding"] == "chunked"
        assert await peer._reader.readuntil(b"0\r\n\r\n") == b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
        await peer.answer(b"ok")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"bc"

    async def main() -> None:
        async with Engine(talk).serving() as url, carriers() as carrier:
            carried = await carrier.post(url, pieces(), headers=HEADERS)
            assert [piece async for piece in carried.pieces()] == [b"ok"]
            await carried.aclose()

    asyncio.run(main())


def test_no_redirect_is_followed(carriers: Carriers) -> None:
    async def main() -> None:
        elsewhere = Engine(once(b""))
        async with elsewhere.serving() as other:
            raw = b"HTTP/1.1 307 X\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % other.encode()
            async with Engine(answering(raw)).serving() as url, carriers() as carrier:
                assert await ask(carrier, url) == (307, "", b"")
        assert elsewhere.connections == 0

    asyncio.run(main())


def test_where_nobody_listens_nothing_was_sent(carriers: Carriers) -> None:
    async def main() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            async with carriers() as carrier:
                with pytest.raises(NotSent):
                    await ask(carrier, f"http://127.0.0.1:{probe.getsockname()[1]}")

    asyncio.run(main())


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 2", b"nonsense\r\n\r\n", b"HTTP/1.1 200 X\r\nno"])
def test_an_answer_that_never_began_is_not_asked_for_again(carriers: Carriers, raw: bytes) -> None:
    async def main() -> None:
        engine = Engine(once(raw))
        async with engine.serving() as url, carriers() as carrier:
            with pytest.raises(Unavailable) as caught:
                await ask(carrier, url)
        # It may have been opened: whoever sends it again must know.
        assert not isinstance(caught.value, NotSent)
        assert engine.connections == 1

    asyncio.run(main())


def test_a_connection_that_was_closed_meanwhile_is_not_a_second_request(
    carriers: Carriers,
) -> None:
    asked: list[bytes] = []

    async def talk(peer: Peer) -> None:
        asked.append((await peer.request())[2])
        await peer.answer(b"ok")
        asked.append((await peer.request())[2])

    async def main() -> None:
        async with Engine(talk).serving() as url, carriers() as carrier:
            assert (await ask(carrier, url, b"one"))[2] == b"ok"
            with pytest.raises(Unavailable):
                await ask(carrier, url, b"two")

    asyncio.run(main())
    assert asked == [b"one", b"two"]


@pytest.mark.parametrize(
    "head", [b"content-length: 9\r\n\r\nab", b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n"]
)
def test_a_body_that_breaks_off_was_cut(carriers: Carriers, head: bytes) -> None:
    async def main() -> None:
        engine = Engine(once(b"HTTP/1.1 200 X\r\n" + head))
        async with engine.serving() as url, carriers() as carrier:
            with pytest.raises(RemoteProtocolError) as caught:
                await ask(carrier, url)
            assert caught.value.reason is Reason.CHANNEL_TRUNCATED

    asyncio.run(main())


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nab"])
def test_who_says_nothing_for_too_long_is_unavailable(carriers: Carriers, raw: bytes) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(raw)
        await peer.gone()

    async def main() -> None:
        async with Engine(talk).serving() as url, carriers() as carrier:
            with pytest.raises(Unavailable):
                await ask(carrier, url, timeouts=HASTY)

    asyncio.run(main())


def test_an_answer_that_nobody_reads_closes_its_connection(carriers: Carriers) -> None:
    gone = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nab")
        await peer.gone()
        gone.set()

    async def main() -> None:
        async with Engine(talk).serving() as url, carriers() as carrier:
            carried = await carrier.post(url, b"sealed", headers=HEADERS)
            await carried.aclose()
            await gone.wait()

    asyncio.run(main())
