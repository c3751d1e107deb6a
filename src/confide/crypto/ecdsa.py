"""ECDSA over NIST P-256 with SHA-256 and over NIST P-384 with SHA-384, signatures as raw r ‖ s.

Specification: FIPS 186-5 §6, SEC 1 §2.3.3 (points), RFC 6979 (deterministic signing). The hash
always follows the curve: nothing in a message selects it. Keys and signatures are hostile; a
point off the curve and the point at infinity are refused when a key is loaded.

Signatures are malleable (s and n - s both verify): never use one as an identity or a replay key.
`SigningKey` exists for simulators and tests and for the keys of one node boot; it is derived
from bytes the caller passes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from confide.crypto.errors import BadSignature
from confide.errors import FormatError, Reason

__all__ = [
    "Curve",
    "PublicKey",
    "SigningKey",
    "derive_signing_key",
    "load_public_key",
    "verify",
    "wrap_public_key",
]


class Curve(StrEnum):
    """A supported curve; the value is its name in FIPS 186-5."""

    P256 = "P-256"
    P384 = "P-384"

    @property
    def coordinate_bytes(self) -> int:
        """Bytes of one coordinate, of r and of s."""
        return 32 if self is Curve.P256 else 48


_CURVES: dict[Curve, ec.EllipticCurve] = {Curve.P256: ec.SECP256R1(), Curve.P384: ec.SECP384R1()}
_BY_NAME = {curve.name: name for name, curve in _CURVES.items()}
_ALGORITHMS = {
    Curve.P256: ec.ECDSA(hashes.SHA256()),
    Curve.P384: ec.ECDSA(hashes.SHA384()),
}
_SIGNERS = {
    Curve.P256: ec.ECDSA(hashes.SHA256(), deterministic_signing=True),
    Curve.P384: ec.ECDSA(hashes.SHA384(), deterministic_signing=True),
}
# From: FIPS 186-5, SP 800-186 §3.2.1.3 and §3.2.1.4: the group orders.
_ORDERS = {
    Curve.P256: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    Curve.P384: int(
        "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"
        "C7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973",
        16,
    ),
}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A point on `curve`; `point` is x ‖ y, big-endian, and alone decides equality."""

    curve: Curve
    point: bytes
    handle: ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    def spki(self) -> bytes:
        """Return the DER SubjectPublicKeyInfo (RFC 5480 §2)."""
        return self.handle.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def wrap_public_key(handle: object, *, what: str, reason: Reason) -> PublicKey:
    """Wrap a key that `cryptography` parsed; `FormatError` for anything but P-256 and P-384."""
    if not isinstance(handle, ec.EllipticCurvePublicKey) or handle.curve.name not in _BY_NAME:
        raise FormatError(
            f"{what}: the key is not on P-256 or P-384", reason=reason, clause="RFC 5480 §2.1.1"
        )
    encoded = handle.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return PublicKey(_BY_NAME[handle.curve.name], encoded[1:], handle)


def load_public_key(curve: Curve, point: bytes, *, what: str, reason: Reason) -> PublicKey:
    """
    Load x ‖ y (big-endian) as a key on `curve`.

    Raises `FormatError` with `reason` when the length is wrong or the point is not on the curve.
    """
    if len(point) != 2 * curve.coordinate_bytes:
        raise FormatError(
            f"{what}: {len(point)} bytes are no point on {curve}",
            reason=reason,
            clause="SEC 1 §2.3.3",
        )
    try:
        # From: SEC 1 §2.3.3: 04 marks an uncompressed point.
        handle = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[curve], b"\x04" + point)
    except ValueError as error:
        raise FormatError(
            f"{what}: not a point on {curve}", reason=reason, clause="SEC 1 §2.3.4"
        ) from error
    return PublicKey(curve, point, handle)


def verify(key: PublicKey, signature: bytes, message: bytes) -> None:
    """
    Establish that `signature` (r ‖ s, big-endian) over `message` was made with `key`.

    Raises `BadSignature`, also for a signature of the wrong length.
    """
    size = key.curve.coordinate_bytes
    if len(signature) != 2 * size:
        raise BadSignature(f"{len(signature)} bytes are no signature on {key.curve}")
    der = encode_dss_signature(
        int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    )
    try:
        key.handle.verify(der, message, _ALGORITHMS[key.curve])
    except InvalidSignature as error:
        raise BadSignature(f"the {key.curve} signature does not verify") from error


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key; never printed."""

    public: PublicKey
    handle: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    def pkcs8_pem(self) -> bytes:
        """Return the private key in clear (PKCS #8, PEM), for a server in the same process."""
        return self.handle.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(self, message: bytes) -> bytes:
        """Return r ‖ s over `message`, deterministic (RFC 6979)."""
        size = self.public.curve.coordinate_bytes
        r, s = decode_dss_signature(self.handle.sign(message, _SIGNERS[self.public.curve]))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def derive_signing_key(curve: Curve, seed: bytes, label: str) -> SigningKey:
    """
    Derive the key called `label` from `seed`: equal inputs, equal key.

    Whoever knows `seed` has the key. The 512-bit digest makes the bias of the reduction
    negligible on P-256; on P-384 it is below 2**-128.
    """
    digest = hashlib.sha512(b"confide/signing-key/v1\0" + label.encode() + b"\0" + seed).digest()
    scalar = int.from_bytes(digest, "big") % (_ORDERS[curve] - 1) + 1
    handle = ec.derive_private_key(scalar, _CURVES[curve])
    public = wrap_public_key(handle.public_key(), what="derived key", reason=Reason.CHAIN_MALFORMED)
    return SigningKey(public, handle)
