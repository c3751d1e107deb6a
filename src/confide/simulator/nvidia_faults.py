"""Everything that can be made wrong with SIMULATED GPUs, and the reason that must refuse it.

A fault changes one thing and leaves the rest right: reports stay signed and manifests stay in chain
unless the fault says otherwise. `EXPECTED` is the contract between simulator and verifier.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeAlias

from confide.errors import Reason

__all__ = [
    "EXPECTED",
    "EXPECTED_OF_SYSTEMS",
    "DeviceFault",
    "GpuFault",
    "SystemFault",
    "edit_blocks",
    "edit_opaque",
    "edit_raw",
]


class GpuFault(StrEnum):
    """One thing wrong with a set of GPUs or with what vouches for it."""

    # The report, as an attacker without keys can change it.
    WRONG_NONCE = "wrong-nonce"
    REPLAYED_NONCE = "replayed-nonce"
    FLIP_BLOCK = "flip-block"
    FLIP_OPAQUE = "flip-opaque"
    FLIP_SIGNATURE = "flip-signature"
    TRUNCATED = "truncated"
    TRAILING_BYTE = "trailing-byte"
    EMPTY_REPORT = "empty-report"
    # The report, as a broken device would sign it.
    DUPLICATE_FIELD = "duplicate-field"
    UNKNOWN_FIELD = "unknown-field"
    MISSING_FIELD = "missing-field"
    NVDEC_UNDEFINED = "nvdec-undefined"
    OPAQUE_VERSION = "opaque-version"
    FWID_ABSENT = "fwid-absent"
    FWID_DIFFERS = "fwid-differs"
    MODE_CONTRADICTION = "mode-contradiction"
    CHIP_CONTRADICTION = "chip-contradiction"
    # The chain.
    FOREIGN_ROOT = "foreign-root"
    FOREIGN_CHAIN = "foreign-chain"
    MISSING_CERTIFICATE = "missing-certificate"
    BROM_OF_ANOTHER = "brom-of-another"
    CHAIN_EXPIRED = "chain-expired"
    UNKNOWN_CHIP = "unknown-chip"
    DICE_KEY_DIFFERS = "dice-key-differs"
    NO_DICE = "no-dice"
    PDI_OF_A_SWITCH = "pdi-of-a-switch"
    # What runs.
    DEVTOOLS = "devtools"
    OTHER_DRIVER = "other-driver"
    OTHER_VBIOS = "other-vbios"
    NVDEC_FIRMWARE = "nvdec-firmware"
    UNCOVERED = "uncovered"
    # The manifests.
    RIM_MISSING = "rim-missing"
    RIM_EDITED = "rim-edited"
    RIM_BAD_SIGNATURE = "rim-bad-signature"
    RIM_FOREIGN = "rim-foreign"
    RIM_EXPIRED = "rim-expired"
    RIM_NOT_YET_VALID = "rim-not-yet-valid"
    RIM_OTHER_VERSION = "rim-other-version"
    RIM_OTHER_CHIP = "rim-other-chip"
    RIM_INDEX_CONFLICT = "rim-index-conflict"
    RIM_ALL_INACTIVE = "rim-all-inactive"
    RIM_GARBAGE = "rim-garbage"
    # Revocation, of the device at the position.
    OCSP_MISSING = "ocsp-missing"
    OCSP_TRY_LATER = "ocsp-try-later"
    OCSP_GARBAGE = "ocsp-garbage"
    OCSP_STALE = "ocsp-stale"
    OCSP_FUTURE = "ocsp-future"
    OCSP_REVOKED = "ocsp-revoked"
    OCSP_HOLD = "ocsp-hold"
    OCSP_UNKNOWN = "ocsp-unknown"
    OCSP_OTHER_SERIAL = "ocsp-other-serial"
    OCSP_OTHER_RESPONDER = "ocsp-other-responder"
    OCSP_BAD_SIGNATURE = "ocsp-bad-signature"
    # Revocation, of the signer of the driver manifest.
    RIM_OCSP_MISSING = "rim-ocsp-missing"
    RIM_OCSP_REVOKED = "rim-ocsp-revoked"
    RIM_OCSP_HOLD = "rim-ocsp-hold"
    # The set.
    DEVICE_TWICE = "device-twice"
    DEVICE_MISSING = "device-missing"
    MODE_MIX = "mode-mix"
    CHIP_MIX = "chip-mix"
    PPCIE_WITHOUT_SWITCHES = "ppcie-without-switches"


class SystemFault(StrEnum):
    """One thing wrong with a system of 8 GPUs and 4 NVSwitches; no single GPU can have it."""

    # What one switch is or says.
    SWITCH_UNLOCKED = "switch-unlocked"
    SWITCH_PDI_DIFFERS = "switch-pdi-differs"
    SWITCH_SERIAL_OF_A_GPU = "switch-serial-of-a-gpu"
    SWITCH_OTHER_BIOS = "switch-other-bios"
    SWITCH_BAD_VERSION = "switch-bad-version"
    # What is presented as what.
    SWITCH_AS_GPU = "switch-as-gpu"
    GPU_AS_SWITCH = "gpu-as-switch"
    # Who is connected with whom.
    GPU_AT_OTHER_SWITCH = "gpu-at-other-switch"
    GPU_AT_THREE_SWITCHES = "gpu-at-three-switches"
    SWITCH_AT_OTHER_GPU = "switch-at-other-gpu"
    SWITCH_AT_ONE_GPU = "switch-at-one-gpu"
    # Who is there.
    SWITCH_MISSING = "switch-missing"
    GPU_MISSING = "gpu-missing"
    ONE_GPU_FOR_ALL = "one-gpu-for-all"
    # The manifest of the switches.
    SWITCH_RIM_MISSING = "switch-rim-missing"
    SWITCH_RIM_OTHER_VERSION = "switch-rim-other-version"
    SWITCH_RIM_OF_A_GPU = "switch-rim-of-a-gpu"
    SWITCH_RIM_FEW_ENTRIES = "switch-rim-few-entries"
    SWITCH_RIM_ALL_INACTIVE = "switch-rim-all-inactive"


DeviceFault: TypeAlias = GpuFault | SystemFault

_F, _R, _S = GpuFault, Reason, SystemFault
EXPECTED_OF_SYSTEMS: Final[dict[SystemFault, Reason]] = {
    _S.SWITCH_UNLOCKED: _R.TOPOLOGY_SWITCH_UNLOCKED,
    _S.SWITCH_PDI_DIFFERS: _R.PDI_MISMATCH,
    _S.SWITCH_SERIAL_OF_A_GPU: _R.PDI_MISMATCH,
    _S.SWITCH_OTHER_BIOS: _R.MEASUREMENT_MISMATCH,
    _S.SWITCH_BAD_VERSION: _R.REPORT_MALFORMED,
    _S.SWITCH_AS_GPU: _R.ARCH_MISMATCH,
    _S.GPU_AS_SWITCH: _R.ARCH_MISMATCH,
    _S.GPU_AT_OTHER_SWITCH: _R.TOPOLOGY_PDI_MISMATCH,
    _S.GPU_AT_THREE_SWITCHES: _R.TOPOLOGY_PDI_MISMATCH,
    _S.SWITCH_AT_OTHER_GPU: _R.TOPOLOGY_PDI_MISMATCH,
    _S.SWITCH_AT_ONE_GPU: _R.TOPOLOGY_PDI_MISMATCH,
    _S.SWITCH_MISSING: _R.TOPOLOGY_COUNT,
    _S.GPU_MISSING: _R.TOPOLOGY_COUNT,
    _S.ONE_GPU_FOR_ALL: _R.DUPLICATE_DEVICE,
    _S.SWITCH_RIM_MISSING: _R.RIM_MISSING,
    _S.SWITCH_RIM_OTHER_VERSION: _R.RIM_IDENTITY_MISMATCH,
    _S.SWITCH_RIM_OF_A_GPU: _R.RIM_IDENTITY_MISMATCH,
    _S.SWITCH_RIM_FEW_ENTRIES: _R.RIM_MALFORMED,
    _S.SWITCH_RIM_ALL_INACTIVE: _R.RIM_MALFORMED,
}
EXPECTED: Final[dict[GpuFault, Reason]] = {
    _F.WRONG_NONCE: _R.NONCE_MISMATCH,
    _F.REPLAYED_NONCE: _R.NONCE_MISMATCH,
    _F.FLIP_BLOCK: _R.SIGNATURE_INVALID,
    _F.FLIP_OPAQUE: _R.SIGNATURE_INVALID,
    _F.FLIP_SIGNATURE: _R.SIGNATURE_INVALID,
    _F.TRUNCATED: _R.SIGNATURE_INVALID,
    _F.TRAILING_BYTE: _R.SIGNATURE_INVALID,
    _F.EMPTY_REPORT: _R.REPORT_MALFORMED,
    _F.DUPLICATE_FIELD: _R.REPORT_MALFORMED,
    _F.UNKNOWN_FIELD: _R.REPORT_MALFORMED,
    _F.MISSING_FIELD: _R.REPORT_MALFORMED,
    _F.NVDEC_UNDEFINED: _R.REPORT_MALFORMED,
    _F.OPAQUE_VERSION: _R.REPORT_MALFORMED,
    _F.FWID_ABSENT: _R.REPORT_MALFORMED,
    _F.FWID_DIFFERS: _R.FWID_MISMATCH,
    _F.MODE_CONTRADICTION: _R.MODE_MISMATCH,
    _F.CHIP_CONTRADICTION: _R.ARCH_MISMATCH,
    _F.FOREIGN_ROOT: _R.CHAIN_UNTRUSTED_ROOT,
    _F.FOREIGN_CHAIN: _R.CHAIN_INVALID,
    _F.MISSING_CERTIFICATE: _R.CHAIN_MALFORMED,
    _F.BROM_OF_ANOTHER: _R.CHAIN_INVALID,
    _F.CHAIN_EXPIRED: _R.CHAIN_EXPIRED,
    _F.UNKNOWN_CHIP: _R.ARCH_MISMATCH,
    _F.DICE_KEY_DIFFERS: _R.FWID_MISMATCH,
    _F.NO_DICE: _R.FWID_MISSING,
    _F.PDI_OF_A_SWITCH: _R.PDI_MISMATCH,
    _F.DEVTOOLS: _R.MEASUREMENT_MISMATCH,
    _F.OTHER_DRIVER: _R.MEASUREMENT_MISMATCH,
    _F.OTHER_VBIOS: _R.MEASUREMENT_MISMATCH,
    _F.NVDEC_FIRMWARE: _R.MEASUREMENT_MISMATCH,
    _F.UNCOVERED: _R.MEASUREMENT_UNCOVERED,
    _F.RIM_MISSING: _R.RIM_MISSING,
    _F.RIM_EDITED: _R.RIM_DIGEST_MISMATCH,
    _F.RIM_BAD_SIGNATURE: _R.RIM_SIGNATURE_INVALID,
    _F.RIM_FOREIGN: _R.RIM_CHAIN_INVALID,
    _F.RIM_EXPIRED: _R.RIM_EXPIRED,
    _F.RIM_NOT_YET_VALID: _R.RIM_NOT_YET_VALID,
    _F.RIM_OTHER_VERSION: _R.RIM_IDENTITY_MISMATCH,
    _F.RIM_OTHER_CHIP: _R.RIM_IDENTITY_MISMATCH,
    _F.RIM_INDEX_CONFLICT: _R.RIM_INDEX_CONFLICT,
    _F.RIM_ALL_INACTIVE: _R.RIM_MALFORMED,
    _F.RIM_GARBAGE: _R.RIM_MALFORMED,
    _F.OCSP_MISSING: _R.OCSP_UNAVAILABLE,
    _F.OCSP_TRY_LATER: _R.OCSP_UNAVAILABLE,
    _F.OCSP_GARBAGE: _R.OCSP_MALFORMED,
    _F.OCSP_STALE: _R.OCSP_STALE,
    _F.OCSP_FUTURE: _R.OCSP_STALE,
    _F.OCSP_REVOKED: _R.OCSP_REVOKED,
    _F.OCSP_HOLD: _R.OCSP_HOLD,
    _F.OCSP_UNKNOWN: _R.OCSP_UNKNOWN,
    _F.OCSP_OTHER_SERIAL: _R.OCSP_CERTID_MISMATCH,
    _F.OCSP_OTHER_RESPONDER: _R.OCSP_RESPONDER_UNAUTHORIZED,
    _F.OCSP_BAD_SIGNATURE: _R.OCSP_SIGNATURE_INVALID,
    _F.RIM_OCSP_MISSING: _R.OCSP_UNAVAILABLE,
    _F.RIM_OCSP_REVOKED: _R.OCSP_REVOKED,
    _F.RIM_OCSP_HOLD: _R.OCSP_HOLD,
    _F.DEVICE_TWICE: _R.DUPLICATE_DEVICE,
    _F.DEVICE_MISSING: _R.GPU_MISSING,
    _F.MODE_MIX: _R.MODE_MISMATCH,
    _F.CHIP_MIX: _R.ARCH_MISMATCH,
    _F.PPCIE_WITHOUT_SWITCHES: _R.TOPOLOGY_COUNT,
}

_Opaque = tuple[tuple[int, bytes], ...]
_FLIPS: Final[dict[DeviceFault, int]] = {
    GpuFault.FLIP_BLOCK: 52,
    GpuFault.FLIP_OPAQUE: 3650,
    GpuFault.FLIP_SIGNATURE: -1,
}
# Manifest indexes: the one that changes with the CC mode, that of the decoder, and one that no
# manifest covers.
_BLOCKS: Final[dict[DeviceFault, int]] = {
    GpuFault.DEVTOOLS: 9,
    GpuFault.NVDEC_FIRMWARE: 35,
    GpuFault.UNCOVERED: 60,
}


# What a fault puts at an opaque entry: appended where it is new, absent where it is None.
_FIELDS: Final[dict[DeviceFault, tuple[int, bytes | None]]] = {
    GpuFault.UNKNOWN_FIELD: (37, b"\0"),
    GpuFault.MISSING_FIELD: (12, None),
    GpuFault.NVDEC_UNDEFINED: (11, b"\xff"),
    GpuFault.NVDEC_FIRMWARE: (11, b"\xaa"),
    GpuFault.OPAQUE_VERSION: (34, b"\x02\x00"),
    GpuFault.FWID_ABSENT: (20, None),
    GpuFault.FWID_DIFFERS: (20, b"\x5a" * 48),
    GpuFault.MODE_CONTRADICTION: (21, b"\xaa"),
    GpuFault.CHIP_CONTRADICTION: (35, b"GX999\0"),
    SystemFault.SWITCH_UNLOCKED: (25, b"\x00\x00"),
    SystemFault.SWITCH_PDI_DIFFERS: (22, b"SIMULATE"),
    SystemFault.SWITCH_BAD_VERSION: (6, b"96.10.55.00/01"),
}


def edit_opaque(fault: DeviceFault | None, opaque: _Opaque) -> _Opaque:
    """Return the opaque entries as the fault has the device sign them."""
    if fault is GpuFault.DUPLICATE_FIELD:
        return (*opaque, opaque[0])
    if fault not in _FIELDS:
        return opaque
    field_id, value = _FIELDS[fault]
    edited = dict(opaque)
    if value is None:
        del edited[field_id]
    else:
        edited[field_id] = value
    return tuple(edited.items())


def edit_blocks(fault: DeviceFault | None, blocks: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the measurement blocks as the fault has the device sign them."""
    if fault is None or fault not in _BLOCKS:
        return blocks
    index = _BLOCKS[fault]
    return (*blocks[:index], b"\xdd" * 48, *blocks[index + 1 :])


def edit_raw(fault: DeviceFault | None, raw: bytes) -> bytes:
    """Return the report as an attacker without keys passes it on."""
    match fault:
        case GpuFault.FLIP_BLOCK | GpuFault.FLIP_OPAQUE | GpuFault.FLIP_SIGNATURE:
            data = bytearray(raw)
            data[_FLIPS[fault]] ^= 1
            return bytes(data)
        case GpuFault.TRUNCATED:
            return raw[:-1]
        case GpuFault.TRAILING_BYTE:
            return raw + b"\0"
        case GpuFault.EMPTY_REPORT:
            return b""
        case _:
            return raw
