"""An HTTP endpoint on loopback for the programs of one user: who may ask, and nothing about what.

Clauses: docs/protocols/client.md §7. A name that was rebound to 127.0.0.1 and a web page of another
origin reach a loopback port too: only a loopback `Host` passes, no foreign `Origin`, and by
default only who knows the token. There are no CORS headers. Nothing is logged here.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from confide.errors import ConfideError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Denied", "LocalCall", "LocalEndpoint", "LocalHandler", "LocalReply"]

_HOST = "127.0.0.1"
_MAX_BODY_BYTES = 64 * 1024 * 1024
_SHUTDOWN_SECONDS = 2.0
_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class LocalCall:
    """One request of a program on this machine; a body that the handler streams comes as it is."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class LocalReply:
    """
    What the program gets. A stream that fails raises, and its connection is cut inside the body.

    `close` of the stream is called whatever happens.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a request is not looked at: its `status`, and our words."""

    status: int
    code: str
    message: str


class LocalHandler(Protocol):
    """What answers: calls that may be made, and those that may not."""

    def streams(self, method: str, path: str) -> bool:
        """Whether the body of such a call is taken as it comes, and not held."""
        ...

    async def handle(self, call: LocalCall) -> LocalReply:
        """Answer a call."""
        ...

    def deny(self, path: str, denied: Denied) -> LocalReply:
        """Say no in the words of the API that `path` belongs to."""
        ...


class LocalEndpoint:
    """Serves `handler` at `url` until `stop`. Without `token` every program of this machine may."""

    def __init__(self, handler: LocalHandler, *, token: str | None) -> None:
        self._handler = handler
        self._token = token
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://{_HOST}:{self._port}"

    async def start(self, port: int) -> None:
        """Serve on `port` of 127.0.0.1, any free one for 0. Raises `Unavailable`."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_route("*", "/{tail:.*}", self._serve)
        # What went wrong inside may quote what passed through: it is not written anywhere.
        silent = logging.Logger("confide.local")  # noqa: LOG001 - outside every configuration
        silent.disabled = True
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=silent,
            handle_signals=False,
            # Whoever leaves ends the call, also where nothing is written to it (client.md 7.6).
            handler_cancellation=True,
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, _HOST, port).start()
        except OSError as error:
            raise Unavailable(f"port {port} cannot be served: {error.strerror}") from error
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Take no more calls and end those in progress."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        denied = self._denied(request)
        body: bytes | AsyncIterator[bytes] = b""
        if denied is None and self._handler.streams(request.method, request.path):
            body = request.content.iter_any()
        elif denied is None:
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                what = f"At most {_MAX_BODY_BYTES} bytes."
                denied = Denied(413, "request_too_large", what)
        if denied is not None:
            return await _give(request, self._handler.deny(request.path, denied))
        call = LocalCall(
            request.method,
            request.rel_url.raw_path,
            request.rel_url.raw_query_string,
            tuple((name.lower(), value) for name, value in request.headers.items()),
            body,
        )
        return await _give(request, await self._handler.handle(call))

    def _denied(self, request: web.Request) -> Denied | None:
        hosts = request.headers.getall("host", [])
        if len(hosts) != 1 or not _is_local(hosts[0], self._port):
            return Denied(403, "forbidden_host", "This endpoint is for programs of this machine.")
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "none")
        if (origin is not None and origin != f"http://{hosts[0]}") or site not in (
            "none",
            "same-origin",
        ):
            return Denied(403, "forbidden_origin", "Web pages may not use this endpoint.")
        if self._token is not None and not self._knows_token(request, self._token):
            what = "The token that confide proxy printed is needed as the API key."
            return Denied(401, "unauthorized", what)
        return None

    @staticmethod
    def _knows_token(request: web.Request, token: str) -> bool:
        given = request.headers.get("x-api-key", "")
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = bearer.strip()
        return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _is_local(host: str, port: int) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        name, given = parts.hostname, parts.port
    except ValueError:
        return False
    if parts.path or parts.username is not None or given not in (port, None):
        return False
    if given is None and port != 80:
        return False
    if name in _NAMES:
        return True
    try:
        return ipaddress.ip_address(name or "").is_loopback
    except ValueError:
        return False


async def _give(request: web.Request, reply: LocalReply) -> web.StreamResponse:
    if isinstance(reply.body, bytes):
        return web.Response(status=reply.status, headers=list(reply.headers), body=reply.body)
    response = web.StreamResponse(status=reply.status, headers=dict(reply.headers))
    try:
        await response.prepare(request)
        async for piece in reply.body:
            await response.write(piece)
        await response.write_eof()
    except ConfideError:
        # Nothing half may look whole: the connection closes inside the body.
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError:
        # The program went away; the stream is closed below.
        return response
    finally:
        close = getattr(reply.body, "aclose", None)
        if close is not None:
            await close()
    return response
