"""An agent that does what /input/orders.json says, step by step. The tests give the orders."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_INPUT, _OUTPUT = Path("/input"), Path("/output")
_SECONDS = 120


def say(order: dict[str, Any]) -> None:
    sys.stdout.write(order["text"] + "\n")
    sys.stdout.flush()


def call(order: dict[str, Any]) -> None:
    """Ask the model; `file` sends that input, `save` keeps the answer as an output."""
    text = order.get("text") or (_INPUT / order["file"]).read_text()
    body = {
        "model": order.get("model", os.environ["CONFIDE_MODEL"]),
        "messages": [{"role": "user", "content": text}],
        "stream": bool(order.get("stream")),
    }
    request = urllib.request.Request(  # noqa: S310 - the endpoint that the run was given
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        data=json.dumps(body).encode(),
        headers={
            "authorization": f"Bearer {os.environ['OPENAI_API_KEY']}",
            "content-type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(  # noqa: S310 - as above
            request, timeout=order.get("seconds", _SECONDS)
        ) as answer:
            raw = answer.read()
    except TimeoutError:
        if "seconds" in order:
            return
        raise
    if not order.get("stream"):
        raw = json.loads(raw)["choices"][0]["message"]["content"].encode()
    if "save" in order:
        (_OUTPUT / order["save"]).write_bytes(raw)


def copy(_order: dict[str, Any]) -> None:
    """Copy every input but the orders to /output."""
    for path in sorted(_INPUT.rglob("*")):
        if path.is_file() and path.name != "orders.json":
            target = _OUTPUT / path.relative_to(_INPUT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def size(order: dict[str, Any]) -> None:
    """Write down how large an input is, without reading it."""
    (_OUTPUT / "size.txt").write_text(str((_INPUT / order["file"]).stat().st_size))


def dial(_order: dict[str, Any]) -> None:
    """Try to get out: by address, by name, over IPv6, through the proxy. Write what happened."""
    found: dict[str, str] = {}

    def attempt(name: str, work: Callable[[], object]) -> None:
        try:
            found[name] = f"REACHED {work()!r}"
        except OSError as error:
            found[name] = type(error).__name__

    attempt("ipv4", lambda: socket.create_connection(("192.0.2.7", 443), timeout=10))
    attempt("ipv6", lambda: socket.create_connection(("2001:db8::7", 443), timeout=10))
    attempt("name", lambda: socket.getaddrinfo("leak.example", 443))
    attempt("proxy", lambda: urllib.request.urlopen("http://leak.example/", timeout=10).status)
    (_OUTPUT / "attempts.json").write_text(json.dumps(found))


def fill(order: dict[str, Any]) -> None:
    """Write `bytes` zeros to `path`."""
    block = bytes(1 << 20)
    with Path(order["path"]).open("wb", buffering=0) as file:
        file.writelines(block for _ in range(order["bytes"] >> 20))


def fork(_order: dict[str, Any]) -> None:
    while True:
        if os.fork() == 0:
            signal.pause()


def hang(_order: dict[str, Any]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def binary(_order: dict[str, Any]) -> None:
    sys.stdout.buffer.write(bytes(range(256)) * 16 + b"\x1b[2J\x1b]0;owned\x07")
    sys.stdout.buffer.flush()
    (_OUTPUT / "raw.bin").write_bytes(bytes(range(256)) * 4)


def leave(order: dict[str, Any]) -> None:
    os._exit(order["status"])


def unlink(_order: dict[str, Any]) -> None:
    """Write an output, then take it away again."""
    (_OUTPUT / "gone.txt").write_text("here")
    (_OUTPUT / "gone.txt").unlink()


def reveal(order: dict[str, Any]) -> None:
    """Print a secret and write it down, in the spellings that software makes without meaning to."""
    value = Path(order["file"]).read_bytes() if "file" in order else os.environb[b"TOKEN"]
    text = value.decode()
    say({"text": f"connecting with {text}"})
    sys.stderr.write("authorization: Basic " + base64.b64encode(b"user:" + value).decode() + "\n")
    (_OUTPUT / "dump.json").write_text(json.dumps({"password": text, "hex": value.hex().upper()}))
    (_OUTPUT / "url.txt").write_text(urllib.parse.quote(text, safe=""))
    (_OUTPUT / "long.bin").write_bytes(bytes(700_000) + value + bytes(700_000) + value)


def remember(order: dict[str, Any]) -> None:
    """Print what earlier runs left in /state, and add a line."""
    notes = Path("/state/notes.txt")
    say({"text": notes.read_text() if notes.exists() else "nothing yet"})
    with notes.open("a") as file:
        file.write(order["text"] + "\n")


_VERBS = {
    verb.__name__: verb
    for verb in (
        say, call, copy, size, dial, fill, fork, hang, binary, leave, unlink, reveal, remember,
    )
}  # fmt: skip

for step in json.loads((_INPUT / "orders.json").read_text()):
    _VERBS[step["do"]](step)
