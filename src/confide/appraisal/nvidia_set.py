"""Steps 14 to 16 of docs/protocols/nvidia.md: the devices belong together and are complete.

The number of each function stands in its docstring. A device that was refused on its own stays
refused whatever is found here; what could not be read of it counts as not agreeing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.appraisal.nvidia_policy import GpuMode, NvidiaPolicy
from confide.appraisal.steps import Refused, Step
from confide.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.appraisal.nvidia_state import DeviceState

__all__ = ["SET_STEPS", "DeviceSet"]

_DOC = "docs/protocols/nvidia.md"
# From: nvidia.md §9.2: a protected PCIe system is 8 GPUs and 4 NVSwitches, fully connected.
_PPCIE_GPUS, _PPCIE_SWITCHES = 8, 4
_MAX_MPT_GPUS = 8


@dataclass(frozen=True, slots=True)
class DeviceSet:
    """All devices of one appraisal, each after its own steps, and the policy."""

    states: tuple[DeviceState, ...]
    policy: NvidiaPolicy

    @property
    def gpus(self) -> tuple[DeviceState, ...]:
        """What was presented as a GPU."""
        return tuple(state for state in self.states if state.evidence.kind == "gpu")

    @property
    def switches(self) -> tuple[DeviceState, ...]:
        """What was presented as a switch."""
        return tuple(state for state in self.states if state.evidence.kind == "switch")

    @property
    def bridged(self) -> bool:
        """Whether links between devices have to be proven: protected PCIe, or any switch at all."""
        return bool(self.switches) or any(state.mode is GpuMode.PPCIE for state in self.gpus)


def _repeated(values: Iterable[object]) -> bool:
    known = [value for value in values if value is not None]
    return len(set(known)) != len(known)


def _require_distinct(whole: DeviceSet) -> str:
    """14a: no device stands for two, GPUs and switches alike."""
    if _repeated(state.ueid for state in whole.states) or _repeated(
        state.pdi for state in whole.states
    ):
        raise Refused(Reason.DUPLICATE_DEVICE, "one device appears twice")
    return f"{len(whole.states)} distinct"


def _require_uniform(whole: DeviceSet) -> str:
    """14b: one mode and one chip for all GPUs, one chip for all switches."""
    # Of a device without mode or chip its own steps say so.
    if len({state.mode for state in whole.gpus} - {None}) > 1:
        raise Refused(Reason.MODE_MISMATCH, "the set mixes modes")
    for members in (whole.gpus, whole.switches):
        if len({state.chip for state in members} - {None}) > 1:
            raise Refused(Reason.ARCH_MISMATCH, "the set mixes chips")
    return ""


def _require_complete(whole: DeviceSet) -> str:
    """15a: as many GPUs and as many switches as the mode has."""
    gpus, switches = len(whole.gpus), len(whole.switches)
    modes = {state.mode for state in whole.gpus}
    if GpuMode.PPCIE in modes:
        if gpus != _PPCIE_GPUS or switches != _PPCIE_SWITCHES:
            raise Refused(
                Reason.TOPOLOGY_COUNT,
                f"{gpus} GPUs and {switches} NVSwitches: protected PCIe has "
                f"{_PPCIE_GPUS} and {_PPCIE_SWITCHES}, and links without both ends are unproven",
            )
        return f"{gpus} GPUs, {switches} NVSwitches"
    limit = _MAX_MPT_GPUS if modes == {GpuMode.MPT} else 1
    if switches or not 1 <= gpus <= limit:
        raise Refused(
            Reason.TOPOLOGY_COUNT,
            f"{gpus} GPUs and {switches} NVSwitches, this mode has 1 to {limit} and none",
        )
    return f"{gpus} GPU(s)"


def _pdis(members: Iterable[DeviceState]) -> Counter[bytes]:
    # From the BROM certificates: no report can choose them.
    return Counter(state.pdi or b"" for state in members)


def _require_switches_linked(whole: DeviceSet) -> str:
    """15b: each GPU is linked to exactly the switches of the set."""
    if not whole.bridged:
        return "no NVSwitch in this mode"
    switches = set(_pdis(whole.switches))
    for number, state in enumerate(whole.gpus):
        if state.gpu is None or state.gpu.switch_pdis != switches:
            raise Refused(Reason.TOPOLOGY_PDI_MISMATCH, f"gpu[{number}] is at other NVSwitches")
    return f"{len(switches)} NVSwitches at each GPU"


def _require_gpus_linked(whole: DeviceSet) -> str:
    """15c: each switch is linked to exactly the GPUs of the set, each of them once."""
    if not whole.bridged:
        return "no NVSwitch in this mode"
    gpus = _pdis(whole.gpus)
    for number, state in enumerate(whole.switches):
        if state.switch is None or Counter(state.switch.gpu_pdis) != gpus:
            raise Refused(Reason.TOPOLOGY_PDI_MISMATCH, f"switch[{number}] is at other GPUs")
    return f"{len(gpus)} GPUs at each NVSwitch"


def _require_locked(whole: DeviceSet) -> str:
    """15d: nobody can reconfigure a switch any more."""
    for number, state in enumerate(whole.switches):
        if state.switch is None or not state.switch.locked:
            raise Refused(Reason.TOPOLOGY_SWITCH_UNLOCKED, f"switch[{number}] is not locked")
    return f"{len(whole.switches)} locked" if whole.switches else "no NVSwitch in this mode"


def _require_count(whole: DeviceSet) -> str:
    """16: as many GPUs and switches as the policy asks for."""
    gpus, switches = len(whole.gpus), len(whole.switches)
    policy = whole.policy
    if gpus != policy.gpu_count:
        reason = Reason.GPU_MISSING if gpus < policy.gpu_count else Reason.TOPOLOGY_COUNT
        raise Refused(reason, f"{gpus} GPU(s), the policy asks for {policy.gpu_count}")
    if switches != policy.switch_count:
        raise Refused(
            Reason.TOPOLOGY_COUNT,
            f"{switches} NVSwitch(es), the policy asks for {policy.switch_count}",
        )
    return f"{gpus} GPU(s), {switches} NVSwitch(es)"


SET_STEPS: tuple[Step[DeviceSet], ...] = (
    Step("nvidia/14a", f"{_DOC}#14", _require_distinct),
    Step("nvidia/14b", f"{_DOC}#14", _require_uniform),
    Step("nvidia/15a", f"{_DOC}#15", _require_complete),
    Step("nvidia/15b", f"{_DOC}#15", _require_switches_linked),
    Step("nvidia/15c", f"{_DOC}#15", _require_gpus_linked),
    Step("nvidia/15d", f"{_DOC}#15", _require_locked),
    Step("nvidia/16", f"{_DOC}#16", _require_count),
)
