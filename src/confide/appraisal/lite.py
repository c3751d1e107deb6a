"""dstack "lite": MRTD and RTMR0 to RTMR2 recomputed from the measurement file of an image.

Clauses: docs/protocols/dstack.md §6. The machine description, its files and the log are hostile;
they count only because the result equals the registers of a verified quote, and only for an image
hash that the caller accepts. ACPI tables enter as three digests out of the log: what they say is
not checked here, nor by the scheme.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from confide.appraisal.steps import Refused
from confide.errors import FormatError, Reason
from confide.wire.cbor import CborValue, parse_cbor
from confide.wire.json import Members
from confide.wire.rtmr_log import extend_register

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from confide.wire.json import JsonValue
    from confide.wire.rtmr_log import LogEntry

__all__ = [
    "LiteInputs",
    "Measurement",
    "acpi_digests",
    "is_stripped",
    "lite_rtmr0",
    "lite_rtmr1",
    "lite_rtmr2",
    "read_lite_inputs",
    "read_measurement",
    "require_image_files",
    "td_hob",
]

_CLAUSE: Final = "docs/protocols/dstack.md#6"
_MAX_FILE_CHARS: Final = 64 * 1024
_MEASUREMENT_NAME: Final = b"measurement.tdx.cbor"
_CHECKSUM_LINE: Final = re.compile(rb"([0-9a-f]{64}) [ *](?:\./)?([^\r\n]+)")
_PAGE: Final = 4096
_MAX_RANGES: Final = 64
# From: docs/protocols/dstack.md §6.7: digests that the image does not change.
_CFV: Final = bytes.fromhex(
    "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6"
    "412af21c097d473155875ffd561d6790"
)
_BOOT0000: Final = bytes.fromhex(
    "23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28e"
    "acf7047ae6e967c58fd2a98bfa74c298"
)
_GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_SECURITY: Final = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
_VARIABLES: Final = (
    (_GLOBAL, "SecureBoot"),
    (_GLOBAL, "PK"),
    (_GLOBAL, "KEK"),
    (_SECURITY, "db"),
    (_SECURITY, "dbx"),
)
# From: docs/protocols/dstack.md §6.5.
_CALLING: Final = b"Calling EFI Application from Boot Option"
_EXIT: Final = b"Exit Boot Services Invocation"
_RETURNED: Final = b"Exit Boot Services Returned with Success"
_ACPI_NAMES: Final = ("acpi-loader", "acpi-rsdp", "acpi-tables")
# From: TCG PC Client Platform Firmware Profile §10.4.1: EV_PLATFORM_CONFIG_FLAGS.
_EV_PLATFORM_CONFIG: Final = 10
_ACPI_PAYLOADS: Final = (b"", b"ACPI DATA")
# From: docs/protocols/dstack.md §6.7: where memory is split below 4 GiB, and where it goes on.
_SPLIT_FROM: Final = 0xB000_0000
_LOW_END: Final = 0x8000_0000
_HIGH_START: Final = 0x1_0000_0000
_ACCEPTED, _UNACCEPTED = 0, 7


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteInputs:
    """What a machine description holds for this scheme; all of it hostile."""

    memory_size: int
    os_image_hash: bytes
    checksum_file: bytes
    measurement: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The measurement file of an image, parsed: digests of 48 bytes, `hob` in pages."""

    cmdline: bytes
    kernel: bytes
    initrd: bytes
    ovmf: str
    mrtd_single_pass: bytes
    mrtd_two_pass: bytes
    hob: tuple[int, ...]


def _sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def read_lite_inputs(vm_config: JsonValue) -> LiteInputs | None:
    """
    Return the inputs in a machine description, None where it holds no `tdx_measurement`.

    Other members of the description are not read here. Raises `FormatError` (SERVICE_FORMAT).
    """
    if not isinstance(vm_config, dict) or vm_config.get("tdx_measurement") is None:
        return None
    members = Members(vm_config, what="vm_config", reason=Reason.SERVICE_FORMAT)
    files = members.members("tdx_measurement")
    found = LiteInputs(
        # A size that no machine has gives a block, and so a register, that no quote holds.
        memory_size=members.integer("memory_size"),
        os_image_hash=members.hexes("os_image_hash", 32),
        checksum_file=files.base64("checksum_file"),
        measurement=files.base64("measurement"),
    )
    files.end()
    if max(len(found.checksum_file), len(found.measurement)) > _MAX_FILE_CHARS:
        files.refuse(f"a file above {_MAX_FILE_CHARS} bytes")
    return found


