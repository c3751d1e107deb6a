"""The `Upstream` port over HTTP: one pooled client to an OpenAI-compatible engine.

The engine runs inside the same machine: plaintext leaves the node's process only for a host that
the configuration allows, loopback unless it names others. Every failure is `Unavailable`; bodies
come as the socket gives them, undecoded. docs/protocols/inference.md §1.3, §3.4, §3.5.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import aiohttp
import yarl

from confide.adapters.http_body import bound_to_connection
from confide.adapters.plain_session import plain_session
from confide.errors import ConfigurationError, FormatError, Reason, Unavailable
from confide.inference.plan import Endpoint, EngineRoutes
from confide.wire.json import JsonLimits, JsonValue, parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

__all__ = ["EngineLost", "HttpUpstream", "HttpUpstreamResponse", "UpstreamConfig"]

# What aiohttp raises when a connection is gone before any byte of an answer: a kept-alive
# connection that the engine closed in the same moment. Only these are tried again, once.
_STALE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
_REQUEST_HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    # Bytes are hashed as they come, so they must come as they are.
    "accept-encoding": "identity",
}
# Some servers answer 406 to an `accept` that leaves out what they make: audio, subtitles.
_ANY = {**_REQUEST_HEADERS, "accept": "*/*"}
_JSON_ANSWERS = frozenset(
    (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.EMBEDDINGS)
)
# From: docs/protocols/inference.md §9.7.
_MODELS_LIMITS = JsonLimits(max_bytes=1024 * 1024, max_depth=16)
_WHOLE_BYTES = 512 * 1024
# Below the 5 s after which common engines (uvicorn) drop an idle connection themselves.
_KEEPALIVE_SECONDS = 4.0
_ABSENT = (404, 405, 501)
# From: docs/protocols/inference.md §1.3. No request of the API is an array.
_PROBE_BODY = b"[]"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """
    Where the engine is, and for how long it is waited.

    `base_url` ends before `/v1`, or with it. `allowed_hosts` are names beside loopback to which
    plaintext may go, such as a container of the same machine; naming one is a decision about
    trust. `first_seconds` is until an answer begins: one that is not streamed begins when it is
    complete. `idle_seconds` is between two pieces of it, `total_seconds` for a whole exchange.
    Raises `ConfigurationError`.
    """

    base_url: str
    allowed_hosts: tuple[str, ...] = ()
    connect_seconds: float = 5.0
    # What the openai SDK waits for by itself.
    first_seconds: float = 600.0
    idle_seconds: float = 120.0
    total_seconds: float = 1800.0
    probe_seconds: float = 10.0
    max_answer_bytes: int = 64 * 1024 * 1024
    max_connections: int = 256

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("the upstream is an http:// or https:// URL with a host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigurationError("the upstream URL is scheme, host, port and path alone")
        if not _is_loopback(parts.hostname) and parts.hostname not in self.allowed_hosts:
            raise ConfigurationError(
                "the upstream is not on loopback: plaintext would leave this node; run the engine "
                "beside it, or name its host among the allowed ones"
            )

    @property
    def root(self) -> str:
        """The URL to which paths beginning `/v1` are appended."""
        return self.base_url.rstrip("/").removesuffix("/v1")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class EngineLost(Unavailable):
    """No answer began. `sent` says whether the engine may have begun the work (§9.5)."""

    def __init__(self, message: str, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(message)


class HttpUpstreamResponse:
    """One answer; see `ports.UpstreamResponse`."""

    member: int | None = None

    def __init__(
        self, response: aiohttp.ClientResponse, *, max_bytes: int, idle_seconds: float
    ) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self._idle_seconds = idle_seconds

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status

    @property
    def content_type(self) -> str:
        """The content type, "" where none was given."""
        return self._response.headers.get("content-type", "")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body in the pieces the socket gives; raises `Unavailable`."""
        seen = 0
        try:
            with bound_to_connection(self._response):
                while chunk := await self._piece():
                    seen += len(chunk)
                    if seen > self._max_bytes:
                        raise Unavailable(f"the engine's answer is above {self._max_bytes} bytes")
                    yield chunk
        except (aiohttp.ClientError, OSError) as error:
            # TimeoutError is an OSError.
            raise Unavailable("the engine broke off its answer") from error

    async def _piece(self) -> bytes:
        async with asyncio.timeout(self._idle_seconds):
            return await self._response.content.readany()

    async def close(self) -> None:
        """Give the connection back when the body was read to its end; close it otherwise."""
        self._response.close()


