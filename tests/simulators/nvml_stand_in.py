# ruff: noqa: N802 - the names are those of pynvml
"""What `pynvml` of nvidia-ml-py 13 offers and how it fails, over simulated GPUs. No driver here."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nodes import NOW, SEED

from confide.simulator.nvidia import SimulatedGpuSet
from confide.simulator.nvidia_gpu import SimulatedGpu

if TYPE_CHECKING:
    from collections.abc import Callable


class NVMLError(Exception):
    """As in pynvml: the status is its `value`."""

    def __init__(self, value: int) -> None:
        self.value = value
        super().__init__(f"status {value}")


class Settings(ctypes.Structure):
    """c_nvmlSystemConfComputeSettings_v1_t."""

    _fields_ = [
        (name, ctypes.c_uint)
        for name in ("version", "environment", "ccFeature", "devToolsMode", "multiGpuMode")
    ]

    def __init__(self) -> None:
        super().__init__(version=0x1000014)


class Report(ctypes.Structure):
    """What is read of c_nvmlConfComputeGpuAttestationReport_t."""

    _fields_ = [
        ("attestationReportSize", ctypes.c_uint),
        ("attestationReport", ctypes.c_uint8 * 0x2000),
    ]


class Chain(ctypes.Structure):
    """c_nvmlConfComputeGpuCertificate_t."""

    _fields_ = [
        ("certChainSize", ctypes.c_uint),
        ("attestationCertChainSize", ctypes.c_uint),
        ("certChain", ctypes.c_uint8 * 0x1000),
        ("attestationCertChain", ctypes.c_uint8 * 0x1400),
    ]


def _filled(buffer: Any, raw: bytes) -> int:
    ctypes.memmove(buffer, raw, len(raw))
    return len(raw)


@dataclass
class Nvml:
    """
    The module. `failures` maps a function to the status it fails with; `before` runs first.

    `init` counts open sessions: NVML refuses every call outside of one.
    """

    gpus: SimulatedGpuSet = field(
        default_factory=lambda: SimulatedGpuSet(SEED, (SimulatedGpu(label="model-node"),), now=NOW)
    )
    count: int = 1
    environment: int = 2
    feature: int = 1
    devtools: int = 0
    multi_gpu: int = 0
    ready: int = 0
    sticks: bool = True
    oversize: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    before: dict[str, Callable[[], None]] = field(default_factory=dict)
    init: int = 0
    set_to: list[int] = field(default_factory=list)
    NVMLError = NVMLError
    c_nvmlSystemConfComputeSettings_v1_t = Settings  # noqa: N815 - its name

    def _enter(self, name: str) -> None:
        if name in self.before:
            self.before[name]()
        if name in self.failures:
            raise NVMLError(self.failures[name])
        if not self.init:
            raise NVMLError(1)

    def nvmlInit(self) -> None:
        if "nvmlInit" in self.failures:
            raise NVMLError(self.failures["nvmlInit"])
        self.init += 1

    def nvmlShutdown(self) -> None:
        self.init -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self._enter("driver")
        return "570.1\x1b[31m"

    def nvmlDeviceGetCount(self) -> int:
        self._enter("count")
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._enter("handle")
        if index >= self.count:
            raise NVMLError(2)
        return index

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: int, nonce: bytes) -> Any:
        self._enter("report")
        made = Report()
        size = _filled(made.attestationReport, self.gpus.collect(nonce)[handle].report)
        made.attestationReportSize = self.oversize or size
        return made

    def nvmlDeviceGetConfComputeGpuCertificate(self, handle: int) -> Any:
        self._enter("chain")
        made = Chain()
        chain = self.gpus.collect(bytes(32))[handle].chain_pem
        made.attestationCertChainSize = _filled(made.attestationCertChain, chain)
        made.certChainSize = _filled(made.certChain, b"the other chain")
        return made

    def nvmlSystemGetConfComputeSettings(self, reference: Any) -> int:
        # The binding returns the status and does not look at it.
        if "settings" in self.failures:
            return self.failures["settings"]
        self._enter("")
        found = reference._obj
        assert found.version == 0x1000014
        found.environment, found.ccFeature = self.environment, self.feature
        found.devToolsMode, found.multiGpuMode = self.devtools, self.multi_gpu
        return 0

    def nvmlSystemGetConfComputeGpusReadyState(self) -> int:
        self._enter("get ready")
        return self.ready

    def nvmlSystemSetConfComputeGpusReadyState(self, state: int) -> int:
        self._enter("set ready")
        self.set_to.append(state)
        if self.sticks:
            self.ready = state
        return 0
