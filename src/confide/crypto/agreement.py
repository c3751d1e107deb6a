"""Key agreement with keys that are made for signatures: Ed25519 mapped to X25519, and secp256k1.

Specification: RFC 7748 §4.1 (the birational map), RFC 8032 §5.1 (points and secrets), SEC 1 §3.3.1
(ECDH, X coordinate). Services publish one key and use it for both; only their protocols need this.
Public keys are hostile: a point off its curve or of small order gives no secret.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec, x25519

from confide.crypto.aead import OpenError

__all__ = [
    "agree_secp256k1",
    "agree_x25519",
    "ed25519_public_to_x25519",
    "ed25519_seed_to_x25519",
    "x25519_public",
]

# From: RFC 8032 §5.1: the field and the curve constant of edwards25519.
_P = 2**255 - 19
_D = 37095705934669439343138083508754565189542113879843219016388785533085940283555


def ed25519_public_to_x25519(public_key: bytes) -> bytes:
    """
    Return the X25519 public key of an Ed25519 one: u = (1 + y) / (1 - y).

    Raises `OpenError` for bytes that are not the encoding of a point, and for the neutral element.
    """
    if len(public_key) != 32:
        raise OpenError("an Ed25519 public key has 32 bytes")
    encoded = int.from_bytes(public_key, "little")
    y = encoded & ((1 << 255) - 1)
    if y >= _P or y == 1:
        raise OpenError("not the encoding of a point")
    # From: RFC 8032 §5.1.3: x² = (y² - 1) / (d y² + 1) has to be a square.
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    if square and pow(square, (_P - 1) // 2, _P) != 1:
        raise OpenError("not a point of the curve")
    return ((1 + y) * pow(1 - y, -1, _P) % _P).to_bytes(32, "little")


def ed25519_seed_to_x25519(seed: bytes) -> bytes:
    """Return the X25519 secret of an Ed25519 seed: the scalar that it signs with (RFC 8032)."""
    if len(seed) != 32:
        raise ValueError("an Ed25519 seed has 32 bytes")
    return hashlib.sha512(seed).digest()[:32]


def x25519_public(secret: bytes) -> bytes:
    """Return the public key of an X25519 secret (32 bytes)."""
    return x25519.X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agree_x25519(secret: bytes, public_key: bytes) -> bytes:
    """Return the shared secret; `OpenError` for a key that gives none (RFC 7748 §6.1)."""
    try:
        peer = x25519.X25519PublicKey.from_public_bytes(public_key)
        return x25519.X25519PrivateKey.from_private_bytes(secret).exchange(peer)
    except ValueError as error:
        raise OpenError("the key gives no secret") from error


def agree_secp256k1(secret: bytes, public_key: bytes) -> bytes:
    """
    Return the X coordinate of the shared point; `public_key` is X ‖ Y (64 bytes).

    Raises `OpenError` for a point off the curve, `ValueError` for a `secret` that is no scalar.
    """
    if len(public_key) != 64:
        raise OpenError("a secp256k1 public key has 64 bytes")
    own = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256K1())
    try:
        peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), b"\x04" + public_key)
    except ValueError as error:
        raise OpenError("not a point of the curve") from error
    return own.exchange(ec.ECDH(), peer)
