"""Certificate paths of NVIDIA devices and manifests, and the memory of verified signatures.

Clauses: docs/protocols/nvidia.md 2 and 11. Everything here raises `Refused`; the numbered steps
of `nvidia_device` and `nvidia_rim` call it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.appraisal.steps import Refused
from confide.crypto.ecdsa import Curve
from confide.crypto.errors import BadSignature
from confide.crypto.x509 import Certificate, parse_certificate_der, verify_issued_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from confide.errors import Reason

__all__ = [
    "UNDERSTOOD",
    "SignatureMemory",
    "VerifiedSignatures",
    "in_period",
    "require_link",
    "require_path",
    "require_pinned_root",
]

# From: RFC 5280 §4.2: BasicConstraints, KeyUsage and, for OCSP responders, ExtendedKeyUsage.
UNDERSTOOD = frozenset({"2.5.29.19", "2.5.29.15", "2.5.29.37"})


@dataclass(frozen=True, slots=True)
class VerifiedSignatures:
    """
    Signatures that were found good, as SHA-256 over (kind, key, message and signature).

    A signature once good is good for ever, so this may be carried from one appraisal to the next;
    periods, roles and revocation are judged anew each time. It is the caller's own memory: never
    take one from a peer.
    """

    digests: frozenset[bytes] = frozenset()


class SignatureMemory:
    """
    The signatures verified during one appraisal, on top of those that are `known`.

    Certificates are remembered by their exact bytes too: parsing is a function of them.
    """

    __slots__ = ("_certificates", "_found")

    def __init__(self, known: VerifiedSignatures) -> None:
        self._found = set(known.digests)
        self._certificates: dict[bytes, Certificate] = {}

    def certificate(self, der: bytes, *, what: str, reason: Reason) -> Certificate:
        """Parse a certificate once. Raises `FormatError` as `parse_certificate_der` does."""
        found = self._certificates.get(der)
        if found is None:
            found = parse_certificate_der(der, what=what, reason=reason)
            self._certificates[der] = found
        return found

    def once(self, kind: str, parts: Sequence[bytes], verify: Callable[[], None]) -> None:
        """Call `verify`, which raises `BadSignature`, unless exactly `parts` passed before."""
        digest = hashlib.sha256(kind.encode() + b"\0")
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
        key = digest.digest()
        if key not in self._found:
            verify()
            self._found.add(key)

    def freeze(self) -> VerifiedSignatures:
        """Return everything that was found good."""
        return VerifiedSignatures(frozenset(self._found))


def require_pinned_root(chain: Sequence[Certificate], root: Certificate, *, reason: Reason) -> None:
    """Refuse unless the last certificate is `root`, byte for byte."""
    if chain[-1].der != root.der:
        raise Refused(reason, "the last certificate is not the pinned root")


def require_path(
    chain: Sequence[Certificate], memory: SignatureMemory, *, malformed: Reason, invalid: Reason
) -> None:
    """
    Refuse unless each certificate was issued by the next and may have been (steps 2a and 11a).

    Does not check the root, the periods or revocation.
    """
    for number, certificate in enumerate(chain):
        if certificate.public_key.curve is not Curve.P384:
            raise Refused(malformed, f"the key of certificate {number} is not P-384")
        if certificate.critical - UNDERSTOOD:
            raise Refused(invalid, f"certificate {number} has an unknown critical extension")
        if number == 0:
            if certificate.is_ca or "digital_signature" not in certificate.key_usage:
                raise Refused(invalid, "certificate 0 is no end-entity signer")
            continue
        # From: RFC 5280 §4.2.1.9: the limit counts CAs below, without the leaf.
        limit = certificate.path_length
        if (
            not certificate.is_ca
            or "key_cert_sign" not in certificate.key_usage
            or (limit is not None and number - 1 > limit)
        ):
            raise Refused(invalid, f"certificate {number} may not issue the one before it")
        try:
            require_link(chain[number - 1], certificate, memory)
        except BadSignature as error:
            raise Refused(
                invalid, f"certificate {number} did not issue certificate {number - 1}"
            ) from error


def require_link(child: Certificate, issuer: Certificate, memory: SignatureMemory) -> None:
    """Raise `BadSignature` unless `issuer` issued `child`; each pair is verified once."""
    memory.once("issued", (child.der, issuer.der), lambda: verify_issued_by(child, issuer))


def in_period(certificate: Certificate, now: datetime) -> bool:
    """Whether `now` lies in the validity of `certificate`, both ends included."""
    return certificate.not_before <= now <= certificate.not_after
