"""Whether the GPUs of this machine may be given to a node at all. docs/protocols/hardware.md §7.

What a driver says about its GPUs is signed by nobody. So this decision can only refuse: it keeps a
node from starting where it would be refused anyway, and names what an operator has to change.
Acceptance is by signed reports alone (`appraisal/nvidia.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.appraisal.nvidia_policy import GpuMode

if TYPE_CHECKING:
    from confide.appraisal.gpu_control import GpuState
    from confide.appraisal.nvidia_policy import NvidiaPolicy

__all__ = ["GateFault", "gate_faults", "state_faults"]

# From: nvml.h, NVML_CC_SYSTEM_MULTIGPU_*: none, protected PCIe, encrypted NVLink.
_MULTI_GPU: Final = {GpuMode.SPT: 0, GpuMode.PPCIE: 1, GpuMode.MPT: 2}


@dataclass(frozen=True, slots=True)
class GateFault:
    """Why the gate stays shut, and what mends it."""

    what: str
    mend: str


def state_faults(state: GpuState) -> tuple[GateFault, ...]:
    """Return what is wrong with `state` whatever a policy asks for; the ready state is no fault."""
    found: list[GateFault] = []
    if not state.confidential:
        mend = "on the host: nvidia_gpu_tools.py --set-cc-mode=on --reset-after-cc-mode-switch"
        found.append(GateFault("confidential computing is off", mend))
    elif state.environment != "production":
        mend = "a driver and board of release, in a confidential guest"
        found.append(GateFault(f"the GPU environment is {state.environment}", mend))
    if state.devtools:
        mend = "on the host: --set-cc-mode=on; DevTools lets a debugger read what the GPU holds"
        found.append(GateFault("DevTools mode is on", mend))
    if state.gpus < 1:
        found.append(GateFault("no GPU", "pass one through to this guest"))
    return tuple(found)


def gate_faults(state: GpuState, policy: NvidiaPolicy) -> tuple[GateFault, ...]:
    """Return every reason why a set in `state` cannot be what `policy` accepts; empty for none."""
    found = list(state_faults(state))
    if state.gpus != policy.gpu_count:
        found.append(
            GateFault(
                f"{state.gpus} GPU(s), and the policy asks for exactly {policy.gpu_count}",
                "pass the whole set through to this guest, or name another policy",
            )
        )
    wanted = _MULTI_GPU[policy.mode]
    if state.multi_gpu != wanted:
        found.append(
            GateFault(
                f"multi-GPU mode {state.multi_gpu}, and mode {policy.mode} has {wanted}",
                "on the host: --set-ppcie-mode, or name another policy",
            )
        )
    return tuple(found)
