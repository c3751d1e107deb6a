"""NVIDIA attestation reports: one SPDM 1.1 GET_MEASUREMENTS exchange, bytes to values and back.

Clauses: docs/protocols/nvidia.md 4; DMTF DSP0274 1.1 §10.11. `raw` is hostile, every length is
consumed exactly and every enumeration is closed. No crypto: parse a report only after its
signature was verified. No policy: a well-formed report may still say anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NoReturn

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "GPU",
    "MAX_REPORT_BYTES",
    "SIGNATURE_BYTES",
    "DeviceProfile",
    "FeatureFlag",
    "FieldId",
    "GpuFields",
    "MeasurementReport",
    "Switchable",
    "block_count",
    "encode_report",
    "parse_report",
    "read_gpu_fields",
    "vbios_bytes",
]

# From: nvmlConfComputeGetAttestationReport, NVML_CC_GPU_ATTESTATION_REPORT_SIZE.
MAX_REPORT_BYTES = 0x2000
# From: DSP0274 1.1 §10.11.1; r and s of ECDSA P-384.
SIGNATURE_BYTES = 96

_CLAUSE = "docs/protocols/nvidia.md#4"
# From: DSP0274 1.1 tables 38 and 39: version 1.1, code, Param1, Param2.
_REQUEST_HEAD = bytes.fromhex("11e001ff")
_RESPONSE_HEAD = bytes.fromhex("11600000")
_NONCE_BYTES = 32
# From: DSP0274 1.1 table 41: DMTF specification, size 51; type 1, size 48.
_BLOCK_SPECIFICATION = 1
_BLOCK_SIZE = 51
_VALUE_TYPE = 1
_VALUE_SIZE = 48
_BLOCK_BYTES = 55
_BLOCK_HEADS = tuple(
    bytes([number, _BLOCK_SPECIFICATION])
    + _BLOCK_SIZE.to_bytes(2, "little")
    + bytes([_VALUE_TYPE])
    + _VALUE_SIZE.to_bytes(2, "little")
    for number in range(1, 256)
)
_MAX_FIELD_ID = 36
_PDI_BYTES = 8
# From: docs/protocols/nvidia.md 4, field 34: layouts above 1 are not known.
_MAX_OPAQUE_VERSION = 1
_TOKEN = re.compile(r"[0-9A-Za-z.]{1,32}\Z")


class FieldId(IntEnum):
    """Ids of the opaque entries that this package reads or emits."""

    DRIVER_VERSION = 3
    GPU_INFO = 4
    VBIOS_VERSION = 6
    NVDEC0_STATUS = 11
    MSRSCNT = 12
    CPRINFO = 13
    BOARD_ID = 14
    CHIP_SKU = 15
    CHIP_SKU_MOD = 16
    PROJECT = 17
    PROJECT_SKU = 18
    PROJECT_SKU_MOD = 19
    FWID = 20
    PROTECTED_PCIE_STATUS = 21
    SWITCH_PDI = 22
    DISABLED_PORTS = 23
    POSITION_ID = 24
    LOCK_STATUS = 25
    GPU_PDIS = 26
    SYS_ENABLE_STATUS = 33
    OPAQUE_DATA_VERSION = 34
    CHIP_INFO = 35
    FEATURE_FLAG = 36


class Switchable(IntEnum):
    """Field 11 and field 21: a unit is on or off, spelled so that one flipped bit is neither."""

    ON = 0xAA
    OFF = 0x55


class FeatureFlag(IntEnum):
    """Field 36: how the device may be combined with others."""

    SPT = 0
    MPT = 1
    PPCIE = 2


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """
    What the report of one kind of device must contain.

    `blocks` is the number of measurement blocks, `required` the ids that must be present,
    `sizes` the sizes allowed for an id; an id without an entry may have any size.
    """

    name: str
    blocks: int
    required: frozenset[int]
    sizes: Mapping[int, frozenset[int]]


def _sizes(**named: tuple[int, ...]) -> dict[int, frozenset[int]]:
    return {FieldId[name]: frozenset(sizes) for name, sizes in named.items()}


GPU = DeviceProfile(
    name="GPU",
    blocks=64,
    required=frozenset(
        {
            FieldId.DRIVER_VERSION,
            FieldId.VBIOS_VERSION,
            FieldId.NVDEC0_STATUS,
            FieldId.MSRSCNT,
            FieldId.CHIP_SKU,
            FieldId.PROJECT,
            FieldId.PROJECT_SKU,
        }
    ),
    sizes=_sizes(
        GPU_INFO=(8,),
        VBIOS_VERSION=(8,),
        NVDEC0_STATUS=(1,),
        MSRSCNT=(256,),
        CPRINFO=(4,),
        BOARD_ID=(4,),
        CHIP_SKU=(4, 9),
        CHIP_SKU_MOD=(2, 5),
        PROJECT=(5,),
        PROJECT_SKU=(5,),
        PROJECT_SKU_MOD=(2,),
        FWID=(48,),
        PROTECTED_PCIE_STATUS=(1,),
        SWITCH_PDI=(144,),
        SYS_ENABLE_STATUS=(2,),
        OPAQUE_DATA_VERSION=(2,),
        CHIP_INFO=(6,),
        FEATURE_FLAG=(2,),
    ),
)


@dataclass(frozen=True, slots=True)
class MeasurementReport:
    """
    One report: `blocks[i]` is the SHA-384 value of block i + 1.

    `opaque` keeps the order in which the entries came; a verifier must not depend on it.
    """

    nonce: bytes
    blocks: tuple[bytes, ...]
    responder_nonce: bytes
    opaque: tuple[tuple[int, bytes], ...]
    signature: bytes = field(repr=False)

    def get(self, field_id: int) -> bytes | None:
        """Return the value of the opaque entry `field_id`, None where it is absent."""
        return next((value for found, value in self.opaque if found == field_id), None)


@dataclass(frozen=True, slots=True)
class GpuFields:
    """
    The opaque entries of a GPU, typed.

    None means that the entry is absent; what absence means is decided by the appraisal.
    `vbios_version` is upper case with dots, as manifests write it. `switch_pdis` are the distinct
    NVSwitches at the links that are on, empty where the report names none.
    """

    driver_version: str
    vbios_version: str
    nvdec0: Switchable
    chip_sku: str
    project: str
    project_sku: str
    fwid: bytes | None
    protected_pcie: Switchable | None
    opaque_version: int
    chip_info: str | None
    feature_flag: FeatureFlag | None
    switch_pdis: frozenset[bytes] = frozenset()


def _refuse(what: str, offset: int = -1) -> NoReturn:
    raise FormatError(
        f"report: {what}", reason=Reason.REPORT_MALFORMED, clause=_CLAUSE, offset=offset
    )


def block_count(raw: bytes) -> int | None:
    """Return the number of blocks that `raw` states, which tells devices apart; None if too short.

    Checks nothing else.
    """
    at = len(_REQUEST_HEAD) + _NONCE_BYTES + 1 + len(_RESPONSE_HEAD)
    return raw[at] if len(raw) > at else None


def parse_report(raw: bytes, profile: DeviceProfile) -> MeasurementReport:
    """
    Parse request and response of one device of kind `profile`.

    Does not check the signature, the nonce or any value. Raises `FormatError`.
    """
    if len(raw) > MAX_REPORT_BYTES:
        _refuse(f"{len(raw)} bytes, at most {MAX_REPORT_BYTES}")
    reader = Reader(raw, what="report", clause=_CLAUSE, truncated=Reason.REPORT_MALFORMED)
    _literal(reader, _REQUEST_HEAD, "request header")
    nonce = reader.take(_NONCE_BYTES)
    _literal(reader, b"\0", "slot")
    _literal(reader, _RESPONSE_HEAD, "response header")
    _literal(reader, bytes([profile.blocks]), "number of blocks")
    _literal(reader, (profile.blocks * _BLOCK_BYTES).to_bytes(3, "little"), "record length")
    blocks = tuple(_block(reader, number + 1) for number in range(profile.blocks))
    responder_nonce = reader.take(_NONCE_BYTES)
    opaque = _opaque(reader.take(reader.u16le()), profile)
    signature = reader.take(SIGNATURE_BYTES)
    reader.end(Reason.REPORT_MALFORMED)
    return MeasurementReport(nonce, blocks, responder_nonce, opaque, signature)


def _literal(reader: Reader, expected: bytes, what: str) -> None:
    offset = reader.offset
    if reader.take(len(expected)) != expected:
        _refuse(f"{what} is not {expected.hex()}", offset)


def _block(reader: Reader, number: int) -> bytes:
    offset, head = reader.offset, _BLOCK_HEADS[number - 1]
    block = reader.take(_BLOCK_BYTES)
    if not block.startswith(head):
        _refuse(f"header of block {number} is not that of a measurement", offset)
    return block.removeprefix(head)


def _opaque(raw: bytes, profile: DeviceProfile) -> tuple[tuple[int, bytes], ...]:
    reader = Reader(raw, what="opaque data", clause=_CLAUSE, truncated=Reason.REPORT_MALFORMED)
    found: dict[int, bytes] = {}
    while reader.remaining:
        offset = reader.offset
        field_id = reader.u16le()
        value = reader.take(reader.u16le())
        if not 1 <= field_id <= _MAX_FIELD_ID:
            _refuse(f"opaque entry with the unknown id {field_id}", offset)
        if field_id in found:
            _refuse(f"opaque entry {field_id} twice", offset)
        if field_id in profile.sizes and len(value) not in profile.sizes[field_id]:
            _refuse(f"opaque entry {field_id} has {len(value)} bytes", offset)
        found[field_id] = value
    missing = sorted(int(name) for name in profile.required - found.keys())
    if missing:
        _refuse(f"opaque entries {missing} are missing")
    return tuple(found.items())


def encode_report(report: MeasurementReport) -> bytes:
    """Return the bytes of `report`; the inverse of `parse_report`."""
    count = len(report.blocks)
    parts = [_REQUEST_HEAD, report.nonce, b"\0", _RESPONSE_HEAD, bytes([count])]
    parts.append((count * _BLOCK_BYTES).to_bytes(3, "little"))
    for index, value in enumerate(report.blocks):
        parts += [_BLOCK_HEADS[index], value]
    opaque = b"".join(
        field_id.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value
        for field_id, value in report.opaque
    )
    parts += [report.responder_nonce, len(opaque).to_bytes(2, "little"), opaque, report.signature]
    return b"".join(parts)


def read_gpu_fields(report: MeasurementReport) -> GpuFields:
    """
    Read the opaque entries of a GPU.

    `report` was parsed with the profile `GPU`. Raises `FormatError` for a value outside its
    enumeration or a text that could not be part of a manifest id.
    """
    flag = report.get(FieldId.FEATURE_FLAG)
    chip_info = report.get(FieldId.CHIP_INFO)
    pcie = report.get(FieldId.PROTECTED_PCIE_STATUS)
    version = int.from_bytes(report.get(FieldId.OPAQUE_DATA_VERSION) or b"", "little")
    if version > _MAX_OPAQUE_VERSION:
        _refuse(f"opaque data of version {version}")
    return GpuFields(
        driver_version=_text(report, FieldId.DRIVER_VERSION),
        vbios_version=_vbios_text(_required(report, FieldId.VBIOS_VERSION)),
        nvdec0=_switchable(_required(report, FieldId.NVDEC0_STATUS), FieldId.NVDEC0_STATUS),
        chip_sku=_text(report, FieldId.CHIP_SKU),
        project=_text(report, FieldId.PROJECT),
        project_sku=_text(report, FieldId.PROJECT_SKU),
        fwid=report.get(FieldId.FWID),
        protected_pcie=(None if pcie is None else _switchable(pcie, FieldId.PROTECTED_PCIE_STATUS)),
        opaque_version=version,
        chip_info=None if chip_info is None else _text(report, FieldId.CHIP_INFO),
        feature_flag=None if flag is None else _feature_flag(flag),
        switch_pdis=_linked(report.get(FieldId.SWITCH_PDI) or b""),
    )


def _linked(raw: bytes) -> frozenset[bytes]:
    # From: nvidia.md §1.3, field 22: one entry for each link, little-endian, zero for a link that
    # is off.
    entries = (raw[at : at + _PDI_BYTES] for at in range(0, len(raw), _PDI_BYTES))
    return frozenset(entry[::-1] for entry in entries if any(entry))


def _required(report: MeasurementReport, field_id: FieldId) -> bytes:
    value = report.get(field_id)
    if value is None:
        _refuse(f"opaque entry {field_id} is missing")
    return value


def _text(report: MeasurementReport, field_id: FieldId) -> str:
    raw = _required(report, field_id)
    text = raw.rstrip(b"\0").decode("latin-1")
    # The NUL is part of the format, and these texts become parts of file names and URLs.
    if not raw.endswith(b"\0") or not _TOKEN.match(text):
        _refuse(f"opaque entry {field_id} is not a short ASCII text with NUL")
    return text


def _switchable(raw: bytes, field_id: FieldId) -> Switchable:
    try:
        return Switchable(raw[0])
    except ValueError:
        _refuse(f"opaque entry {field_id} is neither aa nor 55")


def _feature_flag(raw: bytes) -> FeatureFlag:
    try:
        return FeatureFlag(int.from_bytes(raw, "little"))
    except ValueError:
        _refuse("opaque entry 36 is none of 0, 1, 2")


def _vbios_text(raw: bytes) -> str:
    digits = raw[::-1].hex().upper()
    joined = digits[8:16] + digits[6:8]
    return ".".join(joined[at : at + 2] for at in range(0, 10, 2))


def vbios_bytes(version: str) -> bytes:
    """Return field 6 for a dotted `version` of five pairs of hex digits; `ValueError` otherwise."""
    raw = bytes.fromhex(version.replace(".", ""))
    if len(raw) != 5:
        raise ValueError("a VBIOS version is five pairs of hex digits")
    return (b"\0\0\0" + raw[4:] + raw[:4])[::-1]
