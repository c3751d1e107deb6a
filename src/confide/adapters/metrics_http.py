"""`GET /metrics` on a port of its own, on this machine only: docs/protocols/tenancy.md §6.1."""

from __future__ import annotations

import ipaddress
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web

from confide.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["is_loopback", "metrics_place", "serving_metrics"]

_PATH = "/metrics"
_HEAD_BYTES = 8190


def is_loopback(host: str) -> bool:
    """Whether `host` is an address of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def metrics_place(text: str) -> tuple[str, int]:
    """Return host and port out of `127.0.0.1:9464`. Raises `ConfigurationError`."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or parts.netloc != text:
        raise ConfigurationError("--metrics is HOST:PORT, such as 127.0.0.1:9464")
    if not is_loopback(host):
        raise ConfigurationError("--metrics listens on this machine only, such as 127.0.0.1:9464")
    return host, port


@asynccontextmanager
async def serving_metrics(
    host: str, port: int, text: Callable[[], str], *, content_type: str
) -> AsyncIterator[int]:
    """
    Answer `GET /metrics` with `text()` until the block ends; give the port, 0 for a free one.

    Raises `Unavailable`.
    """

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=text().encode(), headers={"content-type": content_type})

    application = web.Application(client_max_size=1)
    application.router.add_get(_PATH, answer)
    # Neither accesses nor errors are logged.
    runner = web.AppRunner(application, access_log=None, max_field_size=_HEAD_BYTES)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise Unavailable(f"metrics cannot be served at {host}:{port}") from error
        address: tuple[str, int] = runner.addresses[0]
        yield address[1]
    finally:
        await runner.cleanup()
