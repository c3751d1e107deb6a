"""A relay over real HTTP on loopback, and nodes behind it that are bytes on a socket.

A `RawNode` records every connection and every byte that the relay sent it, and answers what the
test says. docs/protocols/relay.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import uvicorn
from nodes import FixedClock

from confide.adapters.relay_http import RelayLink, RelayTimes
from confide.crypto.cosign import NoteSigner
from confide.node.relay import RelayApp
from confide.node.relay_directory import OwnDirectory
from confide.node.relay_table import NodeEntry, RelayLimits, RelayTable
from confide.wire.json import jcs
from confide.wire.note import SignatureType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from starlette.types import ASGIApp

    from confide.ports import Clock

SIGNER = NoteSigner("relay.tests", SignatureType.ED25519, b"relay key of the tests".ljust(32))
KEYSET = b"\xa1" * 32


def response(body: bytes, *, kind: str, status: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


@dataclass
class RawNode:
    """Answers health itself; `serve` has the rest: reader (after the head), writer."""

    keyset: bytes = KEYSET
    healthy: bool = True
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    _server: asyncio.Server | None = None
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        # Whoever kept one of these connections hears of its end.
        await asyncio.sleep(0.05)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /confide/v1/health "):
                    said = jcs({"keyset": self.keyset.hex(), "ready": self.healthy})
                    writer.write(response(said, kind="application/json"))
                    continue
                self.heads.append(head)
                if self.serve is not None:
                    await self.serve(reader, writer)
        self.closed.set()
        writer.close()

    async def body(self, reader: asyncio.StreamReader) -> bytes:
        """Read the body of the request whose head came last."""
        head = self.heads[-1].lower()
        if b"transfer-encoding: chunked" in head:
            parts: list[bytes] = []
            while size := int(await reader.readline(), 16):
                parts.append(await reader.readexactly(size))
                await reader.readline()
            await reader.readline()
            found = b"".join(parts)
        else:
            size = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            found = await reader.readexactly(size)
        self.bodies.append(found)
        return found


@dataclass
class RunningRelay:
    """A relay at `url`, with its table."""

    url: str
    table: RelayTable
    directory: OwnDirectory

    def node_url(self, keyset: bytes = KEYSET) -> str:
        return f"{self.url}/confide/v1/nodes/{keyset.hex()}"


@contextlib.asynccontextmanager
async def relay(
    entries: Sequence[NodeEntry],
    *,
    limits: RelayLimits | None = None,
    times: RelayTimes | None = None,
    clock: Clock | None = None,
    signer: NoteSigner = SIGNER,
) -> AsyncIterator[RunningRelay]:
    """Run a relay in this loop."""
    async with RelayLink(connections=64, times=times) as link:
        table = RelayTable(entries, ask=link.keyset, limits=limits)
        directory = OwnDirectory(table, signer, clock=clock or FixedClock())
        await table.look()
        watching = asyncio.ensure_future(table.watch())
        app = RelayApp(table, link, directory=directory.current)
        async with served(app) as url:
            yield RunningRelay(url, table, directory)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


@contextlib.asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    """Serve `app` with uvicorn in this loop."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - it tells no event
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await serving


def entry(url: str, **more: object) -> NodeEntry:
    """A model node of the tests at `url`."""
    fields = {"role": "model", "model": "support-notes", "roots": "vendor", **more}
    return NodeEntry(url, **fields)  # type: ignore[arg-type]
