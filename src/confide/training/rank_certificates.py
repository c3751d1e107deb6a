"""TLS certificates for the seats of one boot of one job, from an authority that is then forgotten.

docs/protocols/training-ranks.md 3.4. Pure: the caller gives fresh randomness and the time. Only
seats that were admitted get one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from confide.crypto.ecdsa import Curve, derive_signing_key, load_public_key
from confide.crypto.issuing import (
    CertificateTemplate,
    RawExtension,
    encode_pem,
    issue_certificate,
)
from confide.errors import Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.wire.der import SEQUENCE, encode_tlv

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from ipaddress import IPv4Address

    from confide.crypto.ecdsa import PublicKey, SigningKey
    from confide.training.ranks import AdmittedSeats

__all__ = ["SeatCertificates", "issue_seat_certificates", "key_digest", "key_point", "seat_key"]

_LIFE: Final = timedelta(days=1)
# A seat whose clock is a little behind must not find it not yet valid.
_SLACK: Final = timedelta(minutes=5)
# From: RFC 5280 §4.2.1.6, subjectAltName and its choice iPAddress.
_ALTERNATIVE_NAME: Final = "2.5.29.17"
_IP: Final = 0x87


@dataclass(frozen=True, slots=True)
class SeatCertificates:
    """The authority of one boot of one job, and the certificate of each seat, in order. PEM."""

    authority: str
    seats: tuple[str, ...]


def seat_key(seed: bytes) -> SigningKey:
    """Return the TLS key of a seat: `seed` are 32 fresh random bytes that it keeps to itself."""
    return derive_signing_key(Curve.P256, seed, "confide training seat")


def key_point(key: SigningKey) -> bytes:
    """Return the public half, as a seat tells it: x ‖ y."""
    return key.public.point


def key_digest(point: bytes) -> bytes:
    """Return SHA-256 of the SPKI, as claims hold it. Raises `FormatError` for no point."""
    return hashlib.sha256(_public(point).spki()).digest()


def issue_seat_certificates(
    admitted: AdmittedSeats,
    points: Sequence[bytes],
    *,
    seed: bytes,
    now: datetime,
    addresses: Sequence[IPv4Address] = (),
) -> SeatCertificates:
    """
    Certify the keys that were proven; `seed` are 32 fresh random bytes, to be used once.

    `points` are what the seats told, and `addresses` where an engine compares them (6.3): one of
    each seat, or none. Raises `TrainingRejected` for a key that is not the one in the
    evidence of its seat.
    """
    told = [key_digest(point) for point in points]
    if told != [seat.key for seat in admitted.seats]:
        raise TrainingRejected(
            (
                Finding(
                    Status.FAIL,
                    "seat/1",
                    "docs/protocols/training-ranks.md#3",
                    "seats",
                    "a TLS key is not the one that its seat proved",
                    Reason.CLAIM_MISMATCH,
                ),
            )
        )
    key = derive_signing_key(Curve.P256, seed, "confide training authority")
    begin, end = now - _SLACK, now + _LIFE
    template = CertificateTemplate("authority", "", begin, end, is_ca=True, path_length=0)
    authority = issue_certificate(template, key.public, issuer=None, issuer_key=key)
    named: list[tuple[RawExtension, ...]] = [(_named(address),) for address in addresses]
    issued = [
        issue_certificate(
            CertificateTemplate(f"seat/{number}", "", begin, end, extensions=extensions),
            _public(point),
            issuer=authority,
            issuer_key=key,
        )
        for number, (point, extensions) in enumerate(
            zip(points, named or [()] * len(points), strict=True)
        )
    ]
    return SeatCertificates(encode_pem(authority), tuple(map(encode_pem, issued)))


def _named(address: IPv4Address) -> RawExtension:
    return RawExtension(_ALTERNATIVE_NAME, encode_tlv(SEQUENCE, encode_tlv(_IP, address.packed)))


def _public(point: bytes) -> PublicKey:
    return load_public_key(
        Curve.P256, point, what="TLS key of a seat", reason=Reason.TRAINING_FORMAT
    )
