"""The machine a node runs on, behind the ports: what proves it, and under which roots.

The SIMULATED one is here; `docs/threat-model.md` says what that means. Real ones are put together
in `node/hardware.py`, from the same ports. The node package that runs is measured from the files
that are imported, never from a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from confide.adapters.software import node_software, running_kernel
from confide.errors import ConfigurationError
from confide.node.attester import Devices
from confide.simulator.boot import launch_document
from confide.simulator.machine import (
    FAULT_NAMES,
    SimulatedCollateral,
    SimulatedGpuControl,
    SimulatedGpus,
    SimulatedGuest,
    SimulatedReferences,
    log_fault,
    make_gpus,
    make_platform,
    parse_fault,
    simulated_roots,
)

if TYPE_CHECKING:
    from confide.appraisal.nvidia_policy import NvidiaPolicy
    from confide.ports import Clock, CollateralSource, GpuControl, QuoteSource
    from confide.trust.roots import Roots

__all__ = ["Machine", "MachineGpus", "simulated_machine"]


@dataclass(frozen=True, slots=True)
class MachineGpus:
    """The GPUs of a model node: their evidence, their switch, and what the node itself accepts."""

    devices: Devices
    control: GpuControl
    policy: NvidiaPolicy


@dataclass(frozen=True, slots=True)
class Machine:
    """
    Ports of one booted machine. `gpus` exists on a model node.

    `launch` are the bytes whose SHA-256 MRCONFIGID holds (form 1), where they are known.
    """

    software: bytes
    guest: QuoteSource
    collateral: CollateralSource
    gpus: MachineGpus | None
    roots: Roots
    launch: bytes | None = None

    @property
    def devices(self) -> Devices | None:
        """Where device evidence comes from, where there are devices."""
        return None if self.gpus is None else self.gpus.devices


def simulated_machine(
    role: Literal["agent", "model"], *, seed: bytes, clock: Clock, fault: str, label: str = ""
) -> Machine:
    """
    Boot a SIMULATED machine for `role`. `fault` is a name of the simulator, or empty.

    Another `label` is another machine: it has another GPU.

    Raises `ConfigurationError` for a name that the simulator does not know.
    """
    faults = parse_fault(fault)
    if fault and not faults:
        raise ConfigurationError(f"no fault of that name; known: {', '.join(FAULT_NAMES)}")
    now = clock.now()
    software = node_software()
    host = make_platform(seed, now, faults)
    guest = SimulatedGuest(
        host, role=role, software=software, kernel=running_kernel(), fault=log_fault(faults)
    )
    found = None
    if role == "model":
        gpus = make_gpus(seed, now, faults, label=label or "model-node")
        devices = Devices(SimulatedGpus(gpus), SimulatedReferences(gpus, clock))
        found = MachineGpus(devices, SimulatedGpuControl(), gpus.policy())
    return Machine(
        software,
        guest,
        SimulatedCollateral(host),
        found,
        simulated_roots(seed, now),
        launch_document(role=role, software=software),
    )
