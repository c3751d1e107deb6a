"""OCSP requests (RFC 6960 §4.1): about one certificate, with SHA-384 and a nonce."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

if TYPE_CHECKING:
    from confide.crypto.x509 import Certificate

__all__ = ["encode_ocsp_request"]


def encode_ocsp_request(certificate: Certificate, issuer: Certificate, nonce: bytes) -> bytes:
    """Return the DER that asks about `certificate`, issued by `issuer`; the nonce is critical."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        certificate.handle, issuer.handle, hashes.SHA384()
    )
    request = builder.add_extension(x509.OCSPNonce(nonce), critical=True).build()
    return request.public_bytes(Encoding.DER)
