"""SIMULATED model nodes on loopback over real HTTP, and a stub engine behind them, for clients.

Each node is the application that `confide node model` serves, with the simulated machine of these
tests. A `Liar` between the sealed gateway and the node changes what the node itself answers.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from aiohttp import web
from inference_stub import StubEngine
from nodes import (
    NOW,
    WEIGHTS,
    CountingEntropy,
    FixedClock,
    SimulatedNode,
    fitting_expectation,
    without,
)
from nodes import roots as simulated_roots

from confide.adapters.receipt_db import ReceiptDatabase
from confide.adapters.upstream_http import HttpUpstream, UpstreamConfig
from confide.client.held import TrustPolicy
from confide.client.session import Session
from confide.expectation import AgentSpec, NodeSpec
from confide.inference.models import ServedModel
from confide.inference.routes import RequestLimits
from confide.node.app import NodeApp
from confide.node.identity import NodeIdentity
from confide.node.model import ModelNode, ModelNodePorts
from confide.node.open_faces import FaceParts, behind_channel, open_faces

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from confide.channel.padding import StreamShape
    from confide.client.answer import ReceiptKeeper
    from confide.client.relayed import Relay
    from confide.expectation import Expectation
    from confide.ports import Clock, Upstream
    from confide.wire.faces import FaceName

MODEL = "support-notes"
NOTHING = NodeSpec((), (), (), (), (), ())


def inference_policy(model: str = MODEL) -> Expectation:
    """An Expectation for inference alone: its agent parts accept nothing."""
    fitting = fitting_expectation(simulated_roots())
    return replace(
        fitting,
        agent_node=NOTHING,
        agent=AgentSpec("00" * 32, "batch"),
        model=replace(fitting.model, name=model),
    )


class Liar:
    """Hands on what the node answers, changed: `head` and `body` of each answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.headers: Callable[[list[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]] | None = None
        self.body: Callable[[bytes], bytes] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def lie(message: Any) -> None:
            if message["type"] == "http.response.start" and self.headers is not None:
                message = {**message, "headers": self.headers(message["headers"])}
            elif message["type"] == "http.response.body" and self.body is not None:
                message = {**message, "body": self.body(message.get("body", b""))}
            await send(message)

        await self._app(scope, receive, lie)


@dataclass
class PlacedNode:
    """One node at `url`: may be rotated, lie, stop and come back as another boot."""

    loop: asyncio.AbstractEventLoop
    upstream: Upstream
    served: ServedModel
    clock: Clock = field(default_factory=FixedClock)
    seed: bytes = b"boot 1"
    fault: str = ""
    faces: tuple[FaceName, ...] = ()
    port: int = 0
    identity: NodeIdentity = field(init=False)
    liar: Liar = field(init=False)
    _server: uvicorn.Server | None = None
    _serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def start(self) -> None:
        """Boot with keys of its own and serve, at the same place as before."""
        self._call(self._start())

    async def _start(self) -> None:
        entropy = CountingEntropy(self.seed)
        simulated = SimulatedNode(
            "model",
            self.fault,
            model=self.served.name,
            clock=self.clock,  # type: ignore[arg-type] # whatever tells the time
            entropy=entropy,
            faces=self.faces,
        )
        await simulated.boot()
        self.identity = NodeIdentity(
            simulated.keys, simulated.attester, clock=self.clock, entropy=entropy, simulated=True
        )
        ports = ModelNodePorts(
            identity=self.identity,
            upstream=self.upstream,
            routes=await self.upstream.probe(),
            served=self.served,
            weights=WEIGHTS,
            clock=self.clock,
            entropy=entropy,
            limits=RequestLimits(),
        )
        node = ModelNode(ports)
        parts = FaceParts(
            identity=self.identity, machine=simulated.machine(), inner=node, model=MODEL
        )
        faces = open_faces(self.faces, parts)
        self.liar = Liar(behind_channel(faces, node))
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            NodeApp(self.identity, self.liar, faces),
            log_level="critical",
            lifespan="off",
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[listener]))
        while not self._server.started:  # noqa: ASYNC110 - it tells no event
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        self._call(self._stop())

    async def _stop(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = self._server.force_exit = True
            await self._serving
            self._server = None

    def rotate(self) -> None:
        """Change the keyset, as the node does after twelve hours."""

        async def work() -> None:
            self.identity.rotate()

        self._call(work())

    def restart(self, seed: bytes = b"boot 2") -> None:
        """Stop, and come back with other keys and no word about the old ones."""
        self.stop()
        self.seed = seed
        self.start()


@dataclass
class Place:
    """The engine and the nodes that tests start."""

    loop: asyncio.AbstractEventLoop
    engine: StubEngine
    upstream: HttpUpstream
    clock: FixedClock
    nodes: list[PlacedNode] = field(default_factory=list)
    sessions: int = 0

    def node(
        self,
        *,
        fault: str = "",
        seed: bytes = b"",
        model: str = MODEL,
        faces: tuple[FaceName, ...] = (),
    ) -> PlacedNode:
        """Start one more model node; each has keys of its own."""
        seed = seed or b"node %d" % len(self.nodes)
        served = ServedModel(
            name=model,
            weights_digest="11" * 32,
            manifest_digest=WEIGHTS.hex(),
            upstream_name=model,
            created=1,
            adds_revision=True,
        )
        made = PlacedNode(
            self.loop,
            self.upstream,
            served,
            clock=self.clock,
            fault=fault,
            seed=seed,
            faces=faces,
        )
        made.start()
        self.nodes.append(made)
        return made

    @staticmethod
    def policy_without_tolerance() -> Expectation:
        """What no node proves today is not tolerated."""
        return without(inference_policy(), accept_not_proven=())

    def session(
        self,
        urls: Sequence[str],
        keeper: ReceiptKeeper | Path,
        *,
        expectation: Expectation | None = None,
        relay: Relay | None = None,
        shape: StreamShape | None = None,
        **trust: Any,
    ) -> Session:
        """A session with the policy of these nodes."""
        policy = TrustPolicy(expectation or inference_policy(), simulated_roots(), **trust)
        made = ReceiptDatabase(keeper) if isinstance(keeper, Path) else keeper
        self.sessions += 1
        entropy = CountingEntropy(b"client %d" % self.sessions)
        return Session(
            urls,
            policy,
            keeper=made,
            clock=self.clock,
            entropy=entropy,
            relay=relay,
            shape=shape,
        )


async def _serve_engine(engine: StubEngine) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(engine.app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    return runner, f"http://{host}:{port}"


@contextmanager
def running_place(engine: StubEngine | None = None) -> Iterator[Place]:
    """Run an engine in a thread of its own; nodes are started by the test, stopped at the end."""
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    made: list[Place] = []

    async def main() -> None:
        served = engine or StubEngine()
        runner, url = await _serve_engine(served)
        async with HttpUpstream(UpstreamConfig(base_url=url + "/v1")) as upstream:
            made.append(Place(loop, served, upstream, FixedClock(NOW)))
            ready.set()
            await stop.wait()
            for node in made[0].nodes:
                await node._stop()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        if not ready.wait(30):
            raise AssertionError("the engine did not start")
        yield made[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
