"""The local engine: the processes of `roles.ROLES` on this machine, the nodes SIMULATED.

`up` starts what is not running, `status` tells, `down` stops; each under one file lock, so that
two commands at once do not start two of each. State is under the XDG directories; what must outlive
the processes, the log, is under the data directory.
"""

from __future__ import annotations

import fcntl
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.adapters.files import write_atomically
from confide.adapters.software import node_software
from confide.engines.local_broker import LocalBroker, local_broker
from confide.engines.local_log import LocalLog, local_log
from confide.engines.processes import (
    HOST,
    LocalNode,
    Starting,
    encode_record,
    free_port,
    is_ours,
    parse_record,
    start,
    stop,
)
from confide.engines.roles import (
    BROKER_ROLES,
    LOG_ROLES,
    ROLES,
    RUN_ROLES,
    Launch,
    ModelChoice,
    Role,
)
from confide.errors import FormatError, Unavailable
from confide.simulator.machine import simulated_roots
from confide.trust.roots import Roots, encode_roots_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from confide.adapters.paths import Paths
    from confide.ports import Clock, Entropy

__all__ = ["LocalEngine", "NodeState"]

_SEED_BYTES = 32
_READY_SECONDS = 180.0
_POLL_SECONDS = 0.05
# Roles that are of use for one choice alone.
_CHOSEN = frozenset({"model", "train"})


