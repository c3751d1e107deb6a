"""Plain Oblivious HTTP (RFC 9458): one sealed request, one sealed response, for interoperation.

Confide's node does not serve this form and its client never falls back to it (channel.md 2.7).
`FormatError` means the bytes are not in the format; `RemoteProtocolError` that they do not open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.channel.events import request_info
from confide.channel.keys import KeyRing, RecipientKey, ResponseKey, response_nonce_bytes
from confide.crypto.aead import OpenError
from confide.crypto.hpke import Context, Suite, setup_recipient, setup_sender
from confide.errors import Reason, RemoteProtocolError
from confide.wire.ohttp import HEADER_BYTES, TAG_BYTES, parse_request_header
from confide.wire.reader import Reader

if TYPE_CHECKING:
    from confide.wire.ohttp import RequestHeader

__all__ = ["SingleExchange", "open_request", "open_response", "seal_request", "seal_response"]

# From: RFC 9458 §4.3 and §4.4.
_REQUEST_LABEL = b"message/bhttp request"
_RESPONSE_LABEL = b"message/bhttp response"


@dataclass(frozen=True, slots=True)
class SingleExchange:
    """What either end keeps between request and response."""

    header: RequestHeader
    enc: bytes
    context: Context = field(repr=False)

    def response_key(self, nonce: bytes) -> ResponseKey:
        """Return the key of the response with this nonce (RFC 9458 §4.4)."""
        aead = self.header.aead
        secret = self.context.export(_RESPONSE_LABEL, response_nonce_bytes(aead))
        return ResponseKey(aead, secret=secret, enc=self.enc, nonce=nonce)


def seal_request(
    recipient: RecipientKey, request: bytes, *, ephemeral: bytes
) -> tuple[bytes, SingleExchange]:
    """Return `message/ohttp-req` and the state for the response."""
    enc, context = setup_sender(
        recipient.public_key,
        suite=recipient.suite,
        info=request_info(recipient.header, _REQUEST_LABEL),
        ephemeral=ephemeral,
    )
    sealed = context.seal(b"", request)
    exchange = SingleExchange(recipient.header, enc, context)
    return recipient.header.encode() + enc + sealed, exchange


def open_request(raw: bytes, ring: KeyRing) -> tuple[bytes, SingleExchange]:
    """Return the request in `raw` and the state for the response."""
    reader = Reader(
        raw, what="sealed request", clause="RFC 9458 §4.1", truncated=Reason.CHANNEL_FORMAT
    )
    header = parse_request_header(reader.take(HEADER_BYTES))
    enc = reader.take(header.kem.enc_bytes)
    key = ring.select(header)
    suite = Suite(header.kem, header.kdf, header.aead)
    info = request_info(header, _REQUEST_LABEL)
    try:
        context = setup_recipient(enc, key.private_key, suite=suite, info=info)
        request = context.open(b"", reader.rest())
    except OpenError as error:
        raise _unopened("the request does not open") from error
    return request, SingleExchange(header, enc, context)


def seal_response(exchange: SingleExchange, response: bytes, *, nonce: bytes) -> bytes:
    """Return `message/ohttp-res`; `nonce` is max(Nn, Nk) fresh random bytes."""
    if len(nonce) != response_nonce_bytes(exchange.header.aead):
        raise ValueError("a response nonce has max(Nn, Nk) bytes")
    return nonce + exchange.response_key(nonce).seal(b"", response)


def open_response(exchange: SingleExchange, raw: bytes) -> bytes:
    """Return the response in `raw`."""
    reader = Reader(
        raw, what="sealed response", clause="RFC 9458 §4.2", truncated=Reason.CHANNEL_FORMAT
    )
    nonce = reader.take(response_nonce_bytes(exchange.header.aead))
    sealed = reader.take(max(reader.remaining, TAG_BYTES))
    try:
        return exchange.response_key(nonce).open(b"", sealed)
    except OpenError as error:
        raise _unopened("the response does not open") from error


def _unopened(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, reason=Reason.CHANNEL_OPEN)
