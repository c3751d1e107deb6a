"""The key of a certificate, whatever its algorithm."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate
from http_stand_ins import authority_pem

from confide.errors import FormatError, Reason
from confide.trust.amd import AMD_ROOTS
from confide.wire.certificate_key import subject_public_key_info


def _key(der: bytes) -> bytes:
    return subject_public_key_info(der, what="certificate", reason=Reason.SERVICE_FORMAT)


def test_it_is_what_the_library_says() -> None:
    certificate = load_pem_x509_certificate(authority_pem().encode())
    expected = certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    assert _key(certificate.public_bytes(Encoding.DER)) == expected


def test_rsa_keys_too() -> None:
    root = AMD_ROOTS.anchors[0].der
    assert len(_key(root)) > 500
    assert _key(root) in root


@pytest.mark.parametrize("cut", [0, 1, 4, 20, 200])
def test_what_is_no_certificate_is_refused(cut: int) -> None:
    der = load_pem_x509_certificate(authority_pem().encode()).public_bytes(Encoding.DER)
    with pytest.raises(FormatError):
        _key(der[:cut])
    with pytest.raises(FormatError):
        _key(der + b"\0")
