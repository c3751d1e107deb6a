"""What the report of an NVSwitch (LS10) must contain, and its opaque entries as values.

Clauses: docs/protocols/nvidia.md 4. The exchange itself is read by `confide.wire.spdm`; only the
profile and the meaning of the entries differ from a GPU's. The report is hostile until its
signature was verified.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from confide.errors import FormatError, Reason
from confide.wire.spdm import DeviceProfile, FieldId, MeasurementReport

__all__ = ["LOCKED", "SWITCH", "SwitchFields", "read_switch_fields"]

_CLAUSE = "docs/protocols/nvidia.md#4"
_PDI_BYTES = 8
# From: nvidia.md §1.3, field 26: eight PDIs, then one byte for each of 64 ports.
_GPU_PDIS = 8
# From: nvidia.md §1.3, field 25.
LOCKED = b"\x01\x00"
_BIOS = re.compile(rb"[0-9A-Fa-f]{2}(?:\.[0-9A-Fa-f]{2}){4}\Z")

SWITCH = DeviceProfile(
    name="SWITCH",
    blocks=31,
    required=frozenset(
        {FieldId.VBIOS_VERSION, FieldId.SWITCH_PDI, FieldId.LOCK_STATUS, FieldId.GPU_PDIS}
    ),
    sizes={
        FieldId.VBIOS_VERSION: frozenset({14}),
        # Four bytes a counter: 26 on BIOS 96.10.55, 27 on 96.10.6D, never more than blocks.
        FieldId.MSRSCNT: frozenset(range(104, 31 * 4 + 1, 4)),
        FieldId.SWITCH_PDI: frozenset({_PDI_BYTES}),
        FieldId.FWID: frozenset({48}),
        FieldId.DISABLED_PORTS: frozenset({2}),
        FieldId.POSITION_ID: frozenset({2}),
        FieldId.LOCK_STATUS: frozenset({2}),
        FieldId.GPU_PDIS: frozenset({128}),
        FieldId.OPAQUE_DATA_VERSION: frozenset({2}),
    },
)


@dataclass(frozen=True, slots=True)
class SwitchFields:
    """
    The opaque entries of a switch, typed.

    `bios_version` is upper case with dots. `pdi` is the switch's own identifier as it reports it,
    `gpu_pdis` the eight that it reports for the GPUs at its ports, in order, repetitions included.
    `locked` is whether its configuration can no longer be changed.
    """

    bios_version: str
    pdi: bytes
    gpu_pdis: tuple[bytes, ...]
    locked: bool


def read_switch_fields(report: MeasurementReport) -> SwitchFields:
    """
    Read the opaque entries of a switch whose report was parsed with the profile `SWITCH`.

    Raises `FormatError` for a BIOS version of another form or an unknown layout.
    """
    bios = report.get(FieldId.VBIOS_VERSION) or b""
    if not _BIOS.match(bios):
        raise _malformed("the BIOS version is not five pairs of hex digits")
    # From: nvidia.md §1.3, field 34: layouts above 1 are not known.
    if int.from_bytes(report.get(FieldId.OPAQUE_DATA_VERSION) or b"", "little") > 1:
        raise _malformed("opaque data of an unknown version")
    table = report.get(FieldId.GPU_PDIS) or b""
    return SwitchFields(
        bios_version=bios.decode("ascii").upper(),
        pdi=report.get(FieldId.SWITCH_PDI) or b"",
        gpu_pdis=tuple(
            table[at : at + _PDI_BYTES] for at in range(0, _GPU_PDIS * _PDI_BYTES, _PDI_BYTES)
        ),
        locked=report.get(FieldId.LOCK_STATUS) == LOCKED,
    )


def _malformed(what: str) -> FormatError:
    return FormatError(f"report: {what}", reason=Reason.REPORT_MALFORMED, clause=_CLAUSE)
