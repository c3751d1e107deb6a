"""A simulated node in memory: its parts, its evidence, and the Expectation that fits it."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from confide.appraisal.nvidia_policy import AllowedVersions, VersionRule
from confide.expectation import (
    NO_BROKER,
    AgentSpec,
    Expectation,
    GpuSpec,
    HardwareSpec,
    Limits,
    ModelSpec,
    NodeSpec,
)
from confide.node.attester import Attester, Devices
from confide.node.keys import NodeKeys, make_node_keys
from confide.node.machine import Machine
from confide.node.measure import (
    VersionOneGuest,
    measure_faces,
    measure_gpus,
    measure_model,
    measure_node,
    measure_ready,
)
from confide.simulator.boot import measure_boot
from confide.simulator.machine import (
    SimulatedCollateral,
    SimulatedGpus,
    SimulatedGuest,
    SimulatedReferences,
    log_fault,
    make_gpus,
    make_platform,
    parse_fault,
    simulated_roots,
)
from confide.simulator.nvidia import SimulatedGpuSet
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.wire.faces import FaceName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.appraisal.binding import Purpose
    from confide.simulator.machine import Fault
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle
    from confide.wire.rtmr_log import RuntimeEvent

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
SEED = b"tests/simulators"
SOFTWARE = hashlib.sha256(b"the node package of these tests").digest()
WEIGHTS = hashlib.sha256(b"the weights of these tests").digest()
KERNEL = "6.1.0-simulated"
IMAGE = hashlib.sha256(b"the agent image of these tests").hexdigest()


@dataclass(slots=True)
class FixedClock:
    """A clock that tests move."""

    time: datetime = NOW

    def now(self) -> datetime:
        return self.time


@dataclass(slots=True)
class CountingEntropy:
    """Deterministic bytes, different at every draw."""

    seed: bytes = b"entropy"
    drawn: int = field(default=0)

    def token(self, size: int) -> bytes:
        self.drawn += 1
        return hashlib.shake_256(self.seed + self.drawn.to_bytes(8, "big")).digest(size)


def node_spec(role: Literal["agent", "model"]) -> NodeSpec:
    """The launch measurements an honest node of `role` has."""
    boot = measure_boot(role=role, software=SOFTWARE, kernel=KERNEL)
    return NodeSpec(
        mrtd=(boot.mrtd.hex(),),
        rtmr0=(boot.rtmr0.hex(),),
        rtmr1=(boot.rtmr1.hex(),),
        rtmr2=(boot.rtmr2.hex(),),
        mrconfigid=(boot.mrconfigid.hex(),),
        software=(SOFTWARE.hex(),),
    )


def _listed(rule: VersionRule) -> tuple[str, ...]:
    if not isinstance(rule, AllowedVersions):
        raise TypeError("the simulator's own policy lists its versions")
    return rule.versions


def fitting_expectation(roots: Roots) -> Expectation:
    """The narrowest Expectation that honest simulated nodes meet."""
    gpu = make_gpus(SEED, NOW, ()).policy()
    platform = make_platform(SEED, NOW, ())
    return Expectation(
        name="tests",
        hardware=HardwareSpec(
            roots=roots.name,
            tcb_status=("UpToDate",),
            min_tcb_evaluation=18,
            max_collateral_days=30,
            mrseam=(platform.mr_seam.hex(),),
            platform_flags=(),
            platforms=(platform.ppid.hex(),),
            accept_not_proven=("gpu-colocation", "physical-attack"),
        ),
        gpu=GpuSpec(
            count=1,
            mode="SPT",
            chips=tuple(sorted(gpu.chips)),
            drivers=_listed(gpu.driver),
            vbios=_listed(gpu.vbios),
        ),
        agent_node=node_spec("agent"),
        model_node=node_spec("model"),
        agent=AgentSpec(IMAGE, "batch"),
        model=ModelSpec("support-notes", WEIGHTS.hex()),
        egress=(),
        recipients=("caller",),
        broker=NO_BROKER,
        limits=Limits(),
    )


def _gpus(label: str, faults: tuple[Fault, ...]) -> SimulatedGpuSet:
    if label == "model-node":
        return make_gpus(SEED, NOW, faults)
    return SimulatedGpuSet(SEED, (SimulatedGpu(label=label),), now=NOW)


@dataclass(slots=True)
class SimulatedNode:
    """One booted node of either role, as `node/serve.py` boots it, in memory."""

    role: Literal["agent", "model"]
    fault: str = ""
    model: str = "support-notes"
    clock: FixedClock = field(default_factory=FixedClock)
    entropy: CountingEntropy = field(default_factory=CountingEntropy)
    faces: tuple[FaceName, ...] = ()
    # Another label is another GPU, and so another machine.
    gpu: str = "model-node"
    weights: bytes = WEIGHTS
    keys: NodeKeys = field(init=False)
    guest: SimulatedGuest = field(init=False)
    attester: Attester = field(init=False)

    def __post_init__(self) -> None:
        faults = parse_fault(self.fault)
        if self.fault and not faults:
            raise ValueError(f"no fault {self.fault}")
        platform = make_platform(SEED, NOW, faults)
        self.keys = make_node_keys(
            role=self.role,
            software=SOFTWARE,
            now=NOW,
            lifetime=timedelta(days=1),
            entropy=self.entropy,
            faces=self.faces,
        )
        self.guest = SimulatedGuest(
            platform, role=self.role, software=SOFTWARE, kernel=KERNEL, fault=log_fault(faults)
        )
        devices = None
        if self.role == "model":
            gpus = _gpus(self.gpu, faults)
            devices = Devices(SimulatedGpus(gpus), SimulatedReferences(gpus, self.clock))
        self.attester = Attester(
            self.keys.keyset, self.guest, SimulatedCollateral(platform), devices
        )

    def machine(self) -> Machine:
        """The machine of this node, as faces are built on it."""
        return Machine(
            software=SOFTWARE,
            guest=self.guest,
            collateral=self.attester.collateral,
            gpus=None,
            roots=roots(),
        )

    async def boot(self, before: Sequence[RuntimeEvent] = ()) -> None:
        """Measure what a node measures before it is ready; `before` is what others did first."""
        for event in before:
            await self.guest.extend(event)
        guest = VersionOneGuest(self.guest) if FaceName.NEAR in self.faces else self.guest
        await measure_node(guest, role=self.role, software=SOFTWARE)
        if self.role == "model":
            await measure_model(guest, name=self.model, weights=self.weights)
            honest = _gpus(self.gpu, ())
            await measure_gpus(
                guest,
                Devices(SimulatedGpus(honest), SimulatedReferences(honest, self.clock)),
                policy=honest.policy(),
                roots=honest.roots(),
                nonce=self.entropy.token(32),
                now=self.clock.now(),
            )
        await measure_faces(guest, self.faces)
        await measure_ready(guest)

    async def attest(
        self, purpose: Purpose, nonce: bytes, expectation: bytes, claim: bytes | None = None
    ) -> EvidenceBundle:
        """Evidence of this node."""
        return await self.attester.attest(
            purpose=purpose, nonce=nonce, expectation=expectation, claim=claim
        )


def roots() -> Roots:
    """The simulated roots of these tests."""
    return simulated_roots(SEED, NOW)


def evidence(
    role: Literal["agent", "model"],
    *,
    fault: str = "",
    nonce: bytes = b"n" * 32,
    expectation: Expectation | None = None,
) -> EvidenceBundle:
    """Channel evidence of a freshly booted node, optionally with a named fault."""
    expected = expectation or fitting_expectation(roots())

    async def make() -> EvidenceBundle:
        node = SimulatedNode(role, fault)
        await node.boot()
        if fault == "replayed-nonce":
            await node.attest("channel", b"o" * 32, expected.digest)
        return await node.attest("channel", nonce, expected.digest)

    return asyncio.run(make())


def without(expectation: Expectation, **hardware: object) -> Expectation:
    """`expectation` with members of its hardware policy replaced."""
    return replace(expectation, hardware=replace(expectation.hardware, **hardware))  # type: ignore[arg-type]
