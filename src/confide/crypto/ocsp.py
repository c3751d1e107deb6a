"""OCSP responses (RFC 6960) as frozen values, and the check of their signature.

Bytes are hostile. `parse_ocsp` reads; `verify_ocsp_signature` establishes that a key signed. Who
may sign, which certificate is meant and how old an answer may be is decided by the numbered steps
of the caller, in the order of docs/protocols/nvidia.md "OCSP".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from confide.crypto.ecdsa import Curve, PublicKey
from confide.crypto.errors import BadSignature
from confide.crypto.x509 import Certificate, parse_certificate_der
from confide.errors import FormatError, Reason
from confide.wire.der import ENUMERATED, OCTET_STRING, OID, SEQUENCE, DerReader

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "CertId",
    "CertificateParser",
    "OcspResponse",
    "OcspStatus",
    "cert_id",
    "extended_key_usages",
    "is_about",
    "is_responder",
    "parse_ocsp",
    "verify_ocsp_signature",
]

_CLAUSE: Final = "docs/protocols/nvidia.md#ocsp"
# Genuine answers have about 1 KiB and carry one certificate.
_MAX_BYTES: Final = 16 * 1024
_MAX_CERTIFICATES: Final = 4
# From: RFC 6960 §4.4.1, the only response extension that is understood.
_NONCE: Final = x509.OCSPNonce
# From: RFC 6960 §4.1.1, RFC 5019 §2.1.1, RFC 9654: digests in which a certificate id is written.
# They look a certificate up and prove nothing: the signer, appointed by the one issuer that is
# asked about, says what the id means, and the serial number stands in it as it is.
_ID_HASHES: Final = frozenset({"sha1", "sha256", "sha384"})
# From: RFC 5758 §3.2, ecdsa-with-SHA384.
_ECDSA_SHA384: Final = "1.2.840.10045.4.3.3"
# From: RFC 6960 §4.2.1: responseBytes is [0] EXPLICIT.
_EXPLICIT: Final = 0xA0
_BIT_STRING: Final = 0x03


class CertificateParser(Protocol):
    """What `confide.crypto.x509.parse_certificate_der` is."""

    def __call__(self, der: bytes, *, what: str, reason: Reason) -> Certificate:
        """Parse one certificate. Raises `FormatError` with `reason`."""
        ...


class OcspStatus(StrEnum):
    """What the responder says; `HOLD` is revoked for the reason certificateHold."""

    GOOD = "good"
    REVOKED = "revoked"
    HOLD = "hold"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class CertId:
    """Which certificate an answer is about (RFC 6960 §4.1.1); `algorithm` as in `hashlib`."""

    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial: int
    algorithm: str = "sha384"


@dataclass(frozen=True, slots=True)
class OcspResponse:
    """
    One successful response with one answer. Nothing in it is authenticated yet.

    `responder` is the SHA-1 of the responder's key, or its name.
    """

    der: bytes = field(repr=False)
    status: OcspStatus
    cert_id: CertId
    this_update: datetime
    next_update: datetime | None
    nonce: bytes | None
    certificates: tuple[Certificate, ...]
    responder: bytes | x509.Name
    handle: ocsp.OCSPResponse = field(repr=False, compare=False)


def _malformed(what: str) -> FormatError:
    return FormatError(f"OCSP: {what}", reason=Reason.OCSP_MALFORMED, clause=_CLAUSE)


def parse_ocsp(der: bytes, *, parse: CertificateParser = parse_certificate_der) -> OcspResponse:
    """
    Parse one response.

    `parse` reads the certificates in it: a caller with many answers of one responder may pass
    one that remembers. Raises `FormatError`: `ocsp-malformed`, or `ocsp-unavailable` when the
    responder answered that it has no answer.
    """
    if len(der) > _MAX_BYTES:
        raise _malformed(f"{len(der)} bytes, at most {_MAX_BYTES}")
    try:
        handle = ocsp.load_der_ocsp_response(der)
        if handle.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise FormatError(
                f"OCSP: status {handle.response_status.value}",
                reason=Reason.OCSP_UNAVAILABLE,
                clause=_CLAUSE,
            )
        return _read(der, handle, parse)
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        # About an attribute of a name; an exception only where warnings are errors.
        UserWarning,
    ) as error:
        raise _malformed("not a response") from error


def _read(der: bytes, handle: ocsp.OCSPResponse, parse: CertificateParser) -> OcspResponse:
    answers = list(handle.responses)
    if len(answers) != 1:
        raise _malformed(f"{len(answers)} answers, exactly one expected")
    (answer,) = answers
    algorithm = answer.hash_algorithm.name
    if algorithm not in _ID_HASHES:
        raise _malformed("the certificate id is neither SHA-1, SHA-256 nor SHA-384")
    if handle.signature_algorithm_oid.dotted_string != _ECDSA_SHA384:
        raise _malformed("the signature is not ECDSA with SHA-384")
    extensions = [*handle.extensions, *handle.single_extensions]
    if any(found.critical and not isinstance(found.value, _NONCE) for found in extensions):
        raise _malformed("a critical extension that is not understood")
    _refuse_unused_bits(der)
    nonces = [e.value.nonce for e in handle.extensions if isinstance(e.value, _NONCE)]
    return OcspResponse(
        der=der,
        status=_status(answer),
        cert_id=CertId(
            answer.issuer_name_hash, answer.issuer_key_hash, answer.serial_number, algorithm
        ),
        this_update=answer.this_update_utc,
        next_update=answer.next_update_utc,
        nonce=nonces[0] if nonces else None,
        certificates=_certificates(handle, parse),
        responder=_responder(handle),
        handle=handle,
    )


def _refuse_unused_bits(der: bytes) -> None:
    # The octet before a signature counts the unused bits of its BIT STRING. The library lets others
    # than zero pass where the bits in question are zero, and that octet is signed by nobody.
    body = DerReader(der, what="OCSP", reason=Reason.OCSP_MALFORMED).sequence()
    body.read(ENUMERATED)
    answer = _inside(body.read(_EXPLICIT)).sequence()
    answer.read(OID)
    basic = _inside(answer.read(OCTET_STRING)).sequence()
    basic.read(SEQUENCE)
    basic.read(SEQUENCE)
    if basic.read(_BIT_STRING)[:1] != b"\0":
        raise _malformed("the signature is not whole octets")


def _inside(raw: bytes) -> DerReader:
    return DerReader(raw, what="OCSP", reason=Reason.OCSP_MALFORMED)


def _certificates(handle: ocsp.OCSPResponse, parse: CertificateParser) -> tuple[Certificate, ...]:
    found = handle.certificates
    if len(found) > _MAX_CERTIFICATES:
        raise _malformed(f"{len(found)} certificates, at most {_MAX_CERTIFICATES}")
    return tuple(
        parse(each.public_bytes(Encoding.DER), what="OCSP responder", reason=Reason.OCSP_MALFORMED)
        for each in found
    )


def _responder(handle: ocsp.OCSPResponse) -> bytes | x509.Name:
    # Read here, because the library looks into the name only when it is asked for.
    found = handle.responder_key_hash or handle.responder_name
    if found is None:
        raise _malformed("no responder")
    return found


def _status(answer: ocsp.OCSPSingleResponse) -> OcspStatus:
    if answer.certificate_status is ocsp.OCSPCertStatus.GOOD:
        return OcspStatus.GOOD
    if answer.certificate_status is ocsp.OCSPCertStatus.UNKNOWN:
        return OcspStatus.UNKNOWN
    if answer.revocation_reason is x509.ReasonFlags.certificate_hold:
        return OcspStatus.HOLD
    return OcspStatus.REVOKED


def cert_id(certificate: Certificate, issuer: Certificate, algorithm: str = "sha384") -> CertId:
    """
    Return the id under which an answer about `certificate`, issued by `issuer`, must come.

    `algorithm` is one of those that `CertId` can have.
    """

    def digest(value: bytes) -> bytes:
        return hashlib.new(algorithm, value, usedforsecurity=False).digest()

    return CertId(
        digest(issuer.handle.subject.public_bytes()),
        # From: RFC 6960 §4.1.1: over the key bits, without the unused-bits octet.
        digest(b"\x04" + issuer.public_key.point),
        certificate.serial,
        algorithm,
    )


def is_about(response: OcspResponse, certificate: Certificate, issuer: Certificate) -> bool:
    """Whether `response` names `certificate`, issued by `issuer`. Proves nothing by itself."""
    return response.cert_id == cert_id(certificate, issuer, response.cert_id.algorithm)


def is_responder(response: OcspResponse, candidate: Certificate) -> bool:
    """Whether `response` names `candidate` as its responder, by key or by name. Proves nothing."""
    if isinstance(response.responder, bytes):
        # From: RFC 6960 §4.2.1: KeyHash is SHA-1, an identifier and no security decision.
        digest = hashlib.sha1(b"\x04" + candidate.public_key.point, usedforsecurity=False)
        return digest.digest() == response.responder
    return response.responder == candidate.handle.subject


def extended_key_usages(certificate: Certificate) -> frozenset[str]:
    """Return the dotted OIDs of the extended key usage; empty where the extension is absent."""
    for found in certificate.handle.extensions:
        if isinstance(found.value, x509.ExtendedKeyUsage):
            return frozenset(oid.dotted_string for oid in found.value)
    return frozenset()


def verify_ocsp_signature(response: OcspResponse, key: PublicKey) -> None:
    """Establish that `key` (P-384) signed `response`. Raises `BadSignature`."""
    if key.curve is not Curve.P384:
        raise BadSignature("the responder's key is not P-384")
    try:
        key.handle.verify(
            response.handle.signature,
            response.handle.tbs_response_bytes,
            ec.ECDSA(hashes.SHA384()),
        )
    except InvalidSignature as error:
        raise BadSignature("the OCSP signature does not verify") from error
