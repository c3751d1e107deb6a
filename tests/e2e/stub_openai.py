"""An OpenAI-compatible engine in the test process. Tests hold its answers back and see its calls.

A prompt that contains `hold:<name>` waits at the gate of that name; `Gate.arrived` is how a test
knows that an agent is in the middle of its work, without sleeping. `long:<n>` asks for n letters,
`fail:<how>` for an answer that is none and repeats what it was asked.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

WAIT_SECONDS = 40
_LONG = re.compile(r"long:([0-9]+)")
_HOLD = re.compile(r"hold:([a-z0-9-]+)")
_FAIL = re.compile(r"fail:([a-z]+)")


@dataclass(slots=True)
class Gate:
    """`arrived` is set when a call waits here; it goes on when `opened` is set."""

    arrived: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Wait until a call stands here; fails the test when none comes."""
        if not self.arrived.wait(WAIT_SECONDS):
            raise AssertionError("no model call arrived")


class StubOpenAI:
    """The engine at `url`; `answer` is what it says."""

    answer = "billing"

    def __init__(self) -> None:
        # How many prompts reached this engine: what a test that nothing leaked counts.
        self.prompts = 0
        # Bodies of chat requests, newest last, where a test asks for them.
        self.bodies: list[bytes] | None = None
        # What it says of its own routes.
        self.description: object = {}
        self._gates: dict[str, Gate] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stub = self
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}
        )

    def gate(self, name: str) -> Gate:
        """The gate that prompts with `hold:<name>` wait at."""
        with self._lock:
            return self._gates.setdefault(name, Gate())

    def passing(self, prompt: str) -> None:
        """Count `prompt`, and wait at the gate that it names, if it names one."""
        with self._lock:
            self.prompts += 1
        found = _HOLD.search(prompt)
        if found is not None:
            gate = self.gate(found[1])
            gate.arrived.set()
            # Longer than any test waits: that a held call ends must be somebody's doing.
            gate.opened.wait(10 * WAIT_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for gate in self._gates.values():
            gate.opened.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    stub: StubOpenAI

    def handle_error(self, request: object, client_address: object) -> None:
        """A model node that goes away in the middle is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_arguments: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        if self.path == "/openapi.json":
            self._whole(200, self.server.stub.description)
            return
        self._whole(200, {"object": "list", "data": []})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/v1/chat/completions":
            self._whole(404, {"error": {"message": "no such route"}})
            return
        if self.server.stub.bodies is not None:
            self.server.stub.bodies.append(raw)
        body = json.loads(raw)
        if not isinstance(body, dict):
            self._whole(400, {"error": {"message": "an object was expected"}})
            return
        prompt = json.dumps(body)
        self.server.stub.passing(prompt)
        fails = _FAIL.search(prompt)
        if fails is not None:
            self._fail(fails[1], raw)
            return
        if body.get("stream"):
            self._streamed(body["model"])
            return
        long = _LONG.search(prompt)
        answer = self.server.stub.answer if long is None else "x" * int(long[1])
        self._whole(200, self._completion(body["model"], answer))

    def _fail(self, how: str, raw: bytes) -> None:
        """Repeat the request in an error, in a stream of garbage, or in half an answer."""
        if how == "refused":
            self._whole(400, {"error": {"message": raw.decode()}})
            return
        self.send_response(200, "as" if how != "reason" else raw[:40].hex())
        self.send_header("content-type", "text/event-stream" if how == "garbage" else "x/y")
        self.send_header("content-length", str(2 * len(raw)))
        self.end_headers()
        self.wfile.write(raw)
        self.close_connection = True

    @staticmethod
    def _completion(model: str, answer: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer}
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        }

    def _whole(self, status: int, value: object) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _streamed(self, model: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        letters = [*self.server.stub.answer, None]
        for letter in letters:
            choice = {
                "index": 0,
                "delta": {} if letter is None else {"content": letter},
                "finish_reason": "stop" if letter is None else None,
            }
            event = {
                "id": "c",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": model,
                "choices": [choice],
            }
            self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()
