"""What answers behind a model node: the embedded engine, or engines that others started.

docs/protocols/weights.md §3, §7 and §10, docs/protocols/inference.md §9. Either function measures
first and refuses weights that lead elsewhere, gates the GPUs, and only then lets an engine see
weights or the node see an engine.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.adapters.upstream_http import UpstreamConfig
from confide.adapters.upstream_pool import EnginePool, PoolLimits
from confide.adapters.upstream_serve import EmbeddedEngine, EngineSettings
from confide.adapters.verity import Kernel, read_verity
from confide.adapters.weights_facts import WatchedWeights, measure_model_folder
from confide.inference.models import ServedModel
from confide.node.measure import measure_model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from confide.inference.plan import EngineRoutes
    from confide.ports import QuoteSource
    from confide.wire.quantisation import Quantisation

    # Appraises the GPUs and extends them; raises where one is not accepted.
    Gate = Callable[[], Awaitable[None]]

_MIN_CONNECTIONS = 256

__all__ = ["EngineBeside", "Engines", "open_beside", "open_embedded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """
    What serves the model, and what is known of its weights.

    `unchanged` is asked before every evidence: it raises when the weights are not what was
    measured; None where nothing was.
    """

    upstream: EnginePool
    routes: EngineRoutes
    served: ServedModel
    weights: bytes | None
    quantisation: Quantisation | None
    unchanged: Callable[[], Awaitable[None]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBeside:
    """
    Engines that others started: their `urls`, their name of the model, what they should read.

    `calls` is how many may be in progress at each (inference.md §9.4), `seconds` how long the
    beginning of an answer is waited for (§9.7).
    """

    urls: Sequence[str]
    model: str
    weights: Path | None
    allowed_hosts: tuple[str, ...] = ()
    calls: int = 64
    seconds: float = 600.0


async def open_embedded(
    guest: QuoteSource,
    stack: AsyncExitStack,
    gate: Gate,
    *,
    name: str,
    weights: Path,
    state: Path,
    created: int,
) -> Engines:
    """
    Measure `weights`, gate the GPUs, start the embedded engine on a copy of exactly those.

    Raises `ConfigurationError`, `Rejected`, `Unavailable`.
    """
    manifest, facts = await asyncio.to_thread(measure_model_folder, weights)
    await measure_model(guest, name=name, weights=manifest.digest, quantisation=facts)
    await gate()
    settings = EngineSettings(weights, manifest, name, state / "engine")
    embedded = await EmbeddedEngine.start(settings)
    stack.push_async_callback(embedded.stop)
    await embedded.verify_weights()
    pool = EnginePool([UpstreamConfig(base_url=embedded.base_url)], model=settings.engine_name)
    await stack.enter_async_context(pool)
    # `transformers serve` answers /v1/responses, but calls a truncated answer completed and
    # ignores `text` and `tool_choice`: the mapping over chat is the more truthful one.
    routes = (await pool.probe()).mapping_responses()
    served = ServedModel(
        name=name,
        weights_digest=manifest.root_digest,
        manifest_digest=manifest.digest.hex(),
        upstream_name=settings.engine_name,
        created=created,
        adds_revision=True,
    )
    return Engines(
        upstream=pool,
        routes=routes,
        served=served,
        weights=manifest.digest,
        quantisation=facts,
        unchanged=embedded.verify_weights,
    )


async def open_beside(
    guest: QuoteSource,
    stack: AsyncExitStack,
    gate: Gate,
    *,
    name: str,
    beside: EngineBeside,
    created: int,
) -> Engines:
    """
    Measure what the engines should read, where a directory is named; gate the GPUs; connect.

    Raises `ConfigurationError`, `Rejected`, `Unavailable`.
    """
    watched = None
    if beside.weights is None:
        await measure_model(guest, name=name, weights=None)
    else:
        watched = await asyncio.to_thread(WatchedWeights.measure, beside.weights)
        held = await asyncio.to_thread(_held, watched)
        await measure_model(
            guest,
            name=name,
            weights=watched.manifest.digest,
            loaded=False,
            quantisation=watched.quantisation,
            held=held,
        )
    await gate()
    configs = [
        UpstreamConfig(
            base_url=url,
            allowed_hosts=beside.allowed_hosts,
            # Beside the calls there are health checks.
            max_connections=max(_MIN_CONNECTIONS, beside.calls + 2),
            first_seconds=beside.seconds,
        )
        for url in beside.urls
    ]
    limits = PoolLimits(max_active=beside.calls)
    pool = await stack.enter_async_context(EnginePool(configs, model=beside.model, limits=limits))
    served = ServedModel(
        name=name,
        weights_digest="" if watched is None else watched.manifest.root_digest,
        manifest_digest="" if watched is None else watched.manifest.digest.hex(),
        upstream_name=beside.model,
        created=created,
    )
    return Engines(
        upstream=pool,
        routes=await pool.probe(),
        served=served,
        weights=None if watched is None else watched.manifest.digest,
        quantisation=None if watched is None else watched.quantisation,
        unchanged=None if watched is None else watched.unchanged,
    )


def _held(watched: WatchedWeights) -> tuple[str, bytes] | None:
    verity = read_verity(watched.path, watched.manifest, Kernel())
    if verity is None:
        return None
    raw = [bytes.fromhex(digest) for digest in verity.digests]
    digest = raw[0] if verity.kind == "dm-verity" else hashlib.sha256(b"".join(raw)).digest()
    return verity.kind, digest
