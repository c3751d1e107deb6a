"""The dstack guest agent on a unix socket, in each of its generations. Nothing here is dstack."""

from __future__ import annotations

import json
import socketserver
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Literal

from dstack_logs import events as boot_events
from dstack_wire import msgpack
from td_stand_in import Td

from confide.wire.ccel import parse_ccel
from confide.wire.rtmr_log import RUNTIME_EVENT_TYPE, RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Generation = Literal["0.5", "v0", "v1", "v1-mute", "tappd"]
Reply = tuple[int, bytes]


@dataclass
class DstackPeer:
    """
    One agent over a `Td` that dstack booted.

    `log_version` is the form of dstack's own events; `EmitEvent` of 0.5 writes the same.
    `broken` maps a method to what is answered instead; "hang" and "drip" never end by themselves.
    """

    td: Td = field(default_factory=Td)
    generation: Generation = "v0"
    log_version: Literal[1, 2] = 1
    broken: dict[str, Reply | Literal["hang", "drip", "close"]] = field(default_factory=dict)
    answered: bytes | None = None
    hidden: int = 0
    deaf: bool = False
    firmware: bool = True
    also: dict[str, Any] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    log: list[RuntimeEvent] = field(default_factory=list)
    called: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for event in boot_events():
            self._measure(event.name, event.payload)

    def _measure(self, name: str, payload: bytes) -> None:
        event = RuntimeEvent(name, payload, self.log_version)
        self.td.extend(event.digest())
        self.log.append(event)

    def answer(self, path: str, body: bytes) -> Reply:
        """What the agent answers; 404 tells the generations apart."""
        method = path.strip("/")
        self.called.append(method)
        every: dict[str, dict[str, Callable[[dict[str, Any]], Reply]]] = {
            "0.5": {"Version": self._version, "GetQuote": self._quote, "EmitEvent": self._emit},
            "v0": {"Version": self._version, "GetQuote": self._quote},
            "v1": {"v1/Version": self._version, "v1/Attest": self._attest},
            "v1-mute": {"v1/Attest": self._attest},
            "tappd": {},
        }
        known = every[self.generation]
        if method in known:
            return known[method](json.loads(body or b"{}"))
        if self.generation == "v1-mute":
            return _json({"error": f"Service not found: {method}"}, 404)
        return 404, b"<html>no such page</html>"

    def _version(self, _asked: dict[str, Any]) -> Reply:
        version = {"0.5": "0.5.8", "v0": "0.6.0"}.get(self.generation, "0.7.0")
        return _json({"version": version, "rev": "stand-in"})

    def _emit(self, asked: dict[str, Any]) -> Reply:
        if not self.deaf:
            self._measure(asked["event"], bytes.fromhex(asked["payload"]))
        return 200, b"{}"

    def _asked(self, asked: dict[str, Any]) -> bytes:
        data = bytes.fromhex(asked["report_data"])
        return self.answered or data.ljust(64, b"\0")

    def _entries(self) -> list[dict[str, Any]]:
        firmware = [
            {
                "imr": event.register - 1,
                "event_type": event.event_type,
                "digest": event.digest,
                "event": "",
                "event_payload": b"",
            }
            for event in (parse_ccel(self.td.boot.firmware_log) if self.firmware else ())
        ]
        runtime: list[dict[str, Any]] = []
        for event in self.log[: len(self.log) - self.hidden]:
            entry: dict[str, Any] = {
                "imr": 3,
                "event_type": RUNTIME_EVENT_TYPE,
                "digest": event.digest(),
                "event": event.name,
                "event_payload": event.payload,
            }
            if event.version == 2:
                entry |= {"version": 2, "preimage": event.preimage()}
            runtime.append(entry)
        return firmware + runtime

    def _quote(self, asked: dict[str, Any]) -> Reply:
        data = self._asked(asked)
        log = [
            {n: v.hex() if isinstance(v, bytes) else v for n, v in e.items()}
            for e in self._entries()
        ]
        answer = {
            "quote": self.td.quote(data).hex(),
            "event_log": json.dumps(log),
            "report_data": data.hex(),
            "vm_config": "{}",
        }
        return _json(answer | self.also)

    def _attest(self, asked: dict[str, Any]) -> Reply:
        data, entries = self._asked(asked), self._entries()
        shown = self.log[: len(self.log) - self.hidden]
        envelope = {
            "version": 1,
            "platform": {
                "kind": "tdx",
                "data": {"quote": self.td.quote(data), "event_log": entries},
            },
            "stack": {
                "kind": "dstack",
                "data": {
                    "report_data": data,
                    "runtime_events": [{"event": e.name, "payload": e.payload} for e in shown],
                    "config": "{}",
                },
            },
        }
        return _json({"attestation": msgpack(envelope).hex(), "boottime_gpu_evidence": []})


def _json(value: Any, status: int = 200) -> Reply:
    return status, json.dumps(value).encode()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, peer: DstackPeer) -> None:
        self.peer = peer
        super().__init__(path, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is what some of these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _serve(self, body: bytes) -> None:
        peer = self.server.peer
        broken = peer.broken.get(self.path.strip("/"))
        self.close_connection = isinstance(broken, str)
        if broken == "hang":
            peer.stopped.wait()
        elif broken == "drip":
            self._drip()
        elif broken != "close":
            status, answer = broken or peer.answer(self.path, body)
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(1 << 20))
        self.end_headers()
        while not self.server.peer.stopped.wait(0.02):
            self.wfile.write(b" ")

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def dstack_socket(peer: DstackPeer, folder: Path) -> Iterator[str]:
    """Serve `peer` on a socket in `folder`; yields its path."""
    path = str(folder / "dstack.sock")
    with _Server(path, peer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield path
        finally:
            peer.stopped.set()
            server.shutdown()
            thread.join()
