"""What carries sealed bytes to a node and back, over `httpx2`; `carrier_fast` has another.

A carrier is told nothing but bytes: it seals nothing and believes nothing. What it may not do is
follow a redirect, decode a body, or send a request twice.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias

import httpx2

from confide.errors import Reason, RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    Content: TypeAlias = "bytes | AsyncIterator[bytes]"

__all__ = ["Carried", "Carrier", "HttpxCarrier", "NotSent"]

# Raised before a byte of the request went out; anything else leaves that open.
_UNSENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
)


class NotSent(Unavailable):
    """No connection was made: nothing of the request left this machine."""


class Carried(Protocol):
    """An answer of which the head is there."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def content_type(self) -> str:
        """The content type, "" where none was given."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """
        Iterate over the body as it comes, once.

        `Unavailable` when it stalls, `RemoteProtocolError` (CHANNEL_TRUNCATED) when it breaks off.
        """
        ...

    async def aclose(self) -> None:
        """Let the connection go: back where the body was read to its end, closed otherwise."""
        ...


class Carrier(Protocol):
    """The way of one client to the nodes."""

    async def post(
        self,
        url: str,
        content: Content,
        *,
        headers: Mapping[str, str],
        timeouts: Mapping[str, float | None] | None = None,
    ) -> Carried:
        """
        Send once and return the head of the answer.

        `timeouts` (connect, read, write, pool, in seconds) replace those of the carrier. Raises
        `NotSent` where nothing went out, `Unavailable` where no answer came.
        """
        ...


class HttpxCarrier:
    """Carries over `http`, which is the caller's to close."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def post(
        self,
        url: str,
        content: Content,
        *,
        headers: Mapping[str, str],
        timeouts: Mapping[str, float | None] | None = None,
    ) -> Carried:
        """Send once; see `Carrier`."""
        outer = self._http.build_request("POST", url, content=content, headers=headers)
        if timeouts is not None:
            outer.extensions["timeout"] = dict(timeouts)
        try:
            answer = await self._http.send(outer, stream=True, follow_redirects=False)
        except _UNSENT as error:
            raise NotSent("the node cannot be reached") from error
        except httpx2.HTTPError as error:
            raise Unavailable("the node did not answer") from error
        return _HttpxAnswer(answer)


class _HttpxAnswer:
    def __init__(self, answer: httpx2.Response) -> None:
        self._answer = answer

    @property
    def status(self) -> int:
        return self._answer.status_code

    @property
    def content_type(self) -> str:
        return self._answer.headers.get("content-type", "")

    async def pieces(self) -> AsyncIterator[bytes]:
        with _reading():
            async for piece in self._answer.aiter_raw():
                yield piece

    async def aclose(self) -> None:
        await self._answer.aclose()


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except httpx2.TimeoutException as error:
        raise Unavailable("the node stopped answering") from error
    except httpx2.HTTPError as error:
        raise RemoteProtocolError(
            "the response was cut", reason=Reason.CHANNEL_TRUNCATED
        ) from error
