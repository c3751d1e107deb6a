"""A load generator that costs little: kept-alive HTTP/1.1 connections, answers counted, not read.

Only the status and the end of an answer are looked at. Connections are not pipelined, so an answer
in chunks ends where the received bytes end with the last chunk; seven random bytes of ciphertext
imitate that once in 2**56 reads.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLIENTS = 16
_LAST_CHUNK = b"\r\n0\r\n\r\n"


def http_request(path: str, body: bytes, *, media_type: str) -> bytes:
    """Return one POST request."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: {media_type}\r\n"
        f"accept: */*\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(frozen=True, slots=True)
class Timed:
    """What one drive took, and each of its requests: to the first byte of a body, to the last."""

    seconds: float
    firsts: list[float]
    lasts: list[float]


class _Connection(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self.firsts: list[float] = []
        self.lasts: list[float] = []
        self._began = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._tail = b""
        self._left: int | None = None
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def _next(self) -> None:
        self._head, self._tail, self._left, self._in_body = b"", b"", None, False
        request = next(self._requests, None)
        if self._transport is None:
            return
        if request is None:
            self._transport.close()
            self.done.set_result(None)
        else:
            self._began = time.perf_counter()
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._in_body = True
            self._read_head(head)
        if data and len(self.firsts) == len(self.lasts):
            self.firsts.append(time.perf_counter() - self._began)
        if self._left is not None:
            self._left -= len(data)
            ended = self._left == 0
        else:
            self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
            # Directly after the head the last chunk has no line before it.
            ended = self._tail in (_LAST_CHUNK, _LAST_CHUNK[2:])
        if ended:
            self.lasts.append(time.perf_counter() - self._began)
            self._next()

    def _read_head(self, head: bytes) -> None:
        lines = head.lower().split(b"\r\n")
        if not lines[0].startswith(b"http/1.1 200"):
            self._fail(f"the answer was {lines[0].decode('latin-1')}")
        lengths = [line for line in lines if line.startswith(b"content-length:")]
        if lengths:
            self._left = int(lengths[0].partition(b":")[2])

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or RuntimeError("the connection was closed"))


async def _drive(url: str, requests: Sequence[bytes], clients: int) -> Timed:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    began, running = time.perf_counter(), []
    for index in range(clients):
        mine = iter(requests[index::clients])
        _, connection = await loop.create_connection(
            partial(_Connection, mine), parts.hostname or "", parts.port or 80
        )
        running.append(connection)
    await asyncio.gather(*(connection.done for connection in running))
    return Timed(
        time.perf_counter() - began,
        [first for connection in running for first in connection.firsts],
        [last for connection in running for last in connection.lasts],
    )


def drive(url: str, requests: Sequence[bytes]) -> float:
    """Send `requests` over 16 connections at once; return requests a second of wall time."""
    return len(requests) / timed(url, requests, clients=CLIENTS).seconds


def timed(url: str, requests: Sequence[bytes], *, clients: int) -> Timed:
    """Send `requests` over `clients` connections at once, each one at a time."""
    return asyncio.run(_drive(url, requests, clients))
