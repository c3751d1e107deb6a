"""Certificates and OCSP answers of SIMULATED NVIDIA hardware, written out as DER.

Profiles: docs/protocols/nvidia.md 2 and "OCSP"; RFC 5280, RFC 6960. Everything is derived from the
arguments: equal inputs give equal bytes. Nothing here is trusted by anyone who does not pass the
simulated root on purpose.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from confide.crypto.ecdsa import Curve, SigningKey, derive_signing_key
from confide.crypto.ocsp import OcspStatus
from confide.wire.der import (
    OCTET_STRING,
    SEQUENCE,
    encode_boolean,
    encode_integer,
    encode_oid,
    encode_tlv,
)
from confide.wire.json import b64encode

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FOREVER",
    "Authority",
    "Period",
    "authority",
    "ca_extensions",
    "end_entity_extensions",
    "extension",
    "issue",
    "key_identifier",
    "name",
    "ocsp_response",
    "ocsp_unavailable",
    "pem",
    "point",
    "responder",
    "whole_seconds",
]

_SET, _BIT_STRING, _UTC_TIME, _GENERALIZED_TIME = 0x31, 0x03, 0x17, 0x18
_UTF8_STRING, _PRINTABLE_STRING = 0x0C, 0x13
# From: RFC 5280 §4.1.2.5: "no well-defined expiration date".
FOREVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_ECDSA_SHA384: Final = encode_tlv(SEQUENCE, encode_oid("1.2.840.10045.4.3.3"))
_SHA384: Final = encode_tlv(SEQUENCE, encode_oid("2.16.840.1.101.3.4.2.2"))
_P384_KEY: Final = encode_tlv(SEQUENCE, encode_oid("1.2.840.10045.2.1"), encode_oid("1.3.132.0.34"))
# From: X.520: attribute type and the string type that NVIDIA encodes it with.
_ATTRIBUTES: Final = {
    "CN": ("2.5.4.3", _UTF8_STRING),
    "serialNumber": ("2.5.4.5", _PRINTABLE_STRING),
    "C": ("2.5.4.6", _PRINTABLE_STRING),
    "L": ("2.5.4.7", _UTF8_STRING),
    "ST": ("2.5.4.8", _UTF8_STRING),
    "O": ("2.5.4.10", _UTF8_STRING),
}
_OCSP_URL: Final = "http://ocsp.simulated.invalid"
# From: RFC 6960 §4.2.2.2.
_OCSP_SIGNING: Final = "1.3.6.1.5.5.7.3.9"
# From: RFC 6960 §4.2.1: CertStatus; RFC 5280 §5.3.1: keyCompromise 1, certificateHold 6.
_STATUS_GOOD: Final = b"\x80\x00"
_STATUS_UNKNOWN: Final = b"\x82\x00"


@dataclass(frozen=True, slots=True)
class Period:
    """Validity of a certificate, both ends included."""

    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Authority:
    """A key that signs under a name, with its own certificate (DER) and its serial number."""

    key: SigningKey
    subject: bytes
    der: bytes
    serial: int

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the certificate."""
        return hashlib.sha256(self.der).hexdigest()


def whole_seconds(moment: datetime) -> datetime:
    """Return `moment` without its fraction: DER times have none."""
    return moment.replace(microsecond=0)


def name(**attributes: str) -> bytes:
    """Return a DER Name with `attributes` in the order given."""
    parts = []
    for kind, text in attributes.items():
        oid, tag = _ATTRIBUTES[kind]
        attribute = encode_tlv(SEQUENCE, encode_oid(oid), encode_tlv(tag, text.encode()))
        parts.append(encode_tlv(_SET, attribute))
    return encode_tlv(SEQUENCE, *parts)


def point(key: SigningKey) -> bytes:
    """Return the uncompressed public point (97 bytes)."""
    return b"\x04" + key.public.point


def key_identifier(key: SigningKey) -> bytes:
    """Return SHA-1 over the public point (RFC 5280 §4.2.1.2, method 1): a name, not a proof."""
    return hashlib.sha1(point(key), usedforsecurity=False).digest()


def extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    """Return one DER Extension."""
    flag = encode_boolean(critical) if critical else b""
    return encode_tlv(SEQUENCE, encode_oid(oid), flag, encode_tlv(OCTET_STRING, value))


