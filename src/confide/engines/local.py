"""The local engine: an agent node and a model node as processes of this machine, SIMULATED.

`up` starts what is not running, `status` tells, `down` stops; each under one file lock, so that
two commands at once do not start four nodes. A process is recognised by its id *and* start time:
an id that was given to somebody else is never signalled. State is under the XDG directories.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from confide.adapters.files import write_atomically
from confide.adapters.http_client import ask_health
from confide.adapters.software import node_software
from confide.errors import FormatError, Reason, Unavailable
from confide.simulator.machine import simulated_roots
from confide.trust.roots import Roots, encode_roots_file
from confide.wire.json import Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from confide.adapters.paths import Paths
    from confide.ports import Clock, Entropy

__all__ = [
    "LocalEngine",
    "LocalNode",
    "ModelChoice",
    "NodeState",
    "Role",
]

Role = Literal["agent", "model"]
_HOST = "127.0.0.1"
_SEED_BYTES = 32
_READY_SECONDS = 180.0
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What the model node serves: measured `weights`, or an `upstream_url` that nobody measures."""

    name: str
    weights: Path | None
    upstream_url: str = ""
    upstream_model: str = ""


@dataclass(frozen=True, slots=True)
class _Wanted:
    choice: ModelChoice
    idle_seconds: int | None
    faults: Mapping[str, str]
    software: str

    @property
    def source(self) -> str:
        return str(self.choice.weights or self.choice.upstream_url)


@dataclass(frozen=True, slots=True)
class LocalNode:
    """
    A node process of ours. `started` is its start time in kernel ticks since boot.

    `software` is the SHA-256 (hex) of the package it was started from.
    """

    role: Role
    pid: int
    started: int
    url: str
    log: str
    model: str
    source: str
    software: str


@dataclass(frozen=True, slots=True)
class NodeState:
    """A recorded node and whether it answers. `keyset` is what it says, not what was proven."""

    node: LocalNode
    alive: bool
    keyset: str


