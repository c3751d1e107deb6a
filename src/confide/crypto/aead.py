"""The three AEADs of HPKE (RFC 9180 §7.3) under one face, `SealingKey`.

Nonces are the caller's business: each may be used once under a key. `OpenError` says that bytes
did not authenticate and nothing more.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from confide.wire.ohttp import TAG_BYTES, Aead

__all__ = ["NONCE_BYTES", "OpenError", "SealingKey"]

# From: RFC 9180 §7.3: Nn of every AEAD.
NONCE_BYTES = 12


class OpenError(Exception):
    """The ciphertext, its associated data, nonce or key is not the one that was sealed."""


class SealingKey:
    """One AEAD key, ready for use. `ValueError` for a key of the wrong size and for export-only."""

    __slots__ = ("_cipher",)

    def __init__(self, aead: Aead, key: bytes) -> None:
        if aead is Aead.EXPORT_ONLY:
            raise ValueError("an export-only suite has no cipher")
        if len(key) != aead.key_bytes:
            raise ValueError("the key does not have the size of its AEAD")
        self._cipher: AESGCM | ChaCha20Poly1305 = (
            ChaCha20Poly1305(key) if aead is Aead.CHACHA20_POLY1305 else AESGCM(key)
        )

    def seal(self, nonce: bytes, aad: bytes, plaintext: bytes | bytearray | memoryview) -> bytes:
        """Return ciphertext ‖ tag."""
        return self._cipher.encrypt(nonce, plaintext, aad)

    def open(self, nonce: bytes, aad: bytes, sealed: bytes | bytearray | memoryview) -> bytes:
        """Return the plaintext of `sealed`; `OpenError` otherwise."""
        if len(sealed) < TAG_BYTES:
            raise OpenError("shorter than a tag")
        try:
            return self._cipher.decrypt(nonce, sealed, aad)
        except InvalidTag as error:
            raise OpenError("does not authenticate") from error
