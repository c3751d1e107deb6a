"""An attacker on the path who speaks HTTP well: everything arrives well-formed, but changed.

`InPath` stands between client and node on loopback. It takes whole HTTP messages, hands the
sealed body to a `tamper` function (frames in, frames out) and forwards the result with correct
HTTP framing, so that only the seal can notice.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from confide.wire.ohttp import HEADER_BYTES, Kem

if TYPE_CHECKING:
    from collections.abc import Callable

Frames = list[bytes]
REQUEST_PREFIX = HEADER_BYTES + Kem.X_WING.enc_bytes
RESPONSE_PREFIX = 32


def frames(raw: bytes, prefix: int) -> Frames:
    """The header or nonce, then one item for each chunk with its length."""
    found, at = [raw[:prefix]], prefix
    while at < len(raw):
        size = 1 << (raw[at] >> 6)
        length = int.from_bytes(raw[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
        end = at + size + length if length else len(raw)
        found.append(raw[at:end])
        at = end
    return found


def unchanged(items: Frames) -> Frames:
    return items


@dataclass
class InPath:
    """Listens on a port of its own; `port` is the node's. Records what passed."""

    port: int
    request: Callable[[Frames], Frames] = unchanged
    response: Callable[[Frames], Frames] = unchanged
    cut_response_at: int | None = None
    seen_requests: list[bytes] = field(default_factory=list)
    seen_responses: list[bytes] = field(default_factory=list)
    url: str = ""
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exception: object) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = await _message(reader)
        self.seen_requests.append(body)
        if body:
            body = b"".join(self.request(frames(body, REQUEST_PREFIX)))
        answer_head, answer = await self.forward(head, body)
        self.seen_responses.append(answer)
        if b"ohttp-chunked-res" in answer_head:
            answer = b"".join(self.response(frames(answer, RESPONSE_PREFIX)))
        wire = _with_length(answer_head, answer)
        writer.write(wire if self.cut_response_at is None else wire[: self.cut_response_at])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def forward(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Send one message to the node; return its answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(_with_length(head, body))
        await writer.drain()
        answer = await _message(reader)
        writer.close()
        await writer.wait_closed()
        return answer


def _with_length(head: bytes, body: bytes) -> bytes:
    lines = [
        line
        for line in head.split(b"\r\n")
        if not line.lower().startswith((b"content-length", b"transfer-encoding", b"connection"))
    ]
    lines += [b"content-length: %d" % len(body), b"connection: close"]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    lowered = head.lower()
    if b"transfer-encoding: chunked" in lowered:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return head, body
    for line in lowered.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head, await reader.readexactly(int(line.partition(b":")[2]))
    return head, b""
