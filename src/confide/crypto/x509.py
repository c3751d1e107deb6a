"""X.509 certificates and revocation lists (RFC 5280) as frozen values, and one signature check.

Bytes are hostile. Parsing is strict DER through `cryptography`; unknown key types, a second
common name and repeated extensions are refused. `verify_issued_by` and `verify_crl` establish
name and signature and nothing else: **validity, CA flag, path length, key usage, names and
critical extensions are read from the value and judged by the numbered steps of the caller.**
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from confide.crypto.ecdsa import PublicKey, wrap_public_key
from confide.crypto.errors import BadSignature
from confide.crypto.pem import split_pem_chain
from confide.errors import FormatError, Reason
from confide.wire.der import INTEGER, SEQUENCE, DerReader, encode_tlv

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "CERTIFICATE_HEAD",
    "CRL_HEAD",
    "Certificate",
    "CertificateBody",
    "Crl",
    "other_names",
    "parse_body",
    "parse_certificate_der",
    "parse_crl_der",
    "parse_pem_chain",
    "signed_part",
    "split_pem_chain",
    "verify_crl",
    "verify_issued_by",
]

# From: RFC 5280 §4.2.1.3, the names `key_usage` can hold.
_KEY_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)
# From: RFC 5758 §3.2: everything else is refused, whatever the chain says (RFC 9155 for SHA-1).
_ALGORITHMS: Final = {
    "1.2.840.10045.4.3.2": ec.ECDSA(hashes.SHA256()),
    "1.2.840.10045.4.3.3": ec.ECDSA(hashes.SHA384()),
    "1.2.840.10045.4.3.4": ec.ECDSA(hashes.SHA512()),
}
# From: RFC 5280 §4.1, §5.1: what stands before the inner algorithm; the version is `[0]`.
CERTIFICATE_HEAD: Final = (0xA0, INTEGER)
CRL_HEAD: Final = (INTEGER,)
# From: RFC 5280 §5.2: the CRL extensions that are understood. A critical one outside this list
# (delta indicator, issuing distribution point) would change what the list means.
_CRL_EXTENSIONS: Final = frozenset({"2.5.29.20", "2.5.29.35"})
# Precedent: the longest chain in use is NVIDIA's, five certificates of below 1.2 KiB each.
_MAX_CERTIFICATE_BYTES: Final = 16 * 1024
# What the parsers of the library raise. Warnings are about serial numbers that are not positive and
# about attributes of names; they are exceptions only where the program turns them into errors.
_UNPARSEABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    UserWarning,
)


@dataclass(frozen=True, slots=True)
class CertificateBody:
    """
    One parsed certificate without its key; `der` alone decides equality.

    `sha256` is hex over `der`. `issuer` is the issuer's common name, empty where it has none: for
    reading, not for deciding. `path_length` is None without a limit. `key_usage` holds the
    RFC 5280 names in snake case and is empty when the extension is absent. `critical` holds the
    dotted OIDs of all critical extensions.
    """

    der: bytes = field(repr=False)
    sha256: str = field(compare=False)
    subject: str = field(compare=False)
    issuer: str = field(compare=False)
    serial: int = field(compare=False)
    not_before: datetime = field(compare=False)
    not_after: datetime = field(compare=False)
    is_ca: bool = field(compare=False)
    path_length: int | None = field(compare=False)
    key_usage: frozenset[str] = field(compare=False)
    critical: frozenset[str] = field(compare=False)
    handle: x509.Certificate = field(repr=False, compare=False)

    def extension(self, oid: str) -> bytes | None:
        """Return the DER value of extension `oid` (dotted), None where there is none."""
        for found in self.handle.extensions:
            if found.oid.dotted_string == oid:
                value = found.value
                if isinstance(value, x509.UnrecognizedExtension):
                    return value.value
                encoded: bytes = value.public_bytes()
                return encoded
        return None

    def names_of(self, oid: str) -> tuple[str, ...]:
        """Return the subject's attributes of type `oid` (dotted), in order."""
        found = self.handle.subject.get_attributes_for_oid(x509.ObjectIdentifier(oid))
        return tuple(_text(attribute.value) for attribute in found)


@dataclass(frozen=True, slots=True)
class Certificate(CertificateBody):
    """A certificate for a key on P-256 or P-384."""

    public_key: PublicKey = field(compare=False)


