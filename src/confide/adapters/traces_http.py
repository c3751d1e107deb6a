"""Sends spans to a collector, behind the calls: OTLP over HTTP, docs/protocols/tenancy.md §7.

What cannot be sent is dropped; a call never waits for it and never learns of it. No redirect is
followed, no proxy of the environment asked, nothing logged.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from confide.adapters.metrics_http import is_loopback
from confide.errors import ConfigurationError
from confide.telemetry.spans import encode_spans
from confide.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from confide.telemetry.spans import Span

__all__ = ["SpanExporter", "exporting_spans", "traces_url"]

_PATH = "/v1/traces"
_MAX_WAITING = 2048
_BATCH = 256
_PAUSE_SECONDS = 1.0
_SEND_SECONDS = 10.0
# A node that stops waits no longer for its last spans.
_LAST_SECONDS = 3.0


def traces_url(text: str) -> str:
    """Return where spans go: `URL/v1/traces`. Raises `ConfigurationError` for plaintext outside."""
    try:
        parts = urlsplit(text)
        host, secure = parts.hostname or "", parts.scheme == "https"
    except ValueError:
        host, secure = "", False
    plain = parts.query or parts.fragment or parts.username if host else True
    if not host or plain or parts.scheme not in ("http", "https"):
        raise ConfigurationError(
            "--traces is the URL of a collector, such as http://127.0.0.1:4318"
        )
    if not secure and not is_loopback(host):
        raise ConfigurationError("--traces is https:// for a collector that is not on this machine")
    base = text.rstrip("/")
    return base if parts.path.endswith(_PATH) else base + _PATH


class SpanExporter:
    """Holds spans until they are sent; the newest are dropped where too many wait."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session
        self._waiting: deque[Span] = deque()

    def add(self, span: Span) -> None:
        """Take a span; one too many is dropped."""
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.append(span)

    async def flush(self) -> None:
        """Send what waits, once."""
        while self._waiting:
            count = min(_BATCH, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            with suppress(aiohttp.ClientError, OSError, ValueError):
                async with self._session.post(
                    self._url,
                    data=encode_spans(batch, version=__version__),
                    headers={"content-type": "application/json"},
                    allow_redirects=False,
                ):
                    pass

    async def run(self) -> None:
        """Send for ever."""
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            await self.flush()


@asynccontextmanager
async def exporting_spans(url: str) -> AsyncIterator[SpanExporter]:
    """Send spans to `url` until the block ends; what waits then is sent once more."""
    timeout = aiohttp.ClientTimeout(total=_SEND_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        exporter = SpanExporter(url, session)
        running = asyncio.ensure_future(exporter.run())
        try:
            yield exporter
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_SECONDS):
                    await exporter.flush()
