"""Engines on real sockets that do what a test tells them, byte by byte.

`Engine` hands each connection to a scripted talk; `routed` answers by path, as the engines do that
cannot run here (vLLM, SGLang, llama.cpp): health, list of models, inference.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from confide.adapters.upstream_http import HttpUpstream, UpstreamConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Talk = Callable[["Peer"], Awaitable[None]]
    Answer = Callable[["Peer", bytes], Awaitable[None]]


class Peer:
    """One connection as the engine sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self) -> tuple[str, dict[str, str], bytes]:
        """Return request line, headers and body of the next request."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        line, *fields = head.strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (field.partition(":") for field in fields)}
        return line, headers, await self._reader.readexactly(int(headers.get("content-length", 0)))

    async def send(self, raw: bytes) -> None:
        self._writer.write(raw)
        await self._writer.drain()

    async def answer(self, body: bytes, *, status: int = 200, head: str = "") -> None:
        top = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode()
        await self.send(top + body)

    async def gone(self) -> None:
        """Return once the client has closed the connection."""
        while await self._reader.read(4096):
            pass


class Engine:
    """A server that lets a scripted `Talk` handle each connection, in order."""

    def __init__(self, *talks: Talk) -> None:
        self.connections = 0
        self._talks = list(talks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = self._talks[min(self.connections, len(self._talks) - 1)]
        self.connections += 1
        try:
            await talk(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Listen on a free port of loopback; yield the base URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            server.close()
            await server.wait_closed()

    @asynccontextmanager
    async def upstream(self, **settings: float) -> AsyncIterator[HttpUpstream]:
        async with self.serving() as url:
            values = {"base_url": url, **settings}
            async with HttpUpstream(UpstreamConfig(**values)) as made:  # type: ignore[arg-type]
                yield made


def routed(answer: Answer, *, model: str = "m", keep: bool = True, **described: Any) -> Talk:
    """
    Return a talk that is well, lists `model`, knows chat and completions, and else `answer`s.

    Without `keep` a connection serves one request.
    """

    async def talk(peer: Peer) -> None:
        more = True
        while more:
            more = keep
            line, _headers, body = await peer.request()
            path = line.split()[1]
            if path == "/health":
                await peer.answer(b"")
            elif path == "/v1/models":
                entry = {"id": model, "object": "model", "created": id(peer), **described}
                await peer.answer(json.dumps({"object": "list", "data": [entry]}).encode())
            elif body == b"[]":
                known = path in ("/v1/chat/completions", "/v1/completions", "/v1/audio/speech")
                await peer.answer(b"{}", status=422 if known else 404)
            else:
                await answer(peer, body)

    return talk
