"""The sealed gateway: chunked Oblivious HTTP at the door, an ordinary ASGI application inside.

`POST /confide/v1/ohttp` is opened and replayed into the inner application as the request it
carries; the answer is sealed chunk by chunk. Rules: docs/protocols/channel.md §3, §4 and §7. The
inner application sees plaintext and runs inside the measured node; what reaches the outer server
is ciphertext, a fixed status and fixed problem bodies.

The request head is admitted to the replay window before the inner application is called. A
request that breaks later looks to the inner application like a client that went away.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from confide.channel.carriage import (
    CHANNEL_PATH,
    PROBLEM_MEDIA_TYPE,
    REQUEST_MEDIA_TYPE,
    RESPONSE_MEDIA_TYPE,
    problem_type,
)
from confide.channel.message import MessageLimits, NodeMessages
from confide.channel.padding import PaddingPolicy
from confide.errors import LocalProtocolError, Reason, RemoteProtocolError
from confide.node.cadence import Pacer
from confide.wire.bhttp import Content, End, Fields, RequestHead, ResponseHead

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from confide.channel.keys import KeyRing
    from confide.channel.replay import ReplayWindow
    from confide.ports import Clock, Entropy

__all__ = ["SCOPE_KEY", "ChannelRecord", "SealedGateway"]

# Where the inner application finds its `ChannelRecord`.
SCOPE_KEY = "confide.channel"
# From: RFC 9110 §9.3: methods whose requests have no content. They start when the request is whole.
_WITHOUT_CONTENT = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
# The content such a request may still carry: it is held, for the application has not started.
_MAX_EARLY_BYTES = 65536
# Fields that belong to the outer connection and may not enter a sealed response (RFC 9292 §3.6).
_CONNECTION_FIELDS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te"}
)


@dataclass(slots=True)
class ChannelRecord:
    """
    What the inner application may know of the exchange that carries its request.

    `request_sha256` is None until the request was opened to its end, `response_sha256` until the
    response was sealed to its end; `request_trailers` come with the former.
    """

    channel_id: bytes
    key_id: int
    nonce: bytes
    issued_at: datetime
    request_sha256: bytes | None = None
    response_sha256: bytes | None = None
    request_trailers: Fields = ()

    @property
    def way(self) -> None:
        """None: the sealed channel is no way of a face (faces.md §3)."""
        return

    @property
    def receipt_inline(self) -> bool:
        """True: everything of an answer is sealed."""
        return True


class SealedGateway:
    """
    An ASGI application that opens `POST /confide/v1/ohttp` into `app`; other paths are 404.

    `window` is shared by all requests under `keys` and must be the only one for these keys.
    Lifespan events pass through to `app`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing,
        clock: Clock,
        entropy: Entropy,
        window: ReplayWindow,
        limits: MessageLimits | None = None,
        padding: PaddingPolicy | None = None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._clock = clock
        self._entropy = entropy
        self._window = window
        self._limits = limits or MessageLimits()
        self._padding = padding or PaddingPolicy()

    def rotate(self, keys: KeyRing) -> None:
        """Open new requests with `keys`, the old and the new ones during an overlap."""
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            raise LocalProtocolError("the sealed gateway serves HTTP only")
        elif scope["path"] != CHANNEL_PATH:
            await _send_plain(send, 404, b"text/plain", b"not found\n")
        elif scope["method"] != "POST":
            await _send_plain(send, 405, b"text/plain", b"POST only\n")
        elif _media_type(scope) != REQUEST_MEDIA_TYPE.encode():
            await _send_plain(send, 415, b"text/plain", REQUEST_MEDIA_TYPE.encode() + b" only\n")
        else:
            messages = NodeMessages(
                self._keys,
                response_nonce=self._entropy.token(32),
                window=self._window,
                padding=self._padding,
                limits=self._limits,
            )
            await _Exchange(self._app, messages, self._clock, receive, send).run(scope)


def _media_type(scope: Scope) -> bytes:
    values = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
    return bytes(values[0]).partition(b";")[0].strip().lower() if len(values) == 1 else b""


