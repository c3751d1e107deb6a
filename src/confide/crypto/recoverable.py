"""Recoverable secp256k1 signatures over a digest, as dstack's key servers and guests make them.

Specification: SEC 1 §4.1.6 (recovery), §4.1.3; docs/protocols/dstack.md §11. A recovered key says
who could have signed: compare it with one that is already trusted. Ethereum's form over a personal
message is `crypto/ethereum.py`; here v is the recovery id itself, 0 to 3.
"""

from __future__ import annotations

from typing import Final

from confide.crypto.errors import BadSignature
from confide.errors import ConfigurationError

__all__ = ["compress_point", "recover_secp256k1"]

# From: SEC 2 §2.4.1: the order n of the group of secp256k1.
_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def compress_point(public_key: bytes) -> bytes:
    """Return the 33-byte SEC 1 form of a key given as X ‖ Y (64 bytes)."""
    if len(public_key) != 64:
        raise ValueError("a public key is 64 bytes, X and Y")
    return bytes([2 + (public_key[63] & 1)]) + public_key[:32]


def recover_secp256k1(digest: bytes, signature: bytes) -> bytes:
    """
    Return the public key (X ‖ Y, 64 bytes) that made `signature` over `digest` (32 bytes).

    `signature` is r(32) ‖ s(32) ‖ v(1) with v from 0 to 3 and the lower of both s, so that one
    message has one signature. Raises `BadSignature`, and `ConfigurationError` where coincurve is
    not installed. **Does not check** whose key it is.
    """
    if len(digest) != 32 or len(signature) != 65 or signature[64] > 3:
        raise BadSignature("not a recoverable signature over 32 bytes")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    if not 0 < r < _ORDER or not 0 < s <= _ORDER // 2:
        raise BadSignature("r or s is out of range, or s is the high one of two")
    try:
        from coincurve import PublicKey  # noqa: PLC0415 - only who needs it has to have it
    except ImportError as error:  # pragma: no cover - tests install the extra
        raise ConfigurationError(
            "secp256k1 keys need one more package: pip install 'confide[services]'"
        ) from error
    try:
        key = PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except ValueError as error:
        raise BadSignature("no key is recovered from the signature") from error
    return key.format(compressed=False)[1:]
