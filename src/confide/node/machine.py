"""The machine a node runs on, behind the ports: what proves it, and under which roots.

Only the SIMULATED machine exists in this version; `docs/threat-model.md` says what that means. The
node package that runs is measured here, from the files that are imported, never from a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from confide.adapters.software import node_software, running_kernel
from confide.errors import ConfigurationError
from confide.node.attester import Devices
from confide.simulator.machine import (
    FAULT_NAMES,
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

if TYPE_CHECKING:
    from confide.appraisal.nvidia_policy import NvidiaPolicy
    from confide.ports import Clock, CollateralSource, QuoteSource
    from confide.trust.roots import Roots

__all__ = ["Machine", "simulated_machine"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Ports of one booted machine. `devices` and `gpu_policy` exist on a model node."""

    software: bytes
    guest: QuoteSource
    collateral: CollateralSource
    devices: Devices | None
    gpu_policy: NvidiaPolicy | None
    roots: Roots


def simulated_machine(
    role: Literal["agent", "model"], *, seed: bytes, clock: Clock, fault: str
) -> Machine:
    """
    Boot a SIMULATED machine for `role`. `fault` is a name of the simulator, or empty.

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
    devices = policy = None
    if role == "model":
        gpus = make_gpus(seed, now, faults)
        devices = Devices(SimulatedGpus(gpus), SimulatedReferences(gpus, clock))
        policy = gpus.policy()
    return Machine(
        software, guest, SimulatedCollateral(host), devices, policy, simulated_roots(seed, now)
    )