@dataclass(frozen=True, slots=True)
class Crl:
    """
    One parsed revocation list; `der` alone decides equality.

    `next_update` is None where the list does not say when the next one comes.
    """

    der: bytes = field(repr=False)
    sha256: str = field(compare=False)
    issuer: str = field(compare=False)
    this_update: datetime = field(compare=False)
    next_update: datetime | None = field(compare=False)
    handle: x509.CertificateRevocationList = field(repr=False, compare=False)

    def contains(self, serial: int) -> bool:
        """Whether `serial` is listed, for whatever reason and at whatever date."""
        return self.handle.get_revoked_certificate_by_serial_number(serial) is not None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()


def _first_common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _text(found[0].value) if found else ""


def _common_name(name: x509.Name, *, what: str, reason: Reason) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(found) > 1:
        raise FormatError(
            f"{what}: more than one common name", reason=reason, clause="RFC 5280 §4.1.2.4"
        )
    return _text(found[0].value) if found else ""


def _refuse_unused_bits(der: bytes, signature: bytes, *, what: str, reason: Reason) -> None:
    # The signature is the last thing in the structure; the octet before it counts the unused
    # bits of the BIT STRING. The library ignores it, which would leave a bit nobody checks.
    if der[-len(signature) - 1] != 0:
        raise FormatError(
            f"{what}: the signature is not whole octets", reason=reason, clause="X.690 §11.2"
        )


def parse_certificate_der(der: bytes, *, what: str, reason: Reason) -> Certificate:
    """
    Parse one certificate; nothing may follow it.

    `what` names it in errors, `reason` is the closed identifier. Raises `FormatError`.
    """
    body, key = parse_body(der, what=what, reason=reason)
    return Certificate(**body, public_key=wrap_public_key(key, what=what, reason=reason))


def parse_body(
    der: bytes, *, what: str, reason: Reason, readable: bytes | None = None
) -> tuple[dict[str, Any], object]:
    """
    Return the fields of `CertificateBody` and the key as the library sees it. For this package.

    `readable` stands in for `der` where the library refuses a field that means nothing
    (`x509_rsa`); signatures are always verified over `der`. Raises `FormatError`.
    """
    if len(der) > _MAX_CERTIFICATE_BYTES:
        raise FormatError(
            f"{what}: {len(der)} bytes, at most {_MAX_CERTIFICATE_BYTES}",
            reason=reason,
            clause="RFC 5280 §4.1",
        )
    try:
        handle = x509.load_der_x509_certificate(der if readable is None else readable)
        version = handle.version
        # The issuer too: the library looks into a name only when it is asked for.
        subject, issuer, serial = handle.subject, handle.issuer, handle.serial_number
        not_before, not_after = handle.not_valid_before_utc, handle.not_valid_after_utc
        extensions = tuple(handle.extensions)
        key = handle.public_key()
    except _UNPARSEABLE as error:
        raise FormatError(
            f"{what}: not a certificate", reason=reason, clause="RFC 5280 §4.1"
        ) from error
    if version is not x509.Version.v3:
        raise FormatError(
            f"{what}: not a version 3 certificate", reason=reason, clause="RFC 5280 §4.1.2.1"
        )
    _refuse_unused_bits(der, handle.signature, what=what, reason=reason)
    is_ca, path_length, usage = False, None, frozenset[str]()
    critical: list[str] = []
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            is_ca, path_length = value.ca, value.path_length
        elif isinstance(value, x509.KeyUsage):
            usage = frozenset(name for name in _KEY_USAGES if getattr(value, name))
        if extension.critical:
            critical.append(extension.oid.dotted_string)
    body: dict[str, Any] = {
        "der": der,
        "sha256": hashlib.sha256(der).hexdigest(),
        "subject": _common_name(subject, what=what, reason=reason),
        "issuer": _first_common_name(issuer),
        "serial": serial,
        "not_before": not_before,
        "not_after": not_after,
        "is_ca": is_ca,
        "path_length": path_length,
        "key_usage": usage,
        "critical": frozenset(critical),
        "handle": handle,
    }
    return body, key


def parse_pem_chain(
    pem: bytes, *, max_certificates: int, what: str, reason: Reason
) -> tuple[Certificate, ...]:
    """Parse a PEM chain as `split_pem_chain` and `parse_certificate_der` do, in order."""
    ders = split_pem_chain(pem, max_certificates=max_certificates, what=what, reason=reason)
    return tuple(
        parse_certificate_der(der, what=f"{what}[{index}]", reason=reason)
        for index, der in enumerate(ders)
    )


