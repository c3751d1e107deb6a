"""Transports of `httpx2` over something that sends whole requests to proven nodes: async and sync.

Clause: docs/protocols/client.md §1. The scheme, host and port of a request are ignored: there is
one place where requests go, and the name in the URL resolves nowhere. The answer that came is in
`response.extensions[ANSWER]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import httpx2

from confide.errors import ConfideError, LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping

    from confide.adapters.loop_thread import LoopThread

__all__ = [
    "ANSWER",
    "AnswerTransport",
    "BlockingTransport",
    "Request",
    "Sender",
    "TakenAnswer",
    "Translate",
    "was_timeout",
]

ANSWER = "confide.answer"
# What a request holds in memory: it may have to be sealed again, for another node.
_MAX_REQUEST_BYTES = 256 * 1024 * 1024
# They say which program, interpreter and machine asks, which no node needs to know.
_DROPPED_PREFIX = "x-stainless-"
_DROPPED = frozenset({"user-agent", "openai-organization", "openai-project"})


@dataclass(frozen=True, slots=True)
class Request:
    """
    What is sealed. `path` may have a query; `timeouts` are connect, read, write and pool.

    A body that is read as it is sent goes out once.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | AsyncIterator[bytes]
    timeouts: Mapping[str, float | None] | None = None


class TakenAnswer(Protocol):
    """An answer that may be handed over; a stream says at its end whether it held."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers."""
        ...

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the body, once."""
        ...

    async def aclose(self) -> None:
        """Let go of the connection."""
        ...


class Sender(Protocol):
    """What carries a request; `client.session.Session` is one."""

    def send(self, request: Request) -> Coroutine[Any, Any, TakenAnswer]:
        """Send, and return what may be handed over."""
        ...

    def close(self) -> Coroutine[Any, Any, None]:
        """Let go of everything."""
        ...


# How an error of ours leaves: the SDK on top has a tree of its own.
Translate: TypeAlias = "Callable[[ConfideError, httpx2.Request], Exception]"


def was_timeout(error: BaseException) -> bool:
    """Whether `error` is there because somebody was too slow."""
    cause = error.__cause__
    return isinstance(cause, httpx2.TimeoutException)


def _as_it_is(error: ConfideError, _request: httpx2.Request) -> Exception:
    return error


def _read_request(request: httpx2.Request, body: bytes) -> Request:
    if len(body) > _MAX_REQUEST_BYTES:
        raise LocalProtocolError(f"a request of more than {_MAX_REQUEST_BYTES} bytes")
    headers = [(name.lower(), value) for name, value in request.headers.multi_items()]
    return Request(
        request.method,
        request.url.raw_path.decode("ascii"),
        tuple(
            (name, value)
            for name, value in headers
            if name not in _DROPPED and not name.startswith(_DROPPED_PREFIX)
        ),
        body,
        request.extensions.get("timeout"),
    )


def _response(
    answer: TakenAnswer, stream: httpx2.AsyncByteStream | httpx2.SyncByteStream
) -> httpx2.Response:
    return httpx2.Response(
        answer.status,
        headers=list(answer.headers),
        stream=stream,
        extensions={ANSWER: answer},
    )


class AnswerTransport(httpx2.AsyncBaseTransport):
    """Carries every request through `sender`, which it closes."""

    def __init__(self, sender: Sender, *, translate: Translate = _as_it_is) -> None:
        self.sender = sender
        self._translate = translate

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Carry `request`; raises the errors of the sender, translated."""
        stream = request.stream
        if not isinstance(stream, httpx2.AsyncByteStream):
            raise LocalProtocolError("an asynchronous request body was expected")
        body = b"".join([piece async for piece in stream])
        try:
            answer = await self.sender.send(_read_request(request, body))
        except ConfideError as error:
            raise self._translate(error, request) from error.__cause__
        return _response(answer, _Body(answer, request, self._translate))

    async def aclose(self) -> None:
        """Close the sender."""
        await self.sender.close()


class _Body(httpx2.AsyncByteStream):
    def __init__(self, answer: TakenAnswer, request: httpx2.Request, translate: Translate) -> None:
        self._answer = answer
        self._request = request
        self._translate = translate

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._answer.aiter_bytes():
                yield piece
        except ConfideError as error:
            raise self._translate(error, self._request) from error.__cause__

    async def aclose(self) -> None:
        await self._answer.aclose()


class BlockingTransport(httpx2.BaseTransport):
    """The same for callers that block, of any number of threads: the work is done in `loop`."""

    def __init__(
        self, sender: Sender, loop: LoopThread, *, translate: Translate = _as_it_is
    ) -> None:
        self.sender = sender
        self.loop = loop
        self._translate = translate

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Carry `request`; raises the errors of the sender, translated."""
        stream = request.stream
        if not isinstance(stream, httpx2.SyncByteStream):
            raise LocalProtocolError("a blocking request body was expected")
        outgoing = _read_request(request, b"".join(stream))
        try:
            answer = self.loop.run(self.sender.send(outgoing))
        except ConfideError as error:
            raise self._translate(error, request) from error.__cause__
        body = _BlockingBody(answer, self.loop, request, self._translate)
        return _response(answer, body)

    def close(self) -> None:
        """Close the sender and end the thread."""
        self.loop.close(self.sender.close())


class _BlockingBody(httpx2.SyncByteStream):
    def __init__(
        self, answer: TakenAnswer, loop: LoopThread, request: httpx2.Request, translate: Translate
    ) -> None:
        self._answer = answer
        self._loop = loop
        self._request = request
        self._translate = translate

    def __iter__(self) -> Iterator[bytes]:
        pieces = self._answer.aiter_bytes()
        try:
            while (piece := self._loop.run(_next(pieces))) is not None:
                yield piece
        except ConfideError as error:
            raise self._translate(error, self._request) from error.__cause__

    def close(self) -> None:
        self._loop.run(self._answer.aclose())


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
