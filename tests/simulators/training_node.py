"""A training node on loopback over real HTTP, with genuine jobs, for its owner's client.

What it serves is a `TrainWorld`: simulated hardware, arithmetic in the place of a model. A `Liar`
inside the sealed channel changes what the node answers, as a node would that lies.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import uvicorn
from arithmetic import RECIPE
from nodes import CountingEntropy
from nodes import roots as simulated_roots
from train_world import TrainWorld

from confide.adapters.entropy import SystemEntropy
from confide.adapters.http_client import make_node_client
from confide.client.held import HeldNode, TrustPolicy
from confide.client.session import Session
from confide.client.train import Training, Watcher
from confide.client.train_folder import OwnerFolder
from confide.client.train_node import TrainingNode
from confide.node.app import NodeApp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from confide.client.answer import ReceiptKeeper
    from confide.client.train_upload import PartSizes
    from confide.ports import Clock, Sleeper
    from confide.training.recipe import Recipe


@dataclass
class Liar:
    """Between the channel and the node: asked before each answer, by path."""

    app: ASGIApp
    # (path, body) to another body; None as a body cuts the answer after its head.
    answer: Callable[[str, bytes], bytes | None] | None = None
    # Whether the connection breaks after what was answered.
    cutting: bool = False
    # Methods and paths as they were asked for.
    asked: list[tuple[str, str]] = field(default_factory=list)
    # Requests to refuse before the node has seen them; the connection breaks.
    break_at: Callable[[str, str], bool] = lambda _method, _path: False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.asked.append((scope["method"], scope["path"]))
        if self.break_at(scope["method"], scope["path"]):
            raise ConnectionAbortedError("broken by the test")
        if self.answer is None:
            await self.app(scope, receive, send)
            return
        head: dict[str, Any] = {}
        body = bytearray()

        async def lie(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.update(message)
            else:
                body.extend(message.get("body", b""))

        await self.app(scope, receive, lie)
        told = self.answer(scope["path"], bytes(body))
        fields = [(n, v) for n, v in head["headers"] if n != b"content-length"]
        await send({**head, "headers": fields})
        if told is not None:
            await send({"type": "http.response.body", "body": told, "more_body": self.cutting})
        if told is None or self.cutting:
            raise ConnectionAbortedError("cut by the test")


@dataclass
class TrainingOwners:
    """The node at `url`, and whoever trains there."""

    url: str
    liar: Liar
    world: TrainWorld
    owners: int = 0

    def folder(self, path: Path, *, recipe: Recipe | None = RECIPE, **changed: Any) -> OwnerFolder:
        """Draw the keys of a new training."""
        self.owners += 1
        return OwnerFolder.create(
            path,
            node=self.url,
            expectation=changed.get("expectation", self.world.expectation),
            roots=simulated_roots(),
            recipe=recipe,
            entropy=CountingEntropy(b"owner %d" % self.owners),
        )

    @property
    def clock(self) -> Clock:
        """The time of the node and of its owners."""
        return self.world.clock

    def session(self, urls: Sequence[str], keeper: ReceiptKeeper, **trust: Any) -> Session:
        """A session with nodes that train, as the proxy has one."""
        policy = TrustPolicy(self.world.expectation, simulated_roots(), **trust)
        return Session(urls, policy, keeper=keeper, clock=self.clock, entropy=SystemEntropy())

    @asynccontextmanager
    async def owner(
        self,
        folder: OwnerFolder,
        *,
        watcher: Watcher | None = None,
        sizes: PartSizes | None = None,
        clock: Clock | None = None,
        sleeper: Sleeper | None = None,
    ) -> AsyncIterator[Training]:
        """The owner's side of that training."""
        http, now = make_node_client(), clock or self.world.clock
        trust = TrustPolicy(folder.expectation, folder.roots)
        held = HeldNode(folder.state.node, trust, http, now, SystemEntropy())
        try:
            yield Training(
                folder,
                TrainingNode(held, token=folder.token),
                clock=now,
                entropy=SystemEntropy(),
                sleeper=sleeper or QuickSleeper(),
                watcher=watcher,
                sizes=sizes,
            )
        finally:
            await held.close()
            await http.aclose()


class QuickSleeper:
    """Waits a little, whatever it is asked to wait."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.02))


async def _served(app: ASGIApp) -> tuple[uvicorn.Server, asyncio.Task[None], str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - it tells no event
        await asyncio.sleep(0.01)
    return server, serving, f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def running_training_node(state: Path) -> Iterator[TrainingOwners]:
    """Run a node that keeps what is sealed in `state`, with a loop in a thread of its own."""
    state.mkdir(parents=True)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop, made = asyncio.Event(), list[TrainingOwners]()

    async def main() -> None:
        async with TrainWorld(state / "files").up() as world:
            liar = Liar(world.app)
            server, serving, url = await _served(NodeApp(world.identity, liar))
            made.append(TrainingOwners(url, liar, world))
            ready.set()
            await stop.wait()
            server.should_exit = server.force_exit = True
            await serving

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        if not ready.wait(60):
            raise AssertionError("the node did not start")
        yield made[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run one scenario of an owner."""
    return asyncio.run(work)
