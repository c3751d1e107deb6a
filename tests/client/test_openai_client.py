"""The real `openai` clients over a proven node: what they send, what they get, what they raise."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openai
import pytest
from in_path import InPath, Meddler
from nodes import roots as simulated_roots
from proven_place import MODEL, inference_policy

import confide
from confide.adapters.receipt_db import ReceiptDatabase, UnsafeKeepNone, list_rows
from confide.channel.carriage import CHANNEL_PATH
from confide.errors import (
    ConfigurationError,
    EvidenceRejected,
    Reason,
    ReceiptRejected,
    Rejected,
    Unavailable,
)
from confide.expectation import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from proven_place import Place, PlacedNode

_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
_IMAGE = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
def node(place: Place) -> PlacedNode:
    return place.node()


def connect(place: Place, url: Any, store: Any, **options: Any) -> openai.OpenAI:
    return confide.openai_client(
        url,
        policy=inference_policy(),
        roots=simulated_roots(),
        receipts=store,
        clock=place.clock,
        **options,
    )


@pytest.fixture
def client(place: Place, node: PlacedNode, store: Path) -> Iterator[openai.OpenAI]:
    with connect(place, node.url, store) as made:
        yield made


def user(text: str = "What colour?") -> Any:
    return [{"role": "user", "content": text}]


def test_it_is_the_sdks_own_object(client: openai.OpenAI) -> None:
    assert type(client) is openai.OpenAI
    assert client.base_url.host == "confide.invalid"


def test_a_chat_has_a_receipt_about_its_bytes(client: openai.OpenAI, store: Path) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=user())
    answer = raw.parse()
    assert answer.choices[0].message.content == "The answer is blue."
    receipt = confide.receipt_of(answer)
    assert receipt is confide.receipt_of(raw)
    assert answer._request_id == receipt.id
    facts = receipt.file.facts
    assert facts.response == hashlib.sha256(raw.content).digest()
    assert facts.request == hashlib.sha256(raw.http_response.request.content).digest()
    assert [row.id for row in list_rows(store, limit=10)] == [receipt.id]


def test_a_stream_has_its_receipt_when_it_has_ended(client: openai.OpenAI, store: Path) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=user(), stream=True)
    seen = ""
    for chunk in stream:
        seen += chunk.choices[0].delta.content or ""
        with pytest.raises(LookupError):
            confide.receipt_of(stream)
    assert seen == "The answer is blue."
    receipt = confide.receipt_of(stream)
    assert receipt.file.facts.streamed
    assert [row.id for row in list_rows(store, limit=10)] == [receipt.id]


def test_the_sdks_stream_helper_works(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=user()) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == "The answer is blue."
        assert confide.receipt_of(stream).inference.statement.finish == "complete"


def test_tools_and_images(client: openai.OpenAI, place: Place) -> None:
    first = client.chat.completions.create(model=MODEL, messages=user(), tools=[_TOOL])
    calls = first.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].id == "call_stub_1"
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": _IMAGE}},
    ]
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])  # type: ignore[misc,list-item]
    assert place.engine.seen[-1]["messages"][0]["content"] == parts


@pytest.mark.parametrize("stream", [False, True])
def test_responses(client: openai.OpenAI, store: Path, *, stream: bool) -> None:
    if stream:
        with client.responses.stream(model=MODEL, input="What colour?") as events:
            text = events.get_final_response().output_text
            receipt = confide.receipt_of(events)
    else:
        final = client.responses.create(model=MODEL, input="What colour?")
        text, receipt = final.output_text, confide.receipt_of(final)
    assert text == "The answer is blue."
    assert receipt.inference.statement.endpoint == "/v1/responses"
    assert [row.id for row in list_rows(store, limit=10)] == [receipt.id]


def test_completions_and_models(client: openai.OpenAI) -> None:
    done = client.completions.create(model=MODEL, prompt="colour")
    assert confide.receipt_of(done).inference.statement.endpoint == "/v1/completions"
    assert [model.id for model in client.models.list().data] == [MODEL]


def test_what_the_node_does_not_serve_is_its_own_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="text")
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(model=MODEL, file=("a.wav", b"RIFF" * 100))


def test_an_error_of_the_engine_is_receipted_too(client: openai.OpenAI, store: Path) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=MODEL, messages=user(), temperature=99)
    assert error.value.request_id == list_rows(store, limit=1)[0].id


def test_what_says_who_asks_stays_here(place: Place, store: Path, node: PlacedNode) -> None:
    seen: list[set[str]] = []
    inner = node.liar._app

    async def watch(scope: Any, receive: Any, send: Any) -> None:
        seen.append({name.decode() for name, _ in scope["headers"]})
        await inner(scope, receive, send)

    node.liar._app = watch
    with connect(place, node.url, store, organization="org-1") as client:
        client.models.list()
    assert seen
    assert not [name for name in seen[0] if name.startswith("x-stainless")]
    assert not seen[0] & {"user-agent", "openai-organization"}


def test_many_threads_share_one_client(client: openai.OpenAI, store: Path) -> None:
    def ask(number: int) -> str:
        if number % 2:
            return confide.receipt_of(
                client.chat.completions.create(model=MODEL, messages=user(f"{number}"))
            ).id
        stream = client.chat.completions.create(model=MODEL, messages=user("s"), stream=True)
        assert sum(1 for _ in stream) > 3
        return confide.receipt_of(stream).id

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(ask, range(48)))
    assert len(set(ids)) == 48
    assert {row.id for row in list_rows(store, limit=100)} == set(ids)


def test_a_closed_client_says_so_and_its_thread_has_ended(
    place: Place, node: PlacedNode, store: Path
) -> None:
    def ours() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name.startswith("confide-")}

    client = connect(place, node.url, store)
    client.chat.completions.create(model=MODEL, messages=user())
    assert ours() == {"confide-client", "confide-receipts_0"}
    client.close()
    assert ours() == set()
    with pytest.raises(RuntimeError):
        client.models.list()


def test_a_stream_that_is_left_is_closed(client: openai.OpenAI, store: Path) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=user(), stream=True)
    next(iter(stream))
    stream.close()
    assert list_rows(store, limit=1) == ()
    with pytest.raises(LookupError):
        confide.receipt_of(stream)


def test_the_asynchronous_client(place: Place, node: PlacedNode, store: Path) -> None:
    async def scenario() -> None:
        async with confide.async_openai_client(
            node.url,
            policy=inference_policy(),
            roots=simulated_roots(),
            receipts=store,
            clock=place.clock,
        ) as client:
            assert type(client) is openai.AsyncOpenAI
            answer = await client.chat.completions.create(model=MODEL, messages=user())
            assert confide.receipt_of(answer).id == answer._request_id
            stream = await client.chat.completions.create(model=MODEL, messages=user(), stream=True)
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            assert text == "The answer is blue."
            assert confide.receipt_of(stream).file.facts.streamed
            state = confide.session_of(client).preferred
            assert (state.url, state.simulated) == (node.url, True)

    asyncio.run(scenario())


# --- what leaves as errors ------------------------------------------------------------------------


def failure(client: openai.OpenAI, *, stream: bool = False) -> openai.APIError:
    def ask() -> None:
        answer = client.chat.completions.create(model=MODEL, messages=user(), stream=stream)
        if stream:
            list(answer)

    with client, pytest.raises(openai.APIError) as caught:
        ask()
    return caught.value


def test_a_node_that_is_not_what_was_expected_is_rejected_before_anything_is_sent(
    place: Place, store: Path
) -> None:
    node = place.node()
    other = replace(inference_policy(), model=ModelSpec(MODEL, "22" * 32))
    client = confide.openai_client(
        node.url, policy=other, roots=simulated_roots(), receipts=store, clock=place.clock
    )
    error = failure(client)
    assert isinstance(error, Rejected)
    assert error.reason is Reason.MODEL_MISMATCH
    assert error.code == "model-mismatch"
    assert not isinstance(error, openai.APIConnectionError)
    assert place.engine.seen == []


def test_simulated_roots_are_never_the_default(place: Place, node: PlacedNode, store: Path) -> None:
    client = confide.openai_client(
        node.url, policy=inference_policy(), receipts=store, clock=place.clock
    )
    error = failure(client)
    assert isinstance(error, EvidenceRejected)
    assert place.engine.seen == []


def test_no_node_is_a_connection_error(place: Place, store: Path) -> None:
    error = failure(connect(place, "http://127.0.0.1:9", store, max_retries=0))
    assert isinstance(error, Unavailable)


def test_an_answer_without_a_receipt_is_not_handed_over(
    place: Place, node: PlacedNode, store: Path
) -> None:
    node.liar.headers = lambda headers: [h for h in headers if h[0] != b"confide-receipt"]
    error = failure(connect(place, node.url, store))
    assert isinstance(error, ReceiptRejected)
    assert error.reason is Reason.RECEIPT_MISSING
    assert len(place.engine.seen) == 1, "the SDK must not ask again"


def test_an_answer_with_two_receipts_is_not_handed_over(
    place: Place, node: PlacedNode, store: Path
) -> None:
    node.liar.headers = lambda headers: headers + [h for h in headers if b"receipt" in h[0]]
    error = failure(connect(place, node.url, store))
    assert isinstance(error, ReceiptRejected)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_its_receipt_is_not_about(
    place: Place, node: PlacedNode, store: Path, *, stream: bool
) -> None:
    node.liar.headers = lambda headers: [h for h in headers if h[0] != b"content-length"]
    node.liar.body = lambda body: body.replace(b"blue", b"gold")
    error = failure(connect(place, node.url, store), stream=stream)
    assert isinstance(error, ReceiptRejected)
    assert error.reason is Reason.CLAIM_MISMATCH
    assert list_rows(store, limit=1) == ()


def test_a_stream_without_a_receipt_ends_with_an_error_before_its_end(
    place: Place, node: PlacedNode, store: Path
) -> None:
    node.liar.body = lambda body: b"" if body.startswith(b": confide-receipt") else body
    error = failure(connect(place, node.url, store), stream=True)
    assert isinstance(error, ReceiptRejected)
    assert error.reason is Reason.RECEIPT_MISSING


def test_the_errors_of_the_session_are_named_as_in_our_tree(
    place: Place, node: PlacedNode, store: Path
) -> None:
    node.liar.headers = lambda headers: [h for h in headers if h[0] != b"confide-receipt"]
    error = failure(connect(place, node.url, store))
    assert (type(error).__name__, error.type) == ("ReceiptRejected", "confide_error")
    assert error.findings  # type: ignore[attr-defined]
    assert str(error) == error.message


@pytest.mark.parametrize("option", ["base_url", "http_client"])
def test_requests_cannot_be_sent_elsewhere(place: Place, store: Path, option: str) -> None:
    with pytest.raises(ConfigurationError):
        connect(place, "http://127.0.0.1:9", store, **{option: "http://127.0.0.1:8"})


@pytest.mark.parametrize("url", ["", "ftp://x", "http://u:p@x", "http://x/?a=1", "http://[", ()])
def test_odd_addresses_are_refused(place: Place, store: Path, url: Any) -> None:
    with pytest.raises(ConfigurationError):
        connect(place, url, store)


def test_the_environment_changes_nothing(
    place: Place, node: PlacedNode, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with connect(place, node.url, store) as client:
        assert client.api_key == "confide"
        assert client.models.list().data


def test_a_policy_is_read_from_a_file(place: Place, node: PlacedNode, tmp_path: Path) -> None:
    path = tmp_path / "inference.json"
    path.write_bytes(inference_policy().canonical() + b"\n")
    with confide.openai_client(
        node.url,
        policy=path,
        roots=simulated_roots(),
        receipts=UnsafeKeepNone(),
        clock=place.clock,
    ) as client:
        assert (
            confide.receipt_of(
                client.chat.completions.create(model=MODEL, messages=user())
            ).file.expectation
            == inference_policy().canonical()
        )
    assert json.loads(path.read_text())["agent_node"]["mrtd"] == []


# --- slow nodes -----------------------------------------------------------------------------------


class _Slow(Meddler):
    """Holds every sealed answer back until the test is over."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.asked = 0

    def response(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        if path == CHANNEL_PATH:
            self.asked += 1
            self.over.wait()
        return pieces


def test_a_slow_node_is_a_timeout_of_both_trees_and_is_not_asked_again(
    place: Place, node: PlacedNode, store: Path
) -> None:
    slow = _Slow()
    with InPath(node.url, slow) as path:
        error = failure(connect(place, path.url, store, timeout=0.2, max_retries=3))
        slow.over.set()
    assert isinstance(error, openai.APITimeoutError)
    assert isinstance(error, Unavailable)
    assert slow.asked == 1
    assert list_rows(store, limit=1) == ()


def test_a_locked_store_reaches_the_caller_as_unavailable(
    place: Place, node: PlacedNode, store: Path
) -> None:
    with connect(place, node.url, store) as client:
        client.chat.completions.create(model=MODEL, messages=user())
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        keeper = ReceiptDatabase(store, busy_seconds=0.05)
        error = failure(connect(place, node.url, keeper), stream=True)
    assert isinstance(error, Unavailable)
    assert not isinstance(error, openai.APIConnectionError), "it was sent: trying again is not free"
    assert len(place.engine.seen) == 2