def _key_usage(bits: int) -> bytes:
    # From: RFC 5280 §4.2.1.3: bit 0 is the first; trailing zero bits are cut (X.690 §11.2.2).
    unused = (bits & -bits).bit_length() - 1
    return extension("2.5.29.15", encode_tlv(_BIT_STRING, bytes([unused, bits])), critical=True)


def _identifiers(subject: SigningKey, issuer: SigningKey) -> tuple[bytes, bytes]:
    return (
        extension("2.5.29.14", encode_tlv(OCTET_STRING, key_identifier(subject))),
        extension("2.5.29.35", encode_tlv(SEQUENCE, encode_tlv(0x80, key_identifier(issuer)))),
    )


def _ocsp_access() -> bytes:
    location = encode_tlv(0x86, _OCSP_URL.encode())
    access = encode_tlv(SEQUENCE, encode_oid("1.3.6.1.5.5.7.48.1"), location)
    return extension("1.3.6.1.5.5.7.1.1", encode_tlv(SEQUENCE, access))


def ca_extensions(
    subject: SigningKey, issuer: SigningKey, *, path_length: int | None = None, crl: bool = True
) -> tuple[bytes, ...]:
    """Return what an issuing certificate carries; `crl` adds cRLSign to keyCertSign."""
    limit = b"" if path_length is None else encode_integer(path_length)
    constraints = encode_tlv(SEQUENCE, encode_boolean(True), limit)  # noqa: FBT003 - CA true
    return (
        extension("2.5.29.19", constraints, critical=True),
        _key_usage(0x06 if crl else 0x04),
        _ocsp_access(),
        *_identifiers(subject, issuer),
    )


def end_entity_extensions(subject: SigningKey, issuer: SigningKey) -> tuple[bytes, ...]:
    """Return what a signing certificate that issues nothing carries."""
    return (_key_usage(0x80), *_identifiers(subject, issuer))


