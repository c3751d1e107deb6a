"""The SGX extension of a PCK certificate: which platform, at which patch level.

Format: Intel SGX PCK Certificate and CRL Profile Specification, OID 1.2.840.113741.1.13.1;
clause docs/protocols/tdx.md#17. The bytes are as believable as the certificate around them.
Every mandatory item stands there exactly once, and no item twice. The order is the profile's in
every certificate in hand, which is read fast; any other order, and items that this reader does not
know, are read too: the profile may grow, and Intel signs what it adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

from confide.errors import FormatError, Reason
from confide.wire.der import (
    ENUMERATED,
    INTEGER,
    OCTET_STRING,
    OID,
    SEQUENCE,
    DerReader,
    encode_boolean,
    encode_integer,
    encode_oid,
    encode_tlv,
)

__all__ = ["SGX_EXTENSION_OID", "PckExtension", "encode_pck_extension", "parse_pck_extension"]

SGX_EXTENSION_OID: Final = "1.2.840.113741.1.13.1"
_CLAUSE = "docs/protocols/tdx.md#17"
_REASON = Reason.PCK_EXTENSION
_WHAT = "SGX extension"
_PREFIX: Final = encode_oid(SGX_EXTENSION_OID)[2:]
# From: the profile, §1.3: last arcs of the items.
_PPID, _TCB, _PCEID, _FMSPC, _SGX_TYPE, _INSTANCE, _CONFIGURATION = (
    bytes([arc]) for arc in range(1, 8)
)
_PCESVN, _CPUSVN = b"\x02\x11", b"\x02\x12"
_DYNAMIC, _CACHED, _SMT = b"\x07\x01", b"\x07\x02", b"\x07\x03"
_COMPONENTS: Final = tuple(bytes((2, arc)) for arc in range(1, 17))
# DER has one encoding for everything: the identifiers, and the numbers of a component.
_HEADERS: Final = {
    suffix: encode_tlv(OID, _PREFIX, suffix)
    for suffix in (
        *(_PPID, _TCB, _PCEID, _FMSPC, _SGX_TYPE, _INSTANCE, _CONFIGURATION),
        *(_PCESVN, _CPUSVN, _DYNAMIC, _CACHED, _SMT),
        *_COMPONENTS,
    )
}


def _head(suffix: bytes, size: int) -> tuple[bytes, int]:
    """Return what stands before the `size` bytes of an item that holds an octet string."""
    item = encode_tlv(SEQUENCE, _HEADERS[suffix], encode_tlv(OCTET_STRING, bytes(size)))
    return item[:-size], size


_OCTETS: Final = {
    suffix: _head(suffix, size)
    for suffix, size in (
        (_PPID, 16), (_CPUSVN, 16), (_PCEID, 2), (_FMSPC, 6), (_INSTANCE, 16)
    )
}  # fmt: skip


def _component(suffix: bytes) -> tuple[bytes, bytes]:
    """Return what stands before a number below 128, and before one above, a byte longer in DER."""
    small, large = (
        encode_tlv(SEQUENCE, _HEADERS[suffix], encode_integer(number))[:-1] for number in (0, 255)
    )
    return small, large


_COMPONENT_HEADS: Final = tuple([_component(suffix) for suffix in _COMPONENTS])
_MAX_COMPONENTS_BYTES: Final = sum([len(large) + 1 for _, large in _COMPONENT_HEADS])


@dataclass(frozen=True, slots=True)
class PckExtension:
    """
    One platform.

    `components` are the 16 TCB component numbers, which docs/protocols/tdx.md#17 holds against
    `cpu_svn`. `platform_instance` and the flags exist under the Platform CA only, where each of
    the flags may still be absent.
    """

    ppid: bytes
    components: bytes
    pce_svn: int
    cpu_svn: bytes
    pce_id: bytes
    fmspc: bytes
    sgx_type: int
    platform_instance: bytes | None = None
    dynamic_platform: bool | None = None
    cached_keys: bool | None = None
    smt_enabled: bool | None = None


def _refuse(why: str) -> NoReturn:
    raise FormatError(f"{_WHAT}: {why}", reason=_REASON, clause=_CLAUSE)


def _value(reader: DerReader, suffix: bytes) -> bytes:
    """Return the DER value of the next item, which must be `suffix`: SEQUENCE{OID, value}."""
    item = reader.read(SEQUENCE)
    header = _HEADERS[suffix]
    if not item.startswith(header):
        _refuse("an item is missing, unknown or out of order")
    return item.removeprefix(header)


def _components(tcb: DerReader) -> bytes:
    """Return the 16 component numbers, by the bytes before each: a reader for each is slow."""
    raw, at, found = tcb.peek(), 0, bytearray()
    # PCESVN and CPUSVN follow, so that this much is there whatever the numbers are.
    if len(raw) < _MAX_COMPONENTS_BYTES:
        _refuse("cut in the TCB components")
    for small, large in _COMPONENT_HEADS:
        end = at + len(small)
        number = raw[end]
        if number > 0x7F or raw[at:end] != small:
            end = at + len(large)
            number = raw[end]
            if number <= 0x7F or raw[at:end] != large:
                _refuse("a component is missing, unknown, out of order or not from 0 to 255")
        found.append(number)
        at = end + 1
    tcb.take(at)
    return bytes(found)


def _open(reader: DerReader, suffix: bytes) -> DerReader:
    return DerReader(_value(reader, suffix), what=_WHAT, reason=_REASON)


def _octets(reader: DerReader, suffix: bytes) -> bytes:
    head, size = _OCTETS[suffix]
    item = reader.take(len(head) + size)
    if not item.startswith(head):
        _refuse(f"an item is missing, unknown, out of order or no octet string of {size} bytes")
    return item.removeprefix(head)


def _number(reader: DerReader, suffix: bytes, maximum: int, tag: int = INTEGER) -> int:
    value = _open(reader, suffix)
    number = value.unsigned(maximum, tag)
    value.finish()
    return number


def _sequence(reader: DerReader, suffix: bytes) -> DerReader:
    value = _open(reader, suffix)
    inner = value.sequence()
    value.finish()
    return inner


def parse_pck_extension(der: bytes) -> PckExtension:
    """
    Parse the value of the SGX extension: every mandatory item once, and none twice.

    **Does not check** that the component numbers equal CPUSVN.

    Raises `FormatError`.
    """
    try:
        return _in_profile_order(der)
    except FormatError:
        return _in_any_order(der)


def _in_profile_order(der: bytes) -> PckExtension:
    outer = DerReader(der, what=_WHAT, reason=_REASON)
    items = outer.sequence()
    outer.finish()
    ppid = _octets(items, _PPID)
    tcb = _sequence(items, _TCB)
    components, pce_svn, cpu_svn = (
        _components(tcb),
        _number(tcb, _PCESVN, 0xFFFF),
        _octets(tcb, _CPUSVN),
    )
    tcb.finish()
    pce_id, fmspc = _octets(items, _PCEID), _octets(items, _FMSPC)
    sgx_type = _number(items, _SGX_TYPE, 255, ENUMERATED)
    instance = dynamic = cached = smt = None
    if items.remaining:
        instance = _octets(items, _INSTANCE)
    if items.remaining:
        flags = _sequence(items, _CONFIGURATION)
        dynamic, cached, smt = _flag(flags, _DYNAMIC), _flag(flags, _CACHED), _flag(flags, _SMT)
        flags.finish()
    items.finish()
    return PckExtension(
        ppid=ppid,
        components=components,
        pce_svn=pce_svn,
        cpu_svn=cpu_svn,
        pce_id=pce_id,
        fmspc=fmspc,
        sgx_type=sgx_type,
        platform_instance=instance,
        dynamic_platform=dynamic,
        cached_keys=cached,
        smt_enabled=smt,
    )


def _items(reader: DerReader) -> dict[bytes, DerReader]:
    """Return what follows each identifier in a SEQUENCE OF SEQUENCE{OID, value}; none twice."""
    found: dict[bytes, DerReader] = {}
    while reader.remaining:
        item = reader.sequence()
        oid = item.read(OID)
        if oid in found:
            _refuse("an item appears twice")
        found[oid] = item
    return found


class _Unordered:
    """The items of one group by their last arcs."""

    def __init__(self, reader: DerReader) -> None:
        self._found = _items(reader)

    def take(self, suffix: bytes) -> DerReader | None:
        """Return a reader at the value of an item, None where it is absent."""
        return self._found.get(_PREFIX + suffix)

    def require(self, suffix: bytes) -> DerReader:
        """Return a reader at the value of a mandatory item."""
        item = self.take(suffix)
        if item is None:
            _refuse("an item is missing")
        return item

    def group(self, suffix: bytes) -> _Unordered:
        """Return the items of a mandatory group."""
        item = self.require(suffix)
        inner = item.sequence()
        item.finish()
        return _Unordered(inner)

    def octets(self, suffix: bytes) -> bytes:
        """Return a mandatory octet string."""
        item = self.require(suffix)
        value = item.octets(_OCTETS[suffix][1])
        item.finish()
        return value

    def number(self, suffix: bytes, maximum: int, tag: int = INTEGER) -> int:
        """Return a mandatory number."""
        item = self.require(suffix)
        value = item.unsigned(maximum, tag)
        item.finish()
        return value

    def flag(self, suffix: bytes) -> bool | None:
        """Return a flag, None where it is absent."""
        item = self.take(suffix)
        if item is None:
            return None
        value = item.boolean()
        item.finish()
        return value


def _in_any_order(der: bytes) -> PckExtension:
    outer = DerReader(der, what=_WHAT, reason=_REASON)
    items = _Unordered(outer.sequence())
    outer.finish()
    tcb = items.group(_TCB)
    flags = None if items.take(_CONFIGURATION) is None else items.group(_CONFIGURATION)
    return PckExtension(
        ppid=items.octets(_PPID),
        components=bytes(tcb.number(suffix, 255) for suffix in _COMPONENTS),
        pce_svn=tcb.number(_PCESVN, 0xFFFF),
        cpu_svn=tcb.octets(_CPUSVN),
        pce_id=items.octets(_PCEID),
        fmspc=items.octets(_FMSPC),
        sgx_type=items.number(_SGX_TYPE, 255, ENUMERATED),
        platform_instance=None if items.take(_INSTANCE) is None else items.octets(_INSTANCE),
        dynamic_platform=flags.flag(_DYNAMIC) if flags else None,
        cached_keys=flags.flag(_CACHED) if flags else None,
        smt_enabled=flags.flag(_SMT) if flags else None,
    )


def _flag(reader: DerReader, suffix: bytes) -> bool:
    value = _open(reader, suffix)
    flag = value.boolean()
    value.finish()
    return flag


def encode_pck_extension(extension: PckExtension) -> bytes:
    """Return the value of the SGX extension."""

    def item(suffix: bytes, value: bytes) -> bytes:
        return encode_tlv(SEQUENCE, encode_tlv(OID, _PREFIX, suffix), value)

    def octets(value: bytes) -> bytes:
        return encode_tlv(OCTET_STRING, value)

    tcb = [
        item(bytes((2, arc)), encode_integer(value))
        for arc, value in enumerate(extension.components, start=1)
    ]
    tcb.append(item(_PCESVN, encode_integer(extension.pce_svn)))
    tcb.append(item(_CPUSVN, octets(extension.cpu_svn)))
    items = [
        item(_PPID, octets(extension.ppid)),
        item(_TCB, encode_tlv(SEQUENCE, *tcb)),
        item(_PCEID, octets(extension.pce_id)),
        item(_FMSPC, octets(extension.fmspc)),
        item(_SGX_TYPE, encode_integer(extension.sgx_type, ENUMERATED)),
    ]
    if extension.platform_instance is not None:
        items.append(item(_INSTANCE, octets(extension.platform_instance)))
    flags = (
        (_DYNAMIC, extension.dynamic_platform),
        (_CACHED, extension.cached_keys),
        (_SMT, extension.smt_enabled),
    )
    present = [item(suffix, encode_boolean(flag)) for suffix, flag in flags if flag is not None]
    if present:
        items.append(item(_CONFIGURATION, encode_tlv(SEQUENCE, *present)))
    return encode_tlv(SEQUENCE, *items)