@dataclass(frozen=True, slots=True)
class _Wanted:
    roles: tuple[Role, ...]
    choice: ModelChoice | None
    idle_seconds: int | None
    faults: Mapping[str, str]
    software: str
    within_seconds: float
    log: LocalLog
    broker: LocalBroker | None

    def serves(self, node: LocalNode) -> bool:
        """Whether a running `node` is what is wanted under its role."""
        if node.role not in self.roles:
            return True
        # Nodes of another package would be refused by whoever holds this one.
        if node.software != self.software:
            return False
        choice = self.choice
        if node.role not in _CHOSEN or choice is None:
            return True
        return (node.model, node.source) == (choice.name, choice.source)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A recorded process and whether it answers. `says` is its own word, not what was proven."""

    node: LocalNode
    alive: bool
    says: str


class LocalEngine:
    """Starts and stops local nodes and the log. `environment` is what they inherit."""

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

    def log_policy(self) -> Path:
        """Return where the policy of the local log is, for `--log-policy`; made at first use."""
        if not self._paths.log_policy.exists():
            with self._lock():
                local_log(self._paths, self._entropy)
        return self._paths.log_policy

    def broker(self) -> LocalBroker:
        """Return the local broker's files and key; made at first use. Raises `Unavailable`."""
        self._paths.make_private()
        with self._lock():
            return self._broker()

    def status(self) -> tuple[NodeState, ...]:
        """Return every recorded process, alive or not."""
        recorded = {node.role: node for node in self._recorded()}
        return tuple(_ask(role, recorded[role]) for role in ROLES if role in recorded)

    def up(
        self, choice: ModelChoice, *, idle_seconds: int | None, faults: Mapping[str, str]
    ) -> Mapping[Role, LocalNode]:
        """
        Make sure that every role of `RUN_ROLES` runs, and return the processes.

        What serves something else is replaced. Raises `Unavailable` with the path of its words
        when one does not come up.
        """
        return self._up(RUN_ROLES, choice, idle_seconds, faults, _READY_SECONDS)

    def up_log(self, *, idle_seconds: int | None, within_seconds: float) -> LocalNode:
        """Make sure that the log and its witness run, and return the log. Raises `Unavailable`."""
        return self._up(LOG_ROLES, None, idle_seconds, {}, within_seconds)["log"]

    def up_broker(self, *, idle_seconds: int | None) -> LocalNode:
        """Make sure that the key broker and its log run, and return the broker."""
        return self._up(BROKER_ROLES, None, idle_seconds, {}, _READY_SECONDS)["broker"]

    def up_train(self, base: ModelChoice, *, idle_seconds: int | None) -> LocalNode:
        """
        Make sure that a training node for `base` runs, and return it.

        One that trains something else is left alone, with its jobs: `Unavailable`.
        """
        return self._up(("train",), base, idle_seconds, {}, _READY_SECONDS)["train"]

    def _up(
        self,
        roles: tuple[Role, ...],
        choice: ModelChoice | None,
        idle_seconds: int | None,
        faults: Mapping[str, str],
        within_seconds: float,
    ) -> Mapping[Role, LocalNode]:
        self._paths.make_private()
        software = node_software().hex()
        with self._lock():
            wanted = _Wanted(
                roles,
                choice,
                idle_seconds,
                faults,
                software,
                within_seconds,
                local_log(self._paths, self._entropy),
                self._broker() if "broker" in roles else None,
            )
            running = {role: node for role, node in self._alive().items() if wanted.serves(node)}
            _require_not_training(self._alive(), running)
            for role in ROLES:
                # An agent node proves the model node at one address: both, or neither.
                if role in running and not running.keys() >= set(ROLES[role].needs):
                    del running[role]
            stop(node for role, node in self._alive().items() if role not in running)
            self._raise(wanted, running)
            return running

    def _broker(self) -> LocalBroker:
        # It believes the platform of this installation, and needs its roots to start.
        self.roots()
        return local_broker(self._paths, self._environment, self._entropy)

    def down(self) -> int:
        """Stop our processes; return how many were running."""
        with self._lock():
            alive = self._alive().values()
            stop(alive)
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
            return parse_record(raw)
        except FormatError as error:
            raise Unavailable(f"{self._paths.nodes} is damaged; delete it") from error

    def _alive(self) -> dict[Role, LocalNode]:
        found = {node.role: node for node in self._recorded() if is_ours(node)}
        return {role: found[role] for role in ROLES if role in found}

    def _record(self, nodes: Iterable[LocalNode]) -> None:
        write_atomically(self._paths.nodes, encode_record(nodes))

    def _raise(self, wanted: _Wanted, running: dict[Role, LocalNode]) -> None:
        """Start what is missing in `running`, each as soon as what it needs answers."""
        starting: dict[Role, Starting] = {}
        deadline = time.monotonic() + wanted.within_seconds
        try:
            while not running.keys() >= set(wanted.roles):
                for role in wanted.roles:
                    missing = role not in running and role not in starting
                    if missing and running.keys() >= set(ROLES[role].needs):
                        starting[role] = self._start(role, wanted, running)
                for role, begun in tuple(starting.items()):
                    begun.require_alive()
                    if ROLES[role].ask(begun.node.url) is not None:
                        running[role] = starting.pop(role).node
                        self._record(running.values())
                if starting:
                    _require_time(deadline, starting, wanted.within_seconds)
                    time.sleep(_POLL_SECONDS)
        except BaseException:
            for begun in starting.values():
                begun.kill()
            raise

    def _start(self, role: Role, wanted: _Wanted, running: Mapping[Role, LocalNode]) -> Starting:
        port = free_port()
        urls = {need: running[need].url for need in ROLES[role].needs}
        fault = wanted.faults.get(role, "")
        launch = Launch(urls, wanted.log, wanted.broker, wanted.choice, fault)
        command = [sys.executable, "-m", "confide", *ROLES[role].words(launch)]
        command += ["--port", str(port)]
        if wanted.idle_seconds is not None:
            command += ["--idle-seconds", str(wanted.idle_seconds)]
        served = wanted.choice if role in {"model", "agent", "train"} else None
        return start(
            command,
            environment=self._environment,
            folder=self._paths.state,
            title=ROLES[role].title,
            role=role,
            url=f"http://{HOST}:{port}",
            model="" if served is None else served.name,
            source="" if served is None else served.source,
            software=wanted.software,
        )


def _require_not_training(
    alive: Mapping[Role, LocalNode], running: Mapping[Role, LocalNode]
) -> None:
    """Refuse to stop a training node on the way to something else: its jobs would be lost."""
    node = alive.get("train")
    if node is not None and "train" not in running:
        raise Unavailable(
            f"the local training node is one for {node.model}, from {node.source}, or of another "
            "version of Confide: let its jobs end, then confide down"
        )


def _ask(role: Role, node: LocalNode) -> NodeState:
    if not is_ours(node):
        return NodeState(node, alive=False, says="")
    return NodeState(node, alive=True, says=ROLES[role].ask(node.url) or "")


def _require_time(deadline: float, starting: Mapping[Role, Starting], seconds: float) -> None:
    if time.monotonic() > deadline:
        begun = next(iter(starting.values()))
        raise Unavailable(
            f"the {begun.title} is not ready after {seconds:.0f} s (log: {begun.node.log})"
        )
