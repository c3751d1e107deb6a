"""CCEL: the firmware's event log of a TD, TCG2 crypto-agile format (ACPI table data).

Clauses: docs/protocols/eventlog.md §2; TCG PC Client Platform Firmware Profile §10; Intel TDX
virtual firmware design guide (register 0 is MRTD, 1..4 are RTMR0..3). `raw` is hostile and
unsigned: only a replay against a quoted register gives it meaning.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader

__all__ = ["EV_NO_ACTION", "CcelEvent", "encode_ccel", "parse_ccel"]

# From: TCG PC Client Platform Firmware Profile §10.4.1.
EV_NO_ACTION = 3
_TPM_ALG_SHA384 = 0x000C
# From: TCG Algorithm Registry §5, TPM_ALG_ID: SHA-1, SHA-256, SHA-384, SHA-512, SM3-256.
_SIZES: Final = {0x0004: 20, 0x000B: 32, _TPM_ALG_SHA384: 48, 0x000D: 64, 0x0012: 32}
_SPEC_ID = b"Spec ID Event03\0"
_CLAUSE = "docs/protocols/eventlog.md#2"
# A real log is 64 or 256 KiB of ACPI data with a few hundred events.
_MAX_BYTES = 1024 * 1024
_MAX_EVENTS = 4096
_MAX_REGISTER = 4
_END = 0xFFFFFFFF
# Register and type.
_HEAD_BYTES = 8


@dataclass(frozen=True, slots=True)
class CcelEvent:
    """
    One event. `register` is the CCEL index: 0 MRTD, 1..4 RTMR0..3.

    `data` is an unauthenticated label: only `digest` is extended.
    """

    register: int
    event_type: int
    digest: bytes
    data: bytes

    @property
    def extended(self) -> bool:
        """False for EV_NO_ACTION, which never reaches a register and proves nothing."""
        return self.event_type != EV_NO_ACTION


def _refuse(what: str, offset: int, reason: Reason = Reason.LOG_FORMAT) -> FormatError:
    return FormatError(f"CCEL: {what}", reason=reason, clause=_CLAUSE, offset=offset)


def parse_ccel(raw: bytes) -> tuple[CcelEvent, ...]:
    """
    Parse the whole table data, header record excluded from the result.

    Raises `FormatError`: LOG_TRUNCATED, LOG_FORMAT, or LOG_REGISTER for an index above 4.
    """
    if len(raw) > _MAX_BYTES:
        raise _refuse(f"{len(raw)} bytes, at most {_MAX_BYTES}", 0)
    reader = Reader(raw, what="CCEL", clause=_CLAUSE, truncated=Reason.LOG_TRUNCATED)
    algorithms = _parse_header(reader)
    events: list[CcelEvent] = []
    while (event := _parse_event(reader, algorithms)) is not None:
        events.append(event)
        if len(events) > _MAX_EVENTS:
            raise _refuse(f"more than {_MAX_EVENTS} events", reader.offset)
    return tuple(events)


def _parse_event(reader: Reader, algorithms: frozenset[int]) -> CcelEvent | None:
    """Return the next record; None where the log ends and only fill follows."""
    at = reader.offset
    if reader.remaining < _HEAD_BYTES:
        _end_of_fill(reader)
        return None
    register, event_type = reader.u32le(), reader.u32le()
    if register == _END:
        if event_type != _END or reader.rest().strip(b"\xff"):
            raise _refuse("data after the end marker", at)
        return None
    if register == 0 and event_type == 0:
        if reader.rest().strip(b"\0"):
            raise _refuse("data after the zero padding began", at)
        return None
    if register > _MAX_REGISTER:
        raise _refuse(f"register {register}", at, Reason.LOG_REGISTER)
    digest = _parse_digests(reader, algorithms)
    return CcelEvent(register, event_type, digest, reader.take(reader.u32le()))


def _parse_digests(reader: Reader, algorithms: frozenset[int]) -> bytes:
    """Return the SHA-384 digest of a record that has one digest of each announced algorithm."""
    at = reader.offset
    if reader.u32le() != len(algorithms):
        raise _refuse("an event without exactly one digest of each algorithm", at)
    found: dict[int, bytes] = {}
    for _ in algorithms:
        algorithm = reader.u16le()
        if algorithm not in algorithms or algorithm in found:
            raise _refuse("an event without exactly one digest of each algorithm", at)
        found[algorithm] = reader.take(_SIZES[algorithm])
    return found[_TPM_ALG_SHA384]


def _end_of_fill(reader: Reader) -> None:
    # Fewer bytes than a record begins with: the end of a fill, or a record that was cut.
    at = reader.offset
    left = reader.rest()
    if left.strip(b"\0") and left.strip(b"\xff"):
        raise _refuse("a record is cut", at, Reason.LOG_TRUNCATED)


def _parse_header(reader: Reader) -> frozenset[int]:
    # Record 0 has the TCG 1.2 shape, with a SHA-1 digest, and names the algorithms to come.
    register, event_type = reader.u32le(), reader.u32le()
    if event_type != EV_NO_ACTION:
        raise _refuse("the first record is not the Spec ID event", 0)
    if register > _MAX_REGISTER:
        raise _refuse(f"register {register}", 0, Reason.LOG_REGISTER)
    reader.take(20)
    body = reader.take(reader.u32le())
    inner = Reader(body, what="CCEL Spec ID", clause=_CLAUSE, truncated=Reason.LOG_FORMAT)
    if inner.take(16) != _SPEC_ID:
        raise _refuse("no Spec ID Event03", 32)
    inner.take(8)
    algorithms = _parse_algorithms(inner)
    inner.take(inner.u8())
    inner.end(Reason.LOG_FORMAT)
    return algorithms


def _parse_algorithms(inner: Reader) -> frozenset[int]:
    count = inner.u32le()
    if not 1 <= count <= len(_SIZES):
        raise _refuse(f"{count} algorithms", 56)
    listed = [(inner.u16le(), inner.u16le()) for _ in range(count)]
    if any(_SIZES.get(algorithm) != size for algorithm, size in listed):
        raise _refuse("an algorithm that is not known, or not of its size", 56)
    found = frozenset(algorithm for algorithm, _ in listed)
    if len(found) != count or _TPM_ALG_SHA384 not in found:
        raise _refuse("SHA-384 is not listed, or an algorithm is listed twice", 56)
    return found


def encode_ccel(events: tuple[CcelEvent, ...]) -> bytes:
    """Return the table data of `events`, without padding."""
    spec = _SPEC_ID + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, _TPM_ALG_SHA384, 48, 0)
    out = [struct.pack("<II20sI", 1, EV_NO_ACTION, bytes(20), len(spec)), spec]
    for event in events:
        head = struct.pack("<IIIH", event.register, event.event_type, 1, _TPM_ALG_SHA384)
        out += [head, event.digest, struct.pack("<I", len(event.data)), event.data]
    return b"".join(out)
