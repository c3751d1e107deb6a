"""Training nodes that sit at one job: over real HTTP and real TLS, with processes that pretend."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
from train_world import TrainWorld

from confide.adapters.clock import SystemClock
from confide.adapters.http_client import node_client
from confide.node.app import NodeApp
from confide.node.seat_host import SeatHost
from confide.node.seat_party import InvitedNode, PartyPorts
from confide.node.seat_places import LinkPlace, SeatTimes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.types import Message, Receive, Scope, Send

    from confide.node.train_entry import TrainPorts
    from confide.node.train_jobs import TrainJobs

LINK = LinkPlace("127.0.0.1", "127.0.0.1")
# Long enough for a machine under load, short enough for a test that waits for nobody.
TIMES = SeatTimes(talk=60, rows=60, offered=60, meet=60, leave=5)


@dataclass
class SeatTable:
    """Seat 0 and the nodes that it invites; `wire` is every byte of HTTP between them."""

    folder: Path
    guests: int = 1
    ranks: int = 1
    # That of seat 0; the others have their own.
    gpu: str = "model-node"
    times: SeatTimes = TIMES
    # Where seat 0 and the others have their links, and by which engines.
    link: LinkPlace = LINK
    theirs: LinkPlace = LINK
    # What another node does with its seats, where it is not what it should.
    host: type[SeatHost] = SeatHost
    changed: dict[str, Any] = field(default_factory=dict)
    wire: bytearray = field(default_factory=bytearray)
    invited: list[InvitedNode] = field(default_factory=list)
    first: TrainWorld = field(init=False)
    others: list[TrainWorld] = field(default_factory=list)

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Self]:
        """Boot everybody, and end them."""
        async with AsyncExitStack() as stack:
            invited = self.invited
            for number in range(1, self.guests + 1):
                other = TrainWorld(
                    self.folder / f"seat-{number}" / "files",
                    keys=b"seat %d" % number,
                    gpu=f"seat {number}",
                    ranks=self.ranks,
                    **({"host": self._host} | self.changed),
                )
                self.others.append(await stack.enter_async_context(other.up()))
                app = _Tap(NodeApp(other.identity, other.app), self.wire)
                url = await stack.enter_async_context(serving(app))
                invited.append(InvitedNode(url, self.ranks))
            http = await stack.enter_async_context(node_client())
            party = PartyPorts(
                nodes=invited, link=self.link, http=http, wall=SystemClock(), times=self.times
            )
            self.first = TrainWorld(self.folder / "first" / "files", party=party, gpu=self.gpu)
            await stack.enter_async_context(self.first.up())
            yield self

    def _host(self, ports: TrainPorts, jobs: TrainJobs) -> SeatHost:
        return self.host(
            ports, jobs.pool, self.theirs, occupied=lambda: jobs.busy, times=self.times
        )


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve `app` on a free port of this machine; yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(
        app,
        address="127.0.0.1",
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        log_enabled=False,
    )
    running = asyncio.ensure_future(server.serve())
    try:
        await _listens(port, running)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await running


async def _listens(port: int, running: asyncio.Future[None]) -> None:
    while True:
        assert not running.done(), "the server ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.01)
            continue
        writer.close()
        return


class _Tap:
    """Hands everything on and keeps the bodies, both ways."""

    def __init__(self, app: NodeApp, wire: bytearray) -> None:
        self._app = app
        self._wire = wire

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> Message:
            message = await receive()
            self._wire.extend(message.get("body", b""))
            return message

        async def tell(message: Message) -> None:
            self._wire.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, listen, tell)
