"""An owners' desk over HTTP on this machine: what `confide secret` talks to."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from owner_world import KEYS

from confide.adapters.broker_http import INFO_PATH, SIGNATURE_HEADER, STATEMENTS_PATH
from confide.broker.info import BrokerInfo, sign_broker_info
from confide.errors import FormatError, ReleaseRefused, Unavailable
from confide.wire.json import b64encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from owner_world import World


def _handler(world: World) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            repositories = world.desk.repositories()
            info = BrokerInfo(KEYS.key, KEYS.opener.public_key.raw, repositories, simulated=True)
            body = info.encode()
            signature = sign_broker_info(body, KEYS.signer)
            self._answer(200 if self.path == INFO_PATH else 404, body, b64encode(signature))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            try:
                answer = asyncio.run(world.desk.take(body))
            except (ReleaseRefused, FormatError) as error:
                found = {"type": "x", "detail": "refused", "reason": error.reason}
                self._answer(403, json.dumps(found).encode())
            except Unavailable:
                self._answer(503, b"")
            else:
                self._answer(
                    200 if self.path == STATEMENTS_PATH else 404, json.dumps(answer).encode()
                )

        def _answer(self, status: int, body: bytes, signature: str = "") -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.send_header(SIGNATURE_HEADER, signature)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_what: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def serving(world: World) -> Iterator[str]:
    """Serve the desk of `world`; yield the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(world))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
