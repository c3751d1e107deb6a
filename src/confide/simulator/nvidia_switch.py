"""One SIMULATED NVSwitch (LS10): what it is, what it runs and what it therefore reports.

Form: docs/protocols/nvidia.md 4. Keys and certificates are made by `nvidia_device`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from confide.simulator.nvidia_device import Identity, device_pdi
from confide.simulator.nvidia_faults import DeviceFault, SystemFault
from confide.simulator.nvidia_gpu import golden_values

__all__ = ["SimulatedSwitch", "switch_blocks", "switch_opaque"]

_BLOCKS: Final = 31
_PORTS: Final = 64
_BIOS: Final = "96.10.55.00.01"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSwitch:
    """
    What one simulated NVSwitch is and runs.

    `label` makes it another device. An empty version is the default. `bios_identity` stands for
    the code that really runs; empty means the code that the manifest is published for.
    """

    label: str = "0"
    bios_version: str = ""
    bios_identity: bytes = b""
    chip: str = "LS10"

    @property
    def bios(self) -> str:
        """The BIOS version that the report states."""
        return self.bios_version or _BIOS

    @property
    def identity(self) -> Identity:
        """Which device this is."""
        return Identity("switch", self.chip, self.label, self.bios_identity)

    def pdi(self, seed: bytes) -> bytes:
        """Return the identifier that this switch has when it is made from `seed`."""
        return device_pdi(seed, "switch", self.label)


def switch_blocks(switch: SimulatedSwitch, fault: DeviceFault | None) -> tuple[bytes, ...]:
    """Return the 31 values that `switch` measures."""
    other = fault is SystemFault.SWITCH_OTHER_BIOS
    code = b"SIMULATED other code" if other else switch.bios_identity
    values = golden_values("bios", switch.bios, code)
    return tuple(values[index] for index in range(_BLOCKS))


def switch_opaque(
    switch: SimulatedSwitch, pdi: bytes, position: int, gpu_pdis: tuple[bytes, ...]
) -> tuple[tuple[int, bytes], ...]:
    """Return the opaque entries of a switch with these GPUs at its ports, in genuine order."""
    ports = bytes(port % 8 if port < 2 * len(gpu_pdis) else 0xFF for port in range(_PORTS))
    table = b"".join(gpu_pdis)[:64].ljust(64, b"\0")
    return (
        (6, switch.bios.encode()),
        (22, pdi),
        (12, bytes(104)),
        (26, table + ports),
        (23, hashlib.sha256(b"SIMULATED ports").digest()[:2]),
        (24, position.to_bytes(2, "little")),
        (25, b"\x01\x00"),
    )
