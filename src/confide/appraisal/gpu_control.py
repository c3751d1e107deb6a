"""The driver's word on a set of GPUs, and its one switch. docs/protocols/hardware.md §6.

The Protocol is part of `confide.ports`, which offers it. Nothing here is signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["GpuControl", "GpuState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """
    What the driver says of its confidential GPUs: unsigned.

    `multi_gpu` is 0 for none, 1 for protected PCIe, 2 for encrypted NVLink. `ready` says that the
    GPUs take work.
    """

    gpus: int
    confidential: bool
    devtools: bool
    environment: Literal["unavailable", "simulation", "production", "unknown"]
    multi_gpu: int
    ready: bool
    driver: str


class GpuControl(Protocol):
    """The driver's switch for a whole set of GPUs. Part of `confide.ports`."""

    async def state(self) -> GpuState:
        """Return what the driver says now."""
        ...

    async def set_ready(self, ready: bool) -> None:  # noqa: FBT001 - one thing, on or off
        """Let the GPUs take work, or no more; what came of it, `state` says."""
        ...