def require_image_files(inputs: LiteInputs) -> None:
    """
    Require that the image hash covers the checksum file, and that one the measurement file.

    Raises `Refused` (OS_IMAGE_HASH).
    """
    if hashlib.sha256(inputs.checksum_file).digest() != inputs.os_image_hash:
        raise Refused(Reason.OS_IMAGE_HASH, "the checksum file is not the one that it names")
    named = [
        match.group(1)
        for line in inputs.checksum_file.split(b"\n")
        if (match := _CHECKSUM_LINE.fullmatch(line)) and match.group(2) == _MEASUREMENT_NAME
    ]
    if len(named) != 1:
        raise Refused(Reason.OS_IMAGE_HASH, f"{len(named)} entries for the measurement file")
    if hashlib.sha256(inputs.measurement).hexdigest().encode() != named[0]:
        raise Refused(Reason.OS_IMAGE_HASH, "the measurement file is not the one listed")


class _Map:
    """One CBOR map, exhaustively read."""

    def __init__(self, value: CborValue) -> None:
        if not isinstance(value, dict):
            _malformed("a map was expected")
        self._left = dict(value)

    def value(self, name: str) -> CborValue:
        if name not in self._left:
            _malformed(f"{name} is missing")
        return self._left.pop(name)

    def map(self, name: str) -> _Map:
        return _Map(self.value(name))

    def octets(self, name: str, size: int | None = None) -> bytes:
        found = self.value(name)
        if not isinstance(found, bytes) or size not in {None, len(found)}:
            _malformed(f"{name} is not {size or 'some'} bytes")
        return found

    def end(self) -> None:
        if self._left:
            _malformed(f"{len(self._left)} unknown member(s)")


def _malformed(why: str) -> NoReturn:
    raise FormatError(f"measurement file: {why}", reason=Reason.SERVICE_FORMAT, clause=_CLAUSE)


def read_measurement(raw: bytes) -> Measurement:
    """Parse a measurement file; unknown members are refused. Raises `FormatError`."""
    top = _Map(parse_cbor(raw, what="measurement file", reason=Reason.SERVICE_FORMAT))
    if top.value("version") != 3:
        _malformed("version is not 3")
    image, firmware = top.map("image"), top.map("tdvf")
    top.end()
    mrtd = firmware.map("mrtd")
    ovmf = firmware.value("ovmf")
    if not isinstance(ovmf, str):
        _malformed("ovmf is not text")
    found = Measurement(
        cmdline=image.octets("cmdline_sha384", 48),
        kernel=image.octets("kernel_authenticode", 48),
        initrd=image.octets("initrd_sha384", 48),
        ovmf=ovmf,
        mrtd_single_pass=mrtd.octets("single_pass", 48),
        mrtd_two_pass=mrtd.octets("two_pass", 48),
        hob=_leb128(firmware.octets("td_hob")),
    )
    for part in (image, mrtd, firmware):
        part.end()
    return found


def _leb128(raw: bytes) -> tuple[int, ...]:
    found: list[int] = []
    number = shift = 0
    for octet in raw:
        number |= (octet & 0x7F) << shift
        shift += 7
        if octet & 0x80:
            if shift > 49:
                _malformed("a number of td_hob is too large")
            continue
        if shift > 7 and not octet:
            _malformed("a number of td_hob is not in its shortest form")
        found.append(number)
        number = shift = 0
    if shift:
        _malformed("td_hob is cut")
    if len(found) < 3 or found[2] > _MAX_RANGES or len(found) != 3 + 2 * found[2]:
        _malformed("td_hob does not hold the ranges it announces")
    return tuple(found)


def _ranges(measured: Sequence[int], memory_size: int) -> list[tuple[int, int, int]]:
    """Return (start, end, type): memory with the accepted ranges carved out, sorted."""
    base, _, count = measured[:3]
    accepted = sorted(
        ((base + start) * _PAGE, (base + start + length) * _PAGE)
        for start, length in zip(
            measured[3 : 3 + 2 * count : 2], measured[4 : 4 + 2 * count : 2], strict=True
        )
    )
    found: list[tuple[int, int, int]] = []
    at = 0
    for start, end in accepted:
        if start < at or end <= start or end > memory_size:
            raise Refused(Reason.RTMR0_MISMATCH, "no hand-off block for this memory size")
        if start > at:
            found.append((at, start, _UNACCEPTED))
        found.append((start, end, _ACCEPTED))
        at = end
    if at < memory_size:
        found.append((at, memory_size, _UNACCEPTED))
    return found


