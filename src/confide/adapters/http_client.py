"""HTTP clients for talking to nodes: one way to make them, no environment, no redirects.

Proxies and certificates of the environment are left out on purpose: what is secret is sealed to
proven keys, what is not is a nonce and a digest, and nothing may divert either unseen.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2

from confide.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

__all__ = [
    "ask_health",
    "ask_member",
    "make_node_client",
    "node_client",
    "require_node_url",
    "system_trust",
]

_HEALTH_PATH = "/confide/v1/health"
_HEALTH_SECONDS = 5.0
# An answer may take as long as an agent thinks; a connection may not.
_TIMEOUT = httpx2.Timeout(connect=10.0, read=3600.0, write=600.0, pool=60.0)
# Streams are long and many; a connection that waits costs the node nothing after this.
_MAX_CONNECTIONS = 1024
_MAX_IDLE = 64


@lru_cache(maxsize=1)
def system_trust() -> ssl.SSLContext:
    """
    Return whom this system believes about TLS, without the environment; read once in a process.

    Reading it takes longer than an answer on this machine, and who waits for a node asks often.
    """
    return httpx2.create_ssl_context(trust_env=False)


@asynccontextmanager
async def node_client() -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a pooled client for the exchanges of one process or one command."""
    async with make_node_client() as client:
        yield client


def make_node_client() -> httpx2.AsyncClient:
    """Return a pooled client; whoever makes it closes it, in the loop that used it."""
    limits = httpx2.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_IDLE)
    # A cookie would let a node, or a relay, know a client again.
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    return httpx2.AsyncClient(
        timeout=_TIMEOUT,
        limits=limits,
        trust_env=False,
        verify=system_trust(),
        follow_redirects=False,
        cookies=no_cookies,
    )


def require_node_url(url: str) -> None:
    """Require http:// or https:// and a host, and nothing beside. `ConfigurationError`."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https"):
        raise ConfigurationError("the address of a node is http:// or https:// and a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError("the address of a node has no user, query or fragment")


def ask_health(url: str) -> str | None:
    """
    Return the keyset digest that the node at `url` says it has, None when it does not answer.

    A hint for people and for waiting; it proves nothing.
    """
    return ask_member(url + _HEALTH_PATH, "keyset")


def ask_member(url: str, member: str) -> str | None:
    """Return what `url` answers under `member`, None without an answer. A hint as well."""
    try:
        answer = httpx2.get(url, timeout=_HEALTH_SECONDS, trust_env=False, verify=system_trust())
        return str(answer.json()[member]) if answer.status_code == 200 else None
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return None
