"""A local deployment for the tests: real nodes, their state in one folder, one probe agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from confide.adapters.clock import SystemClock
from confide.adapters.engine import probe_engine
from confide.adapters.entropy import SystemEntropy
from confide.adapters.image_build import build_agent
from confide.adapters.paths import Paths
from confide.adapters.run_dir import owner_mark
from confide.adapters.software import node_software, running_kernel
from confide.client.agent import AgentClient, InputFile, RunOutcome
from confide.client.expect import expectation_for
from confide.client.local import local_reference
from confide.engines.local import LocalEngine
from confide.engines.roles import ModelChoice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from confide.adapters.image_build import BuiltAgent
    from confide.client.agent import Progress
    from confide.expectation import Expectation
    from confide.ports import Clock
    from confide.trust.roots import Roots

WAIT_SECONDS = 40
MODEL = "support-notes"
AGENTS = Path(__file__).parent / "agents"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where nodes keep the files of runs, in memory


def until(reached: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Wait for the state of another process, which tells no event."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not reached():
        if time.monotonic() > deadline:
            raise AssertionError(f"not reached: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)


@dataclass(slots=True)
class Node:
    """One node process that a test started itself."""

    role: str
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send `number`, wait, return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=WAIT_SECONDS)


@dataclass(slots=True)
class Installation:
    """One user's machine: a home, the four XDG places, what local nodes need. No node runs yet."""

    root: Path
    upstream: str
    environment: dict[str, str] = field(init=False)
    paths: Paths = field(init=False)
    engine: LocalEngine = field(init=False)
    software: bytes = field(init=False)
    # Names of every node process of this installation, dead ones too (run_dir.owner_mark).
    marks: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
        }
        if "PYTHONPATH" in os.environ:
            self.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        for name in ("config", "data", "cache", "state"):
            self.environment[f"XDG_{name.upper()}_HOME"] = str(self.root / name)
        for name in ("home", "tmp"):
            (self.root / name).mkdir(parents=True)
        self.paths = Paths.from_environment(self.environment)
        self.engine = LocalEngine(
            self.paths, self.environment, clock=SystemClock(), entropy=SystemEntropy()
        )
        # Once: the package that the nodes of this session run is the one that the tests import.
        self.software = node_software()

    @property
    def roots(self) -> Roots:
        return self.engine.roots()

    def build(self, folder: Path, *, cache: Path) -> BuiltAgent:
        """Build the agent in `folder` into the store of this installation."""

        async def work() -> BuiltAgent:
            return await build_agent(
                await probe_engine(), folder, store=self.paths.images, cache=cache,
                progress=lambda _line: None,
            )  # fmt: skip

        return asyncio.run(work())

    def expectation(self, built: BuiltAgent, *, weights: Path | None = None) -> Expectation:
        """The narrowest Expectation that honest local nodes meet."""
        reference = local_reference(
            seed=self.engine.seed(), roots=self.roots, software=self.software,
            kernel=running_kernel(), model=MODEL, weights=weights, now=SystemClock().now(),
        )  # fmt: skip
        return expectation_for(built.manifest, built.image.digest, reference)

    def up(self) -> tuple[str, str]:
        """`confide up`: return the addresses of the model and the agent node."""
        choice = ModelChoice(MODEL, None, self.upstream)
        with warnings.catch_warnings():
            # The engine lets its nodes go; whoever runs `down` may be another process.
            warnings.simplefilter("ignore", ResourceWarning)
            nodes = self.engine.up(choice, idle_seconds=900, faults={})
        model, agent = nodes["model"], nodes["agent"]
        self.marks |= {owner_mark(model.pid), owner_mark(agent.pid)}
        return model.url, agent.url

    def start(self, role: str, *arguments: str, fault: str = "", port: int = 0) -> Node:
        """Start one more node of this installation and wait until it serves."""
        node = self.launch(role, *arguments, fault=fault, port=port)

        def serves() -> bool:
            if node.process.poll() is not None:
                raise AssertionError(f"the {role} node ended: {node.log.read_text()}")
            try:
                return httpx2.get(f"{node.url}/confide/v1/health", trust_env=False).is_success
            except httpx2.HTTPError:
                return False

        until(serves, f"{role} node serves")
        return node

    def launch(self, role: str, *arguments: str, fault: str = "", port: int = 0) -> Node:
        """Start one more node of this installation; it may end instead of serving."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = port or probe.getsockname()[1]
        log = self.root / f"{role}-{port}.log"
        command = [sys.executable, "-m", "confide", "node", role, "--port", str(port)]
        if fault:
            command += ["--simulate-fault", fault]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=self.environment, cwd=self.root, start_new_session=True,
            )  # fmt: skip
        self.marks.add(owner_mark(process.pid))
        return Node(role, process, f"http://127.0.0.1:{port}", log)

    @contextlib.contextmanager
    def agent_node(self, model_url: str, *, fault: str = "") -> Iterator[Node]:
        """One more agent node in front of `model_url`, stopped at the end."""
        node = self.start("agent", "--model-url", model_url, fault=fault)
        try:
            yield node
        finally:
            node.stop()

    @contextlib.contextmanager
    def model_node(self, *, fault: str = "") -> Iterator[Node]:
        """One more model node in front of the stub engine, stopped at the end."""
        node = self.start("model", "--model", MODEL, "--upstream", self.upstream, fault=fault)
        try:
            yield node
        finally:
            node.stop()


@dataclass(slots=True)
class Deployment:
    """An installation with both nodes up and the probe agent built."""

    installation: Installation
    built: BuiltAgent
    model_url: str
    agent_url: str

    def expectation(
        self, *, limits: Mapping[str, int] | None = None, **changes: Any
    ) -> Expectation:
        """The Expectation of the probe agent on these nodes, with changes."""
        fitting = self.installation.expectation(self.built)
        if limits:
            changes["limits"] = replace(fitting.limits, **limits)
        return replace(fitting, **changes)

    def folder(self) -> Path:
        """A new empty folder on the client's side."""
        client = self.installation.root / "client"
        client.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=client))

    def inputs(
        self, folder: Path, orders: Sequence[Mapping[str, Any]], files: Mapping[str, bytes]
    ) -> list[InputFile]:
        """Write orders and files to the client's disk."""
        everything = {"orders.json": json.dumps(list(orders)).encode(), **files}
        found = []
        for number, (name, raw) in enumerate(everything.items()):
            path = folder / f"in-{number}"
            path.write_bytes(raw)
            found.append(InputFile(name, path, len(raw)))
        return found

    @contextlib.asynccontextmanager
    async def client(
        self, url: str | None = None, *, clock: Clock | None = None, roots: Roots | None = None
    ) -> AsyncIterator[AgentClient]:
        """A client of the agent node, or of whatever stands at `url`."""
        async with httpx2.AsyncClient(timeout=WAIT_SECONDS, trust_env=False) as http:
            yield AgentClient(
                url or self.agent_url,
                roots=roots or self.installation.roots,
                http=http,
                clock=clock or SystemClock(),
                entropy=SystemEntropy(),
            )

    async def run_async(
        self,
        orders: Sequence[Mapping[str, Any]],
        *,
        files: Mapping[str, bytes] | None = None,
        inputs: Sequence[InputFile] | None = None,
        expectation: Expectation | None = None,
        url: str | None = None,
        progress: list[Progress] | None = None,
        folder: Path | None = None,
    ) -> RunOutcome:
        """Prove, run, receive, verify: the whole main job. Outputs go to `folder`/out."""
        folder = folder or self.folder()
        seen: list[Progress] = [] if progress is None else progress
        async with self.client(url) as client:
            proven = await client.prove(expectation or self.expectation())
            given = self.inputs(folder, orders, files or {}) if inputs is None else inputs
            return await client.run(
                proven, given, destination=folder / "out", on_progress=seen.append
            )

    def run(self, orders: Sequence[Mapping[str, Any]], **how: Any) -> RunOutcome:
        """`run_async` from a test without a loop."""
        return asyncio.run(self.run_async(orders, **how))

    # --- what is left ---------------------------------------------------------------------------

    def leftovers(self, *, stages: bool = True) -> list[str]:
        """Whatever of any run still exists: containers, memory directories, mounts, stages."""
        marks = self.installation.marks
        found = [f"container {ident}" for ident, mark in _containers() if mark in marks]
        mounts = Path("/proc/mounts").read_text().splitlines()
        for node in (SHARED_MEMORY / f"confide-{mark}" for mark in marks):
            # A node that stops takes its directory with it, between any two looks.
            with contextlib.suppress(FileNotFoundError):
                found += [f"memory {run}" for run in node.iterdir()]
            found += [f"mount {line}" for line in mounts if f" {node}/" in line]
        client = self.installation.root / "client"
        if stages:
            found += [f"stage {path}" for path in client.rglob(".receiving-*")]
        return found

    def no_agent_runs(self) -> bool:
        """Whether no container of ours exists any more."""
        return not any(mark in self.installation.marks for _, mark in _containers())

    def nothing_left(self) -> None:
        """Wait until no trace of a run exists any more; the node cleans up after it answered."""
        until(lambda: not self.leftovers(), lambda: f"nothing left: {self.leftovers()}")

    def still_works(self) -> None:
        """The next run is accepted, runs and verifies."""
        outcome = self.run([{"do": "say", "text": "hello"}])
        assert outcome.failure is None, outcome.failure
        assert outcome.stdout == b"hello\n"


def _containers() -> list[tuple[str, str]]:
    listing = subprocess.run(
        ["podman", "ps", "--all", "--filter", "label=confide.owner",
         "--format", '{{.ID}} {{index .Labels "confide.owner"}}'],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [(line.split()[0], line.split()[1]) for line in listing.stdout.splitlines()]


def calls(outcome: RunOutcome) -> list[str]:
    """Outcomes of the model calls in a run's transcript."""
    assert outcome.verified is not None
    events = outcome.verified.statement.events
    return [str(event["outcome"]) for event in events if event.kind == "model-call"]


def published(folder: Path) -> dict[str, bytes]:
    """The verified outputs below `folder`/out."""
    out = folder / "out"
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
