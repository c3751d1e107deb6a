"""The local endpoint: who may ask, what is passed on and translated, what is refused and how."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from in_path import Cut, InPath, Meddler, SealedResponses
from local_proxy import TOKEN, running_proxy
from proven_place import MODEL

from confide.adapters.receipt_db import list_rows
from confide.channel.carriage import CHANNEL_PATH
from confide.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from local_proxy import RunningProxy
    from proven_place import Place, PlacedNode

AUTH = {"authorization": f"Bearer {TOKEN}"}
CHAT: Any = {"model": MODEL, "messages": [{"role": "user", "content": "What colour?"}]}
MESSAGE: Any = {**CHAT, "max_tokens": 64}


@pytest.fixture
def node(place: Place) -> PlacedNode:
    return place.node()


@pytest.fixture
def proxy(place: Place, node: PlacedNode, store: Path) -> Iterator[RunningProxy]:
    with running_proxy(place, [node.url], store) as running:
        yield running


def post(proxy: RunningProxy, path: str, body: Any, **headers: str) -> httpx2.Response:
    return httpx2.post(proxy.url + path, json=body, headers={**AUTH, **headers}, trust_env=False)


# --- the OpenAI shape passes ----------------------------------------------------------------------


def test_the_openai_sdk_with_nothing_but_a_base_url(proxy: RunningProxy, store: Path) -> None:
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=TOKEN, max_retries=0) as client:
        answer = client.chat.completions.create(**CHAT)
        assert answer.choices[0].message.content == "The answer is blue."
        stream = client.chat.completions.create(**CHAT, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == "The answer is blue."
        assert client.responses.create(model=MODEL, input="hi").output_text == text
        assert [model.id for model in client.models.list().data] == [MODEL]
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model=MODEL, input="x")
    rows = list_rows(store, limit=9)
    # What the node refused has a receipt too.
    assert len(rows) == 4
    assert answer._request_id in {row.id for row in rows}
    assert [(s.method, s.path, s.status) for s in proxy.served] == [
        ("POST", "/v1/chat/completions", 200),
        ("POST", "/v1/chat/completions", 200),
        ("POST", "/v1/responses", 200),
        ("GET", "/v1/models", 200),
        ("POST", "/v1/embeddings", 404),
    ]
    first = proxy.served[0]
    assert (first.model, first.input_tokens, first.output_tokens) == (MODEL, 7, 5)
    assert first.receipt == answer._request_id
    assert first.seconds > 0


def test_what_is_told_of_a_call_holds_no_content(proxy: RunningProxy) -> None:
    post(proxy, "/v1/chat/completions?note=Ingeborg", CHAT)
    told = repr(proxy.served)
    assert "Ingeborg" not in told
    assert "blue" not in told
    assert "colour" not in told


def test_the_local_token_stays_here_and_the_nodes_key_goes_sealed(
    place: Place, node: PlacedNode
) -> None:
    seen: list[dict[bytes, bytes]] = []
    inner = node.liar._app

    async def watch(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]))
        await inner(scope, receive, send)

    node.liar._app = watch
    with running_proxy(place, [node.url]) as plain:
        post(plain, "/v1/chat/completions", CHAT)
    with running_proxy(place, [node.url], key="sk-of-the-node") as keyed:
        post(keyed, "/v1/chat/completions", CHAT, cookie="a=b")
    assert b"authorization" not in seen[0]
    assert seen[1][b"authorization"] == b"Bearer sk-of-the-node"
    assert not {b"cookie", b"user-agent", b"x-api-key"} & seen[1].keys()


# --- who may ask ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer other"},
        {"authorization": f"Basic {TOKEN}"},
        {"x-api-key": TOKEN + "x"},
        {"authorization": b"Bearer \xe9\xff"},
    ],
)
def test_without_the_token_nothing_is_sent(proxy: RunningProxy, place: Place, headers: Any) -> None:
    answer = httpx2.post(f"{proxy.url}/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthorized"
    answer = httpx2.post(f"{proxy.url}/v1/messages", json=MESSAGE, headers=headers)
    assert answer.json()["error"]["type"] == "authentication_error"
    assert place.engine.seen == []


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "attacker.example"},
        {"host": "127.0.0.1.attacker.example"},
        {"host": "127.0.0.1:1"},
        {"host": "127.0.0.1"},
        {"host": "user@127.0.0.1"},
        {"host": "[::1"},
        {"origin": "https://attacker.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_rebound_names_and_web_pages_are_refused_even_with_the_token(
    proxy: RunningProxy, place: Place, headers: dict[str, str]
) -> None:
    answer = post(proxy, "/v1/chat/completions", CHAT, **headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"].startswith("forbidden")
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert place.engine.seen == []


def test_a_preflight_gets_no_permission(proxy: RunningProxy) -> None:
    answer = httpx2.options(
        f"{proxy.url}/v1/chat/completions",
        headers={"origin": "https://a.example", "access-control-request-method": "POST"},
    )
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_names_of_this_machine_pass(proxy: RunningProxy, name: str) -> None:
    port = proxy.url.rpartition(":")[2]
    assert post(proxy, "/v1/chat/completions", CHAT, host=f"{name}:{port}").status_code == 200


def test_no_token_is_a_choice(place: Place, node: PlacedNode) -> None:
    with running_proxy(place, [node.url], token=None) as proxy:
        assert httpx2.post(f"{proxy.url}/v1/chat/completions", json=CHAT).status_code == 200
        answer = post(proxy, "/v1/chat/completions", CHAT, host="attacker.example")
        assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/", "/confide/v1/closing", "/v1/messages/batches", "/v2/chat"])
def test_other_routes_do_not_exist(proxy: RunningProxy, place: Place, path: str) -> None:
    assert post(proxy, path, CHAT).status_code == 404
    assert place.engine.seen == []


def test_a_body_above_the_limit_is_not_read_to_its_end(proxy: RunningProxy) -> None:
    big = b"x" * (65 * 1024 * 1024)
    answer = httpx2.post(f"{proxy.url}/v1/chat/completions", content=big, headers=AUTH)
    assert answer.status_code == 413


# --- what cannot be proven ------------------------------------------------------------------------


def test_a_node_that_goes_is_503_and_its_return_is_proven_first(
    node: PlacedNode, proxy: RunningProxy
) -> None:
    assert post(proxy, "/v1/chat/completions", CHAT).status_code == 200
    node.stop()
    answer = post(proxy, "/v1/chat/completions", CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    answer = post(proxy, "/v1/messages", MESSAGE)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded_error")
    node.restart()
    assert post(proxy, "/v1/chat/completions", CHAT).status_code == 200
    assert [served.problem for served in proxy.served] == [None, "unavailable", "unavailable", None]


def test_a_node_that_is_refused_is_502(place: Place) -> None:
    with running_proxy(place, [place.node(fault="devtools").url]) as proxy:
        answer = post(proxy, "/v1/chat/completions", CHAT)
        assert answer.status_code == 502
        assert answer.json()["error"]["type"] == "confide_error"
        answer = post(proxy, "/v1/messages", MESSAGE)
        assert answer.json()["error"]["type"] == "api_error"
    assert place.engine.seen == []


def test_an_answer_without_a_receipt_is_502(node: PlacedNode, proxy: RunningProxy) -> None:
    node.liar.headers = lambda headers: [h for h in headers if h[0] != b"confide-receipt"]
    answer = post(proxy, "/v1/chat/completions", CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "receipt-missing")
    assert b"blue" not in answer.content


class _Full:
    """A store of receipts that has no room."""

    async def keep(self, *_what: Any, **_where: Any) -> None:
        raise Unavailable("the receipt store cannot be written: SQLITE_FULL")

    async def close(self) -> None:
        """Nothing is open."""


def test_a_receipt_that_cannot_be_kept_is_not_told_as_a_node_that_is_gone(
    place: Place, node: PlacedNode
) -> None:
    with running_proxy(place, [node.url], _Full()) as proxy:
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/messages", MESSAGE)):
            answer = post(proxy, path, body)
            assert answer.status_code == 503
            assert "store of receipts" in answer.json()["error"]["message"]
            assert b"blue" not in answer.content
        assert {said.problem for said in proxy.served} == {"receipt-not-kept"}
        # Each was asked once: an answer that is not handed over is not asked for again.
        assert len(place.engine.seen) == 2


@pytest.mark.parametrize(
    ("path", "body", "mark", "end"),
    [
        ("/v1/chat/completions", CHAT, b'"receipt-missing"', b"[DONE]"),
        ("/v1/messages", MESSAGE, b"event: error", b"message_stop"),
    ],
)
def test_a_stream_without_a_receipt_ends_with_an_error_and_is_cut(
    node: PlacedNode, proxy: RunningProxy, *, path: str, body: Any, mark: bytes, end: bytes
) -> None:
    node.liar.body = lambda raw: b"" if raw.startswith(b": confide-receipt") else raw
    pieces: list[bytes] = []
    with (
        httpx2.stream("POST", proxy.url + path, json={**body, "stream": True}, headers=AUTH) as got,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        pieces.extend(got.iter_bytes())
    seen = b"".join(pieces)
    assert b"blue" in seen
    assert mark in seen
    assert end not in seen
    assert proxy.served[0].problem == "receipt-missing"


class _Cutting(SealedResponses):
    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        for number, chunk in enumerate(chunks):
            if number == 2:
                raise Cut
            yield chunk


def test_a_stream_that_is_cut_on_the_way_is_cut_here(place: Place, node: PlacedNode) -> None:
    with InPath(node.url, _Cutting()) as path, running_proxy(place, [path.url]) as proxy:
        with (
            pytest.raises(httpx2.RemoteProtocolError),
            httpx2.stream(
                "POST",
                f"{proxy.url}/v1/chat/completions",
                json={**CHAT, "stream": True},
                headers=AUTH,
            ) as got,
        ):
            got.read()
        assert proxy.served[0].problem == "channel-truncated"


def test_nothing_of_a_prompt_leaves_in_plaintext(place: Place, node: PlacedNode) -> None:
    class Watch(Meddler):
        sent = b""

        def request(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
            del path
            raw = b"".join(pieces)
            Watch.sent += raw
            return [raw]

    with InPath(node.url, Watch()) as path, running_proxy(place, [path.url]) as proxy:
        body = {**MESSAGE, "system": "You know Ingeborg."}
        assert post(proxy, "/v1/messages", body).status_code == 200
        assert CHANNEL_PATH in path.paths
    assert Watch.sent
    assert b"Ingeborg" not in Watch.sent


# --- the Anthropic shape --------------------------------------------------------------------------


def events(raw: bytes) -> list[dict[str, Any]]:
    found = []
    for block in raw.decode().split("\n\n"):
        if block:
            name, data = block.split("\n")
            value = json.loads(data.removeprefix("data: "))
            assert name == f"event: {value['type']}"
            found.append(value)
    return found


def test_a_message(proxy: RunningProxy, store: Path) -> None:
    answer = httpx2.post(f"{proxy.url}/v1/messages", json=MESSAGE, headers={"x-api-key": TOKEN})
    body = answer.json()
    assert body == {
        "id": body["id"],
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "The answer is blue."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 7, "output_tokens": 5},
    }
    assert answer.headers["request-id"] == list_rows(store, limit=1)[0].id


def test_a_message_as_a_stream(proxy: RunningProxy, store: Path) -> None:
    answer = post(proxy, "/v1/messages", {**MESSAGE, "stream": True})
    found = events(answer.content)
    assert [event["type"] for event in found] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 4,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    text = "".join(e["delta"]["text"] for e in found if e["type"] == "content_block_delta")
    assert text == "The answer is blue."
    assert found[-2]["delta"]["stop_reason"] == "end_turn"
    assert found[-2]["usage"] == {"input_tokens": 7, "output_tokens": 5}
    assert proxy.served[-1].receipt == list_rows(store, limit=1)[0].id


@pytest.mark.parametrize("whole", ['{"choices": [], "choices": []}', '{"choices": []}', "[]", "no"])
def test_an_engines_answer_that_is_none_is_not_called_unproven(
    proxy: RunningProxy, place: Place, whole: str
) -> None:
    """The node was proven, and its receipt says what the engine said: that is no message."""
    place.engine.whole = whole
    answer = post(proxy, "/v1/messages", MESSAGE)
    assert answer.status_code == 502
    assert "proven" not in answer.json()["error"]["message"]
    assert [(said.status, said.problem) for said in proxy.served] == [(502, "upstream-format")]


def test_an_engine_that_breaks_off_ends_a_message_with_an_error(
    proxy: RunningProxy, place: Place
) -> None:
    place.engine.break_off = True
    streamed = {**MESSAGE, "stream": True}
    pieces: list[bytes] = []
    with (
        httpx2.stream("POST", f"{proxy.url}/v1/messages", json=streamed, headers=AUTH) as got,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        pieces.extend(got.iter_bytes())
    last = events(b"".join(pieces))[-1]
    assert last["type"] == "error"
    assert "proven" not in last["error"]["message"]
    assert proxy.served[-1].problem == "upstream-format"


def test_tokens_are_counted_by_the_model_itself(proxy: RunningProxy, place: Place) -> None:
    answer = post(proxy, "/v1/messages/count_tokens", CHAT)
    assert answer.json() == {"input_tokens": 7}
    assert place.engine.seen[-1]["max_tokens"] == 1


def test_what_has_no_meaning_is_refused_in_the_callers_words(proxy: RunningProxy) -> None:
    answer = post(proxy, "/v1/messages", {**MESSAGE, "mcp_servers": [{"url": "http://x"}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["type"] == "error"


def test_the_nodes_own_refusal_is_told_in_the_callers_words(proxy: RunningProxy) -> None:
    answer = post(proxy, "/v1/messages", {**MESSAGE, "temperature": 99})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["request-id"].startswith("rcpt-")
    answer = post(proxy, "/v1/messages", {**MESSAGE, "model": "another"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
