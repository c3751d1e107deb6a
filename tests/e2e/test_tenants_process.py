"""Keys from end to end: made at the command line, used by the openai SDK, revoked while it runs."""

from __future__ import annotations

import json
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import openai
import pytest
from deployment import MODEL, Installation
from postgres_server import PASSWORD
from stub_openai import StubOpenAI
from tenant_node import SALTED, KeyedNode

import confide

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from postgres_server import PostgresServer

ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "which label?"}]}


@pytest.fixture(scope="module")
def engine() -> Iterator[StubOpenAI]:
    with StubOpenAI() as running:
        running.description, running.bodies = SALTED, []
        yield running


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, engine: StubOpenAI) -> Iterator[KeyedNode]:
    made = KeyedNode(Installation(tmp_path_factory.mktemp("keyed"), engine.url))
    made.keys("create")
    made.start()
    try:
        yield made
    finally:
        made.node.stop()


def say(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{**ASKED, **more})


def settled(keyed: KeyedNode, key_id: str, calls: int) -> dict[str, Any]:
    """The lines of a key, once so many calls are in the ledger."""
    while True:
        used = keyed.keys("usage", "--key", key_id)
        if sum(line["calls"] for line in used["usage"]) >= calls:
            return used


def test_the_sdk_is_let_in_and_gets_a_receipt(keyed: KeyedNode, engine: StubOpenAI) -> None:
    made = keyed.keys("create", "--tenant", "acme")
    with keyed.client(made["key"]) as client:
        answer = say(client)
        assert answer.choices[0].message.content == "billing"
        stated = confide.receipt_of(answer).inference.statement
        assert (stated.status, stated.input_tokens, stated.output_tokens) == (200, 3, 1)
        assert engine.bodies is not None
        assert len(json.loads(engine.bodies[-1])["cache_salt"]) == 64
        assert made["key"].encode() not in b"".join(engine.bodies)
        pieces = [chunk.choices[0].delta.content for chunk in say(client, stream=True)]
        assert "".join(piece or "" for piece in pieces) == "billing"
    (line,) = settled(keyed, made["id"], 2)["usage"]
    assert (line["tenant"], line["endpoint"]) == ("acme", "/v1/chat/completions")
    # The whole answer as the engine reported it, the stream by its events.
    assert (line["calls"], line["estimated"] > 0, line["failed"]) == (2, True, 0)


def test_what_the_sdk_raises_is_its_own(keyed: KeyedNode, engine: StubOpenAI) -> None:
    prompts = engine.prompts
    with keyed.client("confide") as client, pytest.raises(openai.AuthenticationError) as unknown:
        say(client)
    assert (unknown.value.status_code, unknown.value.code) == (401, "invalid_api_key")
    narrow = keyed.keys("create", "--endpoint", "/v1/embeddings")["key"]
    with keyed.client(narrow) as client, pytest.raises(openai.PermissionDeniedError) as forbidden:
        say(client)
    assert (forbidden.value.status_code, forbidden.value.code) == (403, "insufficient_permissions")
    slow = keyed.keys("create", "--rate", "1")["key"]
    assert engine.prompts == prompts
    with keyed.client(slow) as client:
        say(client)
        with pytest.raises(openai.RateLimitError) as early:
            say(client)
    assert (early.value.status_code, early.value.code) == (429, "rate_limit_exceeded")
    assert early.value.response.headers["retry-after"] == "60"
    assert early.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_a_spent_budget_is_not_tried_again(keyed: KeyedNode) -> None:
    """The SDK tries 429 again by itself; here it is told that this is of no use."""
    poor = keyed.keys("create", "--budget", "60/month")
    with keyed.client(poor["key"], max_retries=5) as client:
        assert say(client, max_tokens=5).usage.total_tokens == 4
        settled(keyed, poor["id"], 1)
        with pytest.raises(openai.RateLimitError) as spent:
            say(client)
    assert (spent.value.code, spent.value.type) == ("insufficient_quota", "insufficient_quota")
    assert spent.value.response.headers["x-ratelimit-remaining-tokens"] == "56"
    (budget,) = keyed.keys("usage", "--key", poor["id"])["budgets"]
    assert (budget["budget"], budget["spent"]) == ("60/month", 4)


def test_a_key_is_revoked_in_a_node_that_runs(keyed: KeyedNode) -> None:
    made = keyed.keys("create")
    with keyed.client(made["key"]) as client:
        say(client)
        assert keyed.keys("revoke", made["id"])["state"] == "revoked"
        with pytest.raises(openai.AuthenticationError) as revoked:
            say(client)
    assert revoked.value.code == "revoked_api_key"


