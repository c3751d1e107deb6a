"""Keys of dstack apps: the chain from a key that an app uses to the root of its key server.

Clauses: docs/protocols/dstack.md §11. The app's own key signs what the guest hands out, the key
server signed the app's key. Everything but `kms_root` and `app_id` is hostile; those two are the
caller's, from a source other than the service.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Literal

from confide.appraisal.steps import Refused
from confide.crypto.errors import BadSignature
from confide.crypto.ethereum import keccak256
from confide.crypto.recoverable import compress_point, recover_secp256k1
from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "app_key_message",
    "env_key_message",
    "key_claim",
    "recover_signer",
    "verify_app_key",
    "verify_env_key",
]

_CLAUSE: Final = "docs/protocols/dstack.md#11"
_KEY_BYTES: Final = {"secp256k1": 33, "ed25519": 32}
# From: docs/protocols/dstack.md §11.3: how far the clock of the key server may be away.
_ENV_SECONDS: Final = 300


def _prefixed(part: bytes) -> bytes:
    return struct.pack(">I", len(part)) + part


def key_claim(
    *, algorithm: Literal["secp256k1", "ed25519"], domain: bytes, public_key: bytes
) -> bytes:
    """
    Return the bytes that an app's key signs for a key of the guest (API v1).

    `public_key` is SEC 1 compressed (33 bytes) or RFC 8032 (32 bytes). Raises `FormatError`.
    """
    if len(public_key) != _KEY_BYTES.get(algorithm):
        raise FormatError(
            "dstack key: not a public key of its algorithm",
            reason=Reason.SERVICE_FORMAT,
            clause=_CLAUSE,
        )
    parts = (b"dstack-guest-v1-key-claim", algorithm.encode("ascii"), domain, public_key)
    return b"".join(map(_prefixed, parts))


def app_key_message(*, app_id: bytes, app_key: bytes) -> bytes:
    """Return what the key server signs for the app's compressed key (33 bytes)."""
    return b"dstack-kms-issued:" + app_id + app_key


def env_key_message(*, app_id: bytes, public_key: bytes, signed_at: datetime) -> bytes:
    """Return what the key server signs for the key that secrets are encrypted to (32 bytes)."""
    seconds = int(signed_at.timestamp())
    return b"dstack-env-encrypt-pubkey:" + app_id + struct.pack(">Q", seconds) + public_key


def recover_signer(message: bytes, signature: bytes) -> bytes:
    """
    Return the compressed key (33 bytes) that signed Keccak-256 of `message`.

    Raises `Refused` (SIGNATURE_INVALID). **Does not check** whose key it is.
    """
    try:
        return compress_point(recover_secp256k1(keccak256(message), signature))
    except BadSignature as error:
        raise Refused(Reason.SIGNATURE_INVALID, "no key is recovered from a signature") from error


def verify_app_key(
    claim: bytes, chain: tuple[bytes, bytes], *, app_id: bytes, kms_root: bytes
) -> bytes:
    """
    Require that `chain` leads from `claim` to `kms_root` (33 bytes) for the app `app_id`.

    `claim` is `key_claim(...)`, or for API v0 the bytes that its first link signs. Returns the
    app's compressed key. Raises `Refused`. **Does not check** what code held the key: the key
    server gives every allowed version of an app the same one.
    """
    app_key = recover_signer(claim, chain[0])
    signer = recover_signer(app_key_message(app_id=app_id, app_key=app_key), chain[1])
    if signer != kms_root:
        raise Refused(Reason.KEY_MISMATCH, "the app's key was issued by another key server")
    return app_key


def verify_env_key(
    public_key: bytes,
    signature: bytes,
    *,
    app_id: bytes,
    kms_key: bytes,
    signed_at: datetime,
    now: datetime,
) -> None:
    """
    Require that the key server `kms_key` signed the encryption key of the app, within 300 seconds.

    The older form without a time is not accepted. Raises `Refused`.
    """
    if abs((now - signed_at).total_seconds()) > _ENV_SECONDS:
        raise Refused(Reason.EVIDENCE_STALE, "the signature is not of this time")
    message = env_key_message(app_id=app_id, public_key=public_key, signed_at=signed_at)
    if recover_signer(message, signature) != kms_key:
        raise Refused(Reason.KEY_MISMATCH, "the key is signed by another key server")
