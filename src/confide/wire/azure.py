"""Azure's paravisor reports (`az-snp-vtpm`, `az-tdx-vtpm`): the blob out of its virtual TPM.

Clauses: docs/protocols/dstack.md §9 and Microsoft, "Azure confidential VM guest attestation"
(attestation report, header `HCLA`). Inside stand a hardware report and runtime data, JSON whose
SHA-256 is in the hardware report data.

What it means: the hardware report describes Microsoft's paravisor, which then vouches for the
guest through a virtual TPM. Its measurement and registers must never be reported as those of the
guest. Everything here is hostile; the hardware report still has to be verified.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from confide.errors import FormatError, Reason, Unsupported
from confide.wire.reader import Reader

__all__ = ["HclReport", "is_hcl_report", "parse_hcl_report", "runtime_data_binding"]

_WHAT: Final = "Azure paravisor report"
_CLAUSE: Final = "docs/protocols/dstack.md#9"
_REASON: Final = Reason.SERVICE_FORMAT
_SIGNATURE: Final = b"HCLA"
# Precedent: the blob lives in a TPM index of a few KiB.
_MAX_BYTES: Final = 64 * 1024
_MAX_RUNTIME_BYTES: Final = 32 * 1024
_HARDWARE_BYTES: Final = 1184
# From: the report's request data: kinds of hardware report, and SHA-256.
_SNP, _TDX = 2, 4
_SHA256: Final = 1
# From: TDX module specification, REPORTMACSTRUCT: report data at 128; AMD 56860 table 23: at 0x50.
_TD_REPORT_BYTES: Final = 1024
_REPORT_DATA_AT: Final = {_SNP: 0x50, _TDX: 128}


@dataclass(frozen=True, slots=True)
class HclReport:
    """
    A well-formed blob whose runtime data is the one that its hardware report commits to.

    `report` is an SNP report (1,184 bytes) or a TDREPORT (1,024 bytes, checked by nobody outside
    that machine: the quote that comes beside it must carry `report_data`). `runtime_data` is JSON.
    """

    kind: Literal["snp", "tdx"]
    report: bytes
    report_data: bytes
    runtime_data: bytes


def _refuse(why: str, reason: Reason = _REASON) -> NoReturn:
    raise FormatError(f"{_WHAT}: {why}", reason=reason, clause=_CLAUSE)


def is_hcl_report(raw: bytes) -> bool:
    """Whether `raw` starts like a paravisor report; says nothing about the rest."""
    return raw.startswith(_SIGNATURE)


def runtime_data_binding(runtime_data: bytes) -> bytes:
    """Return the 64 bytes of report data that commit to `runtime_data`: SHA-256, then zeros."""
    return hashlib.sha256(runtime_data).digest() + bytes(32)


def parse_hcl_report(raw: bytes) -> HclReport:
    """
    Parse the blob and require that its hardware report data commits to its runtime data.

    Whoever uses it must mark the evidence as the paravisor's. **Does not check** the hardware
    report. Raises `FormatError` (REPORT_DATA_MISMATCH where the commitment does not hold), or
    `Unsupported` for another kind of hardware or another hash.
    """
    if len(raw) > _MAX_BYTES:
        _refuse(f"{len(raw)} bytes, at most {_MAX_BYTES}")
    reader = Reader(raw, what=_WHAT, clause=_CLAUSE, truncated=_REASON)
    if reader.take(4) != _SIGNATURE:
        _refuse("no HCLA at its start")
    # Version, report size, request type, status, reserved: labels that nothing signs.
    reader.take(28)
    hardware = reader.take(_HARDWARE_BYTES)
    _data_size, _version, kind, hash_type, size = (reader.u32le() for _ in range(5))
    if size > _MAX_RUNTIME_BYTES:
        _refuse(f"runtime data of {size} bytes, at most {_MAX_RUNTIME_BYTES}")
    runtime = reader.take(size)
    if reader.rest().strip(b"\0"):
        _refuse("data after the runtime data")
    if kind not in _REPORT_DATA_AT or hash_type != _SHA256:
        raise Unsupported("Azure paravisor report of other hardware or with another hash")
    start = _REPORT_DATA_AT[kind]
    report_data = hardware[start : start + 64]
    if report_data != runtime_data_binding(runtime):
        _refuse("the report data does not commit to it", Reason.REPORT_DATA_MISMATCH)
    if kind == _SNP:
        return HclReport("snp", hardware, report_data, runtime)
    if hardware[_TD_REPORT_BYTES:].strip(b"\0"):
        _refuse("data after the TDREPORT")
    return HclReport("tdx", hardware[:_TD_REPORT_BYTES], report_data, runtime)
