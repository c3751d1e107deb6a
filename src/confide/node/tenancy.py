"""Opens what a model node was asked to have of docs/protocols/tenancy.md: keys, salts, telemetry.

Everything is off unless it is configured, and what is configured and cannot be had keeps the node
from starting.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from confide.adapters.metrics_http import metrics_place, serving_metrics
from confide.adapters.tenant_sql import open_tenants
from confide.adapters.traces_http import exporting_spans, traces_url
from confide.errors import ConfigurationError, FormatError, Unavailable
from confide.inference.salting import TEXT_ENDPOINTS, salted_endpoints
from confide.node.metering import Meter, in_thread
from confide.node.observed import Observed
from confide.node.tenants import Anyone, KeyedTenants, SaltSource
from confide.telemetry.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from starlette.types import ASGIApp

    from confide.adapters.tenant_sql import SqlTenants
    from confide.inference.plan import Endpoint, EngineRoutes
    from confide.node.metering import Work
    from confide.node.pacing import Pacer
    from confide.node.tenants import Tenants
    from confide.ports import Clock, Entropy

__all__ = ["Cache", "Tenancy", "TenancySettings", "open_metrics", "open_observed", "open_tenancy"]

Cache = Literal["salted", "shared"]
_PATIENCE_SECONDS = 2.0
_OTHERWISE = (
    "With --tenant-cache shared a tenant can find out by timing what another has sent; say so, or "
    "use an engine that knows cache_salt (vLLM, SGLang)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenancySettings:
    """
    Who may call, and what is told of it.

    `keys` is the database of keys ("" for none, then anyone may call) and `password` that of
    PostgreSQL; `cache` says whether the engine's prefix cache is kept apart, which it is for keys
    unless that is said otherwise. `metrics` is HOST:PORT, `traces` the URL of a collector; with
    `by_key` both name the key of a call. Raises `ConfigurationError`.
    """

    keys: str = ""
    password: str | None = field(default=None, repr=False)
    cache: Cache | None = None
    metrics: str = ""
    traces: str = ""
    by_key: bool = False

    def __post_init__(self) -> None:
        """Refuse places that are none, before anything is started."""
        if self.metrics:
            metrics_place(self.metrics)
        if self.traces:
            traces_url(self.traces)

    def metering(self) -> Metrics | None:
        """Return numbers to begin with, where some are asked for."""
        return Metrics(by_key=self.by_key) if self.metrics else None


class _Engines(Protocol):
    async def descriptions(self) -> tuple[bytes, ...]: ...


@dataclass(frozen=True, slots=True)
class Tenancy:
    """What is known of callers before anybody serves them."""

    settings: TenancySettings
    salts: SaltSource | None

    store: SqlTenants | None

    def admit(
        self,
        stack: AsyncExitStack,
        *,
        clock: Clock,
        entropy: Entropy,
        work: Work | None = None,
        pace: Pacer | None = None,
    ) -> Tenants:
        """
        Return who may call, until `stack` ends.

        `work` is how the store is asked and `pace` holds the rates of keys, where another process
        has them.
        """
        if self.store is None:
            return Anyone(self.salts)
        meter = Meter(work or in_thread(self.store), clock)
        stack.push_async_callback(meter.close)
        return KeyedTenants(meter, clock=clock, entropy=entropy, salts=self.salts, pace=pace)


async def open_tenancy(
    settings: TenancySettings,
    stack: AsyncExitStack,
    engines: _Engines,
    routes: EngineRoutes,
    *,
    entropy: Entropy,
) -> Tenancy:
    """
    Open the store of keys until `stack` ends, and find out how the engines keep callers apart.

    Raises `ConfigurationError` for a store that is none, and for engines that
    cannot do what is wanted of them; `Unavailable`.
    """
    salted = settings.cache == "salted" or (settings.cache is None and bool(settings.keys))
    salts = None
    if salted:
        salts = SaltSource(entropy.token(32), await _salted(engines, routes))
    store = None
    if settings.keys:
        store = await asyncio.to_thread(
            open_tenants,
            settings.keys,
            password=settings.password,
            patience_seconds=_PATIENCE_SECONDS,
            counting=True,
        )
        stack.callback(store.close)
    return Tenancy(settings, salts, store)


async def open_metrics(
    settings: TenancySettings, stack: AsyncExitStack, text: Callable[[], str]
) -> None:
    """
    Have `text()` scraped until `stack` ends, where that is asked for.

    Raises `Unavailable` for a port that is taken.
    """
    if settings.metrics:
        host, port = metrics_place(settings.metrics)
        serving = serving_metrics(host, port, text, content_type=CONTENT_TYPE)
        await stack.enter_async_context(serving)


async def open_observed(
    settings: TenancySettings,
    stack: AsyncExitStack,
    app: ASGIApp,
    *,
    clock: Clock,
    entropy: Entropy,
    metrics: Metrics | None,
) -> ASGIApp:
    """Return `app` with whoever watches it; `app` itself where nobody does."""
    if metrics is None and not settings.traces:
        return app
    spans = None
    if settings.traces:
        spans = await stack.enter_async_context(exporting_spans(traces_url(settings.traces)))
    return Observed(
        app, clock=clock, entropy=entropy, metrics=metrics, spans=spans, by_key=settings.by_key
    )


async def _salted(engines: _Engines, routes: EngineRoutes) -> frozenset[Endpoint]:
    try:
        found = [salted_endpoints(text) for text in await engines.descriptions()]
    except (FormatError, Unavailable) as error:
        raise ConfigurationError(
            "the engine does not describe its routes (GET /openapi.json), so nobody knows whether "
            f"it takes a cache salt. {_OTHERWISE}"
        ) from error
    common = TEXT_ENDPOINTS.intersection(*found)
    if not any(routes.has(endpoint) for endpoint in common):
        raise ConfigurationError(f"the engine takes no cache salt. {_OTHERWISE}")
    return common
