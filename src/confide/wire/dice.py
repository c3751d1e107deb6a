"""DICE extensions of NVIDIA leaf certificates: DER to values.

Two layouts carry the firmware identity (FWID): CompositeDeviceID on Hopper (OID 2.23.133.5.4.1,
Microsoft's RIoT layout) and TcbInfo on Blackwell (OID 2.23.133.5.4.1.1, TCG DICE Attestation
Architecture 1.1 §6.1.1). Clause: docs/protocols/nvidia.md 7. The bytes come from a certificate;
they are trusted only as far as its chain was verified.
"""

from __future__ import annotations

from dataclasses import dataclass

from confide.errors import FormatError, Reason
from confide.wire.der import OID, SEQUENCE, DerReader

__all__ = [
    "COMPOSITE_DEVICE_ID",
    "TCB_INFO",
    "DiceIdentity",
    "parse_composite_device_id",
    "parse_tcb_info",
]

# From: TCG OID registry, tcg-dice.
COMPOSITE_DEVICE_ID = "2.23.133.5.4.1"
TCB_INFO = "2.23.133.5.4.1.1"

_CLAUSE = "docs/protocols/nvidia.md#7"
_BIT_STRING = 0x03
# From: DICE Attestation Architecture 1.1 §6.1.1: fwids is [6] IMPLICIT.
_FWIDS = 0xA6
# The other members of DiceTcbInfo, in order: vendor, model, version, svn, layer, index before
# fwids; flags, vendorInfo, type after.
_BEFORE_FWIDS = (0x80, 0x81, 0x82, 0x83, 0x84, 0x85)
_AFTER_FWIDS = (0x87, 0x88, 0x89)
# From: NIST CSOR 2.16.840.1.101.3.4.2.2 (SHA-384).
_SHA384 = bytes.fromhex("608648016503040202")
# From: RFC 5480 §2: id-ecPublicKey with secp384r1.
_EC_P384 = bytes.fromhex("06072a8648ce3d020106052b81040022")
_FWID_BYTES = 48
_POINT_BYTES = 97


@dataclass(frozen=True, slots=True)
class DiceIdentity:
    """`fwid` is the first firmware id, `key` the point x ‖ y of the layer below where given."""

    fwid: bytes
    key: bytes | None


def _reader(raw: bytes) -> DerReader:
    return DerReader(raw, what="DICE extension", reason=Reason.FWID_MISSING)


def _refuse(what: str) -> FormatError:
    return FormatError(f"DICE extension: {what}", reason=Reason.FWID_MISSING, clause=_CLAUSE)


def _end(reader: DerReader) -> None:
    if reader.remaining:
        raise _refuse(f"{reader.remaining} bytes after the end")


def _fwid(reader: DerReader) -> bytes:
    inner = reader.sequence()
    if inner.read(OID) != _SHA384:
        raise _refuse("the firmware id is not SHA-384")
    digest = inner.octets(_FWID_BYTES)
    _end(inner)
    return digest


def parse_composite_device_id(raw: bytes) -> DiceIdentity:
    """Decode a CompositeDeviceID (Hopper). Raises `FormatError`."""
    outer = _reader(raw)
    body = outer.sequence()
    _end(outer)
    if body.unsigned(1) != 1:
        raise _refuse("version is not 1")
    spki = body.sequence()
    if spki.read(SEQUENCE) != _EC_P384:
        raise _refuse("the key is not P-384")
    bits = spki.read(_BIT_STRING)
    _end(spki)
    fwid = _fwid(body)
    _end(body)
    # From: SEC 1 §2.3.3 after the unused-bits octet of X.690 §8.6.2.
    if len(bits) != _POINT_BYTES + 1 or not bits.startswith(b"\x00\x04"):
        raise _refuse("the key is not an uncompressed point")
    return DiceIdentity(fwid, bits.removeprefix(b"\x00\x04"))


def parse_tcb_info(raw: bytes) -> DiceIdentity:
    """Decode a DiceTcbInfo (Blackwell) and take the first of its FWIDs. Raises `FormatError`."""
    outer = _reader(raw)
    body = outer.sequence()
    _end(outer)
    for tag in _BEFORE_FWIDS:
        body.read(tag)
    fwids = _reader(body.read(_FWIDS))
    for tag in _AFTER_FWIDS:
        body.read(tag)
    _end(body)
    first = _fwid(fwids)
    while fwids.remaining:
        _fwid(fwids)
    return DiceIdentity(first, None)
