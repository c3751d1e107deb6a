"""No content leaves a model node but to whom it belongs: docs/protocols/tenancy.md §8.

A node with keys, metrics and traces is asked in every way that a caller has, a canary in every
part; then its output, what it told a scraper and a collector, its database, its files and what is
left after it was killed are searched. That the same search finds what is planted is shown at the
end.
"""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from deployment import MODEL, WAIT_SECONDS, Installation, until
from leaks import Canaries, Place, process_leaks, spellings
from nodes import FixedClock
from nodes import roots as simulated_roots
from proven_place import inference_policy
from stub_openai import StubOpenAI
from tenant_node import SALTED, KeyedNode

import confide
from confide.adapters.entropy import SystemEntropy
from confide.adapters.receipt_db import UnsafeKeepNone
from confide.errors import ConfideError

if TYPE_CHECKING:
    from collections.abc import Iterator

CRASHING = Path(__file__).with_name("crashing_node.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Collector:
    """An OTLP collector: keeps heads and bodies as they come."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append(f"{self.path}\n{self.headers}\n".encode() + body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def spans(self) -> list[dict[str, Any]]:
        """Every span that came."""
        return [
            span
            for raw in self.got
            for resource in json.loads(raw.partition(b"\n\n")[2].strip())["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]


@dataclass
class Asked:
    """Everything a caller said, and everything the node said to others."""

    keyed: KeyedNode
    canaries: Canaries
    collector: Collector
    keys: list[str]
    since: float
    bodies: list[bytes] = field(default_factory=list)
    metrics: bytes = b""

    def told(self) -> dict[str, bytes]:
        """What the node told, by where."""
        files = {
            path.name: path.read_bytes()
            for path in self.keyed.installation.root.iterdir()
            if path.is_file()
        }
        return {
            "metrics": self.metrics,
            "traces": b"\n".join(self.collector.got),
            "output": self.keyed.node.log.read_bytes(),
            **files,
        }


def ask_everything(asked: Asked, key: str, engine: StubOpenAI) -> None:
    """One request of every kind, a canary in every part that a caller chooses."""
    words = iter(asked.canaries.words)
    engine.answer = f"the answer is {next(words)}"
    with asked.keyed.client(key) as client:
        whole: Any = {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": next(words)},
                {
                    "role": "user",
                    "name": next(words),
                    "content": [
                        {"type": "text", "text": next(words)},
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/png;base64,{next(words)}"},
                        },
                    ],
                },
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": next(words),
                            "type": "function",
                            "function": {
                                "name": next(words),
                                "arguments": json.dumps({"a": next(words)}),
                            },
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": next(words), "content": next(words)},
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": next(words),
                        "description": next(words),
                        "parameters": {"properties": {next(words): {"type": "string"}}},
                    },
                }
            ],
            "user": next(words),
            "stop": [next(words)],
            "metadata": {"a": next(words)},
            "extra_body": {"cache_salt": next(words)},
            "extra_headers": {"x-note": next(words), next(words): "1", "traceparent": next(words)},
        }
        client.chat.completions.create(**whole)
        for _chunk in client.chat.completions.create(**whole, stream=True):
            pass
        for how in ("refused", "garbage", "cut", "reason"):
            for streamed in (False, True):
                text = f"fail:{how} {next(words)}"
                messages: Any = [{"role": "user", "content": text}]
                with suppress(openai.APIError, ConfideError):
                    found: Any = client.chat.completions.create(
                        model=MODEL, messages=messages, stream=streamed
                    )
                    for _chunk in found if streamed else ():
                        pass
        upload: Any = (next(words), next(words).encode())
        for work in (
            lambda: client.chat.completions.create(model=next(words), messages=whole["messages"]),
            lambda: client.chat.completions.create(**whole, extra_query={"q": next(words)}),
            lambda: client.audio.transcriptions.create(
                file=upload, model=MODEL, prompt=next(words)
            ),
            lambda: client.embeddings.create(model=MODEL, input=next(words)),
            lambda: client.responses.create(
                model=MODEL, input=next(words), instructions=next(words)
            ),
            lambda: client.post(f"/{next(words)}", body={"a": next(words)}, cast_to=object),
            lambda: client.get(f"/models/{next(words)}", cast_to=object),
            lambda: client.get(f"/receipts/{next(words)}", cast_to=object),
            lambda: client.post("/completions", body={next(words): next(words)}, cast_to=object),
        ):
            with suppress(openai.APIError, ConfideError):
                work()
    for wrong in (next(words), f"cfd_{next(words)}", key[:-1] + "0"):
        with asked.keyed.client(wrong) as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(**whole)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """A node that was asked everything, and was then killed with a prompt in hand."""
    with StubOpenAI() as engine, Collector().serving() as collector:
        engine.description, engine.bodies = SALTED, []
        port = free_port()
        more = ("--metrics", f"127.0.0.1:{port}", "--traces", collector.url, "--telemetry-by-key")
        keyed = KeyedNode(Installation(tmp_path_factory.mktemp("told"), engine.url), more=more)
        made = [keyed.keys("create", "--budget", "1000000/day", "--rate", "1000") for _ in range(2)]
        # A deployer who wants to know more than there is to know.
        keyed.installation.environment |= {
            "PYTHONFAULTHANDLER": "1",
            "PYTHONASYNCIODEBUG": "1",
            "PYTHONDEVMODE": "1",
        }
        seen = Asked(
            keyed,
            Canaries(200, SystemEntropy().token),
            collector,
            [key["key"] for key in made],
            time.time() - 1,
        )
        keyed.start()
        try:
            ask_everything(seen, seen.keys[0], engine)
            keyed.keys("revoke", made[0]["id"])
            with keyed.client(seen.keys[0]) as client, pytest.raises(openai.AuthenticationError):
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": seen.canaries.words[-1]}]
                )
            seen.metrics = httpx2.get(
                f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60
            ).content
            until(lambda: len(collector.spans()) >= 22, "the collector got spans")
            until(
                lambda: sum(line["calls"] for line in keyed.keys("usage")["usage"]) >= 10,
                "the ledger has calls",
            )
            kill(seen, engine)
            seen.bodies = engine.bodies
            yield seen
        finally:
            keyed.node.stop(signal.SIGKILL)


def kill(seen: Asked, engine: StubOpenAI) -> None:
    """End the node by SIGABRT while it holds a prompt: as an assertion of a C library would."""
    gate = engine.gate("killed")
    text = f"hold:killed {seen.canaries.words[-2]}"

    def hold() -> None:
        with (
            seen.keyed.client(seen.keys[1]) as client,
            suppress(openai.APIError, ConfideError),
        ):
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": text}]
            )

    holding = threading.Thread(target=hold)
    holding.start()
    gate.wait()
    assert process_leaks(seen.canaries) == set()
    assert seen.keyed.node.stop(signal.SIGABRT) == -signal.SIGABRT
    gate.opened.set()
    holding.join()


def test_every_canary_reached_the_engine_or_was_refused(asked: Asked) -> None:
    """The search below is of something: prompts, tools and file names did pass through the node."""
    used = asked.canaries.inside(b"\n".join(asked.bodies))
    assert len(used) > 15
    spans = asked.collector.spans()
    routes = {
        attribute["value"]["stringValue"]
        for span in spans
        for attribute in span["attributes"]
        if attribute["key"] == "http.route"
    }
    assert {"/v1/chat/completions", "/v1/audio/transcriptions", "/v1/models", "other"} <= routes
    assert b'confide_refusals_total{code="revoked_api_key"} 1' in asked.metrics
    assert b'code="invalid_api_key"} 3' in asked.metrics


def test_no_canary_was_told_to_anybody(asked: Asked) -> None:
    told = asked.told()
    assert {"metrics", "traces", "output", "keys.sqlite3"} <= set(told)
    assert {name for name, raw in told.items() if asked.canaries.inside(raw)} == set()


def test_no_canary_is_in_a_file_of_this_machine(asked: Asked) -> None:
    """No core, no temporary file, no log: after the node was killed with a prompt in hand."""
    root = asked.keyed.installation.root
    places = [
        Place("installation", root),
        Place("temporary files", Path("/tmp"), without=(root,)),  # noqa: S108 - looked at, not used
        Place("system logs", Path("/var/log")),
    ]
    assert {leak for place in places for leak in place.leaks(asked.canaries, asked.since)} == set()


def test_no_key_is_told_or_stored(asked: Asked) -> None:
    for key in asked.keys:
        for name, raw in asked.told().items():
            assert not any(spelling in raw for spelling in spellings(key)), name
            assert key[4:47].encode() not in raw, name


def test_no_digest_of_a_request_is_told(asked: Asked) -> None:
    """Whoever can guess a prompt could look for its hash."""
    told = asked.told()
    for body in asked.bodies:
        digest = hashlib.sha256(body).digest()
        for spelling in (digest, digest.hex().encode()):
            assert not any(spelling in raw for raw in told.values())


def test_a_killed_node_says_nothing(asked: Asked) -> None:
    assert asked.keyed.node.log.read_bytes() == b""


def test_every_word_that_was_told_is_out_of_a_list(asked: Asked) -> None:
    """Not only no canary: nothing in a label or an attribute but the words of §6.2 and key ids."""
    ids = {record["id"] for record in asked.keyed.keys("list")["keys"]}
    words = {
        attribute["value"]["stringValue"]
        for span in asked.collector.spans()
        for attribute in span["attributes"]
        if "stringValue" in attribute["value"]
    }
    labels = {
        part.partition('="')[2].rstrip('"')
        for line in asked.metrics.decode().splitlines()
        if "{" in line
        for part in line.partition("{")[2].partition("}")[0].split(",")
    }
    for word in words | labels:
        known = word in ids | {
            "",
            "other",
            "complete",
            "upstream-failed",
            "client-cancelled",
            "+Inf",
        }
        plain = word.replace("_", "").replace("/", "").replace(".", "")
        assert known or (len(word) < 32 and plain.isalnum()), word


def test_the_search_finds_what_is_planted(asked: Asked) -> None:
    word = asked.canaries.words[7]
    for spelling in spellings(word):
        for raw in asked.told().values():
            assert asked.canaries.inside(raw + b"x" + spelling + b"y") == {word}


# --- what breaks unforeseen ----------------------------------------------------------------------


def broken(tmp_path: Path, how: str) -> tuple[bytes, str]:
    """Ask a node whose engine raises; return what its process wrote, and the canary."""
    (canary,) = Canaries(1, SystemEntropy().token).words
    port = free_port()
    log = tmp_path / f"{how}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(CRASHING), str(port), how],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=tmp_path,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def serves() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx2.get(f"{url}/confide/v1/health", trust_env=False, timeout=60).is_success
        except httpx2.HTTPError:
            return False

    try:
        until(serves, "the breaking node serves")
        with (
            confide.openai_client(
                url,
                policy=inference_policy(),
                roots=simulated_roots(),
                receipts=UnsafeKeepNone(),
                clock=FixedClock(),
                max_retries=0,
            ) as client,
            pytest.raises(openai.APIError),
        ):
            client.chat.completions.create(
                model="support-notes", messages=[{"role": "user", "content": canary}]
            )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_SECONDS)
    return log.read_bytes(), canary


def test_what_breaks_says_where_and_not_with_what(tmp_path: Path) -> None:
    said, canary = broken(tmp_path, "quiet")
    lines = said.decode().splitlines()
    kinds = ("RuntimeError", "LookupError", "ValueError", "KeyError")
    for kind in kinds:
        assert any(line.startswith(f"unexpected {kind} at crashing_node.py:") for line in lines)
    assert all(line.startswith("unexpected ") for line in lines)
    assert not any(spelling in said for spelling in spellings(canary))


def test_python_itself_would_have_said_it_all(tmp_path: Path) -> None:
    said, canary = broken(tmp_path, "loud")
    assert said.count(canary.encode()) >= 5