def test_a_call_in_progress_outlives_its_key(keyed: KeyedNode, engine: StubOpenAI) -> None:
    made, gate, answers = keyed.keys("create"), engine.gate("revoked"), []
    held = [{"role": "user", "content": "hold:revoked"}]
    with keyed.client(made["key"]) as client:
        asking = threading.Thread(target=lambda: answers.append(say(client, messages=held)))
        asking.start()
        gate.wait()
        keyed.keys("revoke", made["id"])
        gate.opened.set()
        asking.join()
    assert answers[0].choices[0].message.content == "billing"


def test_a_locked_database_refuses_and_forwards_nothing(
    keyed: KeyedNode, engine: StubOpenAI
) -> None:
    made = keyed.keys("create")
    other = sqlite3.connect(keyed.file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    prompts = engine.prompts
    with keyed.client(made["key"]) as client:
        with pytest.raises(openai.InternalServerError) as locked:
            say(client)
        assert (locked.value.status_code, locked.value.code) == (503, "metering_unavailable")
        assert engine.prompts == prompts
        other.execute("ROLLBACK")
        other.close()
        assert say(client).choices[0].message.content == "billing"


def test_a_full_disk_refuses_and_forwards_nothing(keyed: KeyedNode, engine: StubOpenAI) -> None:
    """The kernel lets no file of the node grow beyond: the same error as a full disk."""
    import resource  # noqa: PLC0415 - of this test alone

    made = keyed.keys("create")
    pid, prompts = keyed.node.pid, engine.prompts
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    with keyed.client(made["key"]) as client:
        say(client)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            with pytest.raises(openai.InternalServerError) as full:
                say(client)
            assert (full.value.status_code, full.value.code) == (503, "metering_unavailable")
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        assert engine.prompts == prompts + 1
        assert say(client).choices[0].message.content == "billing"


def test_the_ledger_lies_in_postgresql_too(
    postgres: PostgresServer, engine: StubOpenAI, tmp_path: Path
) -> None:
    installation = Installation(tmp_path, engine.url)
    installation.environment["PGPASSWORD"] = PASSWORD
    keyed = KeyedNode(installation, database=postgres.database("keyed-node"))
    made = keyed.keys("create", "--tenant", "acme", "--budget", "10000/day")
    keyed.start()
    try:
        with keyed.client(made["key"]) as client:
            answers = client.with_raw_response.chat.completions.create(**ASKED)
            assert int(answers.headers["x-ratelimit-remaining-tokens"]) < 10_000
        assert settled(keyed, made["id"], 1)["usage"][0]["input_tokens"] == 3
        keyed.keys("revoke", made["id"])
        with keyed.client(made["key"]) as client, pytest.raises(openai.AuthenticationError):
            say(client)
    finally:
        assert keyed.node.stop() == 0


def test_a_node_settles_what_it_owes_before_it_stops(engine: StubOpenAI, tmp_path: Path) -> None:
    keyed = KeyedNode(Installation(tmp_path, engine.url))
    made = keyed.keys("create")
    keyed.start()
    with keyed.client(made["key"]) as client:
        for _ in range(5):
            say(client)
    assert keyed.node.stop() == 0
    assert keyed.keys("usage")["usage"][0]["calls"] == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--metrics", "0.0.0.0:1"), "this machine only"),
        (("--metrics", "9464"), "HOST:PORT"),
        (("--traces", "http://192.0.2.1:4318"), "https://"),
        (("--traces", "ftp://127.0.0.1"), "URL of a collector"),
        (("--keys", "postgresql://a:secret@127.0.0.1/b"), "PGPASSWORD"),
        (("--keys", "absent.sqlite3"), "confide keys create"),
        (("--tenant-cache", "salted"), "takes no cache salt"),
    ],
)
def test_what_is_misconfigured_does_not_start(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    with StubOpenAI() as plain:
        installation = Installation(tmp_path, plain.url)
        installation.paths.make_private()
        if words[0] == "--keys" and "://" not in words[1]:
            words = (*words, "--tenant-cache", "shared")
        model = ("--model", MODEL, "--upstream", plain.url)
        node = installation.launch("model", *model, *words)
        assert node.process.wait(60) == 2
        assert said in node.log.read_text()
        assert "secret" not in node.log.read_text()


def test_keys_over_an_engine_that_knows_no_salt_are_the_operators_word(tmp_path: Path) -> None:
    with StubOpenAI() as plain:
        plain.bodies = []
        keyed = KeyedNode(Installation(tmp_path, plain.url), more=("--tenant-cache", "shared"))
        made = keyed.keys("create")
        keyed.start()
        try:
            with keyed.client(made["key"]) as client:
                say(client)
            assert "cache_salt" not in json.loads(plain.bodies[-1])
        finally:
            keyed.node.stop()
