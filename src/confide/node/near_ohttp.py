"""`POST /ohttp` of the NEAR face: plain and chunked Oblivious HTTP around the face's own routes.

Clauses: docs/protocols/near-face.md §7; RFC 9458, draft-ietf-ohai-chunked-ohttp-08. Unlike the
node's channel it has no stamp and no replay window, and answers of the plain form wait until they
are whole. What the sealed request says is hostile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.channel.carriage import (
    PROBLEM_MEDIA_TYPE,
    REQUEST_MEDIA_TYPE,
    RESPONSE_MEDIA_TYPE,
    problem_type,
)
from confide.channel.exchange import Exchange
from confide.channel.keys import KeyRing, response_nonce_bytes
from confide.channel.padding import PaddingPolicy
from confide.channel.pieces import MessageReader, MessageWriter
from confide.channel.single import open_request, seal_response
from confide.errors import FormatError, LocalProtocolError, Reason, RemoteProtocolError
from confide.node.asgi import content_type_of, read_body, send_whole
from confide.node.inner import inner_scope, sealed_fields
from confide.wire.bhttp import (
    BhttpLimits,
    Content,
    End,
    MessageKind,
    RequestHead,
    ResponseHead,
    encode_content,
    encode_end,
    encode_known_response,
    encode_response_head,
)
from confide.wire.bhttp_decoder import BhttpDecoder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.types import Message, Receive, Scope, Send

    from confide.channel.single import SingleExchange
    from confide.ports import Entropy
    from confide.wire.bhttp import BhttpEvent

    # Serves one scope that came sealed.
    Inside = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["OhttpGateway"]

_SINGLE_REQUEST: Final = "message/ohttp-req"
_SINGLE_RESPONSE: Final = "message/ohttp-res"
_MAX_REQUEST_BYTES: Final = 33 * 1024 * 1024
_MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_AUTHORIZATION: Final = b"authorization"


class OhttpGateway:
    """Opens requests, has `inside` serve them, seals the answers."""

    def __init__(self, inside: Inside, entropy: Entropy) -> None:
        self._inside = inside
        self._entropy = entropy

    async def serve(self, scope: Scope, receive: Receive, send: Send, *, ring: KeyRing) -> None:
        """Serve one `POST`, opened with a key of `ring`."""
        raw = await read_body(receive, _MAX_REQUEST_BYTES + 1)
        if raw is None:
            return
        kind = content_type_of(scope).partition(";")[0].strip().lower()
        try:
            request, answer = self._open(raw, kind, ring, send)
        except FormatError:
            await _problem(send, _refused("malformed", Reason.CHANNEL_FORMAT, 400))
            return
        except RemoteProtocolError as error:
            await _problem(send, error)
            return
        await self._inside(request.scope(scope), request.receiving(receive), answer.send)
        await answer.end()

    def _open(
        self, raw: bytes, kind: str, ring: KeyRing, send: Send
    ) -> tuple[_Request, _Collected | _Streamed]:
        """Open all of a request: nothing is served that was not read to its end."""
        if len(raw) > _MAX_REQUEST_BYTES:
            raise _refused("too long", Reason.LIMIT_EXCEEDED, 413)
        if kind == _SINGLE_REQUEST:
            plain, single = open_request(raw, ring)
            decoder = BhttpDecoder(MessageKind.REQUEST, _limits())
            request = _whole((*decoder.feed(plain), *decoder.end()))
            return request, _Collected(send, single, self._entropy)
        if kind == REQUEST_MEDIA_TYPE:
            exchange = Exchange.node(ring, response_nonce=self._entropy.token(32))
            reader = MessageReader(exchange, MessageKind.REQUEST, _limits())
            request = _whole((*reader.receive(raw), *reader.receive_end()))
            return request, _Streamed(send, MessageWriter(exchange, PaddingPolicy()))
        raise _refused("another media type", Reason.CHANNEL_FORMAT, 415)


def _refused(message: str, reason: Reason, status: int) -> RemoteProtocolError:
    return RemoteProtocolError(message, reason=reason, status_hint=status)


async def _problem(send: Send, error: RemoteProtocolError) -> None:
    body = json.dumps({"type": problem_type(error.reason), "status": error.status_hint}).encode()
    head = (("content-type", PROBLEM_MEDIA_TYPE), ("cache-control", "no-store"))
    await send_whole(send, error.status_hint, head, body)


@dataclass(slots=True)
class _Request:
    """A sealed request that was opened to its end."""

    head: RequestHead
    content: bytes

    def receiving(self, receive: Receive) -> Receive:
        """Return what gives the content, then whatever `receive` still tells."""
        told = False

        async def replay() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": self.content, "more_body": False}

        return replay

    def scope(self, outer: Scope) -> Scope:
        """Return the scope of the request, without anything of the outer connection."""
        given = [value for name, value in outer["headers"] if name.lower() == _AUTHORIZATION]
        fields: Iterable[tuple[bytes, bytes]] = self.head.fields
        if given:
            # From: near-wire.md §7: a relay may hold the caller's key.
            fields = [item for item in self.head.fields if item[0] != _AUTHORIZATION]
            fields += [(_AUTHORIZATION, value) for value in given]
        # Whatever authority it names: it is not asked, and not handed on (near-face.md 7.3).
        plain: Scope = {"scheme": "https", "headers": list(fields), "extensions": {}}
        return {**inner_scope(outer, self.head), **plain}


def _whole(events: Iterable[BhttpEvent]) -> _Request:
    head: RequestHead | None = None
    content = bytearray()
    ended = False
    for event in events:
        if isinstance(event, RequestHead):
            head = event
        elif isinstance(event, Content):
            content += event.data
        ended = ended or isinstance(event, End)
    if head is None or not ended:  # pragma: no cover - the decoder ends or raises
        raise LocalProtocolError("a request without a head or an end")
    return _Request(head, bytes(content))


def _limits() -> BhttpLimits:
    return BhttpLimits(max_content_bytes=_MAX_REQUEST_BYTES)


class _Collected:
    """The answer of the plain form, sealed when it is whole."""

    def __init__(self, send: Send, exchange: SingleExchange, entropy: Entropy) -> None:
        self._send = send
        self._exchange = exchange
        self._entropy = entropy
        self._head: ResponseHead | None = None
        self._body = bytearray()
        self._done = False

    async def send(self, message: Message) -> None:
        """Take one message of the application."""
        if message["type"] == "http.response.start":
            self._head = ResponseHead(message["status"], sealed_fields(message["headers"]))
            return
        self._body += message.get("body", b"")
        if len(self._body) > _MAX_ANSWER_BYTES:
            raise LocalProtocolError("an answer beyond the limit")
        self._done = not message.get("more_body", False)

    async def end(self) -> None:
        """Send the answer; nothing for one that was not whole."""
        if self._head is None or not self._done:
            return
        nonce = self._entropy.token(response_nonce_bytes(self._exchange.header.aead))
        plain = encode_known_response(self._head, bytes(self._body))
        sealed = seal_response(self._exchange, plain, nonce=nonce)
        await send_whole(self._send, 200, (("content-type", _SINGLE_RESPONSE),), sealed)


class _Streamed:
    """The answer of the chunked form, sealed as it comes; a cut one has no final chunk."""

    def __init__(self, send: Send, writer: MessageWriter) -> None:
        self._send = send
        self._writer = writer
        self._started = False

    async def send(self, message: Message) -> None:
        """Take one message of the application."""
        if message["type"] == "http.response.start":
            head = ResponseHead(message["status"], sealed_fields(message["headers"]))
            self._writer.hold(encode_response_head(head))
            return
        body: bytes = message.get("body", b"")
        content = encode_content(body) if body else b""
        if message.get("more_body", False):
            await self._out(self._writer.write(content), more=True)
        else:
            await self._out(self._writer.finish(content + encode_end()), more=False)

    async def end(self) -> None:
        """Nothing is left to do: what was not whole has no final chunk."""

    async def _out(self, sealed: bytes, *, more: bool) -> None:
        if not self._started:
            self._started = True
            headers = [
                (b"content-type", RESPONSE_MEDIA_TYPE.encode()),
                (b"incremental", b"?1"),
                (b"cache-control", b"no-store"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": sealed, "more_body": more})
