"""The model node as a process: measures the model, gates the GPUs, serves. The composition root.

Order (docs/protocols/eventlog.md §3): node → weights hashed and extended → GPUs appraised and
extended → engine started on a copy of exactly those weights, or asked → ready.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.errors import ConfideError, ConfigurationError
from confide.inference.passing import PassRoutes, parse_pass_route
from confide.inference.plan import RequestLimits
from confide.node.app import NodeApp
from confide.node.attester import Attester
from confide.node.engines import EngineBeside, open_beside, open_embedded
from confide.node.gpu_gate import gate_machine
from confide.node.hardware import open_machine
from confide.node.identity import LIFETIME, NodeIdentity
from confide.node.keys import make_node_keys
from confide.node.measure import VersionOneGuest, measure_faces, measure_node, measure_ready
from confide.node.model import ModelNode, ModelNodePorts
from confide.node.open_faces import FaceParts, behind_channel, open_faces
from confide.node.serve import Service, serve
from confide.node.serve_workers import MAX_WORKERS, WorkerSite
from confide.node.tenancy import TenancySettings, open_metrics, open_observed, open_tenancy
from confide.node.tls_port import make_tls_port
from confide.node.trained import parse_trained
from confide.wire.faces import FaceName

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from confide.node.engines import Engines
    from confide.node.hardware import MachineSettings
    from confide.node.machine import Machine
    from confide.node.tenancy import Tenancy
    from confide.node.tls_port import TlsPort
    from confide.ports import Clock, Entropy

__all__ = ["ModelNodeSettings", "serve_model_node"]

# From: docs/protocols/inference.md §2.8, §2.9, §9.6; docs/protocols/weights.md §7.3.
_CONNECTIONS = 4096
_RECEIVE_SECONDS = 120.0
_DRAIN_SECONDS = 30.0
_WATCH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ModelNodeSettings:
    """
    How a model node is started, and on which machine.

    `weights` alone names a directory that the embedded engine serves. `upstream_urls` are
    OpenAI-compatible engines that others started, all of one model; the directory `weights` is
    then what they should read (weights.md §7), and without it nobody measures what they serve.
    `pass_routes` are further routes that pass (inference.md §8): `"POST /v1/example"`. `faces` are
    other services' protocols to speak as well, each once (faces.md): none unless named;
    `face_tls_port` is where TLS of this process' own ends, for them. `tenancy`
    says who may call, and what is told of calls. `record` is the training record file of the
    directory `weights`, given out to callers (weights.md §9). `workers`
    are processes that serve side by side (workers.md), `max_calls` how many calls may be in
    progress at each of `upstream_urls`, `engine_seconds` how long the beginning of an answer of
    theirs is waited for.
    """

    host: str
    port: int
    model: str
    machine: MachineSettings
    state: Path
    weights: Path | None = None
    record: bytes | None = None
    upstream_urls: tuple[str, ...] = ()
    upstream_model: str = ""
    upstream_hosts: tuple[str, ...] = ()
    pass_routes: tuple[str, ...] = ()
    faces: tuple[FaceName, ...] = ()
    face_tls_port: int | None = None
    idle_seconds: int | None = None
    tenancy: TenancySettings = field(default_factory=TenancySettings)
    workers: int = 1
    max_calls: int = 64
    engine_seconds: float = 600.0


async def serve_model_node(settings: ModelNodeSettings, *, clock: Clock | None = None) -> None:
    """
    Boot and serve until told to stop. `clock` is this machine's unless another is given.

    Raises `ConfigurationError`, `Rejected` for a GPU that is not accepted or weights that changed,
    `Unavailable` for an engine that does not come up.
    """
    if settings.weights is None and not settings.upstream_urls:
        raise ConfigurationError("a model node serves --weights or --upstream")
    if not 1 <= settings.workers <= MAX_WORKERS:
        raise ConfigurationError(f"a model node has 1 to {MAX_WORKERS} workers")
    _require_one_process(settings)
    trained = None
    if settings.record is not None:
        trained = parse_trained(settings.record, measured=settings.weights is not None)
    passing = PassRoutes(frozenset(parse_pass_route(text) for text in settings.pass_routes))
    clock, entropy = clock or SystemClock(), SystemEntropy()
    tls = _tls(settings, clock, entropy)
    async with AsyncExitStack() as stack:
        machine = await stack.enter_async_context(
            open_machine("model", settings.machine, clock=clock, entropy=entropy)
        )
        if FaceName.NEAR in settings.faces:
            machine = replace(machine, guest=VersionOneGuest(machine.guest))
        keys = make_node_keys(
            role="model",
            software=machine.software,
            now=clock.now(),
            lifetime=LIFETIME,
            entropy=entropy,
            faces=settings.faces,
        )
        await measure_node(machine.guest, role="model", software=machine.software)
        engines = await _open(settings, machine, stack, clock=clock, entropy=entropy)
        if trained is not None:
            engines = replace(engines, served=trained.served_as(engines.served))
        tenancy = await open_tenancy(
            settings.tenancy, stack, engines.upstream, engines.routes, entropy=entropy
        )
        await measure_faces(machine.guest, settings.faces)
        await measure_ready(machine.guest)
        attester = Attester(
            keys.keyset, machine.guest, machine.collateral, machine.devices, engines.unchanged
        )
        identity = NodeIdentity(
            keys, attester, clock=clock, entropy=entropy, simulated=machine.roots.simulated
        )
        ports = ModelNodePorts(
            identity=identity,
            upstream=engines.upstream,
            routes=engines.routes,
            served=engines.served,
            weights=engines.weights,
            clock=clock,
            entropy=entropy,
            limits=RequestLimits(),
            passing=passing,
            quantisation=engines.quantisation,
        )
        service = Service(drain_seconds=_DRAIN_SECONDS, receive_seconds=_RECEIVE_SECONDS)
        if settings.workers == 1:
            service = replace(service, tls=tls)
            tenants = tenancy.admit(stack, clock=clock, entropy=entropy)
            ports = replace(ports, tenants=tenants)
            await _serve_alone(settings, ports, engines, service, stack, machine=machine)
        else:
            await _serve_workers(settings, ports, engines, service, stack, tenancy=tenancy)


def _require_one_process(settings: ModelNodeSettings) -> None:
    """A face remembers calls, for those who ask of them later, in one process (workers.md 1.7)."""
    if settings.workers > 1 and settings.faces:
        raise ConfigurationError(
            "--workers does not go with --face: run several nodes, or one worker"
        )


async def _serve_alone(
    settings: ModelNodeSettings,
    ports: ModelNodePorts,
    engines: Engines,
    service: Service,
    stack: AsyncExitStack,
    *,
    machine: Machine,
) -> None:
    node = ModelNode(ports)
    metrics = settings.tenancy.metering()
    if metrics is not None:
        await open_metrics(settings.tenancy, stack, metrics.text)
    observed = await open_observed(
        settings.tenancy, stack, node, clock=ports.clock, entropy=ports.entropy, metrics=metrics
    )
    parts = FaceParts(
        identity=ports.identity,
        machine=machine,
        inner=observed,
        on_receipt=node.on_receipt,
        model=settings.model,
        engine_inside=not settings.upstream_urls,
        fingerprint=None if service.tls is None else service.tls.fingerprint,
    )
    faces = open_faces(settings.faces, parts)
    if engines.unchanged is not None and settings.upstream_urls:

        async def drain() -> None:
            node.drain()

        _watch_weights(stack, engines.unchanged, drain)
    await serve(
        NodeApp(ports.identity, behind_channel(faces, observed), faces),
        host=settings.host,
        port=settings.port,
        idle_seconds=settings.idle_seconds,
        connections=_connections(settings),
        service=replace(service, drain=node.drain),
    )


async def _serve_workers(
    settings: ModelNodeSettings,
    ports: ModelNodePorts,
    engines: Engines,
    service: Service,
    stack: AsyncExitStack,
    *,
    tenancy: Tenancy,
) -> None:
    # This process asks no engine any more, and its workers inherit no connection to one.
    await engines.upstream.close()
    site = WorkerSite(
        ports,
        engines.upstream,
        tenancy,
        count=settings.workers,
        host=settings.host,
        port=settings.port,
        connections=_connections(settings),
        service=service,
    )
    with site as parent:
        await open_metrics(settings.tenancy, stack, parent.metrics.text)
        if engines.unchanged is not None and settings.upstream_urls:
            unchanged = engines.unchanged

            async def look() -> None:
                async with parent.threads():
                    await unchanged()

            _watch_weights(stack, look, parent.drain)
        await parent.serve(idle_seconds=settings.idle_seconds)


def _connections(settings: ModelNodeSettings) -> int:
    # Twice as many as can be in progress: whoever waits, and who asks for evidence meanwhile.
    return max(_CONNECTIONS, 2 * settings.max_calls * max(1, len(settings.upstream_urls)))


def _watch_weights(
    stack: AsyncExitStack,
    unchanged: Callable[[], Awaitable[None]],
    drain: Callable[[], Awaitable[None]],
) -> None:
    watching = asyncio.ensure_future(_watch(unchanged, drain))
    _stop_watching(stack, watching)


def _tls(settings: ModelNodeSettings, clock: Clock, entropy: Entropy) -> TlsPort | None:
    if settings.face_tls_port is None:
        return None
    if not settings.faces:
        raise ConfigurationError("--face-tls-port is for faces, and none is on")
    return make_tls_port(settings.face_tls_port, seed=entropy.token(32), now=clock.now())


def _stop_watching(stack: AsyncExitStack, watching: asyncio.Task[None]) -> None:
    async def stop() -> None:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    stack.push_async_callback(stop)


async def _watch(
    unchanged: Callable[[], Awaitable[None]], drain: Callable[[], Awaitable[None]]
) -> None:
    """Begin no more calls once the weights were touched: nobody knows what would answer."""
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        try:
            await unchanged()
        except ConfideError:
            await drain()
            return


async def _open(
    settings: ModelNodeSettings,
    machine: Machine,
    stack: AsyncExitStack,
    *,
    clock: Clock,
    entropy: Entropy,
) -> Engines:
    created = int(clock.now().timestamp())

    async def gate() -> None:
        await gate_machine(machine, stack, clock=clock, entropy=entropy)

    if settings.upstream_urls:
        beside = EngineBeside(
            urls=settings.upstream_urls,
            model=settings.upstream_model or settings.model,
            weights=settings.weights,
            allowed_hosts=settings.upstream_hosts,
            calls=settings.max_calls,
            seconds=settings.engine_seconds,
        )
        return await open_beside(
            machine.guest, stack, gate, name=settings.model, beside=beside, created=created
        )
    if settings.weights is None:
        raise ConfigurationError("no weights")
    return await open_embedded(
        machine.guest,
        stack,
        gate,
        name=settings.model,
        weights=settings.weights,
        state=settings.state,
        created=created,
    )