async def _send_plain(send: Send, status: int, media_type: bytes, body: bytes) -> None:
    headers = [
        (b"content-type", media_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_problem(send: Send, error: RemoteProtocolError) -> None:
    # Fixed text for each reason (channel.md 7.4): nothing of the request is repeated.
    body = json.dumps({"type": problem_type(error.reason), "status": error.status_hint})
    await _send_plain(send, error.status_hint, PROBLEM_MEDIA_TYPE.encode(), body.encode())


class _Exchange:
    """One request: the outer `receive`/`send` on one side, the inner pair on the other."""

    def __init__(
        self, app: ASGIApp, messages: NodeMessages, clock: Clock, receive: Receive, send: Send
    ) -> None:
        self._app = app
        self._messages = messages
        self._clock = clock
        self._outer_receive = receive
        self._outer_send = send
        self._pumping = asyncio.Lock()
        self._content: deque[bytes] = deque()
        self._head: RequestHead | None = None
        self._record: ChannelRecord | None = None
        self._whole = False
        self._told_end = False
        self._gone = False
        self._refusal: RemoteProtocolError | None = None
        self._status = 0
        self._outer_started = False
        self._trailers_expected = False
        self._last_body: bytes | None = None
        self._pacer: Pacer | None = None
        self._done = False

    async def run(self, scope: Scope) -> None:
        """Open the head, call the inner application, account for how it ended."""
        while self._head is None and await self._pump():
            pass
        if self._head is not None and self._head.method in _WITHOUT_CONTENT:
            await self._await_whole()
        broken = self._refusal is not None or self._gone
        if self._head is not None and self._record is not None and not broken:
            try:
                await self._app(
                    self._inner_scope(scope, self._head, self._record), self._receive, self._send
                )
            except Exception:
                # What an application raises when its client goes away is expected here.
                if self._refusal is None or self._outer_started:
                    raise
            finally:
                if self._pacer is not None:
                    self._pacer.stop()
        if self._done or self._gone:
            return
        if self._refusal is not None and not self._outer_started:
            await _send_problem(self._outer_send, self._refusal)
        else:
            # The outer server cuts the connection: without a final chunk the client refuses.
            raise LocalProtocolError("the inner application did not complete its response")

    # --- request ----------------------------------------------------------------------------------

    async def _await_whole(self) -> None:
        def too_much() -> bool:
            return sum(map(len, self._content)) > _MAX_EARLY_BYTES

        while not too_much() and await self._pump():
            pass
        if too_much():
            self._refusal = RemoteProtocolError(
                "content beyond the limit of its method",
                reason=Reason.LIMIT_EXCEEDED,
                status_hint=413,
            )

    async def _pump(self) -> bool:
        """Take one outer message; False when the request is whole, broken or gone."""
        async with self._pumping:
            if self._whole or self._gone or self._refusal is not None:
                return False
            message = await self._outer_receive()
            if message["type"] != "http.request":
                self._gone = True
                return False
            try:
                self._open(message)
            except RemoteProtocolError as error:
                self._refusal = error
                return False
            return True

    def _open(self, message: Message) -> None:
        now = self._clock.now()
        events = self._messages.receive(message.get("body", b""), now=now)
        if not message.get("more_body", False):
            events += self._messages.receive_end(now=now)
        for event in events:
            if isinstance(event, RequestHead):
                self._head, self._record = event, self._new_record()
            elif isinstance(event, Content):
                self._content.append(event.data)
            elif isinstance(event, End) and self._record is not None:
                self._whole = True
                self._record.request_sha256 = self._messages.exchange.request_sha256
                self._record.request_trailers = event.trailers

    def _new_record(self) -> ChannelRecord:
        stamp, exchange = self._messages.stamp, self._messages.exchange
        if stamp is None:  # pragma: no cover - set when a head is admitted
            raise LocalProtocolError("a request head without a stamp")
        return ChannelRecord(exchange.channel_id, exchange.key_id, stamp.nonce, stamp.issued_at)

    @staticmethod
    def _inner_scope(outer: Scope, head: RequestHead, record: ChannelRecord) -> Scope:
        raw_path, _, query = head.path.partition("?")
        inner: Scope = {
            "type": "http",
            "asgi": outer["asgi"],
            "http_version": "1.1",
            "method": head.method,
            "scheme": head.scheme,
            "path": unquote(raw_path),
            "raw_path": raw_path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": [*head.fields, (b"host", head.authority.encode("ascii"))],
            # The address of the outer hop is not the client's to be believed or logged.
            "client": None,
            "server": None,
            "extensions": {"http.response.trailers": {}},
            SCOPE_KEY: record,
        }
        if "state" in outer:
            inner["state"] = outer["state"]
        return inner

    async def _receive(self) -> Message:
        while not self._content and not self._whole and await self._pump():
            pass
        if self._content:
            body = b"".join(self._content)
            self._content.clear()
            self._told_end = self._whole
            return {"type": "http.request", "body": body, "more_body": not self._whole}
        if self._whole and not self._told_end:
            self._told_end = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while self._whole and not self._gone:
            message = await self._outer_receive()
            self._gone = message["type"] == "http.disconnect"
        return {"type": "http.disconnect"}

    # --- response ---------------------------------------------------------------------------------

    async def _send(self, message: Message) -> None:
        if self._done:
            raise LocalProtocolError("the inner application sent after its response was complete")
        if self._refusal is not None:
            self._refuse()
            return
        kind = message["type"]
        if kind == "http.response.start":
            self._start(message)
        elif kind == "http.response.body" and self._status and self._last_body is None:
            await self._send_body(message.get("body", b""), more=message.get("more_body", False))
        elif kind == "http.response.trailers" and self._last_body is not None:
            if message.get("more_trailers", False):
                raise LocalProtocolError("trailers in one message were expected")
            await self._finish(self._last_body, _fields(message.get("headers", ())))
        else:
            raise LocalProtocolError("the inner application broke the order of a response")

    def _refuse(self) -> None:
        # Before the response began, `run` answers with the problem and this message is dropped;
        # afterwards only a cut connection tells the client.
        if self._outer_started or self._refusal is None:
            raise RemoteProtocolError("the request was cut", reason=Reason.CHANNEL_TRUNCATED)

    def _start(self, message: Message) -> None:
        if self._status:
            raise LocalProtocolError("the inner application started its response twice")
        self._status = message["status"]
        self._trailers_expected = message.get("trailers", False)
        head = ResponseHead(self._status, _fields(message.get("headers", ())))
        self._messages.hold_head(head)
        if self._messages.paced is not None:
            self._pacer = Pacer(self._messages.paced, self._send_cell)

    async def _send_cell(self, data: bytes) -> None:
        await self._send_sealed(self._messages.seal_cell(data), more=True)

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        if more and self._pacer is not None:
            await self._pacer.put(body)
        elif more:
            sealed = self._messages.seal_content(body)
            if sealed:
                await self._send_sealed(sealed, more=True)
        elif self._trailers_expected:
            self._last_body = body
        else:
            await self._finish(body, ())

    async def _finish(self, body: bytes, trailers: Fields) -> None:
        # channel.md 7.3: no success for a request that was not opened to its end.
        while self._status < 400 and await self._pump():
            self._content.clear()
        if self._refusal is not None or (self._status < 400 and not self._whole):
            self._refuse()
            return
        if self._pacer is not None:
            await self._pacer.finish(body)
            body = b""
        sealed = self._messages.seal_end(body, trailers)
        self._done = True
        if self._record is not None:
            self._record.response_sha256 = self._messages.exchange.response_sha256
        await self._send_sealed(sealed, more=False)

    async def _send_sealed(self, sealed: bytes, *, more: bool) -> None:
        if not self._outer_started:
            self._outer_started = True
            headers = [
                (b"content-type", RESPONSE_MEDIA_TYPE.encode()),
                (b"incremental", b"?1"),
                (b"cache-control", b"no-store"),
            ]
            await self._outer_send(
                {"type": "http.response.start", "status": 200, "headers": headers}
            )
        await self._outer_send({"type": "http.response.body", "body": sealed, "more_body": more})


def _fields(headers: object) -> Fields:
    return tuple(
        (bytes(name).lower(), bytes(value).strip())
        for name, value in headers  # type: ignore[attr-defined] # ASGI: iterable of pairs
        if bytes(name).lower() not in _CONNECTION_FIELDS
    )
