"""What strangers can hold open, and how a node ends: over real sockets. inference.md §2.8, §9.6."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from confide.node.serve import Service, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class App:
    """Answers with how a request ended: its size, or that its caller left."""

    def __init__(self) -> None:
        self.left = 0
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        if scope["path"] == "/held":
            self.entered.set()
            await self.opened.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % size})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(app: App, service: Service, *, opening: bool = True) -> AsyncIterator[int]:
    port = _free_port()
    running = asyncio.ensure_future(
        serve(app, host="127.0.0.1", port=port, idle_seconds=None, service=service)
    )
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            break
    try:
        yield port
    finally:
        if opening:
            app.opened.set()
        if not running.done():
            # The loop handles it while it serves.
            os.kill(os.getpid(), signal.SIGTERM)
        await running


async def talk(port: int, raw: bytes) -> bytes:
    """Send `raw` and return everything until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


_CLOSE = b"connection: close\r\n"


def test_a_body_that_does_not_come_in_time_looks_like_a_caller_that_left() -> None:
    async def main() -> None:
        app = App()
        async with serving(app, Service(receive_seconds=0.2)) as port:
            head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n" + _CLOSE + b"\r\n"
            assert b"200 OK" not in await talk(port, head + b"half")
            assert app.left == 1
            assert (await talk(port, head + b"0123456789")).endswith(b"10")

    asyncio.run(main())


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\nlong: " + b"a" * 300_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
        b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"\x00\xff\r\n\r\n",
    ],
)
def test_a_head_beyond_bounds_is_refused_and_the_next_is_served(head: bytes) -> None:
    async def main() -> None:
        async with serving(App(), Service()) as port:
            refused = await talk(port, head)
            assert not refused or refused.split()[1].startswith(b"4")
            plain = b"GET / HTTP/1.1\r\nhost: x\r\n" + _CLOSE + b"\r\n"
            assert (await talk(port, plain)).endswith(b"0")

    asyncio.run(main())


@pytest.mark.slow
def test_a_head_that_never_ends_is_cut() -> None:
    async def main() -> None:
        async with serving(App(), Service()) as port:
            got = await talk(port, b"GET / HTTP/1.1\r\nhost: x\r\na: ")
            assert b"200 OK" not in got

    asyncio.run(main())


def test_a_signal_drains_what_is_in_progress_and_then_ends() -> None:
    async def main() -> None:
        app, told = App(), asyncio.Event()
        service = Service(drain=told.set, drain_seconds=20.0)
        async with serving(app, service) as port:
            plain = b"GET %b HTTP/1.1\r\nhost: x\r\n" + _CLOSE + b"\r\n"
            held = asyncio.ensure_future(talk(port, plain % b"/held"))
            await app.entered.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            await told.wait()
            assert (await talk(port, plain % b"/")).endswith(b"0")
            assert not held.done()
            app.opened.set()
            assert (await held).endswith(b"0")

    asyncio.run(main())


def test_what_does_not_end_is_not_waited_for_beyond_its_time() -> None:
    async def main() -> None:
        app, told = App(), asyncio.Event()
        service = Service(drain=told.set, drain_seconds=0.1)
        async with serving(app, service, opening=False) as port:
            plain = b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n"
            held = asyncio.ensure_future(talk(port, plain))
            await app.entered.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            await told.wait()
        # The server has ended although the application has not.
        assert not app.opened.is_set()
        held.cancel()

    asyncio.run(main())
