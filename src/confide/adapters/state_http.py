"""The routes of a broker's sealed states, from the side that asks. state.md §4.

One exchange each, bounded; no attempts, no cache, no belief: whoever answers is hostile until
`node.broker_state_link` verified what it said.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import httpx2

from confide.errors import RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

__all__ = ["StateAction", "StateAnswer", "StateHttp"]

StateAction = Literal["open", "blob", "save", "close"]

_PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class StateAnswer:
    """An answer as it came. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StateHttp:
    """
    The four routes of one resource.

    `url` is the broker's, `headers` say which session asks (a cookie, or a bearer token). The
    client is the caller's: no environment, no redirects (`adapters.http_client`).
    """

    def __init__(
        self, client: httpx2.AsyncClient, url: str, resource: str, *, headers: Mapping[str, str]
    ) -> None:
        self._client = client
        self._url = f"{url.rstrip('/')}/confide/v1/state/{resource}"
        self._headers = dict(headers)

    async def ask(
        self,
        action: StateAction,
        *,
        body: Sequence[bytes] = (),
        headers: Mapping[str, str] | None = None,
        max_bytes: int,
    ) -> StateAnswer:
        """
        Send `body` (its parts one after the other) and return the answer, whatever its status.

        Raises `Unavailable` without one, `RemoteProtocolError` for one above `max_bytes`.
        """
        sent = {**self._headers, **(headers or {}), "accept-encoding": "identity"}
        method = "GET" if action == "blob" else "POST"
        content = None
        if method == "POST":
            sent["content-length"] = str(sum(len(part) for part in body))
            content = _pieces(body)
        with _asking():
            async with self._client.stream(
                method, f"{self._url}/{action}", content=content, headers=sent
            ) as answer:
                raw = bytearray()
                async for piece in answer.aiter_raw():
                    raw += piece
                    if len(raw) > max_bytes:
                        raise RemoteProtocolError(f"an answer of more than {max_bytes} bytes")
                found = {name.lower(): value for name, value in answer.headers.items()}
                return StateAnswer(answer.status_code, found, bytes(raw))


async def _pieces(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        view = memoryview(part)
        for at in range(0, len(view), _PIECE_BYTES):
            yield bytes(view[at : at + _PIECE_BYTES])


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Unavailable(f"the broker gave no answer: {type(error).__name__}") from error
