"""The other ends of the gateway's measurements, each its own process.

python -m bench.servers upstream PORT     an engine that answers at once, with fixed bytes
python -m bench.servers proxy PORT URL    the peer: a bare pass-through proxy, nothing sealed
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sys
from typing import TYPE_CHECKING, Any, cast

import aiohttp

from confide.node.serve import serve

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

CHUNKS = 100
_WORDS = "the agent labels each note and says why in one sentence, then goes on to the next one. "
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": (_WORDS * 12)[:860]},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 200, "completion_tokens": 180, "total_tokens": 380},
    }
).encode()
_DELTA = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "bench",
        "choices": [{"index": 0, "delta": {"content": "token "}, "finish_reason": None}],
    }
)
_EVENT = f"data: {_DELTA}\n\n".encode()


def _head(status: str, media_type: str, length: int | None) -> bytes:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\n{framing}\r\n\r\n".encode()


_PATHS = (b"/v1/chat/completions", b"/v1/audio/transcriptions")
_WHOLE = _head("200 OK", "application/json", len(_ANSWER)) + _ANSWER
_STREAM_HEAD = _head("200 OK", "text/event-stream", None)
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_LAST = b"%x\r\n%b\r\n0\r\n\r\n" % (14, b"data: [DONE]\n\n")
LARGE_BYTES = 10_000_000
LARGE_PROMPT = "as long as it gets"
HELD_PROMPT = "stay here"
_LARGE_ANSWER = _ANSWER.replace(
    b'"content": "', b'"content": "' + b"x" * (LARGE_BYTES - len(_ANSWER))
)
_LARGE = _head("200 OK", "application/json", len(_LARGE_ANSWER)) + _LARGE_ANSWER
_PRESENT = _head("422 Unprocessable", "application/json", 2) + b"{}"
_ABSENT = _head("404 Not Found", "application/json", 2) + b"{}"


class _Upstream(asyncio.Protocol):
    """Enough of HTTP/1.1 for one pooled client: whole requests, kept alive."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n", 0, 4096)
        if end < 0:
            return
        head = bytes(self._buffer[:end])
        lowered = head.lower()
        length = 0
        if b"content-length:" in lowered:
            length = int(lowered.partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(self._buffer) - end - 4 >= length:
            body = bytes(self._buffer[end + 4 :])
            self._buffer.clear()
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if self._transport is None:
            return
        if body == b"[]":
            known = any(b" %b " % path in head[:200] for path in _PATHS)
            self._transport.write(_PRESENT if known else _ABSENT)
        elif not any(b" %b " % path in head[:200] for path in _PATHS):
            self._transport.write(_ABSENT)
        elif LARGE_PROMPT.encode() in body[:1000]:
            self._transport.write(_LARGE)
        elif HELD_PROMPT.encode() in body[:1000]:
            self._transport.write(_STREAM_HEAD + _CHUNK)
        elif b'"stream":true' in body[:4000]:
            self._task = asyncio.ensure_future(self._stream(self._transport))
        else:
            self._transport.write(_WHOLE)

    @staticmethod
    async def _stream(transport: asyncio.Transport) -> None:
        transport.write(_STREAM_HEAD)
        for _ in range(CHUNKS):
            if transport.is_closing():
                return
            transport.write(_CHUNK)
            await asyncio.sleep(0)
        transport.write(_LAST)


async def _serve_upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


class _Proxy:
    """One pooled client, SHA-256 over both bodies, bytes as the socket gives them."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(pieces)
        hashlib.sha256(body).digest()
        answered = hashlib.sha256()
        given = dict(scope["headers"])
        kind = given.get(b"content-type", b"application/octet-stream").decode()
        headers = {"content-type": kind, "accept-encoding": "identity"}
        async with self._session.post(
            self._url + scope["path"], data=io.BytesIO(body), headers=headers
        ) as answer:
            told = answer.headers["content-type"].encode()
            start: dict[str, Any] = {"type": "http.response.start", "status": answer.status}
            await send({**start, "headers": [(b"content-type", told)]})
            async for chunk in answer.content.iter_any():
                answered.update(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        answered.digest()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _serve_proxy(port: int, url: str) -> None:
    connector = aiohttp.TCPConnector(limit=2048)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        await serve(
            _Proxy(session, url), host="127.0.0.1", port=port, idle_seconds=None, connections=2048
        )


if __name__ == "__main__":
    if sys.argv[1] == "upstream":
        asyncio.run(_serve_upstream(int(sys.argv[2])))
    else:
        asyncio.run(_serve_proxy(int(sys.argv[2]), sys.argv[3]))
