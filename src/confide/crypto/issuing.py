"""Issuing certificates and revocation lists, deterministic: equal inputs, equal bytes.

For simulators and tests. Nothing here decides whether anything is trusted; whatever is issued
goes through the same parsers and steps as bytes from a vendor.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

from confide.crypto.ecdsa import Curve
from confide.crypto.x509 import Certificate, parse_certificate_der
from confide.errors import Reason
from confide.wire.der import SEQUENCE, DerReader, encode_tlv

if TYPE_CHECKING:
    from datetime import datetime

    from confide.crypto.ecdsa import PublicKey, SigningKey

__all__ = [
    "CertificateTemplate",
    "RawExtension",
    "encode_pem",
    "issue_certificate",
    "issue_crl",
    "remove_next_update",
]

_HASHES: dict[Curve, hashes.SHA256 | hashes.SHA384] = {
    Curve.P256: hashes.SHA256(),
    Curve.P384: hashes.SHA384(),
}
# From: RFC 5280 §4.1.2.5, §5.1.2.4: a time before 2050.
_UTC_TIME = 0x17
_BIT_STRING = 0x03


@dataclass(frozen=True, slots=True)
class RawExtension:
    """One extension: dotted `oid`, `der` value, `critical` flag."""

    oid: str
    der: bytes
    critical: bool = False


@dataclass(frozen=True, slots=True)
class CertificateTemplate:
    """
    What to put into a certificate.

    `path_length` is None for no limit. CAs get keyCertSign and cRLSign, others
    digitalSignature. A `serial` of None is derived from the name and the key. An empty
    `organization` leaves the attribute out.
    """

    common_name: str
    organization: str
    not_before: datetime
    not_after: datetime
    is_ca: bool = False
    path_length: int | None = None
    serial: int | None = None
    extensions: tuple[RawExtension, ...] = ()


def _name(template: CertificateTemplate) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, template.common_name)]
    if template.organization:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, template.organization))
    return x509.Name(attributes)


def issue_certificate(
    template: CertificateTemplate,
    key: PublicKey,
    *,
    issuer: Certificate | None,
    issuer_key: SigningKey,
) -> Certificate:
    """Issue `template` for `key`, self-signed where `issuer` is None."""
    subject = _name(template)
    spki = key.spki()
    derived = hashlib.sha256(subject.public_bytes() + spki).digest()[:19]
    serial = template.serial
    if serial is None:
        # From: RFC 5280 §4.1.2.2: positive, at most 20 octets.
        serial = int.from_bytes(derived, "big") | 1
    ca = template.is_ca
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.handle.subject)
        .public_key(key.handle)
        .serial_number(serial)
        .not_valid_before(template.not_before)
        .not_valid_after(template.not_after)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public.handle),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.handle), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.BasicConstraints(ca=ca, path_length=template.path_length), critical=True
        )
    )
    for extra in template.extensions:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(extra.oid), extra.der),
            critical=extra.critical,
        )
    signed = builder.sign(
        issuer_key.handle, _HASHES[issuer_key.public.curve], ecdsa_deterministic=True
    )
    return parse_certificate_der(
        signed.public_bytes(serialization.Encoding.DER),
        what="issued certificate",
        reason=Reason.CHAIN_MALFORMED,
    )


def encode_pem(*certificates: Certificate) -> str:
    """Return the PEM chain of `certificates`, in order."""
    return "".join(
        certificate.handle.public_bytes(serialization.Encoding.PEM).decode("ascii")
        for certificate in certificates
    )


def issue_crl(
    issuer: Certificate,
    issuer_key: SigningKey,
    *,
    this_update: datetime,
    next_update: datetime,
    revoked: tuple[int, ...] = (),
    number: int = 1,
) -> bytes:
    """Return the DER of a revocation list that names `revoked` serials."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.handle.subject)
        .last_update(this_update)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public.handle),
            critical=False,
        )
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(entry.revocation_date(this_update).build())
    signed = builder.sign(
        issuer_key.handle, _HASHES[issuer_key.public.curve], ecdsa_deterministic=True
    )
    return signed.public_bytes(serialization.Encoding.DER)


def remove_next_update(crl: bytes, issuer_key: SigningKey) -> bytes:
    """
    Return `crl` without nextUpdate, signed again by `issuer_key`.

    RFC 5280 §5.1.2.5 demands the field and the builder insists on it; X.509 makes it optional,
    so a hostile list can lack it and a verifier needs one to be tested with.
    """

    def reader(raw: bytes) -> DerReader:
        return DerReader(raw, what="revocation list", reason=Reason.CRL_FORMAT)

    outer = reader(crl).sequence()
    tbs = outer.sequence()
    algorithm = outer.read(SEQUENCE)
    kept = [
        encode_tlv(0x02, tbs.read(0x02)),  # version
        encode_tlv(SEQUENCE, tbs.read(SEQUENCE)),  # signature algorithm
        encode_tlv(SEQUENCE, tbs.read(SEQUENCE)),  # issuer
        encode_tlv(_UTC_TIME, tbs.read(_UTC_TIME)),  # thisUpdate
    ]
    tbs.read(_UTC_TIME)  # nextUpdate, dropped
    body = encode_tlv(SEQUENCE, *kept, tbs.rest())
    raw = issuer_key.sign(body)
    half = len(raw) // 2
    signature = encode_dss_signature(
        int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
    )
    return encode_tlv(
        SEQUENCE,
        body,
        encode_tlv(SEQUENCE, algorithm),
        encode_tlv(_BIT_STRING, b"\x00", signature),
    )
