"""Ed25519 (RFC 8032): receipt signatures. Keys come from bytes the caller drew."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from confide.crypto.errors import BadSignature

__all__ = ["Ed25519Signer", "verify_ed25519"]


class Ed25519Signer:
    """A private key held in memory. `seed` is 32 bytes of entropy; it is not kept."""

    __slots__ = ("_key", "public_key")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key: bytes = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over `message`."""
        return self._key.sign(message)


def verify_ed25519(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Raise `BadSignature` unless `signature` over `message` verifies under `public_key`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature("Ed25519 signature does not verify") from error
