"""The agent node as a process: builds every port, measures, serves. The composition root."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.adapters.clock import SystemClock
from confide.adapters.containers import open_sandbox
from confide.adapters.endorsement_http import SystemSleeper
from confide.adapters.engine_images import find_stored
from confide.adapters.entropy import SystemEntropy
from confide.adapters.http_client import node_client
from confide.adapters.kbs_http import KbsHttp, kbs_client
from confide.appraisal.known import Known
from confide.node.agent import AgentNode, AgentNodeConfig
from confide.node.app import NodeApp
from confide.node.attester import Attester
from confide.node.broker_link import Asker, BrokerLink, BrokerPlace
from confide.node.broker_run import BrokerRun
from confide.node.hardware import open_machine
from confide.node.identity import LIFETIME, NodeIdentity
from confide.node.keys import make_node_keys
from confide.node.measure import measure_node, measure_ready
from confide.node.model_link import ModelNodeAddress, open_model_link
from confide.node.run import RunPorts
from confide.node.serve import serve

if TYPE_CHECKING:
    from pathlib import Path

    import httpx2

    from confide.agents.sandbox import AgentImage
    from confide.expectation import Expectation
    from confide.node.hardware import MachineSettings
    from confide.node.machine import Machine
    from confide.node.model_link import ModelLink
    from confide.ports import Clock, Entropy, SecretSession

__all__ = ["AgentNodeSettings", "serve_agent_node"]


@dataclass(frozen=True, slots=True)
class AgentNodeSettings:
    """
    How an agent node is started, and on which machine.

    Without a `broker_url` it refuses Expectations that ask for secrets or state.
    """

    host: str
    port: int
    model_url: str
    broker_url: str
    images: Path
    machine: MachineSettings
    idle_seconds: int | None = None
    max_runs: int = 4
    model_key: str = field(default="", repr=False)


async def serve_agent_node(settings: AgentNodeSettings) -> None:
    """
    Boot and serve until told to stop.

    Raises `ConfigurationError` where agents cannot run on this machine, `Unavailable` where an
    edge is missing.
    """
    clock, entropy = SystemClock(), SystemEntropy()
    async with open_machine("agent", settings.machine, clock=clock, entropy=entropy) as machine:
        await _serve_on(machine, settings, clock=clock, entropy=entropy)


async def _serve_on(
    machine: Machine, settings: AgentNodeSettings, *, clock: Clock, entropy: Entropy
) -> None:
    keys = make_node_keys(
        role="agent",
        software=machine.software,
        now=clock.now(),
        lifetime=LIFETIME,
        entropy=entropy,
    )
    attester = Attester(keys.keyset, machine.guest, machine.collateral, machine.devices)
    await measure_node(machine.guest, role="agent", software=machine.software)
    await measure_ready(machine.guest)
    sandbox = await open_sandbox()
    address = ModelNodeAddress(settings.model_url, machine.roots, settings.model_key)
    try:
        async with node_client() as http, kbs_client() as broker:
            known = Known()

            async def open_model(expectation: Expectation) -> ModelLink:
                nonlocal known
                link = await open_model_link(
                    address,
                    expectation=expectation,
                    http=http,
                    clock=clock,
                    entropy=entropy,
                    known=known,
                )
                known = link.node.known
                return link

            async def open_secrets(expectation: Expectation, run: bytes) -> SecretSession:
                return _at_broker(
                    settings.broker_url,
                    Asker("agent", expectation, run, identity.current.attester),
                    client=broker,
                    entropy=entropy,
                )

            async def find_image(digest: str) -> AgentImage | None:
                return await find_stored(sandbox.engine, settings.images, digest)

            identity = NodeIdentity(
                keys, attester, clock=clock, entropy=entropy, simulated=machine.roots.simulated
            )
            ports = RunPorts(
                identity=identity,
                quotes=machine.guest,
                sandbox=sandbox,
                open_model=open_model,
                find_image=find_image,
                clock=clock,
                entropy=entropy,
                open_secrets=open_secrets if settings.broker_url else None,
            )
            node = AgentNode(AgentNodeConfig(machine.roots, settings.max_runs), ports)
            try:
                await serve(
                    NodeApp(identity, node.app),
                    host=settings.host,
                    port=settings.port,
                    idle_seconds=settings.idle_seconds,
                )
            finally:
                await node.close()
    finally:
        await sandbox.close()


def _at_broker(
    url: str, asker: Asker, *, client: httpx2.AsyncClient, entropy: Entropy
) -> SecretSession:
    wanted, sleeper = asker.expectation.broker, SystemSleeper()
    place = BrokerPlace(bytes.fromhex(wanted.key), wanted.repository)
    link = BrokerLink(KbsHttp(client, url), place, asker, entropy=entropy, sleeper=sleeper)
    resource = wanted.state_resource(asker.expectation.name)
    return BrokerRun(link, place, client=client, url=url, resource=resource, sleeper=sleeper)
