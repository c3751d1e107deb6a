"""A real HTTP/1.1 proxy between two parties, with a hand in what passes.

It stands where a host, a load balancer or an attacker stands: it sees and may change every byte of
the outer HTTP. What it does is a `Meddler`; the plain one passes everything on unchanged.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from confide.channel.carriage import CHANNEL_PATH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

_HOP = frozenset({"connection", "content-length", "transfer-encoding", "keep-alive", "host"})
_PIECE = 256 * 1024


class Cut(Exception):
    """Raised by a meddler: the connection to the client is closed at once, mid-message."""


class Meddler:
    """Passes everything on. Override what should be different; `pieces` arrive as they come."""

    def request(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        """The body towards the node."""
        del path
        return pieces

    def answer(self, path: str, raw: bytes) -> bytes | None:
        """Answer to `raw` instead of the node; None: ask the node."""
        del path, raw
        return None

    def refuse(self, path: str) -> tuple[int, str, bytes] | None:
        """Status, media type and body instead of the node's answer; None: ask the node."""
        del path
        return None

    def response(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        """The body towards the client."""
        del path
        return pieces


class Evidence(Meddler):
    """Changes the evidence a node answers with; everything else passes."""

    def response(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        if path != "/confide/v1/evidence":
            return pieces
        return [self.evidence(b"".join(pieces))]

    def evidence(self, raw: bytes) -> bytes:
        """The evidence file to hand on."""
        return raw


class SealedResponses(Meddler):
    """Acts on the sealed chunks of channel responses: item 0 is the nonce."""

    def response(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        return self.chunks(sealed_chunks(pieces)) if path.endswith(CHANNEL_PATH) else pieces

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        """The chunks to hand on, each with its length in front."""
        return chunks


def sealed_chunks(pieces: Iterable[bytes], *, nonce_bytes: int = 32) -> Iterator[bytes]:
    """
    Split a sealed response (channel.md 2.3) into its nonce and its chunks, lengths included.

    What is incomplete at the end comes last, as it is. The final chunk has no length of its own:
    it starts with a zero and ends with the message.
    """
    buffer = bytearray()
    began = False
    for piece in pieces:
        buffer += piece
        while (size := _chunk_bytes(buffer) if began else nonce_bytes) and len(buffer) >= size:
            began = True
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


def _chunk_bytes(buffer: bytearray) -> int | None:
    """Length of the chunk at the start of `buffer` with its QUIC varint; None for the final one."""
    prefix = 1 << (buffer[0] >> 6) if buffer else 1
    if len(buffer) < prefix:
        return None
    value = int.from_bytes(buffer[:prefix], "big") & ((1 << (8 * prefix - 2)) - 1)
    return prefix + value if value else None


class InPath:
    """The proxy in front of `target` at `url`; `meddler` may be replaced between exchanges."""

    def __init__(self, target: str, meddler: Meddler | None = None) -> None:
        self.target = target
        self.meddler = meddler or Meddler()
        self.paths: list[str] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.in_path = self
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    in_path: InPath

    def handle_error(self, request: object, client_address: object) -> None:
        """A party that goes away in the middle is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_arguments: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self._pass_on("GET")

    def do_POST(self) -> None:
        self._pass_on("POST")

    def _pass_on(self, method: str) -> None:
        here = self.server.in_path
        meddler = here.meddler
        here.paths.append(self.path)
        body: Iterable[bytes] = self._body()
        if self.path != CHANNEL_PATH:
            raw = b"".join(body)
            own = meddler.answer(self.path, raw)
            if own is not None:
                self._send(200, [("content-type", "application/json")], [own])
                return
            body = [raw]
        refusal = meddler.refuse(self.path)
        if refusal is not None:
            status, kind, raw = refusal
            b"".join(body)
            self._send(status, [("content-type", kind)], [raw])
            return
        parts = urlsplit(here.target)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
        try:
            headers = {n: v for n, v in self.headers.items() if n.lower() not in _HOP}
            sent = meddler.request(self.path, body) if method == "POST" else None
            chunked = method == "POST"
            if chunked:
                headers["transfer-encoding"] = "chunked"
            # A node that refuses early answers before it has read everything.
            with contextlib.suppress(ConnectionError):
                connection.request(method, self.path, sent, headers, encode_chunked=chunked)
            answer = connection.getresponse()
            kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in _HOP]
            self._send(answer.status, kept, meddler.response(self.path, _pieces(answer)))
        except Cut:
            self.close_connection = True
        finally:
            connection.close()

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("content-length", "0"))
            while left:
                piece = self.rfile.read(min(left, _PIECE))
                left -= len(piece)
                yield piece

    def _send(self, status: int, headers: list[tuple[str, str]], pieces: Iterable[bytes]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            if piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


def _pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := answer.read1(_PIECE):
        yield piece
