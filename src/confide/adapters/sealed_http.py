"""The sealed channel over real HTTP, on `httpx2` (channel.md §7): a client and a transport.

The key configuration is an argument and must come from an attested keyset; nothing here appraises.
What the node answers outside the seal is not authenticated: it can explain a failure and can
never make a success. A response is complete only when its iteration ended without an error.

HTTP/1.1 sends the whole request before the response is read (channel.md 7.5).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import httpx2

from confide.adapters.carrier import HttpxCarrier
from confide.channel.carriage import (
    CHANNEL_PATH,
    PROBLEM_MEDIA_TYPE,
    REQUEST_MEDIA_TYPE,
    RESPONSE_MEDIA_TYPE,
    problem_reason,
)
from confide.channel.keys import RecipientKey, recipient_key
from confide.channel.message import ClientMessages, MessageLimits, Stamp
from confide.channel.padding import PaddingPolicy
from confide.errors import (
    FormatError,
    LocalProtocolError,
    Reason,
    RemoteProtocolError,
)
from confide.wire.bhttp import Content, Fields, ResponseHead
from confide.wire.json import Members, parse_json

if TYPE_CHECKING:
    from confide.adapters.carrier import Carried, Carrier
    from confide.channel.events import Transcript
    from confide.ports import Clock, Entropy
    from confide.wire.ohttp import KeyConfig

__all__ = [
    "Body",
    "Headers",
    "RefusedOutside",
    "SealedClient",
    "SealedResponse",
    "SealedTransport",
]

Headers: TypeAlias = "Mapping[str, str] | Sequence[tuple[str, str]]"
Body: TypeAlias = "bytes | AsyncIterator[bytes]"

_MAX_PROBLEM_BYTES = 4096
# Fields of the outer hop, and encodings: nothing is compressed before sealing (channel.md 5.3).
_DROPPED = frozenset(
    {
        "accept-encoding",
        "connection",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)


def _fields(headers: Headers, *, whole: bool) -> Fields:
    items = headers.items() if isinstance(headers, Mapping) else headers
    dropped = _DROPPED if whole else _DROPPED | {"content-length"}
    return tuple(
        (name.lower().encode("latin-1"), value.strip().encode("latin-1"))
        for name, value in items
        if name.lower() not in dropped
    )


class RefusedOutside(RemoteProtocolError):
    """
    An answer outside the seal; its `reason` and `status_hint` are nobody's word.

    A client may act on them as on a lost connection, and believe nothing.
    """


class SealedResponse:
    """
    A response being opened: `status` and `headers` are authentic, the body is whole at its end.

    Iterate `aiter_bytes` once, or `aread`; both raise `RemoteProtocolError` when the stream was
    cut or changed. Use as an async context manager, or call `aclose`.
    """

    def __init__(
        self, head: ResponseHead, events: AsyncIterator[bytes], exchange: _ExchangeState
    ) -> None:
        self.status = head.status
        self.headers: tuple[tuple[str, str], ...] = tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in head.fields
        )
        self._body = events
        self._taken = False
        self._exchange = exchange

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the content as it opens, once: one piece for each chunk the node sealed."""
        if self._taken:
            raise LocalProtocolError("the content of a response is read once")
        self._taken = True
        async for data in self._body:
            yield data

    async def aread(self) -> bytes:
        """Return the whole content."""
        return b"".join([data async for data in self.aiter_bytes()])

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        """The trailers; `LocalProtocolError` before the body ended."""
        trailers = self._exchange.trailers
        if trailers is None:
            raise LocalProtocolError("trailers exist only when the response is complete")
        return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in trailers)

    @property
    def transcript(self) -> Transcript:
        """Digests of both sealed messages; `LocalProtocolError` before the body ended."""
        return self._exchange.messages.exchange.transcript

    @property
    def request_sha256(self) -> bytes:
        """Digest of the sealed request."""
        return self._exchange.messages.exchange.request_sha256

    @property
    def channel_id(self) -> bytes:
        """The 32 bytes that name this exchange to both ends."""
        return self._exchange.messages.exchange.channel_id

    async def aclose(self) -> None:
        """Close the connection; a body not read to its end stays unproven."""
        await self._exchange.carried.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()


class _ExchangeState:
    """One exchange on the wire: raw pieces of the HTTP response to opened content."""

    def __init__(self, messages: ClientMessages, carried: Carried) -> None:
        self.messages = messages
        self.carried = carried
        self.trailers: Fields | None = None
        self._raw = carried.pieces()
        self._ready: list[ResponseHead | Content] = []
        self._ended = False

    async def _next(self) -> ResponseHead | Content | None:
        while not self._ready and not self._ended:
            raw = await anext(self._raw, None)
            if raw is None:
                events, end = self.messages.receive_end()
                self._ended, self.trailers = True, end.trailers
            else:
                events = self.messages.receive(raw)
            self._ready.extend(events)
        return self._ready.pop(0) if self._ready else None

    async def head(self) -> ResponseHead:
        event = await self._next()
        if not isinstance(event, ResponseHead):
            raise RemoteProtocolError("a response without a head", reason=Reason.CHANNEL_FORMAT)
        return event

    async def content(self) -> AsyncIterator[bytes]:
        try:
            while isinstance(event := await self._next(), Content):
                yield event.data
        finally:
            await self.carried.aclose()


