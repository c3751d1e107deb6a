"""The agent's only way out, besides the model: a proxy that knows a list and keeps a record.

docs/protocols/sandbox.md §6. Serves the node's sockets inside the agent's namespace: HTTP CONNECT
and absolute-form HTTP to exactly the allowed destinations, a name server without names, and a
watcher for packets sent anywhere else. Every attempt is reported before it has an effect. The
agent is hostile: heads, connections and attempts are bounded. What flows inside an allowed
connection is the agent's and the destination's business; only its bytes are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING, Final

from confide.agents.dns import parse_question, refuse_question
from confide.agents.egress import (
    EgressAttempt,
    EgressKind,
    EgressOutcome,
    printable_destination,
)
from confide.agents.packets import parse_dead_packet
from confide.agents.proxy_head import MAX_HEAD_BYTES, parse_proxy_head
from confide.errors import FormatError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from confide.agents.egress import Address, Destination, EgressPolicy
    from confide.agents.proxy_head import ProxyRequest
    from confide.ports import NetworkEndpoints

__all__ = ["EgressService", "resolve_publicly", "serve_egress"]

_CONNECT_SECONDS: Final = 15.0
_HEAD_SECONDS: Final = 30.0
_PIECE: Final = 64 * 1024
_MAX_CONNECTIONS: Final = 64
# An agent that tries without end must not fill the transcript: the rest is only counted.
_MAX_ATTEMPTS: Final = 10_000
_REFUSED: Final = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_MALFORMED: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_UNREACHABLE: Final = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def resolve_publicly(destination: Destination) -> tuple[Address, ...]:
    """Resolve on the node. Raises `Unavailable` where nothing is known."""
    literal = destination.literal
    if literal is not None:
        return (literal,)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            destination.host, destination.port, type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise Unavailable("egress: the name does not resolve") from error
    return tuple(dict.fromkeys(ipaddress.ip_address(item[4][0]) for item in found))


class EgressService:
    """A running proxy, name server and watcher. Made by `serve_egress`; ended by `close`."""

    def __init__(
        self,
        policy: EgressPolicy,
        report: Callable[[EgressAttempt], None],
        resolve: Callable[[Destination], Awaitable[tuple[Address, ...]]],
    ) -> None:
        self._policy = policy
        self._report = report
        self._resolve = resolve
        self._next = 1
        self._unreported = 0
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._watched: list[socket.socket] = []

    @property
    def unreported(self) -> int:
        """Attempts beyond the first 10,000: refused and counted, not described."""
        return self._unreported

    async def start(self, endpoints: NetworkEndpoints) -> None:
        """Serve `endpoints` (not `endpoints.model`)."""
        self._server = await asyncio.start_server(
            self._accept, sock=endpoints.proxy, limit=MAX_HEAD_BYTES
        )
        loop = asyncio.get_running_loop()
        loop.add_reader(endpoints.dns, self._answer_dns, endpoints.dns)
        self._watched.append(endpoints.dns)
        if endpoints.direct is not None:
            loop.add_reader(endpoints.direct, self._watch, endpoints.direct)
            self._watched.append(endpoints.direct)

    async def close(self) -> None:
        """Stop: read what was seen until now, end open connections, report their ends."""
        loop = asyncio.get_running_loop()
        for end in self._watched:
            loop.remove_reader(end)
        if len(self._watched) > 1:
            self._watch(self._watched[1])
        self._watched.clear()
        if self._server is not None:
            self._server.close()
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _number(self) -> int | None:
        if self._next > _MAX_ATTEMPTS:
            self._unreported += 1
            return None
        self._next += 1
        return self._next - 1

    def _refuse(self, kind: EgressKind, destination: str, outcome: EgressOutcome) -> None:
        number = self._number()
        if number is not None:
            shown = printable_destination(destination)
            self._report(EgressAttempt(number, kind, shown, outcome))

    def _answer_dns(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, peer = end.recvfrom(4096)
                try:
                    name, answer = parse_question(raw), refuse_question(raw)
                except FormatError:
                    name, answer = "?", b""
                self._refuse(EgressKind.DNS, name, EgressOutcome.REFUSED)
                if answer:
                    end.sendto(answer, peer)

    def _watch(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                seen = parse_dead_packet(end.recv(128))
                if seen is not None:
                    self._refuse(EgressKind.DIRECT, seen, EgressOutcome.REFUSED)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:  # pragma: no cover - asyncio always runs this in a task
            return
        self._open.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # The agent's own connection broke or never made a request: nothing was tried.
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        try:
            request = parse_proxy_head(head)
        except FormatError:
            self._refuse(EgressKind.HTTP, "?", EgressOutcome.REFUSED)
            await _say(writer, _MALFORMED)
            return
        kind = EgressKind.CONNECT if request.tunnel else EgressKind.HTTP
        shown = str(request.destination)
        if not self._policy.permits(request.destination):
            self._refuse(kind, shown, EgressOutcome.REFUSED)
            await _say(writer, _REFUSED)
            return
        if len(self._open) > _MAX_CONNECTIONS:
            self._refuse(kind, shown, EgressOutcome.UNREACHABLE)
            await _say(writer, _BUSY)
            return
        try:
            up = await self._connect(request.destination)
        except Unavailable:
            self._refuse(kind, shown, EgressOutcome.UNREACHABLE)
            await _say(writer, _UNREACHABLE)
            return
        if up is None:
            self._refuse(kind, shown, EgressOutcome.ADDRESS_REFUSED)
            await _say(writer, _REFUSED)
            return
        try:
            await self._relay(request, kind, (reader, writer), up)
        finally:
            up[1].close()

    async def _connect(
        self, destination: Destination
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        addresses = await self._resolve(destination)
        # All of them, not one: an owner who mixes public and private answers gets nowhere.
        if not all(self._policy.permits_address(destination, item) for item in addresses):
            return None
        for address in addresses:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return await asyncio.open_connection(str(address), destination.port)
        raise Unavailable("egress: the destination does not answer")

    async def _relay(
        self,
        request: ProxyRequest,
        kind: EgressKind,
        agent: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        up: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        number = self._number()
        if number is None:
            await _say(agent[1], _BUSY)
            return
        shown = printable_destination(str(request.destination))
        self._report(EgressAttempt(number, kind, shown, EgressOutcome.OPENED))
        counts = [0, 0]
        try:
            if request.tunnel:
                agent[1].write(_ESTABLISHED)
            else:
                up[1].write(request.forward)
                counts[0] += len(request.forward)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(agent[0], up[1], counts, 0))
                group.create_task(_pump(up[0], agent[1], counts, 1))
        finally:
            self._report(
                EgressAttempt(number, kind, shown, EgressOutcome.CLOSED, counts[0], counts[1])
            )


async def serve_egress(
    endpoints: NetworkEndpoints,
    policy: EgressPolicy,
    *,
    report: Callable[[EgressAttempt], None],
    resolve: Callable[[Destination], Awaitable[tuple[Address, ...]]] = resolve_publicly,
) -> EgressService:
    """
    Serve proxy, name server and watcher of `endpoints` until `close`.

    `report` is called in the event loop, in order, before an attempt has an effect; it must not
    block. Connections that are open at `close` are reported CLOSED.
    """
    service = EgressService(policy, report, resolve)
    await service.start(endpoints)
    return service


async def _pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, counts: list[int], index: int
) -> None:
    with contextlib.suppress(OSError):
        while piece := await source.read(_PIECE):
            counts[index] += len(piece)
            sink.write(piece)
            await sink.drain()
    with contextlib.suppress(OSError):
        sink.write_eof()


async def _say(writer: asyncio.StreamWriter, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        writer.write(answer)
        await writer.drain()
