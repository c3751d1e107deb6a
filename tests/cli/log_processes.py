"""Logs, witnesses and impostors as processes and threads of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sessions import Cli


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(*words: object) -> subprocess.Popen[bytes]:
    """`confide log` with these words."""
    return subprocess.Popen(
        [sys.executable, "-m", "confide", "log", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(url: str) -> None:
    """Wait until `url` answers 200."""
    for _ in range(1200):
        try:
            if httpx2.get(url, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError("no answer")


@dataclass
class ServedLog:
    """A log and two witnesses, each a process; the quorum is both."""

    cli: Cli
    folder: Path
    keys: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("log", "log"), ("a", "witness"), ("b", "witness-pq")):
            words = ("log", "keygen", f"{name}.example", self.folder / name, "--for", kind)
            self.keys[name] = self.cli(*words, "--json").result["key"]
            self.ports[name] = free_port()
        lines = [f"log {self.keys['log']}"]
        lines += [f"witness {n} {self.keys[n]} http://127.0.0.1:{self.ports[n]}" for n in "ab"]
        self.policy.write_text("\n".join([*lines, "group all all a b", "quorum all", ""]))

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['log']}"

    @property
    def store(self) -> Path:
        return self.folder / "served"

    def start(self, *names: str) -> None:
        """Start these; the log answers with a checkpoint when this returns."""
        for name in names:
            port = ("--port", self.ports[name])
            if name == "log":
                words: tuple[object, ...] = ("serve", self.store, "--key", self.folder / "log")
                self.processes[name] = start(*words, *port, "--policy", self.policy)
                wait_for(f"{self.url}/checkpoint")
            else:
                words = ("witness", self.folder / f"state-{name}", "--key", self.folder / name)
                self.processes[name] = start(*words, *port, "--log", self.keys["log"])

    def kill(self, *names: str) -> None:
        """As `kill -9`."""
        for name in names or tuple(self.processes):
            process = self.processes.pop(name)
            process.kill()
            process.wait()


@contextmanager
def impostor(status: int, body: bytes, *, swallow: bool = False) -> Iterator[str]:
    """A server that gives one answer to everything; `swallow`: none at all, until it is closed."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            if swallow:
                closing.wait()
                return
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815 - the names that http.server looks for

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def static_server(folder: Path) -> Iterator[str]:
    """The files of `folder`, over HTTP, by a process of its own."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/checkpoint")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