class SealedClient:
    """
    Requests to one node, sealed to `config`.

    `http` carries the bytes, or `carrier` where one is given; both are the caller's to close.
    **Does not check** that `config` was attested, and never retries: a client that learns
    `keyset-mismatch` attests again.
    """

    def __init__(
        self,
        base_url: str,
        config: KeyConfig,
        *,
        http: httpx2.AsyncClient,
        clock: Clock,
        entropy: Entropy,
        padding: PaddingPolicy | None = None,
        limits: MessageLimits | None = None,
        carrier: Carrier | None = None,
    ) -> None:
        self._url = base_url.rstrip("/") + CHANNEL_PATH
        self._recipient: RecipientKey = recipient_key(config)
        self._carrier = carrier or HttpxCarrier(http)
        self._clock = clock
        self._entropy = entropy
        self._padding = padding or PaddingPolicy()
        self._limits = limits or MessageLimits()

    async def request(
        self,
        method: str,
        path: str,
        headers: Headers = (),
        body: Body = b"",
        *,
        cell_bytes: int | None = None,
        cadence_ms: int | None = None,
        timeouts: Mapping[str, float | None] | None = None,
    ) -> SealedResponse:
        """
        Send one sealed request and return its response once the head opened.

        A `bytes` body is sealed whole, an iterator piece by piece. `cell_bytes` asks for a
        response in cells (channel.md 5.2), `cadence_ms` for a stream in time (5.4); `timeouts`
        (connect, read, write, pool) replace those of `http`. Raises `Unavailable` where nothing
        answered (`NotSent` where nothing was asked) and `RemoteProtocolError` for an answer
        that does not open, `RefusedOutside` for a refusal, whose reason is the node's word and
        unauthenticated.
        """
        messages = ClientMessages(
            self._recipient,
            ephemeral=self._entropy.token(32),
            stamp=Stamp(self._entropy.token(32), self._clock.now()),
            padding=self._padding,
            limits=self._limits,
            cell_bytes=cell_bytes,
            cadence_ms=cadence_ms,
        )
        whole = isinstance(body, bytes)
        fields = _fields(headers, whole=whole)
        content: Body
        if isinstance(body, bytes):
            content = messages.seal_whole(method, path, fields, body)
        else:
            content = _sealed_stream(messages, messages.seal_head(method, path, fields), body)
        answer = await self._carrier.post(self._url, content, headers=_OUTER, timeouts=timeouts)
        async with _closed_on_error(answer):
            await _refuse_unsealed(answer)
            state = _ExchangeState(messages, answer)
            return SealedResponse(await state.head(), state.content(), state)


_OUTER = {
    "content-type": REQUEST_MEDIA_TYPE,
    "accept": RESPONSE_MEDIA_TYPE,
    "accept-encoding": "identity",
    "incremental": "?1",
}


async def _sealed_stream(
    messages: ClientMessages, head: bytes, body: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    yield head
    async for data in body:
        if data:
            yield messages.seal_content(data)
    yield messages.seal_end()


@asynccontextmanager
async def _closed_on_error(answer: Carried) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await answer.aclose()
        raise


async def _refuse_unsealed(answer: Carried) -> None:
    media_type = answer.content_type.partition(";")[0].strip().lower()
    if answer.status == 200 and media_type == RESPONSE_MEDIA_TYPE:
        return
    raw = b""
    async for piece in answer.pieces():
        raw += piece
        if len(raw) > _MAX_PROBLEM_BYTES:
            break
    reason = _problem_reason(raw) if media_type == PROBLEM_MEDIA_TYPE else None
    raise RefusedOutside(
        f"the node answered {answer.status} outside the seal",
        reason=reason or Reason.CHANNEL_FORMAT,
        status_hint=answer.status,
    )


def _problem_reason(raw: bytes) -> Reason | None:
    try:
        value = parse_json(raw, what="problem", reason=Reason.CHANNEL_FORMAT)
        kind = Members(value, what="problem", reason=Reason.CHANNEL_FORMAT).text("type")
    except FormatError:
        return None
    return problem_reason(kind)


class _SealedStream(httpx2.AsyncByteStream):
    def __init__(self, response: SealedResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._response.aiter_bytes():
            yield data

    async def aclose(self) -> None:
        await self._response.aclose()


_WHOLE_BYTES: Final = 1024 * 1024


class SealedTransport(httpx2.AsyncBaseTransport):
    """
    An `httpx2` transport that carries every request through one `SealedClient`.

    Scheme, host and port of the request are ignored: all goes to the node, sealed. The
    `SealedResponse` is in `response.extensions["confide.sealed"]`.
    """

    def __init__(self, client: SealedClient, *, cell_bytes: int | None = None) -> None:
        self._client = client
        self._cell_bytes = cell_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Carry `request`; raises the errors of `SealedClient.request`."""
        stream = request.stream
        if not isinstance(stream, httpx2.AsyncByteStream):
            raise LocalProtocolError("an asynchronous request body was expected")
        body: Body = aiter(stream)
        # What is short is sealed in one chunk; a file goes out as it is read.
        if int(request.headers.get("content-length", _WHOLE_BYTES + 1)) <= _WHOLE_BYTES:
            body = b"".join([piece async for piece in stream])
        sealed = await self._client.request(
            request.method,
            request.url.raw_path.decode("ascii"),
            request.headers.multi_items(),
            body,
            cell_bytes=self._cell_bytes,
        )
        return httpx2.Response(
            sealed.status,
            headers=list(sealed.headers),
            stream=_SealedStream(sealed),
            extensions={"confide.sealed": sealed},
        )
