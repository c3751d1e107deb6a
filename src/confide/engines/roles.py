"""The processes of the local stack: what each is started with, what it needs, how it is asked.

A new role is one more row of `ROLES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from confide.adapters.broker_http import ask_broker
from confide.adapters.http_client import ask_health
from confide.adapters.log_http import ask_log, ask_witness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from confide.engines.local_broker import LocalBroker
    from confide.engines.local_log import LocalLog

__all__ = [
    "BROKER_ROLES",
    "LOG_ROLES",
    "ROLES",
    "RUN_ROLES",
    "Launch",
    "ModelChoice",
    "Role",
    "RoleSpec",
]

Role = Literal["witness", "log", "broker", "model", "agent", "train"]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """
    What the model node serves: measured `weights`, or an `upstream_url` that nobody measures.

    Of a training node the base, and the `threads` that it computes on; None: one a core.
    """

    name: str
    weights: Path | None
    upstream_url: str = ""
    upstream_model: str = ""
    threads: int | None = None

    @property
    def source(self) -> str:
        """Where its answers come from."""
        return str(self.weights or self.upstream_url)


@dataclass(frozen=True, slots=True)
class Launch:
    """What the command of a role is made from; `urls` are those of the roles that it needs."""

    urls: Mapping[Role, str]
    log: LocalLog
    broker: LocalBroker | None
    choice: ModelChoice | None
    fault: str


def _witness(launch: Launch) -> list[str]:
    log = launch.log
    words = ["log", "witness", str(log.witness_folder), "--key", str(log.witness_key_file)]
    return [*words, "--log", log.log_key.encode()]


def _log(launch: Launch) -> list[str]:
    log = launch.log
    policy = log.serving_policy(launch.urls["witness"])
    words = ["log", "serve", str(log.log_folder), "--key", str(log.log_key_file)]
    return [*words, "--policy", str(policy)]


def _broker(launch: Launch) -> list[str]:
    broker = launch.broker
    if broker is None:
        raise ValueError("a broker has a store")
    paths = broker.paths
    words = ["broker", "serve", "--store", str(broker.store), "--master", str(broker.master)]
    words += ["--owners", str(broker.owners), "--simulated-roots", str(paths.simulated_roots)]
    return [*words, "--log", launch.urls["log"], "--log-policy", str(paths.log_policy)]


def _faulty(launch: Launch) -> list[str]:
    return ["--simulate-fault", launch.fault] if launch.fault else []


def _model(launch: Launch) -> list[str]:
    choice = launch.choice
    if choice is None:
        raise ValueError("a model node serves a model")
    command = ["node", "model", *_faulty(launch), "--model", choice.name]
    if choice.weights is not None:
        return [*command, "--weights", str(choice.weights)]
    command += ["--upstream", choice.upstream_url]
    return [*command, "--upstream-model", choice.upstream_model or choice.name]


def _train(launch: Launch) -> list[str]:
    choice = launch.choice
    if choice is None or choice.weights is None:
        raise ValueError("a training node has a base")
    command = ["node", "train", "--model", choice.name, "--weights", str(choice.weights)]
    return command if choice.threads is None else [*command, "--threads", str(choice.threads)]


def _agent(launch: Launch) -> list[str]:
    urls = ["--model-url", launch.urls["model"], "--broker-url", launch.urls["broker"]]
    return ["node", "agent", *_faulty(launch), *urls]


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """
    One role.

    `needs` answer before it starts, and are at one address as long as it lives: it is started
    anew with them. `words` follow `confide`; `ask` returns what it says of itself, None where it
    does not answer.
    """

    title: str
    needs: tuple[Role, ...]
    words: Callable[[Launch], list[str]]
    ask: Callable[[str], str | None]


ROLES: Final[Mapping[Role, RoleSpec]] = {
    "witness": RoleSpec("witness", (), _witness, ask_witness),
    "log": RoleSpec("log", ("witness",), _log, ask_log),
    "broker": RoleSpec("key broker", ("log",), _broker, ask_broker),
    "model": RoleSpec("model node", (), _model, ask_health),
    "agent": RoleSpec("agent node", ("broker", "model"), _agent, ask_health),
    "train": RoleSpec("training node", (), _train, ask_health),
}
# What runs of agents need.
RUN_ROLES: Final[tuple[Role, ...]] = ("witness", "log", "broker", "model", "agent")
# What a receipt needs to become final.
LOG_ROLES: Final[tuple[Role, ...]] = ("witness", "log")
# What an owner needs to say something to the local broker.
BROKER_ROLES: Final[tuple[Role, ...]] = (*LOG_ROLES, "broker")
