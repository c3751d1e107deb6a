"""Processes of this machine: started, recognised again, stopped; and the record of them.

A process is recognised by its id *and* start time: an id that was given to somebody else is never
signalled.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.errors import Reason, Unavailable
from confide.wire.json import Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "HOST",
    "LocalNode",
    "Starting",
    "encode_record",
    "free_port",
    "is_ours",
    "parse_record",
    "start",
    "stop",
]

HOST = "127.0.0.1"
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.05
_MAX_NODES = 16


@dataclass(frozen=True, slots=True)
class LocalNode:
    """
    A process of ours. `started` is its start time in kernel ticks since boot.

    `model` and `source` are what the nodes serve, empty for the others. `software` is the SHA-256
    (hex) of the package that it was started from.
    """

    role: str
    pid: int
    started: int
    url: str
    log: str
    model: str
    source: str
    software: str


@dataclass(frozen=True, slots=True)
class Starting:
    """A process that was started and has not answered yet."""

    title: str
    node: LocalNode
    process: subprocess.Popen[bytes]

    def require_alive(self) -> None:
        """Raise `Unavailable` with its last words where it ended."""
        status = self.process.poll()
        if status is not None:
            log = Path(self.node.log)
            raise Unavailable(
                f"the {self.title} ended with status {status}: {_last_words(log)} (log: {log})"
            )

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    title: str,
    role: str,
    url: str,
    model: str,
    source: str,
    software: str,
) -> Starting:
    """Start `command` in a session of its own, its words into a file of `folder`."""
    log = folder / f"{title.replace(' ', '-')}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    started = _start_ticks(process.pid) or 0
    node = LocalNode(role, process.pid, started, url, str(log), model, source, software)
    return Starting(title, node, process)


def stop(nodes: Iterable[LocalNode]) -> None:
    """Ask `nodes` to end, and end those that do not."""
    left = list(nodes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = [node for node in left if is_ours(node)]
        for node in left:
            os.kill(node.pid, number)
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and any(is_ours(node) for node in left):
            time.sleep(_POLL_SECONDS)


def is_ours(node: LocalNode) -> bool:
    """Whether the process that was recorded still runs."""
    return _start_ticks(node.pid) == node.started


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def encode_record(nodes: Iterable[LocalNode]) -> bytes:
    """Return the record of `nodes`."""
    return jcs({"nodes": [asdict(node) for node in nodes]})


def parse_record(raw: bytes) -> tuple[LocalNode, ...]:
    """Parse what `encode_record` returned. Raises `FormatError`."""
    reason = Reason.RECEIPT_FORMAT
    top = Members(parse_json(raw, what="nodes", reason=reason), what="nodes", reason=reason)
    found: list[LocalNode] = []
    for item in top.items("nodes", max_items=_MAX_NODES):
        members = Members(item, what="node", reason=reason)
        found.append(
            LocalNode(
                members.text("role"),
                members.integer("pid", low=2),
                members.integer("started"),
                members.text("url"),
                members.text("log"),
                members.text("model"),
                members.text("source"),
                members.text("software"),
            )
        )
        members.end()
    top.end()
    return tuple(found)


def _start_ticks(pid: int) -> int | None:
    """Return the start time of process `pid` (proc(5), stat field 22), None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie is not running any more.
    return None if fields[0] == "Z" else int(fields[19])


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    # Indented lines are findings and advice below the line that says what happened.
    told = [line for line in lines if not line.startswith(" ")]
    return told[-1][:300] if told else "it said nothing"
