"""One SIMULATED GPU: what it is, what it runs and what it therefore reports.

Form: docs/protocols/nvidia.md 4. Measured values are computed from the identities of the driver and
the VBIOS that the caller names. Keys and certificates are made by `nvidia_device`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NamedTuple

from confide.appraisal.nvidia_policy import GpuMode
from confide.simulator.nvidia_device import Identity, device_pdi, firmware_id
from confide.simulator.nvidia_faults import DeviceFault, GpuFault
from confide.simulator.nvidia_rim import BIOS_INDEXES, DRIVER_INDEXES, VBIOS_INDEXES
from confide.wire.spdm import vbios_bytes

__all__ = ["SimulatedGpu", "golden_values", "gpu_blocks", "gpu_opaque", "text_field"]

_BLOCKS: Final = 64
_LINKS: Final = 18


class _Chip(NamedTuple):
    """Constants of one chip, as its genuine reports and chains have them."""

    gpu_info: str
    cprinfo: str
    project: str
    project_sku: str
    chip_sku: str
    driver: str
    vbios: str


_CHIPS: Final = {
    "GH100": _Chip(
        gpu_info="8001000000000000",
        cprinfo="00c00100",
        project="1010",
        project_sku="0200",
        chip_sku="882",
        driver="580.95.05",
        vbios="96.00.9F.00.01",
    ),
    "GB100": _Chip(
        gpu_info="a001000000000000",
        cprinfo="00000400",
        project="G525",
        project_sku="0220",
        chip_sku="886",
        driver="590.48.01",
        vbios="97.00.D9.00.35",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGpu:
    """
    What one simulated GPU is and runs.

    `label` makes it another device. Empty versions are the chip's defaults. `driver_identity` and
    `vbios_identity` stand for the code that really runs (any bytes, for instance a digest) and
    enter every value measured; empty means the code that the manifests are published for.
    """

    label: str = "0"
    chip: str = "GH100"
    mode: GpuMode = GpuMode.SPT
    driver_version: str = ""
    vbios_version: str = ""
    driver_identity: bytes = b""
    vbios_identity: bytes = b""
    nvdec_enabled: bool = False

    def __post_init__(self) -> None:
        if self.chip not in _CHIPS:
            raise ValueError("a simulated GPU is a GH100 or a GB100")

    @property
    def driver(self) -> str:
        """The driver version that the report states."""
        return self.driver_version or _CHIPS[self.chip].driver

    @property
    def vbios(self) -> str:
        """The VBIOS version that the report states."""
        return self.vbios_version or _CHIPS[self.chip].vbios

    @property
    def board(self) -> tuple[str, str, str]:
        """Project, project SKU and chip SKU: what a VBIOS manifest id is made of."""
        chip = _CHIPS[self.chip]
        return chip.project, chip.project_sku, chip.chip_sku

    @property
    def identity(self) -> Identity:
        """Which device this is."""
        return Identity("gpu", self.chip, self.label, self.vbios_identity)

    def pdi(self, seed: bytes) -> bytes:
        """Return the identifier that this GPU has when it is made from `seed`."""
        return device_pdi(seed, "gpu", self.label)


def golden_values(source: str, version: str, identity: bytes) -> dict[int, bytes]:
    """
    Return the values that `source` (`driver`, `vbios` or `bios`) at `version` measures to.

    Keys are manifest indexes. `identity` empty stands for the published code of that version.
    """
    indexes = {"driver": DRIVER_INDEXES, "vbios": VBIOS_INDEXES, "bios": BIOS_INDEXES}[source]
    code = hashlib.sha384(identity or f"SIMULATED {source} {version}".encode()).digest()
    return {
        index: hashlib.sha384(b"SIMULATED measurement %d\0" % index + code).digest()
        for index in indexes
    }


def gpu_blocks(gpu: SimulatedGpu, fault: DeviceFault | None) -> tuple[bytes, ...]:
    """Return the 64 values that `gpu` measures."""
    other = b"SIMULATED other code"
    driver = other if fault is GpuFault.OTHER_DRIVER else gpu.driver_identity
    vbios = other if fault is GpuFault.OTHER_VBIOS else gpu.vbios_identity
    values = golden_values("driver", gpu.driver, driver)
    values |= golden_values("vbios", gpu.vbios, vbios)
    if not gpu.nvdec_enabled:
        # A disabled decoder measures to something else; index 35 must not be compared then.
        values[35] = hashlib.sha384(b"SIMULATED decoder off").digest()
    return tuple(values.get(index, bytes(48)) for index in range(_BLOCKS))


def text_field(value: str, size: int = 0) -> bytes:
    """Return `value` as the opaque entries hold texts: with a NUL, padded to `size`."""
    return (value.encode() + b"\0").ljust(size, b"\0")


def gpu_opaque(gpu: SimulatedGpu, switch_pdis: tuple[bytes, ...]) -> tuple[tuple[int, bytes], ...]:
    """Return the opaque entries of a GPU at these switches, in the order of genuine devices."""
    fwid = firmware_id(gpu.vbios_identity)
    chip = _CHIPS[gpu.chip]
    hopper = gpu.chip == "GH100"
    bridged = gpu.mode is GpuMode.PPCIE
    flag = {GpuMode.SPT: 0, GpuMode.MPT: 1, GpuMode.PPCIE: 2}[gpu.mode]
    old = gpu.driver.startswith("535.")
    entries: list[tuple[int, bytes]] = [
        (6, vbios_bytes(gpu.vbios)),
        (14, hashlib.sha256(b"SIMULATED board").digest()[:4]),
        (15, text_field(chip.chip_sku, 4 if old else 9)),
        (16, text_field("0", 2 if old else 5)),
        (17, text_field(chip.project)),
        (18, text_field(chip.project_sku)),
        (19, text_field("0")),
        (3, text_field(gpu.driver)),
        (4, bytes.fromhex(chip.gpu_info)),
        (12, bytes(256)),
        (13, bytes.fromhex(chip.cprinfo)),
        (11, b"\xaa" if gpu.nvdec_enabled else b"\x55"),
    ]
    if old:
        return tuple(entries)
    entries.append((20, fwid))
    if hopper:
        entries.append((21, b"\xaa" if bridged else b"\x55"))
        if bridged:
            entries.append((22, _links(switch_pdis)))
    else:
        entries += [(33, b"\x07\x07"), (35, text_field(gpu.chip))]
    entries += [(34, b"\x01\x00"), (36, flag.to_bytes(2, "little"))]
    return tuple(entries)


def _links(switch_pdis: tuple[bytes, ...]) -> bytes:
    """Return one entry for each NVLink: the switch at its end, little-endian, in turns."""
    if not switch_pdis:
        return bytes(8 * _LINKS)
    return b"".join(switch_pdis[link % len(switch_pdis)][::-1] for link in range(_LINKS))
