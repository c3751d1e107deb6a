"""The CCEL of this boot from the ACPI tables. docs/protocols/hardware.md §4.

The table's head says that the log is there; the log itself is unsigned, and a replay against quoted
registers is all that gives it meaning.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.tsm_files import refused_by_kernel
from confide.appraisal.eventlog import replay_ccel
from confide.errors import ConfigurationError, FormatError
from confide.wire.ccel import parse_ccel

if TYPE_CHECKING:
    from confide.adapters.tsm_files import AttributeFiles

__all__ = ["CCEL_DATA", "CCEL_TABLE", "firmware_registers", "read_ccel", "require_replay"]

CCEL_TABLE: Final = "/sys/firmware/acpi/tables/CCEL"
CCEL_DATA: Final = "/sys/firmware/acpi/tables/data/CCEL"
# From: ACPI 6.5 §5.2.6 (header) and §5.2.34 (CC type at 36, log area length and address at 40).
_SIGNATURE: Final = b"CCEL"
_TABLE_BYTES: Final = 56
_CC_TYPE_TDX: Final = 2
# From: wire/ccel.py, the bound of its reader.
_MAX_LOG_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Head:
    length: int
    cc_type: int


def _read(files: AttributeFiles, path: str, max_bytes: int, what: str) -> bytes:
    try:
        return files.read(path, max_bytes)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"no {what}: the firmware of this machine keeps no log of its boot; boot it with a TDVF"
            " that measures"
        ) from error
    except OSError as error:
        raise refused_by_kernel(error, f"the {what} cannot be read") from error


def _head(raw: bytes) -> _Head:
    if len(raw) < _TABLE_BYTES or raw[:4] != _SIGNATURE:
        raise ConfigurationError("the ACPI table CCEL is not one")
    length = int(struct.unpack_from("<I", raw, 4)[0])
    if length != len(raw) or sum(raw) % 256:
        raise ConfigurationError("the ACPI table CCEL is damaged: its length or checksum is wrong")
    return _Head(length, raw[36])


def read_ccel(files: AttributeFiles, *, table: str = CCEL_TABLE, data: str = CCEL_DATA) -> bytes:
    """
    Return the log of a TD's boot, as the firmware left it.

    Raises `ConfigurationError` where there is none or it cannot be read as one, `Unavailable`
    where the kernel fails. Does not replay it.
    """
    head = _head(_read(files, table, _TABLE_BYTES * 8, "ACPI table CCEL"))
    if head.cc_type != _CC_TYPE_TDX:
        raise ConfigurationError("the ACPI table CCEL is of another kind of machine than TDX")
    raw = _read(files, data, _MAX_LOG_BYTES, "CCEL log")
    firmware_registers(raw)
    return raw


def firmware_registers(raw: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return RTMR0 to RTMR3 as the log says; `ConfigurationError` for one that cannot be read."""
    try:
        return replay_ccel(parse_ccel(raw))
    except FormatError as error:
        raise ConfigurationError(f"the firmware's log cannot be read: {error.what}") from error


def require_replay(raw: bytes, registers: tuple[bytes, ...]) -> None:
    """
    Compare the log with RTMR0 to RTMR2 in `registers`: nobody accepts evidence where they differ.

    Raises `ConfigurationError`; also for a log that extends RTMR3, which is the node's.
    """
    replayed = firmware_registers(raw)
    wrong = [f"RTMR{index}" for index in range(3) if replayed[index] != registers[index]]
    if wrong:
        raise ConfigurationError(
            f"the firmware's log does not reproduce {', '.join(wrong)}: another boot loader or "
            "kernel measured what is not in the log"
        )
    if replayed[3] != bytes(48):
        raise ConfigurationError("the firmware's log extends RTMR3, which only the node may")