def td_hob(measured: Sequence[int], memory_size: int) -> bytes:
    """
    Return the hand-off block that the host builds for `memory_size` bytes, without its end marker.

    `measured` are the numbers of the measurement file, in pages. Raises `Refused`
    (RTMR0_MISMATCH) where the ranges do not fit into the memory.
    """
    ranges = _ranges(measured, memory_size)
    if not ranges:
        raise Refused(Reason.RTMR0_MISMATCH, "no hand-off block for this memory size")
    start, end, _ = ranges.pop()
    parts = [_resource(kind, low, high - low) for low, high, kind in ranges]
    if memory_size >= _SPLIT_FROM:
        if start < _LOW_END:
            parts.append(_resource(_UNACCEPTED, start, _LOW_END - start))
        if end > _LOW_END:
            parts.append(_resource(_UNACCEPTED, _HIGH_START, end - _LOW_END))
    else:
        parts.append(_resource(_UNACCEPTED, start, end - start))
    body = b"".join(parts)
    address = (measured[0] + measured[1]) * _PAGE
    last = address + 56 + len(body) + 8
    # From: UEFI PI specification, volume 3, EFI_HOB_HANDOFF_INFO_TABLE.
    return struct.pack("<HHIIIQQQQQ", 1, 56, 0, 9, 0, 0, 0, 0, 0, last) + body


def _resource(kind: int, start: int, length: int) -> bytes:
    # From: UEFI PI specification, volume 3, EFI_HOB_RESOURCE_DESCRIPTOR; attributes 7.
    return struct.pack("<HHI16xIIQQ", 3, 48, 0, kind, 7, start, length)


def _variable(guid: str, name: str) -> bytes:
    first, second, third, *rest = guid.split("-")
    mixed = b"".join(
        (*(bytes.fromhex(part)[::-1] for part in (first, second, third)), *map(bytes.fromhex, rest))
    )
    return _sha384(mixed + struct.pack("<QQ", len(name), 0) + name.encode("utf-16-le"))


def _replay(digests: Iterable[bytes]) -> bytes:
    register = bytes(48)
    for digest in digests:
        register = extend_register(register, digest)
    return register


def is_stripped(entries: Sequence[LogEntry]) -> bool:
    """
    Whether the firmware part of a log is the stripped form: three ACPI digests and no more.

    Such a log does not claim to cover RTMR0: the digests are inputs of the recomputation.
    """
    firmware = [entry for entry in entries if entry.register < 3]
    return len(firmware) == 3 and all(_is_acpi(entry) for entry in firmware)


def _is_acpi(entry: LogEntry) -> bool:
    return (
        entry.register == 0
        and entry.event_type == _EV_PLATFORM_CONFIG
        and (entry.event.name in _ACPI_NAMES or entry.event.payload in _ACPI_PAYLOADS)
    )


def acpi_digests(entries: Sequence[LogEntry]) -> tuple[bytes, bytes, bytes]:
    """
    Return the digests of loader, root pointer and tables, in this order.

    By name where the log names them, else the three of their type as they stand. Labels prove
    nothing: the register that follows does. Raises `Refused` (RTMR0_MISMATCH).
    """
    found = [entry for entry in entries if _is_acpi(entry)]
    if any(entry.event.name for entry in found):
        found = [entry for name in _ACPI_NAMES for entry in found if entry.event.name == name]
    if len(found) != 3:
        raise Refused(Reason.RTMR0_MISMATCH, f"{len(found)} ACPI digests in the log, not three")
    return found[0].digest, found[1].digest, found[2].digest


def lite_rtmr0(
    measurement: Measurement, *, memory_size: int, acpi: tuple[bytes, bytes, bytes]
) -> bytes:
    """Return RTMR0. Raises `Refused` where the memory size is none that the image can have."""
    return _replay(
        (
            _sha384(td_hob(measurement.hob, memory_size)),
            _CFV,
            *(_variable(guid, name) for guid, name in _VARIABLES),
            _sha384(bytes(4)),
            *acpi,
            _sha384(bytes(2)),
            _BOOT0000,
        )
    )


def lite_rtmr1(measurement: Measurement) -> bytes:
    """Return RTMR1: the kernel and the firmware's way to it."""
    actions = (_CALLING, bytes(4), _EXIT, _RETURNED)
    return _replay((measurement.kernel, *map(_sha384, actions)))


def lite_rtmr2(measurement: Measurement) -> bytes:
    """Return RTMR2: command line (with the hash of the root file system) and initial disk."""
    return _replay((measurement.cmdline, measurement.initrd))
