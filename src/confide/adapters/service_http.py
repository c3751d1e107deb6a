"""Asking someone else's service for evidence: bounded, tried again, never cached.

Clauses: docs/protocols/fetching.md#1 to #5. Nothing secret is sent; what comes is hostile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.adapters.bounded_http import Exchange, FetchLimits, TryAgain, exchange
from confide.adapters.endorsement_http import Retry
from confide.errors import Unavailable

if TYPE_CHECKING:
    import httpx2

    from confide.adapters.bounded_http import Received
    from confide.formats.format import Request
    from confide.ports import Clock, Entropy, Sleeper

__all__ = ["ServiceHttp", "service_limits"]

# From: docs/protocols/fetching.md#2: eight GPUs and a quote take their time.
_READ_SECONDS: Final = 60.0
_ATTEMPT_SECONDS: Final = 120.0


def service_limits() -> FetchLimits:
    """Return the limits for a service, which are longer than those for vendors."""
    return FetchLimits(read_seconds=_READ_SECONDS, attempt_seconds=_ATTEMPT_SECONDS)


class ServiceHttp:
    """Requests to services; plain HTTP is allowed, and has no key to record."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        *,
        clock: Clock,
        entropy: Entropy,
        sleeper: Sleeper | None = None,
        limits: FetchLimits | None = None,
    ) -> None:
        self._http = http
        self._limits = limits or service_limits()
        self._retry = Retry(self._limits, clock=clock, entropy=entropy, sleeper=sleeper)

    async def ask(self, url: str, request: Request) -> Received:
        """
        Make `request` at `url` and return the answer, whatever its status.

        Raises `Unavailable` when there is none.
        """
        wanted = Exchange(
            url=url,
            method=request.method,
            body=request.body,
            content_type=request.content_type,
            max_bytes=request.max_bytes,
        )

        def failed(why: str) -> Unavailable:
            return Unavailable(
                f"the service gave no document {request.document}: {why}. Check URL and connection"
            )

        for attempt in range(self._limits.attempts):
            try:
                return await exchange(self._http, wanted, limits=self._limits, any_http=True)
            except TryAgain as again:
                await self._retry.wait(attempt, again, failed)
            except Unavailable as error:
                raise failed(str(error)) from error
        raise failed("it was asked in vain")
