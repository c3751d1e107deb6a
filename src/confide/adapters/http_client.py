"""HTTP clients for talking to nodes: one way to make them, no environment, no redirects.

Proxies and certificates of the environment are left out on purpose: what is secret is sealed to
proven keys, what is not is a nonce and a digest, and nothing may divert either unseen.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["ask_broker", "ask_health", "make_node_client", "node_client"]

_BROKER_PATH = "/confide/v1/broker"
_HEALTH_PATH = "/confide/v1/health"
_HEALTH_SECONDS = 5.0
# An answer may take as long as an agent thinks; a connection may not.
_TIMEOUT = httpx2.Timeout(connect=10.0, read=3600.0, write=600.0, pool=60.0)
# Streams are long and many; a connection that waits costs the node nothing after this.
_MAX_CONNECTIONS = 1024
_MAX_IDLE = 64


@asynccontextmanager
async def node_client() -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a pooled client for the exchanges of one process or one command."""
    async with make_node_client() as client:
        yield client


def make_node_client() -> httpx2.AsyncClient:
    """Return a pooled client; whoever makes it closes it, in the loop that used it."""
    limits = httpx2.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_IDLE)
    return httpx2.AsyncClient(
        timeout=_TIMEOUT, limits=limits, trust_env=False, follow_redirects=False
    )


def ask_health(url: str) -> str | None:
    """
    Return the keyset digest that the node at `url` says it has, None when it does not answer.

    A hint for people and for waiting; it proves nothing.
    """
    return _ask(url + _HEALTH_PATH, "keyset")


def ask_broker(url: str) -> str | None:
    """Return the key that the broker at `url` says it has; a hint, like `ask_health`."""
    return _ask(url + _BROKER_PATH, "key")


def _ask(url: str, member: str) -> str | None:
    try:
        answer = httpx2.get(url, timeout=_HEALTH_SECONDS, trust_env=False)
        return str(answer.json()[member]) if answer.status_code == 200 else None
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return None
