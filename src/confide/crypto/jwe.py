"""JWE with one cipher and two ways to wrap its key: seal to a guest's key, open with one's own.

Specification: RFC 7518 §4.6 (ECDH-ES+A256KW on P-256 and P-521, Concat KDF of SP 800-56A §5.8.2.1,
RFC 3394 key wrap), §4.3 (RSA-OAEP with SHA-256 and MGF1 with SHA-256), §5.3 (A256GCM). Points off
their curve are refused when they are loaded. Randomness is an argument, but for the seed of OAEP,
which the library draws itself.

A JWE says nothing about who made it: anybody can seal to a public key. Who answered is said by the
broker's receipt (docs/protocols/broker.md 5.2).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

from confide.crypto.aead import NONCE_BYTES, OpenError, SealingKey
from confide.errors import FormatError, Reason
from confide.wire.jwe import (
    ECDH,
    EcPoint,
    FlattenedJwe,
    KeyCurve,
    RsaModulus,
    WrappingKey,
    encode_protected,
)
from confide.wire.ohttp import TAG_BYTES, Aead

__all__ = [
    "EPHEMERAL_BYTES",
    "JweSecrets",
    "UnwrappingKey",
    "concat_kdf",
    "derive_unwrapping_key",
    "require_usable",
    "seal_jwe",
]

# Half again as long as the larger scalar, so that reducing it has no bias worth naming
# (FIPS 186-5 §A.2.1).
EPHEMERAL_BYTES: Final = 96
_KEY_BYTES: Final = 32
_CURVES: Final[dict[KeyCurve, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-521": ec.SECP521R1(),
}
_OAEP: Final = padding.OAEP(
    mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None
)
_EXPONENT: Final = 65537


@dataclass(frozen=True, slots=True)
class JweSecrets:
    """Fresh randomness for one JWE, never used again: content key, IV, ephemeral secret."""

    key: bytes = field(repr=False)
    iv: bytes
    ephemeral: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse wrong sizes (`ValueError`)."""
        sizes = (len(self.key), len(self.iv), len(self.ephemeral))
        if sizes != (_KEY_BYTES, NONCE_BYTES, EPHEMERAL_BYTES):
            raise ValueError("randomness of the wrong size")


def concat_kdf(secret: bytes, *, algorithm: str, bits: int, apu: bytes, apv: bytes) -> bytes:
    """Return `bits` of key from an agreed `secret` (RFC 7518 §4.6.2), SHA-256."""
    parts = (algorithm.encode("ascii"), apu, apv)
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    info += bits.to_bytes(4, "big")
    return ConcatKDFHash(hashes.SHA256(), bits // 8, info).derive(secret)


def _key_encryption_key(secret: bytes) -> bytes:
    return concat_kdf(secret, algorithm=ECDH, bits=8 * _KEY_BYTES, apu=b"", apv=b"")


def _load_point(key: EcPoint) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[key.curve], b"\x04" + key.point)
    except ValueError as error:
        raise FormatError(
            f"JWE: not a point on {key.curve}", reason=Reason.BROKER_FORMAT, clause="SEC 1 §2.3.4"
        ) from error


def _load_modulus(key: RsaModulus) -> rsa.RSAPublicKey:
    number = int.from_bytes(key.modulus, "big")
    try:
        return rsa.RSAPublicNumbers(_EXPONENT, number).public_key()
    except ValueError as error:
        raise FormatError(
            "JWE: not an RSA key", reason=Reason.BROKER_FORMAT, clause="RFC 8017 §3.1"
        ) from error


def require_usable(key: WrappingKey) -> None:
    """Raise `FormatError` where nothing could be sealed to `key`: a point off its curve."""
    if isinstance(key, EcPoint):
        _load_point(key)
    else:
        _load_modulus(key)


def _derive(curve: KeyCurve, secret: bytes) -> ec.EllipticCurvePrivateKey:
    group = _CURVES[curve]
    scalar = int.from_bytes(secret, "big") % (group.group_order - 1) + 1
    return ec.derive_private_key(scalar, group)


def _point_of(curve: KeyCurve, handle: ec.EllipticCurvePrivateKey) -> EcPoint:
    encoded = handle.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return EcPoint(curve, encoded[1:])


def seal_jwe(key: WrappingKey, plaintext: bytes, *, secrets: JweSecrets) -> FlattenedJwe:
    """
    Return `plaintext` sealed to `key`; whoever has its private half opens it.

    Raises `FormatError` for a key that is none.
    """
    ephemeral: EcPoint | None = None
    if isinstance(key, EcPoint):
        public, own = _load_point(key), _derive(key.curve, secrets.ephemeral)
        ephemeral = _point_of(key.curve, own)
        wrapping = _key_encryption_key(own.exchange(ec.ECDH(), public))
        encrypted = keywrap.aes_key_wrap(wrapping, secrets.key)
    else:
        encrypted = _load_modulus(key).encrypt(secrets.key, _OAEP)
    protected = encode_protected(ephemeral)
    cipher = SealingKey(Aead.AES_256_GCM, secrets.key)
    sealed = cipher.seal(secrets.iv, protected.encode("ascii"), plaintext)
    return FlattenedJwe(
        protected, ephemeral, encrypted, secrets.iv, sealed[:-TAG_BYTES], sealed[-TAG_BYTES:]
    )


@dataclass(frozen=True, slots=True)
class UnwrappingKey:
    """The private half of a key that was drawn for one session; never printed."""

    public: EcPoint
    _handle: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    def open(self, jwe: FlattenedJwe) -> bytes:
        """Return the plaintext; `OpenError` for anything that was not sealed to this key."""
        if jwe.ephemeral is None or jwe.ephemeral.curve != self.public.curve:
            raise OpenError("wrapped in another way")
        try:
            secret = self._handle.exchange(ec.ECDH(), _load_point(jwe.ephemeral))
            key = keywrap.aes_key_unwrap(_key_encryption_key(secret), jwe.encrypted_key)
            cipher = SealingKey(Aead.AES_256_GCM, key)
        except (FormatError, keywrap.InvalidUnwrap, ValueError) as error:
            raise OpenError("wrapped to another key") from error
        return cipher.open(jwe.iv, jwe.aad, jwe.ciphertext + jwe.tag)


def derive_unwrapping_key(curve: KeyCurve, secret: bytes) -> UnwrappingKey:
    """Return the key of `secret`, 96 fresh random bytes; equal bytes, equal key."""
    if len(secret) != EPHEMERAL_BYTES:
        raise ValueError(f"a secret of {EPHEMERAL_BYTES} bytes")
    handle = _derive(curve, hashlib.shake_256(b"confide/tee-key/v1\0" + secret).digest(96))
    return UnwrappingKey(_point_of(curve, handle), handle)
