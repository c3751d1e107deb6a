"""XChaCha20-Poly1305: ChaCha20-Poly1305 with a 24-byte nonce, for services that seal with it.

Specification: draft-irtf-cfrg-xchacha-03 §2.2 (HChaCha20) and §2.3. HChaCha20 is the ChaCha20 block
function without its last addition; `cryptography` has that function with it, so the addition is
taken back. Ciphertexts are hostile.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from confide.crypto.aead import OpenError

__all__ = ["XCHACHA_NONCE_BYTES", "hchacha20", "open_xchacha", "seal_xchacha"]

XCHACHA_NONCE_BYTES = 24
_KEY_BYTES = 32
_TAG_BYTES = 16
_WORDS = struct.Struct("<4I")
# From: RFC 8439 §2.3: "expand 32-byte k".
_CONSTANTS = b"expand 32-byte k"


def _less(block: bytes, initial: bytes) -> bytes:
    words = zip(_WORDS.unpack(block), _WORDS.unpack(initial), strict=True)
    return _WORDS.pack(*((word - start) & 0xFFFFFFFF for word, start in words))


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """Return the 32-byte subkey of `key` (32 bytes) for `nonce` (16 bytes)."""
    if len(key) != _KEY_BYTES or len(nonce) != 16:
        raise ValueError("HChaCha20 takes a key of 32 bytes and 16 bytes of nonce")
    # From: RFC 8439 §2.3: the state is constants, key, then counter and nonce: our 16 bytes.
    stream = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()
    block = stream.update(bytes(64))
    return _less(block[:16], _CONSTANTS) + _less(block[48:], nonce)


def _cipher(key: bytes, nonce: bytes) -> tuple[ChaCha20Poly1305, bytes]:
    if len(nonce) != XCHACHA_NONCE_BYTES:
        raise ValueError("a nonce has 24 bytes")
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])), bytes(4) + nonce[16:]


def seal_xchacha(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes = b"") -> bytes:
    """Return ciphertext ‖ tag. `nonce` may be drawn at random."""
    cipher, short = _cipher(key, nonce)
    return cipher.encrypt(short, plaintext, aad)


def open_xchacha(key: bytes, nonce: bytes, sealed: bytes, aad: bytes = b"") -> bytes:
    """Return the plaintext of `sealed`; `OpenError` otherwise."""
    cipher, short = _cipher(key, nonce)
    if len(sealed) < _TAG_BYTES:
        raise OpenError("shorter than a tag")
    try:
        return cipher.decrypt(short, sealed, aad)
    except InvalidTag as error:
        raise OpenError("does not authenticate") from error
