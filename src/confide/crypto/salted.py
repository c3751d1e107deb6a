"""Sealing at rest: one long-lived secret, a fresh salt and key for each thing sealed. Pure.

`salt(32) ‖ AES-256-GCM` under HKDF-SHA-256(secret, salt, info), nonce zero: a key seals once, so
the nonce never repeats under it. `info` says what is sealed and where it belongs; under another
`info` it does not open. Randomness is an argument: never use a salt twice.
"""

from __future__ import annotations

from confide.crypto.aead import NONCE_BYTES, OpenError, SealingKey
from confide.crypto.kem import hkdf_expand, hkdf_extract
from confide.wire.ohttp import TAG_BYTES, Aead

__all__ = ["SALT_BYTES", "SECRET_BYTES", "open_salted", "seal_salted"]

SALT_BYTES = 32
SECRET_BYTES = 32
_NONCE = bytes(NONCE_BYTES)


def _key(secret: bytes, salt: bytes, info: bytes) -> SealingKey:
    if len(secret) != SECRET_BYTES or len(salt) != SALT_BYTES:
        raise ValueError("a secret and a salt have 32 bytes each")
    key = hkdf_expand(hkdf_extract(salt, secret), info, Aead.AES_256_GCM.key_bytes)
    return SealingKey(Aead.AES_256_GCM, key)


def seal_salted(secret: bytes, *, info: bytes, salt: bytes, plaintext: bytes) -> bytes:
    """Return `plaintext` sealed under `secret` (32 bytes) and a fresh random `salt` (32 bytes)."""
    return salt + _key(secret, salt, info).seal(_NONCE, b"", plaintext)


def open_salted(secret: bytes, *, info: bytes, sealed: bytes) -> bytes:
    """Return what was sealed; `OpenError` under another secret or info, or for other bytes."""
    if len(sealed) < SALT_BYTES + TAG_BYTES:
        raise OpenError("shorter than a salt and a tag")
    salt, rest = sealed[:SALT_BYTES], sealed[SALT_BYTES:]
    return _key(secret, salt, info).open(_NONCE, b"", rest)
