"""The public key of an X.509 certificate, as the bytes that stand in it, of any algorithm.

From: RFC 5280 §4.1. For fingerprints of TLS keys; nothing is verified and no key is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.wire.der import INTEGER, SEQUENCE, DerReader, encode_tlv

if TYPE_CHECKING:
    from confide.errors import Reason

__all__ = ["subject_public_key_info"]

_VERSION: Final = 0xA0


def subject_public_key_info(der: bytes, *, what: str, reason: Reason) -> bytes:
    """
    Return the SubjectPublicKeyInfo (DER) of the version 3 certificate `der`.

    Raises `FormatError`.
    """
    outer = DerReader(der, what=what, reason=reason)
    body = outer.sequence().sequence()
    outer.finish()
    body.read(_VERSION)
    body.read(INTEGER)
    # Signature algorithm, issuer, validity, subject.
    for _ in range(4):
        body.read(SEQUENCE)
    return encode_tlv(SEQUENCE, body.read(SEQUENCE))
