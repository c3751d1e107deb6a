"""The same over `aiohttp`, for programs that carry many requests: a third of the processor time.

Redirects, cookies, compression, and proxies of the environment are off. A `POST` is never sent
again by the library, whatever became of its connection.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import aiohttp
import yarl

from confide.adapters.carrier import NotSent
from confide.adapters.plain_session import plain_session
from confide.errors import Reason, RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from confide.adapters.carrier import Carried, Content

__all__ = ["FastCarrier"]

# An answer may take as long as an agent thinks; a connection may not.
_TIMEOUTS: Mapping[str, float | None] = {"pool": 60.0, "connect": 10.0, "read": 3600.0}
_MAX_CONNECTIONS = 1024
_KEEPALIVE_SECONDS = 30.0
# Large bodies are written in pieces, so that other exchanges get their turn.
_WHOLE_BYTES = 512 * 1024
_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)


class FastCarrier:
    """A pool of connections. Made inside the loop that uses it; whoever made it closes it."""

    def __init__(self) -> None:
        self._timeout = _timeout(_TIMEOUTS)
        self._session = plain_session(
            aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEPALIVE_SECONDS),
            self._timeout,
            # What program this is, is nobody's business.
            unsaid=("user-agent",),
        )

    async def post(
        self,
        url: str,
        content: Content,
        *,
        headers: Mapping[str, str],
        timeouts: Mapping[str, float | None] | None = None,
    ) -> Carried:
        """Send once; see `Carrier`."""
        large = isinstance(content, bytes) and len(content) >= _WHOLE_BYTES
        try:
            answer = await self._session.post(
                yarl.URL(url),
                data=io.BytesIO(content) if large and isinstance(content, bytes) else content,
                headers=headers,
                timeout=self._timeout if timeouts is None else _timeout(timeouts),
                allow_redirects=False,
            )
        except _UNSENT as error:
            raise NotSent("the node cannot be reached") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError: what aiohttp says of a head that is none. TimeoutError is an OSError.
            raise Unavailable("the node did not answer") from error
        return _FastAnswer(answer)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._session.close()


def _timeout(timeouts: Mapping[str, float | None]) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(
        total=None,
        connect=timeouts.get("pool"),
        sock_connect=timeouts.get("connect"),
        sock_read=timeouts.get("read"),
    )


class _FastAnswer:
    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def content_type(self) -> str:
        return self._answer.headers.get("content-type", "")

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._answer.content.iter_any():
                yield piece
        except TimeoutError as error:
            raise Unavailable("the node stopped answering") from error
        except (aiohttp.ClientError, OSError) as error:
            raise RemoteProtocolError(
                "the response was cut", reason=Reason.CHANNEL_TRUNCATED
            ) from error

    async def aclose(self) -> None:
        # Read to its end, the connection is in the pool already; otherwise it is of no use.
        self._answer.close()
