"""The local nodes as verbs use them: which model they serve, what they must measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.software import node_software, running_kernel
from confide.adapters.upstream_serve import BUNDLED_NAME
from confide.client.expect import BrokerReference
from confide.client.local import bundled_weights, local_reference
from confide.engines.local import LocalEngine
from confide.engines.local_broker import LOCAL_REPOSITORY
from confide.engines.roles import ModelChoice
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from confide.agents.manifest import AgentManifest
    from confide.cli.places import Places
    from confide.client.expect import LocalReference

__all__ = [
    "IDLE_SECONDS",
    "broker_for",
    "choose_model",
    "local_engine",
    "reference_for",
    "training_base",
]

# Nodes that a verb started by itself stop after this; `confide up` decides otherwise.
IDLE_SECONDS = 900
# In a smaller model than this, threads wait for each other longer than they compute.
_SMALL_BYTES = 64 * 1024 * 1024


def local_engine(places: Places) -> LocalEngine:
    """Return the engine of this user's local nodes."""
    return LocalEngine(places.paths, places.environment, clock=places.clock, entropy=places.entropy)


def broker_for(engine: LocalEngine, manifest: AgentManifest) -> BrokerReference | None:
    """Return the local broker for an agent that asks for secrets or state, None for another."""
    if not manifest.secrets and not manifest.state:
        return None
    return BrokerReference(engine.broker().key, LOCAL_REPOSITORY)


def choose_model(
    engine: LocalEngine, *, wanted: str, upstream: str, model: str, weights: Path | None = None
) -> ModelChoice:
    """
    Return what the local model node serves.

    In this order: the directory of `weights` named now; the `upstream` named now; what a running
    node already serves under the name asked for; the bundled model. Raises `ConfigurationError`
    that asks for one.
    """
    name = model or wanted
    if weights is not None:
        if upstream or not model:
            raise ConfigurationError("--weights goes with --model NAME, and without --upstream")
        return ModelChoice(name, _directory(weights, "--weights"))
    if upstream:
        urls = (url.rstrip("/").removesuffix("/v1") for url in upstream.split(","))
        return ModelChoice(name, None, ",".join(urls), name)
    for state in engine.status():
        node = state.node
        if state.alive and node.role == "model" and node.model == name:
            served = "://" in node.source
            weights = None if served else Path(node.source)
            return ModelChoice(name, weights, node.source if served else "", name if served else "")
    weights = bundled_weights()
    if name == BUNDLED_NAME and weights is not None:
        return ModelChoice(name, weights)
    if name == BUNDLED_NAME:
        raise ConfigurationError(
            "this installation has no bundled model: name an OpenAI-compatible engine with "
            "--upstream URL --model NAME"
        )
    raise ConfigurationError(
        f"no local node serves the model {name}: name its directory with --weights DIR, the engine "
        f"that serves it with --upstream URL, or use the bundled one with --model {BUNDLED_NAME}"
    )


def training_base(name: str, folder: Path | None) -> ModelChoice:
    """
    Return the base that a local training node trains: the directory `folder`, or the bundled model.

    Raises `ConfigurationError` where neither is one.
    """
    weights = bundled_weights() if folder is None else _directory(folder, "--base")
    if weights is None or (folder is None and name != BUNDLED_NAME):
        raise ConfigurationError(
            f"a local training node needs the directory of the base {name}: name it with --base "
            "DIR, or a training node that has it with --node URL"
        )
    size = sum(path.stat().st_size for path in weights.iterdir() if path.is_file())
    return ModelChoice(name, weights, threads=1 if size < _SMALL_BYTES else None)


def _directory(path: Path, option: str) -> Path:
    if not path.is_dir():
        raise ConfigurationError(f"{option} {path} is not a directory")
    return path.resolve()


def reference_for(places: Places, engine: LocalEngine, choice: ModelChoice) -> LocalReference:
    """Return what honest local nodes that serve `choice` measure."""
    return local_reference(
        seed=engine.seed(),
        roots=engine.roots(),
        software=node_software(),
        kernel=running_kernel(),
        model=choice.name,
        weights=choice.weights,
        now=places.clock.now(),
    )
