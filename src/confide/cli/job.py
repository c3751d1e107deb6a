"""What `run`, `chat` and `demo` share: before, the way to the node, and honesty on failure.

The order is fixed: look at the inputs, build, start or find the nodes, write the Expectation down,
prove. Only then is there a value (`ProvenAgentNode`) that anything can be sent to.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Self

from confide.adapters.files import write_atomically
from confide.adapters.http_client import node_client
from confide.cli.agents import build, find_agent
from confide.cli.expectation_files import read_expectation
from confide.cli.local_release import LocalOwner
from confide.cli.localnodes import (
    IDLE_SECONDS,
    broker_for,
    choose_model,
    local_engine,
    reference_for,
)
from confide.cli.log_choice import local_choice, named_choice, require_log
from confide.cli.places import Places, read_roots
from confide.client.agent import AgentClient
from confide.client.expect import expectation_for
from confide.client.finality import pending_path, settle_left_over
from confide.client.local import RunFolder, make_run_folder
from confide.client.local_inputs import gather_inputs
from confide.engines.local_broker import LOCAL_REPOSITORY
from confide.errors import ConfideError, ConfigurationError, Reason, RunRefused
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Literal

    from confide.adapters.image_build import BuiltAgent
    from confide.cli.tree import Plan, Tree
    from confide.client.agent import ProvenAgentNode
    from confide.client.finality import LeftOver, LogChoice
    from confide.engines.roles import ModelChoice
    from confide.expectation import Expectation
    from confide.trust.roots import Roots

__all__ = ["AFTER", "Job", "Request", "after_sending", "before_sending"]

_BEFORE: Plan = (
    ("before", "image", "agent image"),
    ("before", "nodes", "nodes"),
    ("before", "expectation", "Expectation"),
    ("before", "prove", "agent node proven"),
)
_RELEASE = ("before", "release", "released to it")
_SECRETS = ("during", "secrets", "secrets and state")
_DURING: Plan = (
    ("during", "send", "inputs sent sealed"),
    ("during", "model", "model node proven"),
    ("during", "agent", "agent"),
)
AFTER: Plan = (
    ("after", "receipt", "receipt made"),
    ("after", "verify", "receipt verified"),
    ("after", "log", "in the log"),
)
_NOTHING_LEFT = "no input left this machine; nothing was executed"
_NOT_EXECUTED = "the inputs went sealed to the proven node; the agent was not started"
_NOT_KNOWN = (
    "inputs that were sent went sealed to the proven node; whether the agent ran is not known",
    "the node cancels a run whose client is gone, and its files were only in memory",
    "no output was kept, and the next run starts afresh",
)


class Request(NamedTuple):
    """The command line of a run."""

    agent: str
    mode: Literal["batch", "chat"]
    inputs: tuple[Path, ...] = ()
    output: Path | None = None
    expectation: Path | None = None
    receipt: Path | None = None
    node: str | None = None
    roots: str | None = None
    upstream: str = ""
    model: str = ""
    weights: Path | None = None
    release: bool = False
    # Secrets that are drawn where the local broker holds none of that name.
    draw: tuple[str, ...] = ()
    log: str | None = None
    log_policy: Path | None = None
    no_log: bool = False
    log_wait: float = 10.0


class Job:
    """One run, from the command line to the proof of the node. Use as a context manager."""

    def __init__(self, request: Request) -> None:
        """Look at everything that can be wrong before anything is built or started."""
        _require_consistent(request)
        self.request = request
        self.places = Places.here()
        self.engine = local_engine(self.places)
        self._wanted = read_expectation(request.expectation) if request.expectation else None
        self._agent = find_agent(request.agent, mode=request.mode)
        manifest = self._agent.manifest
        mode = manifest.mode if self._wanted is None else self._wanted.agent.mode
        if mode != request.mode:
            verb = "chat" if mode == "chat" else "run"
            raise ConfigurationError(f"{manifest.name} is a {mode} agent: use confide {verb}")
        self.limits = manifest.limits if self._wanted is None else self._wanted.limits
        self.inputs = gather_inputs(request.inputs, max_bytes=self.limits.input_bytes)
        self.roots: Roots = (
            read_roots(request.roots) if request.roots is not None else self.engine.roots()
        )
        # Of local nodes: known when they are up.
        self.log: LogChoice | None = named_choice(request.log, request.log_policy)
        self.left_over: tuple[LeftOver, ...] = ()
        self.name = manifest.name
        self.runner = asyncio.Runner()
        self._client = node_client()
        self.folder: RunFolder
        self.expectation: Expectation
        self.client: AgentClient

    def __enter__(self) -> Self:
        """Open the event loop that every step of this job shares."""
        self.runner.__enter__()
        self._http = self.runner.run(self._client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        """Close connections and loop."""
        self.runner.run(self._client.__aexit__(None, None, None))
        self.runner.__exit__(None, None, None)

    @property
    def simulated(self) -> bool:
        """Whether this job works under SIMULATED roots."""
        return self.roots.simulated

    @property
    def destination(self) -> Path:
        """Where verified outputs go."""
        return self.request.output or self.folder.output

    @property
    def receipt_path(self) -> Path:
        """Where the receipt goes."""
        return self.request.receipt or self.folder.receipt

    def prove(self, tree: Tree) -> ProvenAgentNode:
        """Build, start, expect, prove: everything that happens before the first input leaves."""
        tree.begin("image")
        built = self._build(tree)
        tree.done("image", f"sha256:{built.image.digest[:16]}…")
        tree.begin("nodes", "starting" if self.request.node is None else "")
        url, choice, detail = self._nodes()
        self._settle_left_over()
        tree.done("nodes", detail)
        tree.begin("expectation")
        self._expect(built, choice)
        tree.done("expectation", f"sha256:{self.expectation.digest.hex()[:16]}…")
        if self.request.release:
            tree.begin("release")
            tree.done("release", self._release())
        tree.begin("prove", "asking for evidence")
        self.client = AgentClient(
            url,
            roots=self.roots,
            http=self._http,
            clock=self.places.clock,
            entropy=self.places.entropy,
        )
        proven = self.runner.run(self.client.prove(self.expectation))
        passed = sum(not f.failed for f in proven.node.result.findings)
        hardware = proven.node.result.claim("hardware").value
        tree.done("prove", f"{hardware.partition(', FMSPC')[0]}; {passed} steps")
        return proven

    @property
    def during(self) -> Plan:
        """The steps of the run itself."""
        manifest, wanted = self._agent.manifest, self._wanted
        asks = bool(manifest.secrets) or manifest.state
        if wanted is not None:
            asks = wanted.broker.wanted
        return (*_DURING[:-1], _SECRETS, _DURING[-1]) if asks else _DURING

    def _release(self) -> str:
        entropy = self.places.entropy
        broker = self.engine.broker()
        owner = LocalOwner(broker, self._broker_url, clock=self.places.clock, entropy=entropy)
        for name in self.request.draw:
            owner.hold(
                f"{LOCAL_REPOSITORY}/secret/{name}", lambda: entropy.token(32).hex().encode()
            )
        return owner.release(self.expectation)

    @property
    def before(self) -> Plan:
        """The steps before anything is sent."""
        return (*_BEFORE[:-1], _RELEASE, _BEFORE[-1]) if self.request.release else _BEFORE

    def _build(self, tree: Tree) -> BuiltAgent:
        def progress(text: str) -> None:
            tree.note("image", text)

        built = self.runner.run(build(self._agent, self.request.agent, self.places.paths, progress))
        if self._wanted is not None and self._wanted.agent.image != built.image.digest:
            raise RunRefused(
                (
                    Finding(
                        Status.FAIL,
                        "client/image",
                        "docs/protocols/agent-run.md#2",
                        "agent image",
                        f"built sha256:{built.image.digest}, the Expectation names "
                        f"sha256:{self._wanted.agent.image}",
                        Reason.AGENT_IMAGE_MISMATCH,
                    ),
                )
            )
        return built

    def _nodes(self) -> tuple[str, ModelChoice | None, str]:
        if self.request.node is not None:
            return self.request.node, None, self.request.node
        choice = choose_model(
            self.engine,
            wanted=self._agent.manifest.model,
            upstream=self.request.upstream,
            model=self.request.model,
            weights=self.request.weights,
        )
        running = {state.node.pid for state in self.engine.status() if state.alive}
        nodes = self.engine.up(choice, idle_seconds=IDLE_SECONDS, faults={})
        how = "were running" if {node.pid for node in nodes.values()} <= running else "started"
        self.log = local_choice(self.engine, nodes["log"].url)
        self._broker_url = nodes["broker"].url
        return nodes["agent"].url, choice, f"nodes and log {how}; model {choice.name}"

    def _settle_left_over(self) -> None:
        """Try again what earlier runs left pending; whatever comes of it, this run goes on."""
        if self.log is not None:
            self.left_over = self.runner.run(
                settle_left_over(
                    self.places.paths.runs,
                    self.log,
                    clock=self.places.clock,
                    entropy=self.places.entropy,
                )
            )

    def _expect(self, built: BuiltAgent, choice: ModelChoice | None) -> None:
        if self._wanted is not None:
            self.expectation = self._wanted
        elif choice is not None:
            reference = reference_for(self.places, self.engine, choice)
            broker = broker_for(self.engine, built.manifest)
            self.expectation = expectation_for(
                built.manifest, built.image.digest, reference, broker=broker
            )
        else:
            raise ConfigurationError("a node that you name needs an --expectation")
        self.places.paths.make_private()
        self.folder = make_run_folder(
            self.places.paths.runs,
            name=self.name,
            now=self.places.clock.now(),
            token=self.places.entropy.token(2),
        )
        write_atomically(self.folder.expectation, self.expectation.canonical(), mode=0o644)


def _require_consistent(request: Request) -> None:
    if request.receipt is not None and pending_path(request.receipt).exists():
        raise ConfigurationError(
            f"{request.receipt} waits for the log: finish it with confide log add, or name "
            "another --receipt"
        )
    if request.node is None and request.roots is not None:
        raise ConfigurationError("--roots goes with --node: local nodes have their own")
    if request.node is not None:
        if request.roots is None:
            raise ConfigurationError("--node needs --roots: vendor, or a simulated roots file")
        if request.expectation is None:
            raise ConfigurationError(
                "--node needs --expectation: what must run on a node that is not started here "
                "is yours to say"
            )
        if request.release:
            raise ConfigurationError(
                "--release is for local nodes: elsewhere owners sign (confide secret release)"
            )
        if request.upstream or request.model or request.weights is not None:
            raise ConfigurationError(
                "--upstream, --model and --weights are for local nodes, not for --node"
            )
    require_log(request.node, request.log, request.log_policy, no_log=request.no_log)
    output = request.output
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output} exists and is not an empty directory: name another")


@contextmanager
def before_sending() -> Iterator[None]:
    """Say on any failure inside that nothing was sent."""
    try:
        yield
    except (ConfideError, KeyboardInterrupt) as error:
        error.add_note(_NOTHING_LEFT)
        raise


@contextmanager
def after_sending() -> Iterator[None]:
    """Say on any failure inside what is and what is not known."""
    try:
        yield
    except RunRefused as error:
        error.add_note(_NOT_EXECUTED)
        raise
    except (ConfideError, KeyboardInterrupt) as error:
        for note in _NOT_KNOWN:
            error.add_note(note)
        raise
