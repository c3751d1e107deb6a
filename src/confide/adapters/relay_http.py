"""What a relay does over HTTP towards nodes: forward once, and ask for health.

Clauses: docs/protocols/relay.md §3. Headers are the relay's own; connections are shared by all
clients. Nothing is sent a second time: only a failure to connect says that nothing was sent.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import aiohttp
import yarl

from confide.adapters.http_body import bound_to_connection
from confide.adapters.plain_session import plain_session
from confide.channel.carriage import REQUEST_MEDIA_TYPE, RESPONSE_MEDIA_TYPE
from confide.errors import FormatError, Reason, Unavailable
from confide.wire.json import JsonLimits, Members, is_hex, parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

__all__ = ["NotReached", "RelayLink", "RelayTimes", "RelayedAnswer", "ask_keyset"]

_AGENT: Final = "confide-relay"
_HEALTH: Final = "/confide/v1/health"
_HEALTH_LIMITS: Final = JsonLimits(max_bytes=4096, max_depth=4)
_SEALED: Final = {
    "content-type": REQUEST_MEDIA_TYPE,
    "accept": RESPONSE_MEDIA_TYPE,
    "accept-encoding": "identity",
    "incremental": "?1",
    "user-agent": _AGENT,
}
_JSON: Final = {
    "content-type": "application/json",
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": _AGENT,
}
# Below the 5 s after which common servers drop an idle connection themselves: a request that
# meets a dead connection is lost, for it is not sent again.
_KEEPALIVE_SECONDS: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayTimes:
    """How long a node is waited for, in seconds; relay.md 3.5."""

    connect: float = 5.0
    idle: float = 600.0
    total: float = 3600.0
    health: float = 5.0


class NotReached(Unavailable):
    """No connection to the node was made: nothing was sent."""


class RelayedAnswer:
    """The answer of a node: status, media type and the body as it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status

    @property
    def media_type(self) -> str:
        """The media type without parameters, lower case."""
        return self._response.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def encoded(self) -> bool:
        """Whether the body is compressed, although nobody asked for that."""
        return self._response.headers.get("content-encoding", "identity").lower() != "identity"

    async def pieces(self, max_bytes: int) -> AsyncIterator[bytes]:
        """Yield the body as the socket gives it; `Unavailable` where it breaks or is too long."""
        seen = 0
        try:
            with bound_to_connection(self._response):
                async for piece in self._response.content.iter_any():
                    seen += len(piece)
                    if seen > max_bytes:
                        raise Unavailable(f"an answer of more than {max_bytes} bytes")
                    yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable("the node broke off its answer") from error

    def close(self) -> None:
        """Give the connection back when the body was read to its end; close it otherwise."""
        self._response.close()


class RelayLink:
    """
    A pooled client to the nodes of one relay; made inside the running loop, closed with it.

    Redirects, cookies, compression and what the environment says of proxies are off.
    """

    def __init__(self, *, connections: int, times: RelayTimes | None = None) -> None:
        self._times = times or RelayTimes()
        self._session = plain_session(
            aiohttp.TCPConnector(
                limit=connections, keepalive_timeout=_KEEPALIVE_SECONDS, ttl_dns_cache=60
            ),
            aiohttp.ClientTimeout(
                total=self._times.total,
                sock_connect=self._times.connect,
                sock_read=self._times.idle,
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def forward(self, url: str, body: bytes | AsyncIterator[bytes]) -> RelayedAnswer:
        """
        Send `body` to `url`, once; return the answer when its head came.

        An iterator is a sealed request, `bytes` a request for evidence. Raises `NotReached`, or
        `Unavailable` where the node may have got the request.
        """
        try:
            response = await self._session.post(
                yarl.URL(url, encoded=True),
                data=body,
                headers=_JSON if isinstance(body, bytes) else _SEALED,
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotReached("the node was not reached") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable("the node was lost") from error
        return RelayedAnswer(response)

    async def keyset(self, url: str) -> bytes | None:
        """Return the digest of the keyset that the node at `url` says it has; None for no word."""
        try:
            async with (
                asyncio.timeout(self._times.health),
                self._session.get(
                    yarl.URL(url + _HEALTH, encoded=True), headers=_JSON, allow_redirects=False
                ) as response,
            ):
                raw = await response.content.read(_HEALTH_LIMITS.max_bytes + 1)
                while not response.content.at_eof() and len(raw) <= _HEALTH_LIMITS.max_bytes:
                    raw += await response.content.read(_HEALTH_LIMITS.max_bytes + 1 - len(raw))
                return _said(raw) if response.status == 200 else None
        except (aiohttp.ClientError, OSError, ValueError):
            return None


def _said(raw: bytes) -> bytes | None:
    try:
        value = parse_json(
            raw, what="health", reason=Reason.STATEMENT_MISMATCH, limits=_HEALTH_LIMITS
        )
        members = Members(value, what="health", reason=Reason.STATEMENT_MISMATCH)
        digest = members.text("keyset", max_chars=64)
        ready = members.boolean("ready")
    except FormatError:
        return None
    return bytes.fromhex(digest) if ready and is_hex(digest, 32) else None


async def ask_keyset(url: str) -> bytes | None:
    """Ask one node once, with a client of its own."""
    async with RelayLink(connections=1) as link:
        return await link.keyset(url)
