"""Making an Expectation for a local, SIMULATED deployment: reference values from what is on disk.

The relying party computes what honest nodes must measure from the same inputs: the node package
it has, the kernel that runs, the image it built, the weights it holds. For real hardware these
values come from published releases instead; an Expectation file says the same either way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from confide.errors import ConfigurationError
from confide.expectation import (
    NO_BROKER,
    AgentSpec,
    BrokerSpec,
    Expectation,
    GpuSpec,
    HardwareSpec,
    Limits,
    ModelSpec,
    NodeSpec,
)
from confide.simulator.boot import measure_boot

if TYPE_CHECKING:
    from confide.agents.manifest import AgentManifest
    from confide.appraisal.nvidia_policy import NvidiaPolicy
    from confide.trust.roots import Roots

__all__ = [
    "TOLERATED",
    "BrokerReference",
    "LocalReference",
    "expectation_for",
    "inference_expectation_for",
]

# What no simulated or real deployment proves today (docs/threat-model.md): named, so accepted.
TOLERATED = ("gpu-colocation", "physical-attack", "platform")


@dataclass(frozen=True, slots=True)
class LocalReference:
    """Reference values of a local deployment. Digests are hex; `weights` empty for an upstream."""

    roots: Roots
    software: bytes
    kernel: str
    mrseam: bytes
    gpu: NvidiaPolicy
    gpu_drivers: tuple[str, ...]
    gpu_vbios: tuple[str, ...]
    model: str
    weights: str
    min_tcb_evaluation: int = 18


@dataclass(frozen=True, slots=True)
class BrokerReference:
    """A broker by its Ed25519 `key` (32 bytes), and the repository of the agent's owners."""

    key: bytes
    repository: str


def _node(reference: LocalReference, role: Literal["agent", "model"]) -> NodeSpec:
    boot = measure_boot(role=role, software=reference.software, kernel=reference.kernel)
    return NodeSpec(
        mrtd=(boot.mrtd.hex(),),
        rtmr0=(boot.rtmr0.hex(),),
        rtmr1=(boot.rtmr1.hex(),),
        rtmr2=(boot.rtmr2.hex(),),
        mrconfigid=(boot.mrconfigid.hex(),),
        software=(reference.software.hex(),),
    )


def _broker(manifest: AgentManifest, broker: BrokerReference | None) -> BrokerSpec:
    if not manifest.secrets and not manifest.state:
        return NO_BROKER
    if broker is None:
        raise ConfigurationError(
            f"the agent {manifest.name} asks for secrets or state: name the broker's key and the "
            "repository of their owners"
        )
    secrets = tuple(str(use) for use in manifest.secrets)
    return BrokerSpec(broker.key.hex(), broker.repository, secrets, manifest.state)


def expectation_for(
    manifest: AgentManifest,
    image: str,
    reference: LocalReference,
    *,
    broker: BrokerReference | None = None,
) -> Expectation:
    """
    Return the narrowest Expectation under which this agent can run on these nodes.

    `image` is the OCI manifest digest in hex. What `TOLERATED` names is accepted unproven, and so
    are weights that no node measures. An agent that asks for no secrets and no state names no
    `broker`; raises `ConfigurationError` for one that does where none is given.
    """
    return replace(
        inference_expectation_for(reference),
        name=manifest.name,
        agent_node=_node(reference, "agent"),
        agent=AgentSpec(image, manifest.mode),
        egress=tuple(str(destination) for destination in manifest.egress),
        broker=_broker(manifest, broker),
        limits=manifest.limits,
    )


def inference_expectation_for(reference: LocalReference) -> Expectation:
    """
    Return the narrowest Expectation for inference alone: its agent parts accept nothing.

    No image has a digest of zeros, and a node without accepted measurements is none.
    """
    tolerated = TOLERATED if reference.weights else (*TOLERATED, "model-weights")
    return Expectation(
        name="inference",
        hardware=HardwareSpec(
            roots=reference.roots.name,
            tcb_status=("UpToDate",),
            min_tcb_evaluation=reference.min_tcb_evaluation,
            max_collateral_days=30,
            mrseam=(reference.mrseam.hex(),),
            platform_flags=(),
            platforms=(),
            accept_not_proven=tuple(sorted(tolerated)),
        ),
        gpu=GpuSpec(
            count=reference.gpu.gpu_count,
            mode="SPT",
            chips=tuple(sorted(reference.gpu.chips)),
            drivers=reference.gpu_drivers,
            vbios=reference.gpu_vbios,
        ),
        agent_node=NodeSpec((), (), (), (), (), ()),
        model_node=_node(reference, "model"),
        agent=AgentSpec("00" * 32, "batch"),
        model=ModelSpec(reference.model, reference.weights),
        egress=(),
        recipients=("caller",),
        broker=NO_BROKER,
        limits=Limits(),
    )
