"""The KEMs of the channel: DHKEM(X25519), DHKEM(P-256) (RFC 9180 §4.1) and X-Wing.

X-Wing (draft-connolly-cfrg-xwing-kem, also MLKEM768-X25519 of draft-ietf-hpke-pq): SHAKE256 of the
32-byte seed gives the ML-KEM-768 seed and the X25519 secret; the shared secret is SHA3-256 over
both secrets, the X25519 ciphertext and key, and a label. It holds if either half holds.

Private keys are parsed once into `PrivateKey`, public keys into `PublicKey`. The ephemeral secret
of a sender is an argument; the one exception is the ML-KEM encapsulation, whose 32 random bytes
are drawn inside OpenSSL because `cryptography` has no derandomised form (channel.md 1.4).
Public keys and encapsulations are hostile.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519

from confide.crypto.aead import OpenError
from confide.errors import FormatError, Reason
from confide.wire.ohttp import Kem
from confide.wire.reader import Reader

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = [
    "PrivateKey",
    "PublicKey",
    "derive_private_key",
    "hkdf_expand",
    "hkdf_extract",
    "labeled_expand",
    "labeled_extract",
    "load_private_key",
    "load_public_key",
]

_PrivateHandle: TypeAlias = "x25519.X25519PrivateKey | ec.EllipticCurvePrivateKey"
_PublicHandle: TypeAlias = "x25519.X25519PublicKey | ec.EllipticCurvePublicKey"

# From: draft-connolly-cfrg-xwing-kem §5.3: \./ over /^\ in ASCII.
_XWING_LABEL = bytes.fromhex("5c2e2f2f5e5c")
# From: FIPS 203 §8, table 3: sizes of ML-KEM-768.
_MLKEM_PUBLIC_BYTES = 1184
_MLKEM_CIPHERTEXT_BYTES = 1088
# From: RFC 9180 §7.1.3, order of P-256.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SECRET_BYTES = 32
_SHA256 = hashes.SHA256()


def _hmac(key: bytes, data: bytes) -> bytes:
    # Half the price of the standard library's, which asks OpenSSL for the algorithm every time.
    context = hmac.HMAC(key, _SHA256)
    context.update(data)
    return context.finalize()


def hkdf_extract(salt: bytes, ikm: bytes) -> bytes:
    """RFC 5869 §2.2 with SHA-256."""
    return _hmac(salt, ikm)


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 §2.3 with SHA-256; `ValueError` beyond 255 blocks."""
    if length > 255 * 32:
        raise ValueError("HKDF-SHA256 expands to at most 8160 bytes")
    block = _hmac(prk, info + b"\x01")
    output = block
    for counter in range(2, (length + 31) // 32 + 1):
        block = _hmac(prk, block + info + counter.to_bytes(1, "big"))
        output += block
    return output[:length]


def labeled_extract(suite_id: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    """RFC 9180 §4."""
    return hkdf_extract(salt, b"HPKE-v1" + suite_id + label + ikm)


def labeled_expand(suite_id: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """RFC 9180 §4."""
    return hkdf_expand(
        prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + info, length
    )


def _suite_id(kem: Kem) -> bytes:
    return b"KEM" + kem.to_bytes(2, "big")


def _extract_and_expand(kem: Kem, dh: bytes, context: bytes) -> bytes:
    suite_id = _suite_id(kem)
    prk = labeled_extract(suite_id, b"", b"eae_prk", dh)
    return labeled_expand(suite_id, prk, b"shared_secret", context, _SECRET_BYTES)


def _public_bytes(key: _PublicHandle) -> bytes:
    if isinstance(key, x25519.X25519PublicKey):
        return key.public_bytes_raw()
    return key.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def _load_public_handle(kem: Kem, raw: bytes) -> _PublicHandle:
    if len(raw) != (65 if kem is Kem.P256 else 32):
        raise ValueError("the point does not have the size of its curve")
    if kem is Kem.P256:
        # Refuses points off the curve and at infinity; compressed points have another size.
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw)
    return x25519.X25519PublicKey.from_public_bytes(raw)


def _load_private_handle(kem: Kem, raw: bytes) -> _PrivateHandle:
    if kem is not Kem.P256:
        return x25519.X25519PrivateKey.from_private_bytes(raw)
    return ec.derive_private_key(int.from_bytes(raw, "big"), ec.SECP256R1())


def _exchange(private: _PrivateHandle, public: _PublicHandle) -> bytes:
    """Raises `OpenError` for a peer point that gives the all-zero secret (RFC 9180 §7.1.4)."""
    try:
        if isinstance(private, x25519.X25519PrivateKey):
            if isinstance(public, x25519.X25519PublicKey):
                return private.exchange(public)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            return private.exchange(ec.ECDH(), public)
    except ValueError as error:
        raise OpenError("the exchange gives no secret") from error
    raise TypeError("the keys are of two curves")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A parsed public key. `raw` are its bytes on the wire."""

    kem: Kem
    raw: bytes
    _dh: _PublicHandle = field(repr=False, compare=False)
    _mlkem: mlkem.MLKEM768PublicKey | None = field(repr=False, compare=False)

    def encapsulate(
        self, ephemeral: bytes, *, sender: PrivateKey | None = None
    ) -> tuple[bytes, bytes]:
        """
        Return (encapsulation, shared secret) for a fresh 32-byte `ephemeral` secret.

        `sender` authenticates (AuthEncap); X-Wing has no such mode. `ephemeral` must never be
        used twice. Raises `ValueError` for an unusable `ephemeral` (P-256: not a scalar).
        """
        if len(ephemeral) != _SECRET_BYTES:
            raise ValueError("an ephemeral secret has 32 bytes")
        own = _load_private_handle(self.kem, ephemeral)
        dh_enc = _public_bytes(own.public_key())
        shared = _exchange(own, self._dh)
        if self._mlkem is not None:
            if sender is not None:
                raise ValueError("X-Wing does not authenticate senders")
            secret, ciphertext = self._mlkem.encapsulate()
            combined = _xwing_combine(secret, shared, dh_enc, _public_bytes(self._dh))
            return ciphertext + dh_enc, combined
        context = dh_enc + self.raw
        if sender is not None:
            shared += sender._exchange_with(self)  # noqa: SLF001 - one module, two classes
            context += sender.public_key.raw
        return dh_enc, _extract_and_expand(self.kem, shared, context)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A parsed private key with its public key. Secrets stay out of `repr`."""

    kem: Kem
    public_key: PublicKey
    _dh: _PrivateHandle = field(repr=False, compare=False)
    _mlkem: mlkem.MLKEM768PrivateKey | None = field(repr=False, compare=False)

    def _exchange_with(self, peer: PublicKey) -> bytes:
        return _exchange(self._dh, peer._dh)  # noqa: SLF001 - one module, two classes

    def decapsulate(self, enc: bytes, *, sender: PublicKey | None = None) -> bytes:
        """
        Return the shared secret of `enc`; `OpenError` when it is no encapsulation.

        With ML-KEM a forged encapsulation gives a secret that nobody has (implicit rejection):
        only opening proves it.
        """
        if len(enc) != self.kem.enc_bytes:
            raise OpenError("an encapsulation of another size")
        if self._mlkem is not None:
            if sender is not None:
                raise ValueError("X-Wing does not authenticate senders")
            return self._decapsulate_hybrid(enc, self._mlkem)
        shared = self._dh_with(enc)
        context = enc + self.public_key.raw
        if sender is not None:
            shared += self._exchange_with(sender)
            context += sender.raw
        return _extract_and_expand(self.kem, shared, context)

    def _dh_with(self, raw: bytes) -> bytes:
        try:
            public = _load_public_handle(self.kem, raw)
        except ValueError as error:
            raise OpenError("the encapsulation is not a point") from error
        return _exchange(self._dh, public)

    def _decapsulate_hybrid(self, enc: bytes, private: mlkem.MLKEM768PrivateKey) -> bytes:
        reader = Reader(enc, what="X-Wing", clause="X-Wing §5.5", truncated=Reason.CHANNEL_FORMAT)
        secret = private.decapsulate(reader.take(_MLKEM_CIPHERTEXT_BYTES))
        dh_enc = reader.rest()
        shared = self._dh_with(dh_enc)
        return _xwing_combine(secret, shared, dh_enc, _public_bytes(self.public_key._dh))  # noqa: SLF001


def _xwing_combine(mlkem_secret: bytes, dh_secret: bytes, dh_enc: bytes, dh_public: bytes) -> bytes:
    # From: draft-connolly-cfrg-xwing-kem §5.3.
    return hashlib.sha3_256(mlkem_secret + dh_secret + dh_enc + dh_public + _XWING_LABEL).digest()


def load_public_key(kem: Kem, raw: bytes) -> PublicKey:
    """Parse a public key; `FormatError` for a wrong size, a point off the curve, a bad lattice."""
    what = "HPKE public key"
    reader = Reader(raw, what=what, clause="X-Wing §5.2", truncated=Reason.CHANNEL_FORMAT)
    try:
        if kem is not Kem.X_WING:
            return PublicKey(kem, raw, _load_public_handle(kem, raw), None)
        post_quantum = mlkem.MLKEM768PublicKey.from_public_bytes(reader.take(_MLKEM_PUBLIC_BYTES))
        return PublicKey(kem, raw, _load_public_handle(kem, reader.rest()), post_quantum)
    except ValueError as error:
        raise FormatError(what, reason=Reason.CHANNEL_FORMAT, clause="RFC 9180 §7.1.4") from error


def load_private_key(kem: Kem, raw: bytes) -> PrivateKey:
    """
    Parse a 32-byte private key (a seed for X-Wing) and compute its public key.

    `ValueError` for another size or, with P-256, a number that is not a scalar.
    """
    if len(raw) != _SECRET_BYTES:
        raise ValueError("a private key has 32 bytes")
    if kem is not Kem.X_WING:
        private = _load_private_handle(kem, raw)
        public = private.public_key()
        return PrivateKey(kem, PublicKey(kem, _public_bytes(public), public, None), private, None)
    # From: draft-connolly-cfrg-xwing-kem §5.2: expandDecapsulationKey.
    expanded = hashlib.shake_256(raw).digest(96)
    post_quantum = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    classical = x25519.X25519PrivateKey.from_private_bytes(expanded[64:])
    pq_public, dh_public = post_quantum.public_key(), classical.public_key()
    encoded = pq_public.public_bytes_raw() + dh_public.public_bytes_raw()
    return PrivateKey(kem, PublicKey(kem, encoded, dh_public, pq_public), classical, post_quantum)


def derive_private_key(kem: Kem, ikm: bytes) -> bytes:
    """
    RFC 9180 §7.1.3 `DeriveKeyPair`: the raw private key for at least 32 bytes of `ikm`.

    X-Wing takes a 32-byte seed as it is; this is for the two DHKEMs.
    """
    if len(ikm) < _SECRET_BYTES:
        raise ValueError("at least 32 bytes of input keying material")
    if kem is Kem.X_WING:
        raise ValueError("X-Wing keys are seeds already")
    suite_id = _suite_id(kem)
    prk = labeled_extract(suite_id, b"", b"dkp_prk", ikm)
    if kem is Kem.X25519:
        return labeled_expand(suite_id, prk, b"sk", b"", _SECRET_BYTES)
    for counter in range(256):
        candidate = labeled_expand(
            suite_id, prk, b"candidate", counter.to_bytes(1, "big"), _SECRET_BYTES
        )
        if 0 < int.from_bytes(candidate, "big") < _P256_ORDER:
            return candidate
    raise ValueError("no scalar in 256 attempts")  # pragma: no cover - probability 2^-8192
