"""The SGX extension of a PCK certificate: which platform, at which patch level.

Format: Intel SGX PCK Certificate and CRL Profile Specification, OID 1.2.840.113741.1.13.1;
clause docs/protocols/tdx.md#17. The bytes are as believable as the certificate around them.
Unknown items are refused although the profile may grow: this reader says what it understood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

from confide.errors import FormatError, Reason
from confide.wire.der import (
    ENUMERATED,
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
_MANDATORY: Final = frozenset((_PPID, _TCB, _PCEID, _FMSPC, _SGX_TYPE))
_DYNAMIC, _CACHED, _SMT = b"\x07\x01", b"\x07\x02", b"\x07\x03"


@dataclass(frozen=True, slots=True)
class PckExtension:
    """
    One platform.

    `components` are the 16 TCB component numbers, which docs/protocols/tdx.md#17 holds against
    `cpu_svn`. `platform_instance` and the flags exist on multi-package platforms only; a flag
    that is absent is None.
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


def _items(reader: DerReader) -> dict[bytes, DerReader]:
    """Split SEQUENCE OF SEQUENCE{OID, value} into readers over the values, by OID suffix."""
    found: dict[bytes, DerReader] = {}
    while reader.remaining:
        item = reader.sequence()
        oid = item.read(OID)
        if not oid.startswith(_PREFIX):
            _refuse("an item outside the SGX arc")
        suffix = oid[len(_PREFIX) :]
        if suffix in found:
            _refuse("an item stands twice")
        found[suffix] = item
    return found


def parse_pck_extension(der: bytes) -> PckExtension:
    """
    Parse the value of the SGX extension.

    **Does not check** that the component numbers equal CPUSVN.

    Raises `FormatError`.
    """
    outer = DerReader(der, what=_WHAT, reason=_REASON)
    items = _items(outer.sequence())
    outer.end()
    if _MANDATORY - items.keys():
        _refuse("a mandatory item is missing")
    if items.keys() - _MANDATORY - {_INSTANCE, _CONFIGURATION}:
        _refuse("an unknown item")
    tcb = _items(items[_TCB].sequence())
    if len(tcb) != 18:
        _refuse(f"{len(tcb)} TCB items instead of 18")
    names = [bytes((2, arc)) for arc in range(1, 17)]
    if tcb.keys() != {*names, _PCESVN, _CPUSVN}:
        _refuse("an unknown TCB item")
    flags: dict[bytes, bool] = {}
    if _CONFIGURATION in items:
        configuration = _items(items[_CONFIGURATION].sequence())
        if configuration.keys() - {_DYNAMIC, _CACHED, _SMT}:
            _refuse("an unknown configuration item")
        flags = {name: item.boolean() for name, item in configuration.items()}
        _end(configuration)
    found = PckExtension(
        ppid=items[_PPID].octets(16),
        components=bytes(tcb[name].unsigned(255) for name in names),
        pce_svn=tcb[_PCESVN].unsigned(0xFFFF),
        cpu_svn=tcb[_CPUSVN].octets(16),
        pce_id=items[_PCEID].octets(2),
        fmspc=items[_FMSPC].octets(6),
        sgx_type=items[_SGX_TYPE].unsigned(255, ENUMERATED),
        platform_instance=items[_INSTANCE].octets(16) if _INSTANCE in items else None,
        dynamic_platform=flags.get(_DYNAMIC),
        cached_keys=flags.get(_CACHED),
        smt_enabled=flags.get(_SMT),
    )
    _end(items)
    _end(tcb)
    return found


def _end(items: dict[bytes, DerReader]) -> None:
    for item in items.values():
        item.end()


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
