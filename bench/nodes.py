"""Real node processes for a measurement: SIMULATED hardware, own XDG places, a stub engine.

The nodes are started as users start them (`confide node …`); the relying party is the client
library. State lies in a temporary folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.image_build import read_agent_manifest
from confide.adapters.paths import Paths
from confide.adapters.software import node_software, running_kernel
from confide.appraisal.nvidia_policy import AllowedVersions
from confide.client.expect import LocalReference, expectation_for, inference_expectation_for
from confide.engines.local import LocalEngine
from confide.node.model_link import ModelNodeAddress, open_model_link
from confide.simulator.machine import make_gpus, make_platform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from confide.channel.keys import RecipientKey
    from confide.expectation import Expectation

MODEL = "bench"
AGENT = Path(__file__).parent / "agent"
# A digest of no image: rows that run no agent need an Expectation all the same.
_NO_IMAGE = "00" * 32
_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """A process that listens at `url`."""

    url: str
    pid: int


@dataclass(slots=True)
class Place:
    """One installation in a temporary folder. A context manager: it stops what it started."""

    root: Path = field(init=False)
    paths: Paths = field(init=False)
    engine: LocalEngine = field(init=False)
    software: bytes = field(init=False)
    upstream: Server = field(init=False)
    model: Server = field(init=False)
    _environment: dict[str, str] = field(init=False)
    _stack: ExitStack = field(init=False, default_factory=ExitStack)

    def __enter__(self) -> Self:
        folder = tempfile.TemporaryDirectory(prefix="confide-bench-")
        self.root = Path(self._stack.enter_context(folder))
        environment = dict(os.environ)  # noqa: TID251 - what the nodes inherit
        for name in ("CONFIG", "DATA", "STATE"):
            environment[f"XDG_{name}_HOME"] = str(self.root / name.lower())
        self._environment = environment
        self.paths = Paths.from_environment(environment)
        self.paths.make_private()
        self.engine = LocalEngine(
            self.paths, environment, clock=SystemClock(), entropy=SystemEntropy()
        )
        # Once: nodes that are started while the package changes would prove another one.
        self.software = node_software()
        try:
            self.upstream = self.start("-m", "bench.servers", "upstream", "PORT")
            self.model = self.start_model()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def start_model(self, *options: str) -> Server:
        """Start one more model node in front of the same engine."""
        return self.start(
            "-m", "confide", "node", "model", "--port", "PORT",
            "--model", MODEL, "--upstream", self.upstream.url, *options,
        )  # fmt: skip

    def start_keyed_model(self, *options: str) -> tuple[Server, str]:
        """Start a model node that asks for API keys and counts; return it, and a key."""
        database = str(self.root / "keys.sqlite")
        made = subprocess.run(
            [sys.executable, "-m", "confide", "keys", "create", "--json",
             "--tenant", "bench", "--database", database],
            env=self._environment, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        node = self.start_model(
            "--keys", database, "--tenant-cache", "shared",
            "--metrics", f"127.0.0.1:{_free_port()}", *options,
        )  # fmt: skip
        return node, str(json.loads(made.stdout)["key"])

    def start(self, *arguments: str) -> Server:
        """Start a Python process that serves on the port put for `PORT`; it ends with us."""
        return self._stack.enter_context(self._serving(arguments))

    @contextmanager
    def _serving(self, arguments: tuple[str, ...]) -> Iterator[Server]:
        port = _free_port()
        words = [str(port) if word == "PORT" else word for word in arguments]
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=self._environment,
        )
        server = Server(f"http://127.0.0.1:{port}", process.pid)
        try:
            _await_answer(server.url, process)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def expectation(self, image: str = _NO_IMAGE) -> Expectation:
        """The narrowest Expectation that these nodes meet."""
        return expectation_for(read_agent_manifest(AGENT), image, self._reference())

    def inference_expectation(self) -> Expectation:
        """The same for inference alone."""
        return inference_expectation_for(self._reference())

    def _reference(self) -> LocalReference:
        seed, now = self.engine.seed(), SystemClock().now()
        gpu = make_gpus(seed, now, ()).policy()
        if not (isinstance(gpu.driver, AllowedVersions) and isinstance(gpu.vbios, AllowedVersions)):
            raise TypeError("the simulator's own policy lists its versions")
        platform = make_platform(seed, now, ())
        return LocalReference(
            self.engine.roots(), self.software, running_kernel(), platform.mr_seam,
            gpu, gpu.driver.versions, gpu.vbios.versions, MODEL, "",
        )  # fmt: skip

    def recipient(self, node: Server | None = None) -> RecipientKey:
        """A model node's preferred key, out of evidence that was appraised."""
        url = (node or self.model).url

        async def prove() -> RecipientKey:
            async with AsyncExitStack() as stack:
                http = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False))
                link = await open_model_link(
                    ModelNodeAddress(url, self.engine.roots()),
                    expectation=self.expectation(), http=http,
                    clock=SystemClock(), entropy=SystemEntropy(),
                )  # fmt: skip
                return link.sealed._recipient  # noqa: SLF001 - the load generator seals by itself

        return asyncio.run(prove())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url + "/confide/v1/health", timeout=5).close()  # noqa: S310 - ours
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("a server of the benchmark did not start")
