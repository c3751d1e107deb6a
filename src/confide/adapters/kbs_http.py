"""Talking to a key broker: bounded answers, nothing believed. docs/protocols/broker.md §2 to §5.

What is sent is evidence and names; what comes is sealed and judged by whoever asked.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httpx2

from confide.errors import Unavailable
from confide.receipts.inline import RECEIPT_HEADER
from confide.wire.kbs import SESSION_COOKIE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

__all__ = ["KbsAnswer", "KbsHttp", "kbs_client"]

# A release waits for the log and its witnesses.
_TIMEOUT: Final = httpx2.Timeout(connect=10.0, read=90.0, write=60.0, pool=60.0)


@asynccontextmanager
async def kbs_client() -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client for brokers: no environment, no redirects."""
    async with httpx2.AsyncClient(
        timeout=_TIMEOUT, trust_env=False, follow_redirects=False
    ) as client:
        yield client


@dataclass(frozen=True, slots=True)
class KbsAnswer:
    """An answer as it came. `receipt` and `cookie` are "" where there is none."""

    status: int
    body: bytes = field(repr=False)
    receipt: str
    cookie: str


class KbsHttp:
    """One broker at one URL."""

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url.rstrip("/")

    async def ask(
        self,
        method: str,
        path: str,
        *,
        max_bytes: int,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> KbsAnswer:
        """
        Return the answer to one request, whatever its status, of at most `max_bytes`.

        Raises `Unavailable` where there is none. Cookies are not kept: each session is its own.
        """
        try:
            async with self._client.stream(
                method, self._url + path, content=body, headers=dict(headers or {})
            ) as answer:
                raw = bytearray()
                async for piece in answer.aiter_bytes():
                    raw += piece
                    if len(raw) > max_bytes:
                        raise Unavailable(f"an answer of more than {max_bytes} bytes")
                cookie = answer.cookies.get(SESSION_COOKIE) or ""
                receipt = answer.headers.get(RECEIPT_HEADER, "")
                return KbsAnswer(answer.status_code, bytes(raw), receipt, cookie)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.CookieConflict) as error:
            raise Unavailable(f"no answer of the broker: {type(error).__name__}") from error
        finally:
            self._client.cookies.clear()
