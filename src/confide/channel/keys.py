"""The keys a channel is opened with: what a client may seal to, what a node opens with.

A `KeyConfig` is public and comes from an attested keyset (channel.md 1.3); this module does not
establish that. A `KeyRing` holds the private keys of one node boot, parsed once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.crypto.aead import NONCE_BYTES, SealingKey
from confide.crypto.hpke import Suite
from confide.crypto.kem import PrivateKey, PublicKey, hkdf_expand, hkdf_extract, load_public_key
from confide.errors import ConfigurationError, FormatError, Reason, RemoteProtocolError
from confide.wire.ohttp import Aead, Kdf, Kem, KeyConfig, RequestHeader

if TYPE_CHECKING:
    from confide.wire.keyset import KeysetKey

__all__ = [
    "INTEROP_ALGORITHMS",
    "GatewayKey",
    "KeyRing",
    "RecipientKey",
    "ResponseKey",
    "key_config",
    "key_failure",
    "key_ring",
    "recipient_key",
    "response_nonce_bytes",
]

# From: channel.md 1.2.
INTEROP_ALGORITHMS: tuple[tuple[int, int], ...] = (
    (Kdf.HKDF_SHA256, Aead.AES_256_GCM),
    (Kdf.HKDF_SHA256, Aead.CHACHA20_POLY1305),
    (Kdf.HKDF_SHA256, Aead.AES_128_GCM),
)
_SEALING = frozenset({Aead.AES_128_GCM, Aead.AES_256_GCM, Aead.CHACHA20_POLY1305})


# From: docs/protocols/binding.md §1.3: names of the keyset.
_KEMS = {"MLKEM768-X25519": Kem.X_WING, "X25519": Kem.X25519}


def key_config(key: KeysetKey) -> KeyConfig:
    """
    Return the configuration of a `seal` key of a keyset, with the algorithms of channel.md 1.2.

    `ValueError` for a key with another purpose. **Does not check** that the keyset was attested.
    """
    kem = _KEMS.get(key.algorithm)
    if kem is None:
        raise ValueError("the key is not for sealing")
    return KeyConfig(key.id, kem, key.public_key, INTEROP_ALGORITHMS)


@dataclass(frozen=True, slots=True)
class RecipientKey:
    """A node's key as a client seals to it: parsed, with the suite chosen."""

    header: RequestHeader
    public_key: PublicKey

    @property
    def suite(self) -> Suite:
        """The HPKE suite of every exchange under this key."""
        return Suite(self.header.kem, self.header.kdf, self.header.aead)


def recipient_key(config: KeyConfig) -> RecipientKey:
    """
    Parse `config` for sealing, choosing its first pair that is implemented here.

    Raises `FormatError` for an unusable public key or when no pair is implemented. **Does not
    check** where `config` comes from: it must be part of an attested keyset.
    """
    for kdf, aead in config.algorithms:
        if kdf == Kdf.HKDF_SHA256 and aead in _SEALING:
            header = RequestHeader(config.key_id, config.kem, Kdf(kdf), Aead(aead))
            return RecipientKey(header, load_public_key(config.kem, config.public_key))
    raise FormatError(
        "key configuration: no algorithm that is implemented here",
        reason=Reason.CHANNEL_FORMAT,
        clause="channel.md 1.3",
    )


@dataclass(frozen=True, slots=True)
class GatewayKey:
    """A published configuration with its private key; `ValueError` when they are not a pair."""

    config: KeyConfig
    private_key: PrivateKey = field(repr=False)

    def __post_init__(self) -> None:
        public = self.private_key.public_key
        if (public.kem, public.raw) != (self.config.kem, self.config.public_key):
            raise ValueError("the private key is not the configuration's")


def key_failure(message: str) -> RemoteProtocolError:
    """Return the refusal that tells a client its key configuration is not this node's."""
    return RemoteProtocolError(message, reason=Reason.KEYSET_MISMATCH, status_hint=422)


class KeyRing:
    """The keys a node opens with: two during a rotation, one otherwise. Immutable."""

    __slots__ = ("_keys",)

    def __init__(self, keys: tuple[GatewayKey, ...]) -> None:
        self._keys = {key.config.key_id: key for key in keys}
        if not keys or len(self._keys) != len(keys):
            raise ConfigurationError("a node needs channel keys, each with a key id of its own")

    @property
    def configs(self) -> tuple[KeyConfig, ...]:
        """The published side, in order."""
        return tuple(key.config for key in self._keys.values())

    def select(self, header: RequestHeader) -> GatewayKey:
        """Return the key `header` names, for a suite its configuration offers; else refuse."""
        key = self._keys.get(header.key_id)
        if key is None:
            raise key_failure("the request names a key this node does not have")
        offered = (header.kdf, header.aead) in key.config.algorithms
        if header.kem is not key.config.kem or not offered:
            raise key_failure("the request uses a suite its key does not offer")
        return key


def key_ring(keys: tuple[tuple[int, PrivateKey], ...]) -> KeyRing:
    """Return the ring of a node's `(key id, private key)` pairs, with the algorithms of 1.2."""
    return KeyRing(
        tuple(
            GatewayKey(
                KeyConfig(key_id, key.kem, key.public_key.raw, INTEROP_ALGORITHMS), private_key=key
            )
            for key_id, key in keys
        )
    )


def response_nonce_bytes(aead: Aead) -> int:
    """Bytes of a response nonce: max(Nn, Nk) (RFC 9458 §4.4)."""
    return max(NONCE_BYTES, aead.key_bytes)


class ResponseKey:
    """The AEAD state of one response (RFC 9458 §4.4, draft-08 §6.2). Counts; never copy it."""

    __slots__ = ("_base", "_counter", "_key", "base_nonce", "key", "prk")

    def __init__(self, aead: Aead, *, secret: bytes, enc: bytes, nonce: bytes) -> None:
        self.prk = hkdf_extract(enc + nonce, secret)
        self.key = hkdf_expand(self.prk, b"key", aead.key_bytes)
        self.base_nonce = hkdf_expand(self.prk, b"nonce", NONCE_BYTES)
        self._key = SealingKey(aead, self.key)
        self._base = int.from_bytes(self.base_nonce, "big")
        self._counter = 0

    def _next(self) -> bytes:
        nonce = (self._base ^ self._counter).to_bytes(NONCE_BYTES, "big")
        self._counter += 1
        return nonce

    def seal(self, aad: bytes, plaintext: bytes) -> bytes:
        """Return the next sealed chunk."""
        return self._key.seal(self._next(), aad, plaintext)

    def open(self, aad: bytes, sealed: bytes) -> bytes:
        """Return the plaintext of the next chunk; `OpenError` ends the response for good."""
        return self._key.open(self._next(), aad, sealed)
