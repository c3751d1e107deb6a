"""Certificates and revocation lists that an RSA-PSS authority signed, as AMD issues them.

Companion of `x509`, kept apart so that no chain of another vendor can pass through an RSA key. The
algorithm identifier is compared as bytes with the two encodings AMD uses; whatever it says, the
signature is verified as RSASSA-PSS with SHA-384 and a salt of 48 bytes. As there: **validity, CA
flag, key usage, names and critical extensions are judged by the numbered steps of the caller.**

AMD's VCEK and VLEK carry serial number 0, which RFC 5280 §4.1.2.2 forbids and `cryptography`
announces to refuse. The library therefore reads a copy in which that one number is 1; signature and
digest are those of the bytes that arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.crypto.ecdsa import wrap_public_key
from confide.crypto.errors import BadSignature
from confide.crypto.rsa import RsaPublicKey, verify_pss, wrap_rsa_public_key
from confide.crypto.x509 import (
    CERTIFICATE_HEAD,
    CRL_HEAD,
    Certificate,
    CertificateBody,
    parse_body,
    signed_part,
)
from confide.errors import FormatError, Reason
from confide.wire.der import INTEGER, SEQUENCE, DerReader, encode_integer, encode_tlv

if TYPE_CHECKING:
    from confide.crypto.x509 import Crl

__all__ = [
    "PSS_ALGORITHM",
    "RsaCertificate",
    "parse_leaf_der",
    "parse_rsa_certificate_der",
    "verify_crl_pss",
    "verify_issued_by_pss",
]

# From: RFC 4055 §3.1: id-RSASSA-PSS with SHA-384, MGF1 with SHA-384, salt 48, as in AMD's
# certificates: with the default trailer field written out (all but VLEK), and left out (VLEK).
_PARAMETERS: Final = bytes.fromhex(
    "a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500"
    "a203020130"
)
_PSS_OID: Final = bytes.fromhex("06092a864886f70d01010a")
_TRAILER: Final = bytes.fromhex("a303020101")
PSS_ALGORITHM: Final = _PSS_OID + encode_tlv(SEQUENCE, _PARAMETERS, _TRAILER)
_ALGORITHMS: Final = frozenset({PSS_ALGORITHM, _PSS_OID + encode_tlv(SEQUENCE, _PARAMETERS)})
_VERSION: Final = CERTIFICATE_HEAD[0]


@dataclass(frozen=True, slots=True)
class RsaCertificate(CertificateBody):
    """A certificate for an RSA key of 4096 bits."""

    public_key: RsaPublicKey = field(compare=False)


def parse_rsa_certificate_der(der: bytes, *, what: str, reason: Reason) -> RsaCertificate:
    """Parse one certificate for an RSA key, as `x509.parse_certificate_der` does for others."""
    body, key = parse_body(der, what=what, reason=reason)
    return RsaCertificate(**body, public_key=wrap_rsa_public_key(key, what=what, reason=reason))


def _with_serial_one(der: bytes, *, what: str, reason: Reason) -> bytes | None:
    """Return `der` with serial number 1 where it has 0, None where it has another."""
    outer = DerReader(der, what=what, reason=reason)
    certificate = outer.sequence()
    outer.finish()
    signed = certificate.sequence()
    version, serial = signed.read(_VERSION), signed.read(INTEGER)
    if not serial or serial[0] >= 0x80:
        raise FormatError(
            f"{what}: a negative serial number", reason=reason, clause="RFC 5280 §4.1.2.2"
        )
    if any(serial):
        return None
    if len(serial) != 1:
        raise FormatError(
            f"{what}: not a minimal serial number", reason=reason, clause="X.690 §8.3.2"
        )
    patched = (encode_tlv(_VERSION, version), encode_integer(1), signed.rest())
    return encode_tlv(SEQUENCE, encode_tlv(SEQUENCE, *patched), certificate.rest())


def parse_leaf_der(der: bytes, *, what: str, reason: Reason) -> Certificate:
    """
    Parse one certificate for a key on P-256 or P-384 whose serial number may be 0.

    Raises `FormatError`, never a warning.
    """
    readable = _with_serial_one(der, what=what, reason=reason)
    body, key = parse_body(der, what=what, reason=reason, readable=readable)
    if readable is not None:
        body["serial"] = 0
    return Certificate(**body, public_key=wrap_public_key(key, what=what, reason=reason))


def _require_pss(der: bytes, reason: Reason) -> None:
    outer = DerReader(der, what="signed structure", reason=reason).sequence()
    outer.read(SEQUENCE)
    if outer.read(SEQUENCE) not in _ALGORITHMS:
        raise BadSignature("not signed with RSA-PSS, SHA-384 and a salt of 48 bytes")


def verify_issued_by_pss(child: CertificateBody, issuer: RsaCertificate) -> None:
    """
    Establish that `issuer`'s subject name and key stand behind `child`'s issuer name and signature.

    **Does not check** validity, CA flag, path length, key usage or revocation.

    Raises `BadSignature`, and `FormatError` for DER that is not well-formed.
    """
    if child.handle.issuer != issuer.handle.subject:
        raise BadSignature("the certificate names another issuer")
    _require_pss(child.der, Reason.CHAIN)
    signed = signed_part(child.der, Reason.CHAIN, before=CERTIFICATE_HEAD)
    verify_pss(issuer.public_key, child.handle.signature, signed)


def verify_crl_pss(crl: Crl, issuer: RsaCertificate) -> None:
    """
    Establish that `issuer` signed `crl` under its own name.

    **Does not check** dates or whether `issuer` may sign revocation lists (`key_usage`).

    Raises `BadSignature`, and `FormatError` for DER that is not well-formed.
    """
    if crl.handle.issuer != issuer.handle.subject:
        raise BadSignature("the revocation list names another issuer")
    _require_pss(crl.der, Reason.CRL_FORMAT)
    signed = signed_part(crl.der, Reason.CRL_FORMAT, before=CRL_HEAD)
    verify_pss(issuer.public_key, crl.handle.signature, signed)
