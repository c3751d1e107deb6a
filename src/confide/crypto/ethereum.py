"""Ethereum-style keys: Keccak-256, addresses, and signatures over a personal message.

Specification: the Keccak submission as Ethereum uses it (padding 0x01, not SHA3-256 of FIPS 202);
Ethereum Yellow Paper appendix F (addresses, recovery); EIP-191 version 0x45 (personal message);
EIP-2 (low s). Messages, keys and signatures are hostile. A recovered key says who could have
signed, nothing more: the caller has to compare it with one it already trusts, for every
well-formed signature recovers *some* key.

The two libraries below belong to the extra `services`. They are imported when first used, so that
verifying hardware evidence alone does not need them.
"""

from __future__ import annotations

from typing import Final, NoReturn

from confide.crypto.errors import BadSignature
from confide.crypto.recoverable import recover_secp256k1
from confide.errors import ConfigurationError

__all__ = [
    "address_of",
    "derive_secp256k1_public_key",
    "keccak256",
    "personal_message",
    "recover_personal_sign",
    "sign_personal_message",
]

_PUBLIC_BYTES: Final = 64
_SIGNATURE_BYTES: Final = 65
# From: Yellow Paper appendix F: v is 27 plus the parity of R's y coordinate.
_V_BASE: Final = 27


def _missing(error: ImportError) -> NoReturn:
    raise ConfigurationError(
        "Ethereum-style keys need two more packages: pip install 'confide[services]'"
    ) from error


def keccak256(data: bytes) -> bytes:
    """
    Return the 32-byte Keccak-256 of `data`, as Ethereum uses it (this is not SHA3-256).

    Raises `ConfigurationError` where pycryptodome is not installed.
    """
    try:
        from Crypto.Hash import keccak  # noqa: PLC0415 - only who needs it has to have it
    except ImportError as error:  # pragma: no cover - tests install the extra
        _missing(error)
    return bytes(keccak.new(digest_bits=256, data=data).digest())


def address_of(public_key: bytes) -> bytes:
    """
    Return the 20-byte address of a secp256k1 key given as X ‖ Y (64 bytes, no 04 in front).

    Raises `ValueError` for another length. **Does not check** that the point is on the curve.
    """
    if len(public_key) != _PUBLIC_BYTES:
        raise ValueError("a public key is 64 bytes, X and Y")
    return keccak256(public_key)[12:]


def personal_message(text: bytes) -> bytes:
    """Return what a wallet hashes for `text` (EIP-191 version 0x45): a prefix, length, text."""
    return b"\x19Ethereum Signed Message:\n" + str(len(text)).encode("ascii") + text


def recover_personal_sign(text: bytes, signature: bytes) -> bytes:
    """
    Return the public key (X ‖ Y, 64 bytes) that made `signature` over the personal message `text`.

    `signature` is r(32) ‖ s(32) ‖ v(1). v is 27 or 28 and nothing else: 0 and 1 and the numbers of
    EIP-155 are other conventions, and one message has one encoding. r and s are from 1 to n - 1,
    and s is at most n / 2 (EIP-2): signers normalise, and without the rule every signature has a
    second form. R beyond the order (v 29, 30) does not occur.

    **Does not check** whose key it is. Raises `BadSignature` for everything else, and
    `ConfigurationError` where coincurve is not installed.
    """
    if len(signature) != _SIGNATURE_BYTES:
        raise BadSignature(f"{len(signature)} bytes are no recoverable signature")
    parity = signature[64] - _V_BASE
    if parity not in {0, 1}:
        raise BadSignature("the recovery byte is neither 27 nor 28")
    digest = keccak256(personal_message(text))
    return recover_secp256k1(digest, signature[:64] + bytes([parity]))


def derive_secp256k1_public_key(secret: bytes) -> bytes:
    """Return X ‖ Y (64 bytes) of the secret scalar `secret` (32 bytes): simulators and tests."""
    try:
        from coincurve import PrivateKey  # noqa: PLC0415 - only who needs it has to have it
    except ImportError as error:  # pragma: no cover - tests install the extra
        _missing(error)
    return PrivateKey(secret).public_key.format(compressed=False)[1:]


def sign_personal_message(secret: bytes, text: bytes) -> bytes:
    """Return r ‖ s ‖ v over `text`, deterministic (RFC 6979), low s: simulators and tests."""
    try:
        from coincurve import PrivateKey  # noqa: PLC0415 - only who needs it has to have it
    except ImportError as error:  # pragma: no cover - tests install the extra
        _missing(error)
    compact = PrivateKey(secret).sign_recoverable(keccak256(personal_message(text)), hasher=None)
    return compact[:64] + bytes([_V_BASE + compact[64]])
