"""HPKE contexts (RFC 9180): set-up, sequences of sealed messages, export.

`cryptography` offers single-shot HPKE only; a streamed channel needs the key schedule, so it is
here, on that library's primitives, and tested against its single-shot form. Modes base, psk,
auth and auth-psk; KEMs of `crypto/kem.py`; HKDF-SHA256. The ephemeral secret is an argument.

Opening proves that the sender knew the public key (and the PSK, and the sender key, where the
mode has them). It says nothing about replay: the caller keeps a window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from confide.crypto.aead import NONCE_BYTES, OpenError, SealingKey
from confide.crypto.kem import labeled_expand, labeled_extract
from confide.errors import LocalProtocolError
from confide.wire.ohttp import Aead, Kdf, Kem

if TYPE_CHECKING:
    from confide.crypto.kem import PrivateKey, PublicKey

__all__ = [
    "Context",
    "KeySchedule",
    "OpenError",
    "Psk",
    "Suite",
    "key_schedule",
    "setup_recipient",
    "setup_sender",
]

# From: RFC 9180 §5.2: the sequence number must stay below 2^(8·Nn) - 1.
_MAX_SEQUENCE = (1 << (8 * NONCE_BYTES)) - 1
# From: RFC 9180 §7.2.1: the smallest PSK.
_MIN_PSK_BYTES = 32
_HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Suite:
    """KEM, KDF and AEAD of one context."""

    kem: Kem
    kdf: Kdf
    aead: Aead

    @property
    def id(self) -> bytes:
        """`suite_id` of RFC 9180 §5.1."""
        return (
            b"HPKE"
            + self.kem.to_bytes(2, "big")
            + self.kdf.to_bytes(2, "big")
            + self.aead.to_bytes(2, "big")
        )


@dataclass(frozen=True, slots=True)
class Psk:
    """A pre-shared key of at least 32 bytes and its identifier."""

    key: bytes = field(repr=False)
    id: bytes

    def __post_init__(self) -> None:
        if len(self.key) < _MIN_PSK_BYTES or not self.id:
            raise ValueError("a PSK has at least 32 bytes and an identifier")


@dataclass(frozen=True, slots=True)
class KeySchedule:
    """The values of RFC 9180 §5.1; all secret but `context`."""

    context: bytes
    secret: bytes = field(repr=False)
    key: bytes = field(repr=False)
    base_nonce: bytes = field(repr=False)
    exporter_secret: bytes = field(repr=False)


@lru_cache(maxsize=64)
def _schedule_context(mode: int, suite_id: bytes, psk_id: bytes, info: bytes) -> bytes:
    # Public inputs only, the same for every request to a key: computed once per key and suite.
    psk_id_hash = labeled_extract(suite_id, b"", b"psk_id_hash", psk_id)
    return (
        mode.to_bytes(1, "big") + psk_id_hash + labeled_extract(suite_id, b"", b"info_hash", info)
    )


def key_schedule(
    suite: Suite, shared_secret: bytes, *, info: bytes, psk: Psk | None, authenticated: bool
) -> KeySchedule:
    """RFC 9180 §5.1 `KeySchedule`; the mode follows from `psk` and `authenticated`."""
    mode = (1 if psk is not None else 0) + (2 if authenticated else 0)
    suite_id = suite.id
    psk_id, psk_key = (psk.id, psk.key) if psk is not None else (b"", b"")
    context = _schedule_context(mode, suite_id, psk_id, info)
    secret = labeled_extract(suite_id, shared_secret, b"secret", psk_key)
    key, base_nonce = b"", b""
    if suite.aead is not Aead.EXPORT_ONLY:
        key = labeled_expand(suite_id, secret, b"key", context, suite.aead.key_bytes)
        base_nonce = labeled_expand(suite_id, secret, b"base_nonce", context, NONCE_BYTES)
    exporter = labeled_expand(suite_id, secret, b"exp", context, _HASH_BYTES)
    return KeySchedule(context, secret, key, base_nonce, exporter)


class Context:
    """
    One direction of sealed messages with an implicit sequence number, and the exporter.

    A sender's context only seals and a recipient's only opens. A failed `open` does not advance
    the sequence. Never copy a context: two copies would use one nonce twice.
    """

    __slots__ = ("_base", "_exporter", "_key", "_sender", "_sequence", "_suite_id")

    def __init__(self, suite: Suite, schedule: KeySchedule, *, sender: bool) -> None:
        self._suite_id = suite.id
        self._exporter = schedule.exporter_secret
        self._key = SealingKey(suite.aead, schedule.key) if schedule.key else None
        self._base = int.from_bytes(schedule.base_nonce, "big")
        self._sender = sender
        self._sequence = 0

    @property
    def sequence(self) -> int:
        """Messages sealed or opened so far."""
        return self._sequence

    def _next_nonce(self, *, sender: bool) -> bytes:
        if self._sender is not sender:
            raise LocalProtocolError("a sender seals and a recipient opens")
        if self._sequence >= _MAX_SEQUENCE:
            raise LocalProtocolError("the HPKE context has used all its sequence numbers")
        return (self._base ^ self._sequence).to_bytes(NONCE_BYTES, "big")

    def _cipher(self) -> SealingKey:
        if self._key is None:
            raise LocalProtocolError("an export-only context seals nothing")
        return self._key

    def seal(self, aad: bytes, plaintext: bytes) -> bytes:
        """Return the next message."""
        sealed = self._cipher().seal(self._next_nonce(sender=True), aad, plaintext)
        self._sequence += 1
        return sealed

    def open(self, aad: bytes, sealed: bytes) -> bytes:
        """Return the plaintext of the next message; `OpenError` when it is not that message."""
        plaintext = self._cipher().open(self._next_nonce(sender=False), aad, sealed)
        self._sequence += 1
        return plaintext

    def export(self, exporter_context: bytes, length: int) -> bytes:
        """Return `length` secret bytes that both ends know (RFC 9180 §5.3)."""
        return labeled_expand(self._suite_id, self._exporter, b"sec", exporter_context, length)


def setup_sender(
    recipient: PublicKey,
    *,
    suite: Suite,
    info: bytes,
    ephemeral: bytes,
    psk: Psk | None = None,
    sender: PrivateKey | None = None,
) -> tuple[bytes, Context]:
    """
    Return the encapsulation and the sending context.

    `ephemeral` is 32 fresh random bytes, never used again. Raises `ValueError` when the suite
    names another KEM than the key's, `OpenError` when the recipient's key gives no secret.
    """
    if recipient.kem is not suite.kem:
        raise ValueError("the key is not of the suite's KEM")
    enc, shared = recipient.encapsulate(ephemeral, sender=sender)
    schedule = key_schedule(suite, shared, info=info, psk=psk, authenticated=sender is not None)
    return enc, Context(suite, schedule, sender=True)


def setup_recipient(
    enc: bytes,
    private_key: PrivateKey,
    *,
    suite: Suite,
    info: bytes,
    psk: Psk | None = None,
    sender: PublicKey | None = None,
) -> Context:
    """Return the receiving context for `enc`; `OpenError` when it is no encapsulation."""
    if private_key.kem is not suite.kem:
        raise ValueError("the key is not of the suite's KEM")
    shared = private_key.decapsulate(enc, sender=sender)
    schedule = key_schedule(suite, shared, info=info, psk=psk, authenticated=sender is not None)
    return Context(suite, schedule, sender=False)