class HttpUpstream:
    """
    A pooled client; one per process, made inside the running loop, closed with it.

    Use as `async with HttpUpstream(config) as upstream`, or call `close`. Environment proxies,
    redirects, cookies and compression are off. A request is sent again, once, only when its
    connection was lost before the first byte of an answer, and it is `repeatable`; the engine may
    then have begun it twice, the caller gets one answer.
    """

    def __init__(self, config: UpstreamConfig) -> None:
        self._config = config
        self._session = plain_session(
            aiohttp.TCPConnector(
                limit=config.max_connections, keepalive_timeout=_KEEPALIVE_SECONDS
            ),
            aiohttp.ClientTimeout(
                total=config.total_seconds,
                sock_connect=config.connect_seconds,
                sock_read=max(config.first_seconds, config.idle_seconds),
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
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def forward(
        self,
        path: str,
        body: bytes,
        *,
        method: str = "POST",
        content_type: str = "application/json",
        repeatable: bool = True,
    ) -> HttpUpstreamResponse:
        """
        Send `body` to `path`, perhaps with a query, and return the head of the answer.

        Raises `EngineLost` where no answer began, otherwise `Unavailable`.
        """
        headers = _REQUEST_HEADERS if path in _JSON_ANSWERS else _ANY
        if content_type != "application/json":
            headers = {**_ANY, "content-type": content_type}
        for last in (not repeatable, True):
            try:
                return await self._send(method, path, body, headers)
            except aiohttp.ClientConnectorError as error:
                raise EngineLost("the engine cannot be reached", sent=False) from error
            except _STALE as error:
                if last:
                    raise EngineLost("the engine did not answer", sent=True) from error
            except (aiohttp.ClientError, OSError, ValueError) as error:
                # ValueError: what aiohttp says of a head that is none.
                raise Unavailable("the engine did not answer") from error
        raise AssertionError  # pragma: no cover - the second try returns or raises

    async def healthy(self) -> bool:
        """Ask `GET /health`: whether any answer below 500 came in time (§9.3)."""
        try:
            async with (
                asyncio.timeout(self._config.probe_seconds),
                self._session.get(
                    self._config.root + "/health", headers=_ANY, allow_redirects=False
                ) as response,
            ):
                return response.status < 500
        except (aiohttp.ClientError, OSError, ValueError):
            return False

    async def describe(self, model: str) -> Mapping[str, JsonValue] | None:
        """
        Return what the engine says of `model` in `GET /v1/models`, None where it does not name it.

        `created` and `permission` are left out. Raises `Unavailable` where it gives no such list.
        """
        try:
            async with (
                asyncio.timeout(self._config.probe_seconds),
                self._session.get(
                    self._config.root + "/v1/models", headers=_REQUEST_HEADERS
                ) as response,
            ):
                # As much as the parser takes, and one byte to see that there is more.
                raw = await response.content.read(_MODELS_LIMITS.max_bytes + 1)
                while not response.content.at_eof() and len(raw) <= _MODELS_LIMITS.max_bytes:
                    raw += await response.content.read(_MODELS_LIMITS.max_bytes + 1 - len(raw))
            value = parse_json(
                raw, what="models", reason=Reason.UPSTREAM_FORMAT, limits=_MODELS_LIMITS
            )
        except (aiohttp.ClientError, OSError, ValueError, FormatError) as error:
            raise Unavailable("the engine gives no list of its models") from error
        entries = value.get("data") if isinstance(value, dict) else None
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("id") == model:
                return {k: v for k, v in entry.items() if k not in ("created", "permission")}
        return None

    async def probe(self) -> EngineRoutes:
        """Find out which endpoints the engine has (§1.3); `Unavailable` when it does not answer."""
        try:
            async with asyncio.timeout(self._config.probe_seconds):
                present = [path for path in Endpoint if await self._exists("POST", path)]
                models = await self._exists("GET", "/v1/models")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable("the engine did not answer the probe") from error
        return EngineRoutes.of(frozenset(present), models=models)

    async def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> HttpUpstreamResponse:
        response = await self._session.request(
            method,
            # The path was compared byte for byte: nothing may spell it anew on the way.
            yarl.URL(self._config.root + path, encoded=True),
            # Large bodies are written in pieces, so that other exchanges get their turn.
            data=body if len(body) < _WHOLE_BYTES else io.BytesIO(body),
            headers=headers,
            allow_redirects=False,
        )
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            response.close()
            raise Unavailable("the engine encodes its answers although asked not to")
        return HttpUpstreamResponse(
            response,
            max_bytes=self._config.max_answer_bytes,
            idle_seconds=self._config.idle_seconds,
        )

    async def _exists(self, method: str, path: str) -> bool:
        try:
            return await self._answers(method, path)
        except _STALE:
            # Engines that serve one request a connection are met here first.
            return await self._answers(method, path)

    async def _answers(self, method: str, path: str) -> bool:
        async with self._session.request(
            method,
            self._config.root + path,
            data=_PROBE_BODY if method == "POST" else None,
            headers=_REQUEST_HEADERS,
            allow_redirects=False,
        ) as response:
            # A present /v1/models that fails is of no use, and nobody depends on it.
            return response.status not in _ABSENT and (method == "POST" or response.ok)
