"""Evidence of simulated nodes, honest and not, and the verdict over it."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from nodes import (
    KERNEL,
    NOW,
    SEED,
    SOFTWARE,
    WEIGHTS,
    CountingEntropy,
    SimulatedNode,
)
from runs import expectation_and_roots, world

from confide.appraisal.node import VerifiedNode, appraise_node
from confide.errors import Reason, Rejected
from confide.node.attester import Attester, Devices
from confide.node.measure import (
    measure_faces,
    measure_gpus,
    measure_model,
    measure_node,
    measure_ready,
)
from confide.simulator.machine import (
    SimulatedCollateral,
    SimulatedGpus,
    SimulatedGuest,
    SimulatedReferences,
    log_fault,
    make_gpus,
    make_platform,
    parse_fault,
)

if TYPE_CHECKING:
    from confide.expectation import Expectation
    from confide.ports import QuoteSource
    from confide.wire.evidence import EvidenceBundle
    from confide.wire.rtmr_log import RuntimeEvent

Role = Literal["agent", "model"]
NONCE = b"n" * 32


@cache
def honest(role: Role, purpose: Literal["channel", "claim"] = "channel") -> EvidenceBundle:
    """Evidence of the booted node of `role`."""
    place = world()
    node = place.agent if role == "agent" else place.model
    claim = b"c" * 32 if purpose == "claim" else None
    return asyncio.run(node.attest(purpose, NONCE, place.expectation.digest, claim))


def appraise(bundle: EvidenceBundle, role: Role, **changed: Any) -> VerifiedNode:
    expectation, roots = expectation_and_roots()
    facts: dict[str, Any] = {
        "subject": f"{role}-node",
        "role": role,
        "purpose": "channel",
        "nonce": NONCE,
        "claim": None,
        "expectation": expectation,
        "roots": roots,
        "now": NOW,
    }
    return appraise_node(bundle, **{**facts, **changed})


def refusals(bundle: EvidenceBundle, role: Role, **changed: Any) -> dict[str, Reason]:
    """The steps of binding.md §3 that refuse `bundle`, with their reasons."""
    try:
        appraise(bundle, role, **changed)
    except Rejected as error:
        return {
            finding.step.removeprefix("node/"): finding.reason
            for finding in error.findings
            if finding.step.startswith("node/") and finding.reason is not None
        }
    raise AssertionError("bad evidence was accepted")


@cache
def plain_attester(role: Role) -> Attester:
    return (world().agent if role == "agent" else world().model).attester


def booted(role: Role) -> tuple[RuntimeEvent, ...]:
    """What the honest node of `role` measured until it was ready."""
    place = world(b"only booted")
    return tuple((place.agent if role == "agent" else place.model).guest._events)


def attested(
    role: Role,
    guest: QuoteSource,
    *,
    collateral: SimulatedCollateral | None = None,
    devices: Devices | None = None,
    replayed: bool = False,
    expectation: Expectation | None = None,
) -> EvidenceBundle:
    plain = plain_attester(role)
    attester = Attester(
        plain.keyset,
        guest,
        collateral or plain.collateral,
        devices or plain.devices,
    )
    digest = (expectation or expectation_and_roots()[0]).digest
    events = booted(role)

    async def attest() -> EvidenceBundle:
        for event in events:
            await guest.extend(event)
        if replayed:
            await attester.attest(purpose="channel", nonce=b"o" * 32, expectation=digest)
        return await attester.attest(purpose="channel", nonce=NONCE, expectation=digest)

    return asyncio.run(attest())


def faulty(name: str, role: Role) -> EvidenceBundle:
    """Evidence of a node that booted honestly on a machine with the fault `name`."""
    faults = parse_fault(name)
    platform = make_platform(SEED, NOW, faults)
    guest = SimulatedGuest(
        platform, role=role, software=SOFTWARE, kernel=KERNEL, fault=log_fault(faults)
    )
    devices = None
    if role == "model":
        gpus = make_gpus(SEED, NOW, faults)
        devices = Devices(SimulatedGpus(gpus), SimulatedReferences(gpus, world().model.clock))
    return attested(
        role,
        guest,
        collateral=SimulatedCollateral(platform),
        devices=devices,
        replayed=name == "replayed-nonce",
    )


def model_node_with(**boot: Any) -> EvidenceBundle:
    """Evidence of a model node that measured something else at boot."""
    keyed = boot.get("keyed", boot.get("faces", ()))
    node = SimulatedNode("model", entropy=CountingEntropy(b"other boot"), faces=keyed)

    async def make() -> EvidenceBundle:
        await measure_node(node.guest, role="model", software=SOFTWARE)
        await measure_model(
            node.guest,
            name=boot.get("name", "support-notes"),
            weights=boot.get("weights", WEIGHTS),
            loaded=boot.get("loaded", True),
            quantisation=boot.get("quantisation"),
            held=boot.get("held"),
        )
        gpus = boot.get("gpus", make_gpus(SEED, NOW, ()))
        await measure_gpus(
            node.guest,
            Devices(SimulatedGpus(gpus), SimulatedReferences(gpus, node.clock)),
            policy=gpus.policy(),
            roots=gpus.roots(),
            nonce=bytes(32),
            now=NOW,
        )
        await measure_faces(node.guest, boot.get("faces", ()))
        await measure_ready(node.guest)
        expectation = boot.get("expectation", expectation_and_roots()[0])
        return await node.attest("channel", NONCE, expectation.digest)

    return asyncio.run(make())
