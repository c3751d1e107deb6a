"""Signatures on notes and checkpoints: Ed25519, and cosignatures with Ed25519 or ML-DSA-44.

docs/protocols/log.md §3.2, §4.1. Keys come from 32-byte seeds that the caller drew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from confide.crypto.ed25519 import Ed25519Signer, verify_ed25519
from confide.crypto.errors import BadSignature
from confide.errors import FormatError, Reason
from confide.wire.checkpoint import Checkpoint, parse_timestamped
from confide.wire.note import NoteSignature, SignatureType, VerifierKey, parse_private_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.wire.checkpoint import SignedCheckpoint

__all__ = ["NoteSigner", "load_signer", "verify_note_signature"]

_REASON: Final = Reason.TLOG_FORMAT
_CLAUSE: Final = "docs/protocols/log.md#3.2"
# From: tlog-cosignature, the label of an ML-DSA-44 message.
_LABEL: Final = b"subtree/v1\n\0"


class NoteSigner:
    """A private key with a name. Not printable: `repr` shows nothing of the key."""

    __slots__ = ("_sign", "key")

    def __init__(self, name: str, kind: SignatureType, seed: bytes) -> None:
        if len(seed) != 32:
            raise ValueError("a seed has 32 bytes")
        if kind is SignatureType.ML_DSA_44:
            lattice = MLDSA44PrivateKey.from_seed_bytes(seed)
            self._sign: Callable[[bytes], bytes] = lattice.sign
            public = lattice.public_key().public_bytes_raw()
        else:
            edwards = Ed25519Signer(seed)
            self._sign = edwards.sign
            public = edwards.public_key
        self.key = VerifierKey(name, kind, public)

    def sign_checkpoint(self, head: Checkpoint) -> NoteSignature:
        """Return the log's own signature; `ValueError` for the key of a witness."""
        if self.key.kind is not SignatureType.ED25519:
            raise ValueError("a log signs with a plain Ed25519 key")
        return self._line(self._sign(head.text().encode()))

    def sign_text(self, text: str) -> NoteSignature:
        """Return a plain signature over the text of a note; `ValueError` for a witness's key."""
        if self.key.kind is not SignatureType.ED25519:
            raise ValueError("a note is signed with a plain Ed25519 key")
        return self._line(self._sign(text.encode()))

    def cosign(self, head: Checkpoint, *, seconds: int) -> NoteSignature:
        """Return a cosignature of POSIX time `seconds`; `ValueError` for the key of a log."""
        message = _cosigned(self.key, head, seconds)
        return self._line(seconds.to_bytes(8, "big") + self._sign(message))

    def _line(self, blob: bytes) -> NoteSignature:
        return NoteSignature(self.key.name, self.key.key_id, blob)


def load_signer(text: str) -> NoteSigner:
    """Return the signer of a private key file. Raises `FormatError`."""
    private = parse_private_key(text)
    try:
        signer = NoteSigner(private.name, private.kind, private.seed)
    except ValueError as error:
        raise FormatError(f"private key: {error}", reason=_REASON, clause=_CLAUSE) from error
    if signer.key.key_id != private.key_id:
        raise FormatError("private key: another id than its own", reason=_REASON, clause=_CLAUSE)
    return signer


def _cosigned(key: VerifierKey, head: Checkpoint, seconds: int) -> bytes:
    """Return the bytes that a cosignature is over."""
    if key.kind is SignatureType.COSIGNATURE:
        return f"cosignature/v1\ntime {seconds}\n{head.text()}".encode()
    if key.kind is SignatureType.ML_DSA_44:
        parts = [_LABEL, _short(key.name), seconds.to_bytes(8, "big"), _short(head.origin)]
        return b"".join((*parts, bytes(8), head.size.to_bytes(8, "big"), head.root))
    raise ValueError("a witness signs with the key of a witness")


def _short(text: str) -> bytes:
    raw = text.encode()
    if not 1 <= len(raw) <= 255:
        raise BadSignature("a name too long for an ML-DSA-44 cosignature")
    return bytes([len(raw)]) + raw


def verify_note_signature(
    key: VerifierKey, signature: NoteSignature, checkpoint: SignedCheckpoint
) -> int | None:
    """
    Verify one line over `checkpoint` under `key`; return its POSIX time, None for a plain one.

    Raises `BadSignature`, or `FormatError` for a cosignature without a time. **Does not check**
    that the time is past.
    """
    if (signature.name, signature.key_id) != (key.name, key.key_id):
        raise BadSignature("a line of another key")
    if key.kind is SignatureType.ED25519:
        verify_ed25519(key.key, signature.blob, checkpoint.note.text.encode())
        return None
    seconds, raw = parse_timestamped(signature.blob)
    message = _cosigned(key, checkpoint.head, seconds)
    if key.kind is SignatureType.COSIGNATURE:
        verify_ed25519(key.key, raw, message)
        return seconds
    try:
        MLDSA44PublicKey.from_public_bytes(key.key).verify(raw, message)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise BadSignature("ML-DSA-44 signature does not verify") from error
    return seconds
