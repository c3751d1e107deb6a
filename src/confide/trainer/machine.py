"""What the bits of a training depend on beside its plan: switches that are set, facts that are not.

docs/protocols/training.md 9.4.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

__all__ = ["environment", "fix_arithmetic"]

_LIBRARIES = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "jinja2")
# Which of a processor's instructions decide what oneDNN and MKL do.
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
_SWITCHES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "MKL_CBWR",
    "ONEDNN_MAX_CPU_ISA",
)


def fix_arithmetic(*, threads: int, device: torch.device) -> None:
    """
    Make this process compute the same bits each time.

    On a GPU, `CUBLAS_WORKSPACE_CONFIG` has to be set before; torch refuses to go on without.
    Raises `ConfigurationError` where the device is not there.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigurationError("no CUDA device")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        # Of the fused attentions, only this one has a backward pass with one order of sums.
        torch.backends.cuda.enable_flash_sdp(enabled=False)
        torch.backends.cuda.enable_mem_efficient_sdp(enabled=False)
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    # Nothing here reads memory that nobody wrote; filling it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def environment(device: torch.device) -> dict[str, JsonValue]:
    """Return the facts for the record; none of them names this machine or a path."""
    build = torch.__config__.show()
    facts: dict[str, JsonValue] = {
        "python": platform.python_version(),
        "libraries": {name: distribution(name).metadata["Version"] for name in _LIBRARIES},
        "torch_build": hashlib.sha256(build.encode()).hexdigest(),
        "mkl": _line(build, "Math Kernel Library"),
        "onednn": _line(build, "MKL-DNN"),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "processor": list(_processor_flags()),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "switches": {
            name: os.environ[name]  # noqa: TID251 - recorded, not obeyed: torch reads them
            for name in _SWITCHES
            if name in os.environ  # noqa: TID251
        },
        "device": device.type,
    }
    if device.type == "cuda":
        facts["gpu"] = {
            "name": torch.cuda.get_device_name(device),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return facts


def _line(build: str, what: str) -> str:
    """Return the version that the description of the build names for `what`."""
    found = re.search(rf"{re.escape(what)}\)?\s+(?:Version )?v?([0-9][0-9.]*)", build)
    return "" if found is None else found.group(1)


def _processor_flags() -> tuple[str, ...]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    flags = set() if found is None else set(found.group(1).split())
    return tuple(flag for flag in _FLAGS if flag in flags)
