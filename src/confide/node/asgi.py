"""One ASGI exchange of the model node: reading a request, answering it, noticing who left.

Written against ASGI itself: this is the hot path. docs/protocols/inference.md §3.7, §3.8.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

from confide.receipts.inline import RECEIPT_HEADER, encode_inline, inline_comment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from confide.inference.exchange import Exchange
    from confide.inference.faults import ApiFault
    from confide.wire.dsse import Envelope

__all__ = [
    "Answer",
    "Caller",
    "Headers",
    "content_type_of",
    "read_body",
    "send_fault",
    "send_whole",
    "spelled_path",
    "while_listening",
]

Headers: TypeAlias = "tuple[tuple[str, str], ...]"


def spelled_path(scope: Scope) -> str:
    """Return the path as the caller spelled it: what routes are compared with (§1.2, §8.4)."""
    raw: bytes | None = scope.get("raw_path")
    return scope["path"] if raw is None else raw.decode("latin-1")


def content_type_of(scope: Scope) -> str:
    """Return the one `content-type` of a request; "" where there is none, or several."""
    found = [value for name, value in scope.get("headers", ()) if name.lower() == b"content-type"]
    return found[0].decode("latin-1") if len(found) == 1 else ""


class Caller:
    """Whether the caller went away while it was answered."""

    def __init__(self) -> None:
        self.left = False


@asynccontextmanager
async def while_listening(receive: Receive) -> AsyncIterator[Caller]:
    """
    Run the body until it ends or the caller goes away, whichever is first.

    ASGI servers tell a disconnect through `receive`; some do not fail a `send` to nobody, and an
    engine must not go on working for a caller that left.
    """
    caller, here = Caller(), asyncio.current_task()

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        caller.left = True
        if here is not None:
            here.cancel()

    listening = asyncio.ensure_future(listen())
    try:
        yield caller
    except asyncio.CancelledError:
        if not caller.left or here is None or here.uncancel() > 0:
            raise
    except OSError:
        caller.left = True
    finally:
        listening.cancel()


class Answer:
    """The ASGI response of one exchange: streamed as it comes, or whole with its receipt."""

    def __init__(
        self, send: Send, exchange: Exchange, headers: Headers = (), *, inline: bool = True
    ) -> None:
        self._send = send
        self._exchange = exchange
        self._headers = headers
        self._inline = inline
        self._started = False
        # What `Exchange.finish` or `fail` gave: the rest of a stream, or the whole body.
        self.held = b""

    async def give(self, data: bytes) -> None:
        """Send bytes of a stream at once."""
        if not data:
            return
        if not self._started:
            self._started = True
            headers = (*self._exchange.headers, *self._headers)
            await _start(self._send, self._exchange.status, headers)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, envelope: Envelope) -> None:
        """Send the rest, and inline the receipt: a comment line of a stream, a header otherwise."""
        if self._exchange.streams:
            await self.give(self.held)
            last = inline_comment(envelope) if self._inline else b""
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
            return
        headers = (*self._exchange.headers, *self._headers)
        if self._inline:
            headers = (*headers, (RECEIPT_HEADER, encode_inline(envelope)))
        await send_whole(self._send, self._exchange.status, headers, self.held)


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """Return the request body, cut at `limit` bytes; None when the caller went away."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece = message.get("body", b"")
        if size < limit:
            pieces.append(piece[: limit - size])
            size += len(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _start(send: Send, status: int, headers: Headers) -> None:
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send an answer that is not a stream."""
    await _start(send, status, (*headers, ("content-length", str(len(body)))))
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_fault(send: Send, fault: ApiFault, headers: Headers = ()) -> None:
    """Send a refusal, with what says when to ask again."""
    head: Headers = (("content-type", "application/json"), *fault.headers, *headers)
    if fault.retry_after is not None:
        head = (*head, ("retry-after", str(fault.retry_after)))
    await send_whole(send, fault.status, head, fault.body())
