"""EHBP, the Encrypted HTTP Body Protocol: whole bodies, and a request as a node opens it.

Clauses: channel.md 8.1, docs/protocols/ehbp-face.md §3 to §5; frames are `wire/ehbp.py`. The
protocol has no end marker: a body cut between frames opens cleanly. So the result is
`PrefixOpened`: a prefix that authenticates, which no caller may take for the whole.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.channel.keys import KeyRing, RecipientKey, ResponseKey, key_failure
from confide.crypto.aead import NONCE_BYTES, OpenError, SealingKey
from confide.crypto.hpke import Context, Suite, setup_recipient, setup_sender
from confide.crypto.kem import hkdf_expand
from confide.errors import FormatError, LocalProtocolError, Reason, RemoteProtocolError
from confide.wire.ehbp import FrameDecoder, encode_frame
from confide.wire.ohttp import Aead, Kdf, Kem, RequestHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confide.crypto.kem import PrivateKey

__all__ = [
    "SUITE",
    "PrefixOpened",
    "RequestOpening",
    "open_receipt",
    "open_request_body",
    "open_response_body",
    "response_key",
    "response_secret",
    "seal_receipt",
    "seal_request_body",
    "seal_response_body",
]

SUITE = Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
# From: EHBP, protocol description: info, export label and sizes.
_INFO = b"ehbp request"
_RESPONSE_LABEL = b"ehbp response"
_SECRET_BYTES = 32
# From: ehbp-face.md 5.3.
_RECEIPT_LABEL = b"confide receipt"
# From: EHBP, protocol description: the key id of its vectors is always 0.
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


def seal_receipt(key: ResponseKey, receipt: bytes) -> bytes:
    """Return `receipt` sealed beside the body of the response of `key`; once for each response."""
    return _receipt_key(key).seal(bytes(NONCE_BYTES), b"", receipt)


def open_receipt(key: ResponseKey, sealed: bytes) -> bytes:
    """Return the receipt in `sealed`, still to be verified; `RemoteProtocolError` otherwise."""
    try:
        return _receipt_key(key).open(bytes(NONCE_BYTES), b"", sealed)
    except OpenError as error:
        raise _unopened() from error


def _receipt_key(key: ResponseKey) -> SealingKey:
    return SealingKey(SUITE.aead, hkdf_expand(key.prk, _RECEIPT_LABEL, SUITE.aead.key_bytes))


class RequestOpening:
    """
    One request as a node opens it, frame by frame, under the first of `keys` that opens it.

    A request does not name its key: the first frame is tried under each of `keys`, `(id, key)`,
    of which there are two during a rotation. At most `max_bytes` of body are taken. Only
    `RemoteProtocolError` leaves `receive` and `receive_end`, and ends the request for good.
    **Does not check** whether the request was seen before, nor that it is whole.
    """

    __slots__ = ("_context", "_decoder", "_enc", "_hash", "_key_id", "_keys", "_left")

    def __init__(
        self, enc: bytes, keys: Sequence[tuple[int, PrivateKey]], *, max_bytes: int
    ) -> None:
        self._enc = enc
        self._keys = tuple(keys)
        self._left = max_bytes
        self._decoder = FrameDecoder(max_bytes)
        self._hash = hashlib.sha256(enc)
        self._context: Context | None = None
        self._key_id = 0

    @property
    def enc(self) -> bytes:
        """The encapsulated key: a fresh one for every honest request."""
        return self._enc

    @property
    def opened(self) -> bool:
        """Whether a frame was opened: the sender knew a key of this node."""
        return self._context is not None

    @property
    def key_id(self) -> int:
        """The key that the request is sealed to; `LocalProtocolError` before its first frame."""
        self._established()
        return self._key_id

    @property
    def sha256(self) -> bytes:
        """SHA-256 over the encapsulated key and the body as received so far."""
        return self._hash.digest()

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the body; return the plaintext that they completed."""
        self._left -= len(data)
        if self._left < 0:
            raise RemoteProtocolError(
                "the body is longer than the limit", reason=Reason.LIMIT_EXCEEDED, status_hint=413
            )
        self._hash.update(data)
        try:
            return b"".join([self._open(sealed) for sealed in self._decoder.feed(data)])
        except FormatError as error:
            raise _framing(error) from error

    def receive_end(self) -> None:
        """The body has no more bytes: it must have had a frame and not end inside one."""
        try:
            self._decoder.end()
        except FormatError as error:
            raise _framing(error) from error
        if self._context is None:
            raise RemoteProtocolError(
                "a sealed request without content", reason=Reason.CHANNEL_FORMAT, status_hint=400
            )

    def response(self, nonce: bytes) -> ResponseKey:
        """Return the key of the response with this nonce, 32 fresh random bytes."""
        return response_key(response_secret(self._established()), enc=self._enc, nonce=nonce)

    def _established(self) -> Context:
        if self._context is None:
            raise LocalProtocolError("the request has no key before its first frame")
        return self._context

    def _open(self, sealed: bytes) -> bytes:
        if self._context is not None:
            try:
                return self._context.open(b"", sealed)
            except OpenError as error:
                raise _unopened() from error
        for key_id, private_key in self._keys:
            try:
                context = setup_recipient(self._enc, private_key, suite=SUITE, info=_INFO)
                opened = context.open(b"", sealed)
            except OpenError:
                continue
            self._context, self._key_id = context, key_id
            return opened
        # A first frame cannot tell a forged request from one to a key that is gone.
        raise key_failure("the request does not open under a key of this node")


def _frames(chunks: Sequence[bytes], seal: Callable[[bytes, bytes], bytes]) -> bytes:
    return b"".join(encode_frame(seal(b"", chunk)) for chunk in chunks)


def _opened(body: bytes, open_: Callable[[bytes, bytes], bytes]) -> PrefixOpened:
    decoder = FrameDecoder()
    sealed = decoder.feed(body)
    decoder.end()
    try:
        return PrefixOpened(b"".join([open_(b"", item) for item in sealed]))
    except OpenError as error:
        raise _unopened() from error


def _framing(error: FormatError) -> RemoteProtocolError:
    status = 413 if error.reason is Reason.LIMIT_EXCEEDED else 400
    return RemoteProtocolError("the framing is broken", reason=error.reason, status_hint=status)


def _unopened() -> RemoteProtocolError:
    return RemoteProtocolError("a frame does not open", reason=Reason.CHANNEL_OPEN)
