"""An agent node in the test process: real containers, the deployment's model node, a broker beside.

It is put together as `node/serve_agent.py` does it, with one port more: the broker is the one of
the tests, so that they see what it was asked and what it keeps.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx2
from deployment import WAIT_SECONDS

from confide.adapters.clock import SystemClock
from confide.adapters.containers import open_sandbox
from confide.adapters.entropy import SystemEntropy
from confide.adapters.oci_store import read_image
from confide.adapters.run_dir import owner_mark
from confide.client.agent import AgentClient
from confide.node.agent import AgentNode, AgentNodeConfig
from confide.node.app import NodeApp
from confide.node.attester import Attester
from confide.node.identity import LIFETIME, NodeIdentity
from confide.node.keys import make_node_keys
from confide.node.machine import simulated_machine
from confide.node.measure import measure_node, measure_ready
from confide.node.model_link import ModelNodeAddress, open_model_link
from confide.node.run import RunPorts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from deployment import Deployment
    from secret_broker import SecretBroker

    from confide.adapters.image_build import BuiltAgent
    from confide.agents.sandbox import AgentImage
    from confide.expectation import Expectation
    from confide.node.model_link import ModelLink


@dataclass(frozen=True, slots=True)
class SecretNode:
    """The node's client, and the node."""

    client: AgentClient
    node: AgentNode


def asking(
    deployment: Deployment,
    broker: SecretBroker,
    *secrets: str,
    state: bool = False,
    built: BuiltAgent | None = None,
    **limits: int,
) -> Expectation:
    """The Expectation of an agent that gets these of `broker`."""
    agent = replace_asks(built or deployment.built)
    fitting = deployment.installation.expectation(agent)
    return replace(
        fitting,
        broker=broker.spec(*secrets, state=state),
        limits=replace(fitting.limits, **limits),
    )


def replace_asks(built: BuiltAgent) -> BuiltAgent:
    """`built`, whose manifest asks for nothing: the test says what."""
    return replace(built, manifest=replace(built.manifest, secrets=(), state=False))


@contextlib.asynccontextmanager
async def secret_node(deployment: Deployment, broker: SecretBroker) -> AsyncIterator[SecretNode]:
    """A node of this process, closed at the end."""
    installation, clock, entropy = deployment.installation, SystemClock(), SystemEntropy()
    installation.marks.add(owner_mark(os.getpid()))
    machine = simulated_machine("agent", seed=installation.engine.seed(), clock=clock, fault="")
    keys = make_node_keys(
        role="agent", software=machine.software, now=clock.now(), lifetime=LIFETIME, entropy=entropy
    )
    attester = Attester(keys.keyset, machine.guest, machine.collateral, machine.devices)
    await measure_node(machine.guest, role="agent", software=machine.software)
    await measure_ready(machine.guest)
    identity = NodeIdentity(keys, attester, clock=clock, entropy=entropy, simulated=True)

    async def find_image(digest: str) -> AgentImage | None:
        return read_image(installation.paths.images / digest, digest).image

    async with httpx2.AsyncClient(timeout=WAIT_SECONDS, trust_env=False) as http:

        async def open_model(expectation: Expectation) -> ModelLink:
            address = ModelNodeAddress(deployment.model_url, machine.roots)
            return await open_model_link(
                address, expectation=expectation, http=http, clock=clock, entropy=entropy
            )

        sandbox = await open_sandbox("podman")
        ports = RunPorts(
            identity=identity,
            quotes=machine.guest,
            sandbox=sandbox,
            open_model=open_model,
            find_image=find_image,
            clock=clock,
            entropy=entropy,
            open_secrets=broker.open,
        )
        node = AgentNode(AgentNodeConfig(machine.roots), ports)
        transport: Any = httpx2.ASGITransport(app=NodeApp(identity, node.app))
        try:
            async with httpx2.AsyncClient(transport=transport, base_url="http://node") as inside:
                yield SecretNode(
                    AgentClient(
                        "http://node", roots=installation.roots, http=inside, clock=clock,
                        entropy=entropy,
                    ),
                    node,
                )  # fmt: skip
        finally:
            await node.close()
            await sandbox.close()
