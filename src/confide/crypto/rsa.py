"""RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes (RFC 8017 §8.1), RSA-4096 only.

The one form that AMD's certificates and revocation lists use; nothing in a message selects another.
Keys and signatures are hostile. `RsaSigningKey` exists for simulators and tests: its salt follows
from the message, so that equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from confide.crypto.errors import BadSignature
from confide.errors import FormatError, Reason

__all__ = ["RsaPublicKey", "RsaSigningKey", "verify_pss", "wrap_rsa_public_key"]

# From: AMD 57230 §2: RSA 4096, SHA-384; the usual exponent.
_BITS: Final = 4096
_EXPONENT: Final = 65537
_SALT_BYTES: Final = 48
_HASH_BYTES: Final = 48


@dataclass(frozen=True, slots=True)
class RsaPublicKey:
    """An RSA key of 4096 bits with exponent 65537; `modulus` alone decides equality."""

    modulus: int = field(repr=False)
    handle: rsa.RSAPublicKey = field(repr=False, compare=False)

    def spki(self) -> bytes:
        """Return the DER SubjectPublicKeyInfo (RFC 8017 §A.1)."""
        return self.handle.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def wrap_rsa_public_key(handle: object, *, what: str, reason: Reason) -> RsaPublicKey:
    """Wrap a key that `cryptography` parsed; `FormatError` for anything but RSA-4096, 65537."""
    if isinstance(handle, rsa.RSAPublicKey):
        numbers = handle.public_numbers()
        if handle.key_size == _BITS and numbers.e == _EXPONENT:
            return RsaPublicKey(numbers.n, handle)
    raise FormatError(
        f"{what}: the key is not RSA-4096 with exponent {_EXPONENT}",
        reason=reason,
        clause="RFC 8017 §3.1",
    )


def verify_pss(key: RsaPublicKey, signature: bytes, message: bytes) -> None:
    """Establish that `signature` over `message` was made with `key`. Raises `BadSignature`."""
    scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=_SALT_BYTES)
    try:
        key.handle.verify(signature, message, scheme, hashes.SHA384())
    except InvalidSignature as error:
        raise BadSignature("the RSA-PSS signature does not verify") from error


def _mask(seed: bytes, size: int) -> bytes:
    blocks = -(-size // _HASH_BYTES)
    hashed = (hashlib.sha384(seed + n.to_bytes(4, "big")).digest() for n in range(blocks))
    return b"".join(hashed)[:size]


def _encode_pss(message: bytes) -> bytes:
    """Return EMSA-PSS (RFC 8017 §9.1.1) of `message`; the salt follows from it."""
    digest = hashlib.sha384(message).digest()
    salt = hashlib.sha384(b"confide/simulated-pss-salt/v1\0" + digest).digest()
    hashed = hashlib.sha384(bytes(8) + digest + salt).digest()
    size = _BITS // 8 - _HASH_BYTES - 1
    block = (b"\1" + salt).rjust(size, b"\0")
    masked = bytes(a ^ b for a, b in zip(block, _mask(hashed, size), strict=True))
    # From: RFC 8017 §9.1.1, step 11: emBits is one less than the length of the modulus.
    return bytes((masked[0] & 0x7F,)) + masked[1:] + hashed + b"\xbc"


@dataclass(frozen=True, slots=True)
class RsaSigningKey:
    """A private key out of two primes; never printed. Not for anything that must stay secret."""

    public: RsaPublicKey
    p: int = field(repr=False)
    q: int = field(repr=False)

    @classmethod
    def of_primes(cls, p: int, q: int) -> RsaSigningKey:
        """Return the key with the primes `p` and `q`. Raises `FormatError` for another size."""
        numbers = rsa.RSAPublicNumbers(_EXPONENT, p * q)
        public = wrap_rsa_public_key(
            numbers.public_key(), what="simulated key", reason=Reason.CHAIN_MALFORMED
        )
        return cls(public, p, q)

    def sign(self, message: bytes) -> bytes:
        """Return the signature over `message`, deterministic."""
        number = int.from_bytes(_encode_pss(message), "big")
        # Two exponentiations of half the size (RFC 8017 §5.1.2): four times as fast.
        p, q = self.p, self.q
        d = pow(_EXPONENT, -1, (p - 1) * (q - 1))
        m1, m2 = pow(number, d % (p - 1), p), pow(number, d % (q - 1), q)
        signature = m2 + q * ((m1 - m2) * pow(q, -1, p) % p)
        return signature.to_bytes(_BITS // 8, "big")