class LocalEngine:
    """Starts and stops local nodes. `environment` is what they inherit."""

    def __init__(
        self, paths: Paths, environment: Mapping[str, str], *, clock: Clock, entropy: Entropy
    ) -> None:
        self._paths = paths
        self._environment = dict(environment)
        self._clock = clock
        self._entropy = entropy

    def seed(self) -> bytes:
        """Return the seed of this installation's SIMULATED platform, drawn at first use."""
        path = self._paths.simulated_seed
        if not path.exists():
            write_atomically(path, self._entropy.token(_SEED_BYTES))
        seed = path.read_bytes()
        if len(seed) != _SEED_BYTES:
            raise Unavailable(f"{path} is damaged; delete it to make a new simulated platform")
        return seed

    def roots(self) -> Roots:
        """Return the simulated roots, and keep their file where `--simulated-roots` finds it."""
        roots = simulated_roots(self.seed(), self._clock.now())
        raw = encode_roots_file(roots)
        path = self._paths.simulated_roots
        if not path.exists() or path.read_bytes() != raw:
            write_atomically(path, raw, mode=0o644)
        return roots

    def status(self) -> tuple[NodeState, ...]:
        """Return every recorded node, alive or not."""
        return tuple(_ask(node) for node in self._recorded())

    def up(
        self, choice: ModelChoice, *, idle_seconds: int | None, faults: Mapping[str, str]
    ) -> tuple[LocalNode, ...]:
        """
        Make sure that both nodes run, and return them: model first.

        A node that serves something else is replaced. Raises `Unavailable` with the log's path
        when a node does not come up.
        """
        self._paths.make_private()
        wanted = _Wanted(choice, idle_seconds, faults, node_software().hex())
        with self._lock():
            running = {state.node.role: state.node for state in self.status() if state.alive}
            model = running.get("model")
            # Nodes of another package would be refused by whoever holds this one.
            serves = (choice.name, wanted.source)
            if any(node.software != wanted.software for node in running.values()) or (
                model is not None and (model.model, model.source) != serves
            ):
                self._stop(tuple(running.values()))
                running, model = {}, None
            if model is None:
                # An agent node proves the model node at one address: both or none.
                self._stop(tuple(running.values()))
                model = self._start("model", wanted, "")
                running = {"model": model}
                self._record(running)
            if "agent" not in running:
                running["agent"] = self._start("agent", wanted, model.url)
                self._record(running)
            return running["model"], running["agent"]

    def down(self) -> int:
        """Stop our nodes; return how many were running."""
        with self._lock():
            alive = tuple(state.node for state in self.status() if state.alive)
            self._stop(alive)
            self._paths.nodes.unlink(missing_ok=True)
            return len(alive)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        path = self._paths.state / "lock"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _recorded(self) -> tuple[LocalNode, ...]:
        try:
            raw = self._paths.nodes.read_bytes()
        except FileNotFoundError:
            return ()
        try:
            return _parse_record(raw)
        except FormatError as error:
            raise Unavailable(f"{self._paths.nodes} is damaged; delete it") from error

    def _record(self, nodes: Mapping[Role, LocalNode]) -> None:
        write_atomically(
            self._paths.nodes,
            jcs(
                {
                    "nodes": [
                        {
                            "role": node.role,
                            "pid": node.pid,
                            "started": node.started,
                            "url": node.url,
                            "log": node.log,
                            "model": node.model,
                            "source": node.source,
                            "software": node.software,
                        }
                        for node in nodes.values()
                    ]
                }
            ),
        )

    @staticmethod
    def _command(role: Role, port: int, wanted: _Wanted, model_url: str) -> list[str]:
        choice = wanted.choice
        command = [sys.executable, "-m", "confide", "node", role, "--port", str(port)]
        if wanted.idle_seconds is not None:
            command += ["--idle-seconds", str(wanted.idle_seconds)]
        if wanted.faults.get(role):
            command += ["--simulate-fault", wanted.faults[role]]
        if role == "agent":
            return [*command, "--model-url", model_url]
        command += ["--model", choice.name]
        if choice.weights is not None:
            return [*command, "--weights", str(choice.weights)]
        command += ["--upstream", choice.upstream_url]
        return [*command, "--upstream-model", choice.upstream_model or choice.name]

    def _start(self, role: Role, wanted: _Wanted, model_url: str) -> LocalNode:
        port = _free_port()
        log = self._paths.state / f"{role}-node.log"
        command = self._command(role, port, wanted, model_url)
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                cwd=self._paths.state,
                start_new_session=True,
            )
        url = f"http://{_HOST}:{port}"
        try:
            _wait_until_ready(process, url, log, role)
        except BaseException:
            process.kill()
            process.wait()
            raise
        started = _start_ticks(process.pid)
        return LocalNode(
            role,
            process.pid,
            started or 0,
            url,
            str(log),
            wanted.choice.name,
            wanted.source,
            wanted.software,
        )

    def _stop(self, nodes: tuple[LocalNode, ...]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            left = [node for node in nodes if _is_ours(node)]
            for node in left:
                os.kill(node.pid, number)
            deadline = time.monotonic() + _STOP_SECONDS
            while time.monotonic() < deadline and any(_is_ours(node) for node in left):
                time.sleep(_POLL_SECONDS)


def _parse_record(raw: bytes) -> tuple[LocalNode, ...]:
    reason = Reason.RECEIPT_FORMAT
    top = Members(parse_json(raw, what="nodes", reason=reason), what="nodes", reason=reason)
    found: list[LocalNode] = []
    for item in top.items("nodes", max_items=2):
        members = Members(item, what="node", reason=reason)
        role: Role = members.choice("role", ("agent", "model"))
        found.append(
            LocalNode(
                role,
                members.integer("pid", low=2),
                members.integer("started"),
                members.text("url"),
                members.text("log"),
                members.text("model"),
                members.text("source"),
                members.text("software"),
            )
        )
        members.end()
    top.end()
    return tuple(found)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _start_ticks(pid: int) -> int | None:
    """Return the start time of process `pid` (proc(5), stat field 22), None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie is not running any more.
    return None if fields[0] == "Z" else int(fields[19])


def _is_ours(node: LocalNode) -> bool:
    return _start_ticks(node.pid) == node.started


def _ask(node: LocalNode) -> NodeState:
    if not _is_ours(node):
        return NodeState(node, alive=False, keyset="")
    return NodeState(node, alive=True, keyset=ask_health(node.url) or "")


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, role: Role) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(
                f"the {role} node ended with status {process.returncode}: "
                f"{_last_line(log)} (log: {log})"
            )
        if ask_health(url) is not None:
            return
        time.sleep(_POLL_SECONDS)
    raise Unavailable(f"the {role} node is not ready after {_READY_SECONDS:.0f} s (log: {log})")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