def _time(moment: datetime) -> bytes:
    if moment.year < 2050:
        return encode_tlv(_UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return encode_tlv(_GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _generalized(moment: datetime, tag: int = _GENERALIZED_TIME) -> bytes:
    return encode_tlv(tag, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _signature(key: SigningKey, message: bytes) -> bytes:
    """Return a DER BIT STRING holding an ECDSA-Sig-Value (RFC 3279 §2.2.3)."""
    raw = key.sign(message)
    half = len(raw) // 2
    r, s = int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
    value = encode_tlv(SEQUENCE, encode_integer(r), encode_integer(s))
    return encode_tlv(_BIT_STRING, b"\0" + value)


def issue(
    *,
    subject: bytes,
    subject_key: SigningKey,
    issuer: bytes,
    issuer_key: SigningKey,
    serial: int,
    period: Period,
    extensions: Sequence[bytes],
) -> bytes:
    """Return a version 3 certificate (DER), ECDSA P-384 with SHA-384, deterministic."""
    to_be_signed = encode_tlv(
        SEQUENCE,
        encode_tlv(0xA0, encode_integer(2)),
        encode_integer(serial),
        _ECDSA_SHA384,
        issuer,
        encode_tlv(SEQUENCE, _time(period.not_before), _time(period.not_after)),
        subject,
        encode_tlv(SEQUENCE, _P384_KEY, encode_tlv(_BIT_STRING, b"\0" + point(subject_key))),
        encode_tlv(0xA3, encode_tlv(SEQUENCE, *extensions)),
    )
    return encode_tlv(SEQUENCE, to_be_signed, _ECDSA_SHA384, _signature(issuer_key, to_be_signed))


def _serial(material: bytes) -> int:
    # 16 bytes, positive and never zero.
    return int.from_bytes(hashlib.sha256(material).digest()[:15], "big") | 1 << 120


def authority(
    seed: bytes,
    label: str,
    subject: bytes,
    period: Period,
    *,
    parent: Authority | None = None,
    path_length: int | None = None,
) -> Authority:
    """Return the issuing authority called `label`, under `parent` or self-signed."""
    key = derive_signing_key(Curve.P384, seed, label)
    signer = parent.key if parent else key
    serial = _serial(label.encode() + seed)
    der = issue(
        subject=subject,
        subject_key=key,
        issuer=parent.subject if parent else subject,
        issuer_key=signer,
        serial=serial,
        period=period,
        extensions=ca_extensions(key, signer, path_length=path_length),
    )
    return Authority(key, subject, der, serial)


def pem(ders: Sequence[bytes]) -> bytes:
    """Return a PEM chain: 64 columns, LF, in the order given."""
    blocks = []
    for der in ders:
        text = b64encode(der)
        lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        blocks.append(f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    return "".join(blocks).encode()


def _status(status: OcspStatus, revoked_at: datetime) -> bytes:
    if status is OcspStatus.GOOD:
        return _STATUS_GOOD
    if status is OcspStatus.UNKNOWN:
        return _STATUS_UNKNOWN
    reason = encode_integer(6 if status is OcspStatus.HOLD else 1, 0x0A)
    return encode_tlv(0xA1, _generalized(revoked_at), encode_tlv(0xA0, reason))


def responder(seed: bytes, issuer: Authority, now: datetime) -> Authority:
    """Return the delegated OCSP responder of `issuer`: three years around the day of `now`."""
    label = f"ocsp responder {issuer.sha256}"
    key = derive_signing_key(Curve.P384, seed, label)
    subject = name(CN=f"SIMULATED OCSP Responder {issuer.sha256[:8]}", O="SIMULATED hardware")
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    serial = _serial(label.encode())
    der = issue(
        subject=subject,
        subject_key=key,
        issuer=issuer.subject,
        issuer_key=issuer.key,
        serial=serial,
        period=Period(day - timedelta(days=365), day + timedelta(days=730)),
        extensions=(
            extension("2.5.29.19", encode_tlv(SEQUENCE)),
            *end_entity_extensions(key, issuer.key),
            extension("2.5.29.37", encode_tlv(SEQUENCE, encode_oid(_OCSP_SIGNING)), critical=True),
        ),
    )
    return Authority(key, subject, der, serial)


def _nonce(nonce: bytes | None) -> bytes:
    # From: RFC 9654 §2: id-pkix-ocsp-nonce, its value an OCTET STRING.
    if nonce is None:
        return b""
    found = extension("1.3.6.1.5.5.7.48.1.2", encode_tlv(OCTET_STRING, nonce))
    return encode_tlv(0xA1, encode_tlv(SEQUENCE, found))


def ocsp_response(
    *,
    serial: int,
    issuer: Authority,
    signer: Authority,
    this_update: datetime,
    status: OcspStatus = OcspStatus.GOOD,
    lifetime: timedelta = timedelta(hours=24),
    nonce: bytes | None = None,
) -> bytes:
    """Return a response by `signer` about the certificate `serial` of `issuer`."""
    moment = whole_seconds(this_update)
    certificate_id = encode_tlv(
        SEQUENCE,
        _SHA384,
        encode_tlv(OCTET_STRING, hashlib.sha384(issuer.subject).digest()),
        encode_tlv(OCTET_STRING, hashlib.sha384(point(issuer.key)).digest()),
        encode_integer(serial),
    )
    single = encode_tlv(
        SEQUENCE,
        certificate_id,
        _status(status, moment - timedelta(days=1)),
        _generalized(moment),
        encode_tlv(0xA0, _generalized(moment + lifetime)),
    )
    data = encode_tlv(
        SEQUENCE,
        encode_tlv(0xA2, encode_tlv(OCTET_STRING, key_identifier(signer.key))),
        _generalized(moment),
        encode_tlv(SEQUENCE, single),
        _nonce(nonce),
    )
    basic = encode_tlv(
        SEQUENCE,
        data,
        _ECDSA_SHA384,
        _signature(signer.key, data),
        encode_tlv(0xA0, encode_tlv(SEQUENCE, signer.der)),
    )
    # From: RFC 6960 §4.2.1: successful is 0; id-pkix-ocsp-basic.
    payload = encode_tlv(
        SEQUENCE, encode_oid("1.3.6.1.5.5.7.48.1.1"), encode_tlv(OCTET_STRING, basic)
    )
    return encode_tlv(SEQUENCE, encode_integer(0, 0x0A), encode_tlv(0xA0, payload))


def ocsp_unavailable() -> bytes:
    """Return the response of a responder that is asked to try later (RFC 6960 §4.2.1)."""
    return encode_tlv(SEQUENCE, encode_integer(3, 0x0A))
