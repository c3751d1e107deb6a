"""Keys, metrics and traces of a node of several workers: one node to its callers, too.

Clauses: docs/protocols/workers.md 2.6 to 2.8. The kernel chooses the worker by the connection; a
receipt says which one answered, so a test knows that it met both.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from deployment import MODEL, Installation, until
from stub_openai import StubOpenAI
from tenant_node import SALTED, KeyedNode

import confide

if TYPE_CHECKING:
    from collections.abc import Iterator

ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "which label?"}]}
HELD: Any = {"model": MODEL, "messages": [{"role": "user", "content": "hold:one"}]}
_SAMPLE = re.compile(r"^(\S+) ([0-9.]+)$", re.MULTILINE)


class Collector:
    """A collector of spans in the test process."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        taken = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                taken.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    @property
    def spans(self) -> int:
        """How many spans came."""
        scopes = [json.loads(body)["resourceSpans"][0]["scopeSpans"][0] for body in self.bodies]
        return sum(len(scope["spans"]) for scope in scopes)


class Crowd(KeyedNode):
    """A node of two workers with keys, metrics and traces."""

    scraped: str
    engine: StubOpenAI
    collector: Collector

    @property
    def workers(self) -> list[int]:
        """The processes that serve."""
        children = Path(f"/proc/{self.node.pid}/task/{self.node.pid}/children")
        return [int(child) for child in children.read_text().split()]

    def samples(self) -> dict[str, float]:
        """What a scrape gets."""
        text = httpx2.get(self.scraped, trust_env=False).text
        return {name: float(value) for name, value in _SAMPLE.findall(text)}

    def total(self, name: str) -> float:
        """The sum over all labels of a sample."""
        return sum(value for key, value in self.samples().items() if key.startswith(name))

    @contextlib.contextmanager
    def of_both(self, key: str, **asked: Any) -> Iterator[dict[int, openai.OpenAI]]:
        """A client at each worker, with one call of `key` or more made over it."""
        with contextlib.ExitStack() as stack:
            found: dict[int, openai.OpenAI] = {}
            while len(found) < 2:
                client = stack.enter_context(self.client(key))
                answer = client.chat.completions.create(**{**ASKED, **asked})
                worker = confide.receipt_of(answer).inference.statement.worker
                assert worker is not None
                found[worker] = client
            yield found


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    with StubOpenAI() as engine, Collector().running() as collector:
        engine.description, engine.bodies = SALTED, []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        more = (
            *("--workers", "2", "--metrics", f"127.0.0.1:{port}", "--telemetry-by-key"),
            *("--traces", collector.url),
        )
        made = Crowd(Installation(tmp_path, engine.url), more)
        made.engine, made.collector = engine, collector
        made.scraped = f"http://127.0.0.1:{port}/metrics"
        made.keys("create")
        made.start()
        try:
            yield made
        finally:
            assert made.node.stop() == 0


def outcome(client: openai.OpenAI, **asked: Any) -> str:
    """`ok`, or the code of the refusal."""
    try:
        client.chat.completions.create(**{**ASKED, **asked})
    except openai.APIStatusError as error:
        return str(error.code)
    return "ok"


def test_a_rate_holds_over_all_workers(crowd: Crowd) -> None:
    key = crowd.keys("create", "--rate", "30")["key"]
    with crowd.of_both(key) as clients:
        used = crowd.engine.prompts
        found = [outcome(client) for _ in range(20) for client in clients.values()]
        # A bucket for each worker would have let all of them in: 40, and those before.
        assert used + found.count("ok") <= 31
        assert set(found) == {"ok", "rate_limit_exceeded"}
        assert crowd.engine.prompts == used + found.count("ok")


def test_calls_at_once_are_counted_over_all_workers(crowd: Crowd) -> None:
    key = crowd.keys("create", "--concurrency", "2")["key"]
    gate = crowd.engine.gate("one")
    with crowd.of_both(key) as clients, ThreadPoolExecutor() as threads:
        one, other = clients.values()
        used = crowd.engine.prompts
        first = threads.submit(outcome, one, **HELD)
        second = threads.submit(outcome, other, **HELD)
        until(lambda: crowd.engine.prompts == used + 2, "two calls at the engine")
        assert [outcome(client) for client in (one, other)] == ["concurrency_limit_exceeded"] * 2
        gate.opened.set()
        assert [first.result(), second.result()] == ["ok", "ok"]
        until(lambda: outcome(one) == outcome(other) == "ok", "both are free again")


