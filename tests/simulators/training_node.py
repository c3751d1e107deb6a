"""A SIMULATED training node on loopback over real HTTP, with genuine jobs, for its owner's client.

It is the application that `confide node train` serves, on the simulated machine of these tests. A
`Liar` inside the sealed channel changes what the node answers, as a node would that lies.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import uvicorn
from nodes import NOW, CountingEntropy, FixedClock, SimulatedNode
from nodes import roots as simulated_roots
from proven_place import inference_policy

from confide.adapters.entropy import SystemEntropy
from confide.adapters.http_client import make_node_client
from confide.adapters.sealed_store import SealedStore
from confide.adapters.weights_dir import measure_weights
from confide.client.held import HeldNode, TrustPolicy
from confide.client.train import Training, Watcher
from confide.client.train_folder import OwnerFolder
from confide.client.train_node import TrainingNode
from confide.inference.models import ServedModel
from confide.node.app import NodeApp
from confide.node.identity import NodeIdentity
from confide.node.train_app import TrainApp
from confide.node.train_files import TrainFiles
from confide.node.train_jobs import TrainJobs
from confide.node.train_proof import ProvenBase
from confide.node.train_work import TrainPorts
from confide.trainer.process import TrainingProcess
from confide.training.recipe_file import parse_recipe_toml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from confide.client.train_upload import PartSizes
    from confide.expectation import Expectation

BASE = "tiny"
RECIPE = (
    f'base_model = "{BASE}"\nlearning_rate = 1e-2\nsequence_len = 128\nnum_epochs = 1\n'
    "lora_r = 2\nmicro_batch_size = 2\nval_set_size = 2\ncheckpoint_every = 3\nstate_every = 2\n"
)


@dataclass
class Liar:
    """Between the channel and the node: asked before each answer, by path."""

    app: ASGIApp
    # (path, body) to another body; None as a body cuts the answer after its head.
    answer: Callable[[str, bytes], bytes | None] | None = None
    # Paths as they were asked for.
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
        if told is None:
            raise ConnectionAbortedError("cut by the test")
        await send({"type": "http.response.body", "body": told})


@dataclass
class TrainingPlace:
    """The node at `url`, and where its owners are."""

    url: str
    liar: Liar
    expectation: Expectation
    clock: FixedClock
    files: TrainFiles
    owners: int = 0

    def folder(self, path: Path, *, recipe: str = RECIPE, **changed: Any) -> OwnerFolder:
        """Draw the keys of a new training."""
        self.owners += 1
        return OwnerFolder.create(
            path,
            node=self.url,
            expectation=changed.get("expectation", self.expectation),
            roots=simulated_roots(),
            recipe=parse_recipe_toml(recipe),
            entropy=CountingEntropy(b"owner %d" % self.owners),
        )

    @asynccontextmanager
    async def owner(
        self,
        folder: OwnerFolder,
        *,
        watcher: Watcher | None = None,
        sizes: PartSizes | None = None,
    ) -> AsyncIterator[Training]:
        """The owner's side of that training."""
        http = make_node_client()
        held = HeldNode(
            folder.state.node,
            TrustPolicy(folder.expectation, folder.roots),
            http,
            self.clock,
            SystemEntropy(),
        )
        try:
            yield Training(
                folder,
                TrainingNode(held, token=folder.token),
                clock=self.clock,
                entropy=SystemEntropy(),
                sleeper=QuickSleeper(self.clock),
                watcher=watcher,
                sizes=sizes,
            )
        finally:
            await held.close()
            await http.aclose()


@dataclass
class QuickSleeper:
    """Moves the clock by what it is asked to wait, and waits a little for the node."""

    clock: FixedClock
    slept: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0.05)


def training_policy(weights: bytes) -> Expectation:
    """An Expectation for a node that trains the base with these weights."""
    policy = inference_policy(BASE)
    return replace(policy, model=replace(policy.model, weights=weights.hex()))


async def _served(app: ASGIApp) -> tuple[uvicorn.Server, asyncio.Task[None], str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - it tells no event
        await asyncio.sleep(0.01)
    return server, serving, f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def running_training_node(base: Path, state: Path) -> Iterator[TrainingPlace]:
    """Run a node that trains the model in `base`, with a loop in a thread of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop, made = asyncio.Event(), list[TrainingPlace]()

    async def main() -> None:
        clock, entropy = FixedClock(NOW), CountingEntropy(b"training node")
        weights = measure_weights(base)
        simulated = SimulatedNode(
            "model", model=BASE, clock=clock, entropy=entropy, weights=weights.digest
        )
        await simulated.boot()
        identity = NodeIdentity(
            simulated.keys, simulated.attester, clock=clock, entropy=entropy, simulated=True
        )
        files = TrainFiles(
            SealedStore(state / "files", SystemEntropy()), clock=clock, entropy=SystemEntropy()
        )
        jobs = TrainJobs(
            TrainPorts(
                node=ProvenBase(identity, simulated.guest, simulated_roots(), BASE, weights.digest),
                files=files,
                start=TrainingProcess,
                folder=base,
                checkpoints=state / "checkpoints",
                threads=1,
                device="cpu",
                clock=clock,
                entropy=SystemEntropy(),
            )
        )
        jobs.start()
        served = ServedModel(
            name=BASE,
            weights_digest=weights.root_digest,
            manifest_digest=weights.digest.hex(),
            upstream_name=BASE,
            created=1,
        )
        liar = Liar(TrainApp(files, jobs, served))
        server, serving, url = await _served(NodeApp(identity, liar))
        made.append(TrainingPlace(url, liar, training_policy(weights.digest), clock, files))
        ready.set()
        await stop.wait()
        server.should_exit = server.force_exit = True
        await serving
        await jobs.close()

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
