"""The key broker as a process. The composition root; configuration is in the settings.

Order: configuration (owners, log policy, roots), what the store says about owners, what an earlier
process left unlogged; then requests are answered. Clauses: docs/protocols/broker.md, release.md
1.2.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.clock import SystemClock
from confide.adapters.endorsement_http import SystemSleeper
from confide.adapters.entropy import SystemEntropy
from confide.adapters.final_log import HttpFinalityLog
from confide.adapters.log_http import HttpLog, log_client
from confide.errors import ConfigurationError
from confide.node.broker_app import broker_app
from confide.node.broker_audit import BrokerAudit
from confide.node.broker_owners import OwnerDesk
from confide.node.broker_service import BrokerConfig, BrokerPorts, BrokerService
from confide.node.broker_state import StateDesk
from confide.node.broker_state_app import state_routes
from confide.node.broker_state_gate import StateGate
from confide.node.serve import first_of, serve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from confide.broker.keys import BrokerKeys
    from confide.broker.owners import Owners
    from confide.node.broker_store import SealedStore
    from confide.trust.roots import Roots
    from confide.wire.endorsements import Endorsements
    from confide.wire.service import Evidence
    from confide.wire.tlog_policy import LogPolicy

__all__ = ["BrokerSettings", "serve_broker"]

# Guests keep their connection while a release becomes final.
_CONNECTIONS: Final = 2048


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """
    How a broker is started. The store is open; whoever opened it closes it.

    `roots` are the vendors', or those of one simulated platform where `allow_simulated` says that
    this broker is for nothing else. `endorse` gets what vendors say about evidence. `report` gets
    a line where something waits for the log, or messages are refused that are none.
    """

    host: str
    port: int
    store: SealedStore
    keys: BrokerKeys
    owners: tuple[Owners, ...]
    roots: Roots
    allow_simulated: bool
    log_url: str
    log_policy: LogPolicy | None
    endorse: Callable[[Evidence], Awaitable[Endorsements]]
    report: Callable[[str], None]
    idle_seconds: int | None = None


def _require(settings: BrokerSettings) -> LogPolicy:
    """Return the log policy. Raises `ConfigurationError` for settings that leave something open."""
    if not settings.owners:
        raise ConfigurationError(
            "a broker does not start without owners: name those of each repository in its file"
        )
    if settings.log_policy is None or not settings.log_url:
        raise ConfigurationError(
            "a broker does not start without a log: what it releases has to be in one, and a "
            "policy says whose word about that counts"
        )
    if settings.allow_simulated and not settings.roots.simulated:
        raise ConfigurationError(
            "simulated evidence is allowed, and no simulated roots are given: name their file"
        )
    if settings.roots.simulated and not settings.allow_simulated:
        raise ConfigurationError("simulated roots are given, and simulated evidence is not allowed")
    return settings.log_policy


async def serve_broker(settings: BrokerSettings) -> None:
    """
    Serve a broker until told to stop.

    Raises `ConfigurationError`, `ReleaseRefused` where owners are configured that the store does
    not know, `FormatError` and `Unavailable` for a store that cannot be read.
    """
    policy = _require(settings)
    clock, entropy, sleeper = SystemClock(), SystemEntropy(), SystemSleeper()
    async with log_client() as client:
        log = HttpFinalityLog(
            HttpLog(client, settings.log_url), policy, clock=clock, entropy=entropy
        )
        desk = await asyncio.to_thread(
            OwnerDesk,
            settings.store,
            keys=settings.keys,
            configured=settings.owners,
            log=log,
            log_policy=policy,
            clock=clock,
            report=settings.report,
        )
        audit = BrokerAudit(settings.store, log, sleeper)
        await audit.open()
        service = BrokerService(
            BrokerConfig(settings.keys, settings.roots),
            BrokerPorts(desk, audit, settings.endorse, clock, entropy),
        )
        states = StateDesk(settings.store, entropy=entropy, clock=clock)
        await asyncio.to_thread(states.tidy)
        gate = StateGate(service, clock)
        serving = serve(
            broker_app(
                service, states=state_routes(states, gate.authorise), report=settings.report
            ),
            host=settings.host,
            port=settings.port,
            idle_seconds=settings.idle_seconds,
            connections=_CONNECTIONS,
        )
        await first_of(
            asyncio.ensure_future(serving),
            asyncio.ensure_future(audit.run()),
            asyncio.ensure_future(desk.keep_settling(sleeper)),
        )