def test_a_killed_worker_holds_no_call_back(crowd: Crowd) -> None:
    key = crowd.keys("create", "--concurrency", "1")["key"]
    gate = crowd.engine.gate("one")
    with crowd.of_both(key) as clients, ThreadPoolExecutor() as threads:
        used, before = crowd.engine.prompts, crowd.workers
        # Workers are numbered in the order they were started, and listed so.
        held, other = sorted(clients)
        lost = threads.submit(outcome_or_lost, clients[held])
        until(lambda: crowd.engine.prompts == used + 1, "a call at the engine")
        assert outcome(clients[other]) == "concurrency_limit_exceeded"
        os.kill(before[held], signal.SIGKILL)
        assert lost.result() == "lost"
        until(lambda: outcome(clients[other]) == "ok", "its place is free")
        gate.opened.set()


def outcome_or_lost(client: openai.OpenAI) -> str:
    try:
        return outcome(client, **HELD)
    except openai.APIError:
        return "lost"


def test_a_budget_is_one_and_a_revoked_key_is_worthless_everywhere(crowd: Crowd) -> None:
    # 4 tokens a call; a call reserves its input and at most 5 written.
    poor = crowd.keys("create", "--budget", "200/month")
    with crowd.of_both(poor["key"], max_tokens=5) as clients, ThreadPoolExecutor(8) as threads:
        asked = [client for _ in range(40) for client in clients.values()]
        found = list(threads.map(lambda client: outcome(client, max_tokens=5), asked))
        assert set(found) == {"ok", "insufficient_quota"}
        (budget,) = crowd.keys("usage", "--key", poor["id"])["budgets"]
        assert budget["spent"] <= 200
        crowd.keys("revoke", poor["id"])
        assert {outcome(client) for client in clients.values()} == {"revoked_api_key"}


def test_numbers_are_those_of_all_workers_and_outlive_one(crowd: Crowd) -> None:
    made = crowd.keys("create")
    name = 'confide_calls_total{endpoint="/v1/chat/completions"'
    with crowd.of_both(made["key"]) as clients:
        for client in clients.values():
            assert [outcome(client) for _ in range(3)] == ["ok"] * 3
        calls = crowd.engine.prompts
        until(lambda: crowd.total(name) == calls, "all calls are counted")
        assert any(f'key="{made["id"]}"' in sample for sample in crowd.samples())
        first = crowd.workers
        os.kill(first[0], signal.SIGKILL)
        until(lambda: first[0] not in crowd.workers and len(crowd.workers) == 2, "another worker")
        assert crowd.total(name) == calls
        assert crowd.samples()["confide_calls_in_progress"] == 0
    # Spans go out from each worker by itself; those of the killed one may not have.
    until(lambda: crowd.collector.spans >= calls / 4, "spans of calls")


def test_what_calls_used_is_in_the_ledger_when_the_node_has_stopped(tmp_path: Path) -> None:
    with StubOpenAI() as engine:
        engine.description = SALTED
        keyed = Crowd(Installation(tmp_path, engine.url), more=("--workers", "2"))
        made = keyed.keys("create")
        keyed.start()
        with keyed.of_both(made["key"]) as clients:
            for client in clients.values():
                outcome(client)
            calls = engine.prompts
        assert keyed.node.stop() == 0
        assert keyed.keys("usage")["usage"][0]["calls"] == calls


def test_tenants_share_no_cache_whichever_worker_serves_them(crowd: Crowd) -> None:
    one, other = crowd.keys("create", "--tenant", "a"), crowd.keys("create", "--tenant", "b")
    assert crowd.engine.bodies is not None
    salts = []
    for key in (one, other):
        begun = len(crowd.engine.bodies)
        with crowd.of_both(key["key"]):
            salts.append({json.loads(b)["cache_salt"] for b in crowd.engine.bodies[begun:]})
    assert [len(each) for each in salts] == [1, 1]
    assert salts[0] != salts[1]


def test_faces_do_not_go_with_several_workers(tmp_path: Path) -> None:
    with StubOpenAI() as engine:
        installation = Installation(tmp_path, engine.url)
        installation.paths.make_private()
        words = ("--model", MODEL, "--upstream", engine.url, "--workers", "2", "--face", "ehbp")
        node = installation.launch("model", *words)
        assert node.process.wait(60) == 2
        assert "--workers does not go with --face" in node.log.read_text()