def parse_crl_der(der: bytes, *, what: str, reason: Reason, max_bytes: int = 1 << 20) -> Crl:
    """
    Parse one certificate revocation list of at most `max_bytes`.

    Raises `FormatError`, also for a critical extension that would change what the list covers.
    """
    if len(der) > max_bytes:
        raise FormatError(
            f"{what}: {len(der)} bytes, at most {max_bytes}", reason=reason, clause="RFC 5280 §5.1"
        )
    try:
        handle = x509.load_der_x509_crl(der)
        issuer = handle.issuer
        this_update, next_update = handle.last_update_utc, handle.next_update_utc
        unknown = [
            found
            for found in handle.extensions
            if found.critical and found.oid.dotted_string not in _CRL_EXTENSIONS
        ]
    except _UNPARSEABLE as error:
        raise FormatError(
            f"{what}: not a revocation list", reason=reason, clause="RFC 5280 §5.1"
        ) from error
    if unknown:
        raise FormatError(
            f"{what}: {len(unknown)} critical extension(s) that are not understood",
            reason=reason,
            clause="RFC 5280 §5.2",
        )
    _refuse_unused_bits(der, handle.signature, what=what, reason=reason)
    return Crl(
        der=der,
        sha256=hashlib.sha256(der).hexdigest(),
        issuer=_common_name(issuer, what=what, reason=reason),
        this_update=this_update,
        next_update=next_update,
        handle=handle,
    )


def verify_issued_by(child: Certificate, issuer: Certificate) -> None:
    """
    Establish that `issuer`'s subject name and key stand behind `child`'s issuer name and signature.

    **Does not check** validity, CA flag, path length, key usage or revocation.

    Raises `BadSignature`.
    """
    if child.handle.issuer != issuer.handle.subject:
        raise BadSignature("the certificate names another issuer")
    try:
        algorithm = _signature_algorithm(child.handle.signature_algorithm_oid)
        # A third less than `verify_directly_issued_by`, which loads the issuer's key again.
        signed = signed_part(child.der, Reason.CHAIN_MALFORMED, before=CERTIFICATE_HEAD)
        issuer.public_key.handle.verify(child.handle.signature, signed, algorithm)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise BadSignature("the certificate was not issued by the next one") from error


def verify_crl(crl: Crl, issuer: Certificate) -> None:
    """
    Establish that `issuer` signed `crl` under its own name.

    **Does not check** dates or whether `issuer` may sign revocation lists (`key_usage`).

    Raises `BadSignature`; `FormatError` for a version 1 list.
    """
    if crl.handle.issuer != issuer.handle.subject:
        raise BadSignature("the revocation list names another issuer")
    try:
        algorithm = _signature_algorithm(crl.handle.signature_algorithm_oid)
        # Half the time of `is_signature_valid`, which writes the list and loads the key again.
        signed = signed_part(crl.der, Reason.CRL_FORMAT, before=CRL_HEAD)
        issuer.public_key.handle.verify(crl.handle.signature, signed, algorithm)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise BadSignature("the signature of the revocation list does not verify") from error


def _signature_algorithm(oid: x509.ObjectIdentifier) -> ec.ECDSA:
    algorithm = _ALGORITHMS.get(oid.dotted_string)
    if algorithm is None:
        raise BadSignature("signed with an algorithm that is not accepted")
    return algorithm


def signed_part(der: bytes, reason: Reason, *, before: tuple[int, ...]) -> bytes:
    """
    Return the bytes a signature covers; `before` are the tags before its inner algorithm.

    For this package. Raises `FormatError`, and `BadSignature` where the two algorithms differ.
    """
    outer = DerReader(der, what="signed structure", reason=reason).sequence()
    body, outside = outer.read(SEQUENCE), outer.read(SEQUENCE)
    inner = DerReader(body, what="signed structure", reason=reason)
    for tag in before:
        inner.read(tag)
    # From: RFC 5280 §4.1.1.2, §5.1.1.2: the algorithm outside equals the one inside.
    if inner.read(SEQUENCE) != outside:
        raise BadSignature("the signed part names another signature algorithm")
    # DER has one encoding, and the reader refuses others: these are the bytes that arrived.
    return encode_tlv(SEQUENCE, body)


def other_names(certificate: CertificateBody, oid: str) -> tuple[bytes, ...]:
    """Return the DER values of the subjectAltName otherNames of type `oid` (dotted), in order."""
    for found in certificate.handle.extensions:
        if isinstance(found.value, x509.SubjectAlternativeName):
            return tuple(
                name.value
                for name in found.value
                if isinstance(name, x509.OtherName) and name.type_id.dotted_string == oid
            )
    return ()
