"""EHBP, the Encrypted HTTP Body Protocol, as a compatibility codec (channel.md 8.1).

Frames are `u32 length ‖ sealed`; an empty frame is skipped and does not count. The protocol has
no end marker: a body cut between frames opens cleanly. So the result is `PrefixOpened`:
a prefix that authenticates, which no caller may take for the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.channel.keys import KeyRing, RecipientKey, ResponseKey
from confide.crypto.aead import OpenError
from confide.crypto.hpke import Context, Suite, setup_recipient, setup_sender
from confide.errors import Reason, RemoteProtocolError
from confide.wire.ohttp import Aead, Kdf, Kem, RequestHeader
from confide.wire.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "SUITE",
    "PrefixOpened",
    "open_request_body",
    "open_response_body",
    "response_key",
    "response_secret",
    "seal_request_body",
    "seal_response_body",
]

SUITE = Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
# From: EHBP, protocol description: info, export label and sizes.
_INFO = b"ehbp request"
_RESPONSE_LABEL = b"ehbp response"
_SECRET_BYTES = 32
# From: EHBP, protocol description: the key id is always 0.
_HEADER = RequestHeader(0, SUITE.kem, SUITE.kdf, SUITE.aead)


@dataclass(frozen=True, slots=True)
class PrefixOpened:
    """Authentic bytes from the start of a body. Whether more should follow cannot be known."""

    data: bytes


def seal_request_body(
    recipient: RecipientKey, chunks: Sequence[bytes], *, ephemeral: bytes
) -> tuple[bytes, bytes, Context]:
    """Return (encapsulation, body, context); `ephemeral` is 32 fresh random bytes."""
    enc, context = setup_sender(recipient.public_key, suite=SUITE, info=_INFO, ephemeral=ephemeral)
    return enc, _frames(chunks, context.seal), context


def open_request_body(enc: bytes, body: bytes, ring: KeyRing) -> tuple[PrefixOpened, Context]:
    """Open a request body under the key with id 0."""
    private_key = ring.select(_HEADER).private_key
    try:
        context = setup_recipient(enc, private_key, suite=SUITE, info=_INFO)
    except OpenError as error:
        raise _unopened() from error
    return _opened(body, context.open), context


def response_secret(context: Context) -> bytes:
    """Return the exported secret of the response."""
    return context.export(_RESPONSE_LABEL, _SECRET_BYTES)


def response_key(secret: bytes, *, enc: bytes, nonce: bytes) -> ResponseKey:
    """Derive the response key and nonce base; the same construction as RFC 9458 §4.4."""
    return ResponseKey(SUITE.aead, secret=secret, enc=enc, nonce=nonce)


def seal_response_body(key: ResponseKey, chunks: Sequence[bytes]) -> bytes:
    """Return the framed response body."""
    return _frames(chunks, key.seal)


def open_response_body(key: ResponseKey, body: bytes) -> PrefixOpened:
    """Open a response body; `FormatError` for cut frames, `RemoteProtocolError` for forged ones."""
    return _opened(body, key.open)


def _frames(chunks: Sequence[bytes], seal: Callable[[bytes, bytes], bytes]) -> bytes:
    sealed = tuple(seal(b"", chunk) for chunk in chunks)
    return b"".join(len(item).to_bytes(4, "big") + item for item in sealed)


def _opened(body: bytes, open_: Callable[[bytes, bytes], bytes]) -> PrefixOpened:
    reader = Reader(body, what="EHBP body", clause="EHBP frames", truncated=Reason.CHANNEL_FORMAT)
    parts: list[bytes] = []
    while reader.remaining:
        sealed = reader.take(reader.uint(4, "big"))
        if not sealed:
            continue
        try:
            parts.append(open_(b"", sealed))
        except OpenError as error:
            raise _unopened() from error
    return PrefixOpened(b"".join(parts))


def _unopened() -> RemoteProtocolError:
    return RemoteProtocolError("a frame does not open", reason=Reason.CHANNEL_OPEN)
