"""The model node as a process: measures the model, gates the GPUs, serves. The composition root.

Order (docs/protocols/eventlog.md §3): node → weights hashed and extended → GPUs appraised and
extended → engine started on a copy of exactly those weights → ready.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.upstream_http import HttpUpstream, UpstreamConfig
from confide.adapters.upstream_serve import EmbeddedEngine, EngineSettings
from confide.adapters.weights_dir import measure_weights
from confide.errors import ConfigurationError
from confide.inference.models import ServedModel
from confide.inference.routes import RequestLimits
from confide.node.app import NodeApp
from confide.node.attester import Attester
from confide.node.identity import LIFETIME, NodeIdentity
from confide.node.keys import make_node_keys
from confide.node.machine import simulated_machine
from confide.node.measure import measure_gpus, measure_model, measure_node, measure_ready
from confide.node.model import ModelNode, ModelNodePorts
from confide.node.serve import serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from confide.inference.routes import EngineRoutes
    from confide.node.machine import Machine
    from confide.ports import Clock, Entropy

__all__ = ["ModelNodeSettings", "serve_model_node"]


@dataclass(frozen=True, slots=True)
class ModelNodeSettings:
    """
    How a model node is started. `seed` is that of the SIMULATED platform.

    Either `weights` names a directory that the embedded engine serves, or `upstream_url` an
    OpenAI-compatible engine whose weights nobody measures (claim `model-weights` not proven).
    """

    host: str
    port: int
    model: str
    seed: bytes
    state: Path
    weights: Path | None = None
    upstream_url: str = ""
    upstream_model: str = ""
    fault: str = ""
    idle_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class _Engine:
    upstream: HttpUpstream
    served: ServedModel
    weights: bytes | None
    unchanged: Callable[[], Awaitable[None]] | None


async def serve_model_node(settings: ModelNodeSettings) -> None:
    """
    Boot and serve until told to stop.

    Raises `ConfigurationError`, `Rejected` for a GPU that is not accepted or weights that changed,
    `Unavailable` for an engine that does not come up.
    """
    if (settings.weights is None) == (not settings.upstream_url):
        raise ConfigurationError("a model node serves either --weights or --upstream")
    clock, entropy = SystemClock(), SystemEntropy()
    machine = simulated_machine("model", seed=settings.seed, clock=clock, fault=settings.fault)
    keys = make_node_keys(
        role="model",
        software=machine.software,
        now=clock.now(),
        lifetime=LIFETIME,
        entropy=entropy,
    )
    async with AsyncExitStack() as stack:
        await measure_node(machine.guest, role="model", software=machine.software)
        engine = await _open_engine(settings, machine, stack, clock=clock, entropy=entropy)
        await measure_ready(machine.guest)
        attester = Attester(
            keys.keyset, machine.guest, machine.collateral, machine.devices, engine.unchanged
        )
        identity = NodeIdentity(
            keys, attester, clock=clock, entropy=entropy, simulated=machine.roots.simulated
        )
        ports = ModelNodePorts(
            identity=identity,
            upstream=engine.upstream,
            routes=await _routes(engine),
            served=engine.served,
            weights=engine.weights,
            clock=clock,
            entropy=entropy,
            limits=RequestLimits(),
        )
        await serve(
            NodeApp(identity, ModelNode(ports)),
            host=settings.host,
            port=settings.port,
            idle_seconds=settings.idle_seconds,
        )


async def _routes(engine: _Engine) -> EngineRoutes:
    routes = await engine.upstream.probe()
    # `transformers serve` answers /v1/responses, but calls a truncated answer completed and
    # ignores `text` and `tool_choice`: the mapping over chat is the more truthful one.
    return routes.mapping_responses() if engine.unchanged is not None else routes


async def _gate_gpus(machine: Machine, clock: Clock, entropy: Entropy) -> None:
    if machine.devices is None or machine.gpu_policy is None:
        raise ConfigurationError("a model node needs a confidential GPU")
    await measure_gpus(
        machine.guest,
        machine.devices,
        policy=machine.gpu_policy,
        roots=machine.roots.nvidia,
        nonce=entropy.token(32),
        now=clock.now(),
    )


async def _open_engine(
    settings: ModelNodeSettings,
    machine: Machine,
    stack: AsyncExitStack,
    *,
    clock: Clock,
    entropy: Entropy,
) -> _Engine:
    created = int(clock.now().timestamp())
    if settings.weights is None:
        await measure_model(machine.guest, name=settings.model, weights=None)
        await _gate_gpus(machine, clock, entropy)
        upstream = await stack.enter_async_context(
            HttpUpstream(UpstreamConfig(base_url=settings.upstream_url))
        )
        served = ServedModel(
            name=settings.model,
            weights_digest="",
            manifest_digest="",
            upstream_name=settings.upstream_model or settings.model,
            created=created,
        )
        return _Engine(upstream, served, None, None)
    manifest = measure_weights(settings.weights)
    weights = manifest.digest
    await measure_model(machine.guest, name=settings.model, weights=weights)
    await _gate_gpus(machine, clock, entropy)
    embedded = await EmbeddedEngine.start(
        EngineSettings(settings.weights, manifest, settings.model, settings.state / "engine")
    )
    stack.push_async_callback(embedded.stop)
    await embedded.verify_weights()
    upstream = await stack.enter_async_context(
        HttpUpstream(UpstreamConfig(base_url=embedded.base_url))
    )
    served = ServedModel(
        name=settings.model,
        weights_digest=manifest.root_digest,
        manifest_digest=weights.hex(),
        upstream_name=settings.model,
        created=created,
        adds_revision=True,
    )
    return _Engine(upstream, served, weights, embedded.verify_weights)
