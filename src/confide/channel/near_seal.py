"""One field sealed as NEAR's protocol does, version 2: ed25519 and ecdsa. Sans-IO, pure.

Clauses: docs/protocols/near-face.md §5. Each field is a message of its own to a public key that
everybody knows: no associated data, no order, no sender. The wire form is lower-case hex; upper
case is read. Ciphertexts and the caller's key are hostile; whatever is wrong with them is
`OpenError`, so that a caller learns nothing from the difference.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from confide.crypto.aead import NONCE_BYTES, OpenError, SealingKey
from confide.crypto.agreement import (
    agree_secp256k1,
    agree_x25519,
    ed25519_public_to_x25519,
    ed25519_seed_to_x25519,
    x25519_public,
)
from confide.crypto.ethereum import derive_secp256k1_public_key
from confide.crypto.kem import hkdf_expand, hkdf_extract
from confide.crypto.xchacha import XCHACHA_NONCE_BYTES, open_xchacha, seal_xchacha
from confide.reasons import Reason
from confide.wire.ohttp import TAG_BYTES, Aead
from confide.wire.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FieldKey", "FieldScheme", "OpenedField", "client_key", "open_field", "seal_field"]

_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+\Z")
# From: RFC 5869 §2.2: no salt is HashLen zeros.
_NO_SALT: Final = bytes(32)


class FieldScheme(StrEnum):
    """How fields are sealed; the value is that of `X-Signing-Algo`."""

    ED25519 = "ed25519"
    ECDSA = "ecdsa"


@dataclass(frozen=True, slots=True)
class FieldKey:
    """A secret that opens fields: an Ed25519 seed or a secp256k1 scalar, 32 bytes."""

    scheme: FieldScheme
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class OpenedField:
    """
    A field in clear. `mark` names its ciphertext: 64 bits over nonce and sealed bytes.

    It leaves out the ephemeral key, which has several encodings that lead to one secret.
    """

    text: str
    mark: int


def _key(scheme: FieldScheme, shared: bytes) -> bytes:
    info = b"ed25519_encryption" if scheme is FieldScheme.ED25519 else b"ecdsa_encryption"
    return hkdf_expand(hkdf_extract(_NO_SALT, shared), info, 32)


def client_key(scheme: FieldScheme, text: str) -> bytes:
    """
    Return the key in `X-Client-Pub-Key` as `seal_field` takes it: X25519, or X ‖ Y.

    Raises `OpenError` for anything but the hex of a key of `scheme`.
    """
    if not _HEX.match(text) or len(text) > 130:
        raise OpenError("not hex")
    raw = bytes.fromhex(text)
    if scheme is FieldScheme.ED25519:
        return ed25519_public_to_x25519(raw)
    if len(raw) == 65 and raw[0] == 4:
        raw = raw[1:]
    # Any scalar will do: the point has to be on the curve.
    agree_secp256k1(b"\x01".rjust(32, b"\0"), raw)
    return raw


def open_field(key: FieldKey, text: str) -> OpenedField:
    """
    Return what is sealed in `text`. `OpenError` for everything else, and for nothing.

    **Does not check** that it was not opened before: whoever saw a field can send it again.
    """
    if not _HEX.match(text):
        raise OpenError("not hex")
    raw = bytes.fromhex(text)
    ed25519 = key.scheme is FieldScheme.ED25519
    least = 32 + XCHACHA_NONCE_BYTES if ed25519 else 65 + NONCE_BYTES
    if len(raw) < least + TAG_BYTES:
        raise OpenError("shorter than an empty field")
    reader = Reader(raw, what="field", clause="near-face.md §5", truncated=Reason.CHANNEL_FORMAT)
    plain = _open_ed25519(key, reader) if ed25519 else _open_ecdsa(key, reader)
    mark = hashlib.sha256(raw[32 if ed25519 else 65 :]).digest()
    try:
        return OpenedField(plain.decode("utf-8"), int.from_bytes(mark[:8], "big"))
    except UnicodeDecodeError as error:
        raise OpenError("not UTF-8") from error


def _open_ed25519(key: FieldKey, reader: Reader) -> bytes:
    shared = agree_x25519(ed25519_seed_to_x25519(key.secret), reader.take(32))
    nonce = reader.take(XCHACHA_NONCE_BYTES)
    return open_xchacha(_key(key.scheme, shared), nonce, reader.rest())


def _open_ecdsa(key: FieldKey, reader: Reader) -> bytes:
    if reader.take(1) != b"\x04":
        raise OpenError("not an uncompressed point")
    shared = agree_secp256k1(key.secret, reader.take(64))
    nonce = reader.take(NONCE_BYTES)
    cipher = SealingKey(Aead.AES_256_GCM, _key(key.scheme, shared))
    return cipher.open(nonce, b"", reader.rest())


def seal_field(
    scheme: FieldScheme, public_key: bytes, text: str, draw: Callable[[int], bytes]
) -> str:
    """
    Return `text` sealed to `public_key` (of `client_key`), hex; empty stays empty.

    `draw` returns so many fresh random bytes: an ephemeral secret and a nonce for every field.
    """
    if not text:
        return ""
    plain, ephemeral = text.encode("utf-8"), draw(32)
    if scheme is FieldScheme.ED25519:
        shared, nonce = agree_x25519(ephemeral, public_key), draw(XCHACHA_NONCE_BYTES)
        sealed = seal_xchacha(_key(scheme, shared), nonce, plain)
        return (x25519_public(ephemeral) + nonce + sealed).hex()
    shared, nonce = agree_secp256k1(ephemeral, public_key), draw(NONCE_BYTES)
    sealed = SealingKey(Aead.AES_256_GCM, _key(scheme, shared)).seal(nonce, b"", plain)
    return (b"\x04" + derive_secp256k1_public_key(ephemeral) + nonce + sealed).hex()
