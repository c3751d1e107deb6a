"""NVIDIA GPUs by NVML (`nvidia-ml-py`): signed reports, chains, and what the driver says.

The ports `GpuEvidenceSource` and `GpuControl`; docs/protocols/hardware.md §6. Everything but the
reports is unsigned and decides no acceptance. NVSwitches answer to another library
(libnvidia-nscq), which has no Python binding: a set that needs them is refused with words.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from confide.appraisal.gpu_control import GpuState
from confide.errors import ConfigurationError, Unavailable, Unsupported
from confide.wire.evidence import GpuEvidence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    T = TypeVar("T")

__all__ = ["NvmlGpus", "load_nvml"]

_NONCE_BYTES: Final = 32
# From: nvml.h, NVML_CC_GPU_ATTESTATION_REPORT_SIZE and NVML_GPU_ATTESTATION_CERT_CHAIN_SIZE.
_MAX_REPORT_BYTES: Final = 0x2000
_MAX_CHAIN_BYTES: Final = 0x1400
# From: docs/protocols/nvidia.md, as many devices as evidence may hold.
_MAX_GPUS: Final = 16
_ENVIRONMENTS: Final[dict[int, Literal["unavailable", "simulation", "production"]]] = {
    0: "unavailable",
    1: "simulation",
    2: "production",
}
_PROTECTED_PCIE: Final = 1
_MAX_TEXT_CHARS: Final = 64
# From: nvml.h, nvmlReturn_t.
_SUCCESS: Final = 0
_WORDS: Final = {
    2: "invalid argument: after a failed attestation this stays until the guest is booted again",
    3: "not supported by this GPU or driver",
    4: "no permission: run as root",
    9: "the NVIDIA driver is not loaded",
    12: "libnvidia-ml.so.1 is not here: install the NVIDIA driver in the guest",
    13: "the driver is too old for confidential computing",
    15: "a GPU fell off the bus",
    28: "a GPU is gone",
}
_CONFIGURATION: Final = frozenset({4, 9, 12, 13})


def load_nvml() -> Any:
    """Return the module `pynvml`. Raises `ConfigurationError` where it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise ConfigurationError("no nvidia-ml-py: pip install 'confide[gpu]'") from error


class NvmlGpus:
    """The GPUs that the driver of this machine shows. `nvml` is the module, or what stands in."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._lock = threading.Lock()

    async def collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """
        Return one signed report with its chain for each GPU, all over this 32-byte nonce.

        Raises `Unavailable` when a GPU fails or goes, `Unsupported` for a set with NVSwitches.
        """
        if len(nonce) != _NONCE_BYTES:
            raise ValueError("a GPU nonce has 32 bytes")
        return await self._run(lambda: self._collect(nonce))

    async def state(self) -> GpuState:
        """Return what the driver says: unsigned."""
        return await self._run(self._state)

    async def set_ready(self, ready: bool) -> None:  # noqa: FBT001 - as the port has it
        """Set the ready state of the whole set; needs root."""
        await self._run(lambda: self._nvml.nvmlSystemSetConfComputeGpusReadyState(int(ready)))

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.to_thread(self._alone, call)

    def _alone(self, call: Callable[[], T]) -> T:
        with self._lock, self._session():
            return call()

    @contextmanager
    def _session(self) -> Iterator[None]:
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            try:
                yield
            finally:
                nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            raise _problem(getattr(error, "value", None)) from error

    def _count(self) -> int:
        count = int(self._nvml.nvmlDeviceGetCount())
        if not 0 <= count <= _MAX_GPUS:
            raise Unavailable(f"NVML shows {count} GPUs, and at most {_MAX_GPUS} are driven")
        return count

    def _collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        if self._settings().multiGpuMode == _PROTECTED_PCIE:
            raise Unsupported(
                "protected PCIe is proven by the NVSwitches too, and their reports come by "
                "libnvidia-nscq, which is not driven here"
            )
        count = self._count()
        found = tuple(self._device(index, nonce) for index in range(count))
        if self._count() != count:
            raise Unavailable("the set of GPUs changed while it was asked")
        return found

    def _device(self, index: int, nonce: bytes) -> GpuEvidence:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce)
        chain = nvml.nvmlDeviceGetConfComputeGpuCertificate(handle)
        return GpuEvidence(
            _cut(report.attestationReport, report.attestationReportSize, _MAX_REPORT_BYTES),
            # `certChain` is another one; the report is signed under the attestation chain.
            _cut(chain.attestationCertChain, chain.attestationCertChainSize, _MAX_CHAIN_BYTES),
        )

    def _settings(self) -> Any:
        settings = self._nvml.c_nvmlSystemConfComputeSettings_v1_t()
        # The binding hands the status out unlooked at.
        status = self._nvml.nvmlSystemGetConfComputeSettings(ctypes.byref(settings))
        if status != _SUCCESS:
            raise _problem(status)
        return settings

    def _state(self) -> GpuState:
        nvml, settings = self._nvml, self._settings()
        driver = str(nvml.nvmlSystemGetDriverVersion())
        return GpuState(
            gpus=self._count(),
            confidential=settings.ccFeature == 1,
            devtools=settings.devToolsMode != 0,
            environment=_ENVIRONMENTS.get(int(settings.environment), "unknown"),
            multi_gpu=int(settings.multiGpuMode),
            ready=nvml.nvmlSystemGetConfComputeGpusReadyState() != 0,
            driver="".join(c for c in driver if c.isprintable())[:_MAX_TEXT_CHARS],
        )


def _cut(buffer: Any, size: int, most: int) -> bytes:
    if not 0 < size <= most or size > len(buffer):
        raise Unavailable(f"NVML announces {size} bytes of evidence, and at most {most} fit")
    return bytes(buffer[:size])


def _problem(status: object) -> ConfigurationError | Unavailable:
    known = isinstance(status, int)
    words = _WORDS.get(status, f"status {status}") if isinstance(status, int) else "no status"
    kind = ConfigurationError if known and status in _CONFIGURATION else Unavailable
    return kind(f"NVML: {words}")
