"""The Anthropic Messages API over Chat Completions: docs/protocols/client.md §8."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import FormatError, LocalProtocolError
from confide.inference.faults import ApiFault, RequestRefused
from confide.inference.messages import count_request, error_body, error_event, plan_messages
from confide.inference.messages_answer import MessagesStream, count_body, message_body

ASK: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
}
TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {"type": "object"},
    "cache_control": {"type": "ephemeral"},
}
PNG: dict[str, Any] = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "aWs="},
}


def chat(**changes: Any) -> dict[str, Any]:
    plan = plan_messages(json.dumps({**ASK, **changes}).encode())
    found: dict[str, Any] = json.loads(plan.body)
    return found


def test_the_smallest_request() -> None:
    assert chat() == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
    }


def test_what_has_a_counterpart_and_what_has_no_effect() -> None:
    found = chat(
        system=[{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}],
        stop_sequences=["END"],
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        stream=True,
        thinking={"type": "enabled", "budget_tokens": 1024},
        metadata={"user_id": "u"},
        context_management={},
        output_config={
            "effort": "high",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
        },
    )
    assert found["messages"][0] == {"role": "system", "content": "be\n\nbrief"}
    assert (found["stop"], found["temperature"], found["top_p"], found["top_k"]) == (
        ["END"], 0.5, 0.9, 4
    )  # fmt: skip
    assert (found["stream"], found["stream_options"]) == (True, {"include_usage": True})
    assert found["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert not {"thinking", "metadata", "context_management", "output_config"} & found.keys()


def test_a_conversation_with_tools_and_images() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, PNG]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I ask."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "and now?"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "sun"}, PNG],
                    "is_error": True,
                },
            ],
        },
    ]
    found = chat(messages=messages, tools=[TOOL])["messages"]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aWs="}}
    assert found == [
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {
            "role": "assistant",
            "content": "I ask.",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "Error: sun"},
        {"role": "user", "content": [{"type": "text", "text": "and now?"}, image]},
    ]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        (
            {"type": "tool", "name": "weather"},
            {"type": "function", "function": {"name": "weather"}},
        ),
    ],
)
def test_tools_and_their_choice(choice: Any, wanted: Any) -> None:
    found = chat(tools=[TOOL], tool_choice={**choice, "disable_parallel_tool_use": True})
    assert found["tool_choice"] == wanted
    assert found["parallel_tool_calls"] is False
    function = {
        "name": "weather", "description": "of a city", "parameters": {"type": "object"}
    }  # fmt: skip
    assert found["tools"] == [{"type": "function", "function": function}]


def _of(role: str, *blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


REFUSED: list[dict[str, Any]] = [
    {"mcp_servers": []},
    {"container": "c"},
    {"model": 7},
    {"model": ""},
    {"max_tokens": 0},
    {"max_tokens": True},
    {"max_tokens": None},
    {"stream": "yes"},
    {"messages": []},
    {"messages": "hi"},
    {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": ["hi"]},
    {"messages": [{"role": "user", "content": 7}]},
    {"messages": [{"role": "user", "content": ["hi"]}]},
    {"system": [PNG]},
    {"system": 7},
    _of("user", {"type": "text"}),
    _of("user", {"type": "document"}),
    _of("user", {"type": "image", "source": {"type": "url", "url": "http://x"}}),
    _of("user", {"type": "tool_result", "content": "no id"}),
    _of("user", {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "document"}]}),
    _of("assistant", {"type": "server_tool_use"}),
    _of("assistant", {"type": "tool_use", "id": "t"}),
    {"tools": {"name": "x"}},
    {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    {"tools": [{**TOOL, "odd": 1}]},
    {"tools": ["x"]},
    {"tools": [TOOL], "tool_choice": "auto"},
    {"tools": [TOOL], "tool_choice": {"type": "some"}},
    {"output_config": {"odd": 1}},
    {"output_config": {"format": {"type": "text"}}},
]


@pytest.mark.parametrize("changes", REFUSED, ids=lambda c: json.dumps(c)[:60])
def test_what_has_no_meaning_here_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as refusal:
        chat(**changes)
    assert refusal.value.fault.status == 400


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"a":1,"a":2}', b"\xff", b'{"model": NaN}'])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestRefused):
        plan_messages(raw)


@given(st.binary(max_size=200))
def test_bytes_that_nobody_wrote_are_refused(raw: bytes) -> None:
    with pytest.raises(RequestRefused):
        plan_messages(raw)


def test_a_count_is_one_token_of_an_answer() -> None:
    raw = json.dumps({"model": "m", "messages": ASK["messages"], "tools": [TOOL]}).encode()
    found = json.loads(count_request(raw).body)
    assert (found["max_tokens"], found.get("stream"), len(found["tools"])) == (1, None, 1)
    assert json.loads(count_body(b'{"usage": {"prompt_tokens": 5}}')) == {"input_tokens": 5}
    with pytest.raises(FormatError):
        count_body(b"{}")


def whole(message: Any, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    raw = json.dumps({"choices": [{"message": message, "finish_reason": finish}], **more})
    found: dict[str, Any] = json.loads(message_body(raw.encode(), message_id="msg_1", model="m"))
    return found


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        ("odd", "end_turn"),
    ],
)
def test_a_whole_answer(finish: str, reason: str) -> None:
    call = {"id": "t1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    found = whole({"content": "hi", "tool_calls": [call]}, finish, usage=usage)
    assert found["content"] == [
        {"type": "text", "text": "hi"},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
    ]
    assert found["stop_reason"] == reason
    assert found["usage"] == {"input_tokens": 3, "output_tokens": 4}


@pytest.mark.parametrize(
    "message",
    [
        {"content": 7},
        {"tool_calls": {"a": 1}},
        {"tool_calls": ["x"]},
        {"tool_calls": [{"id": "t", "function": {"name": "n"}}]},
        {"tool_calls": [{"id": "t", "function": {"name": "n", "arguments": "{"}}]},
        {"tool_calls": [{"id": "t", "function": {"name": "n", "arguments": "[]"}}]},
    ],
)
def test_an_odd_answer_is_malformed(message: Any) -> None:
    with pytest.raises(FormatError):
        whole(message)


def chunk(delta: Any, finish: str | None = None, **more: Any) -> bytes:
    value = {"choices": [{"delta": delta, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def call(index: int, arguments: str = "", **named: str) -> dict[str, Any]:
    named_call = {"id": named["id"]} if "id" in named else {}
    function: dict[str, Any] = {"arguments": arguments}
    if "name" in named:
        function["name"] = named["name"]
    return {"tool_calls": [{"index": index, **named_call, "function": function}]}


STREAM = b"".join(
    [
        chunk({"role": "assistant"}),
        chunk({"content": "I "}),
        chunk({"content": "ask."}),
        chunk(call(0, id="t1", name="weather")),
        chunk(call(0, '{"city":')),
        chunk(call(0, '"Oslo"}')),
        chunk(call(1, "{}", id="t2", name="time")),
        chunk({}, "tool_calls"),
        b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}\n\n',
        b"data: [DONE]\n\n",
    ]
)


def told(pieces: list[bytes]) -> list[dict[str, Any]]:
    stream = MessagesStream(message_id="msg_1", model="m")
    raw = b"".join(stream.feed(piece) for piece in pieces) + stream.close()
    return [json.loads(block.split("data: ", 1)[1]) for block in raw.decode().split("\n\n")[:-1]]


def test_a_stream_of_text_and_two_calls() -> None:
    found = told([STREAM])
    assert [(event["type"], event.get("index")) for event in found] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert found[5]["content_block"] == {
        "type": "tool_use", "id": "t1", "name": "weather", "input": {}
    }  # fmt: skip
    assert found[6]["delta"]["partial_json"] + found[7]["delta"]["partial_json"] == (
        '{"city":"Oslo"}'
    )
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"] == {"input_tokens": 3, "output_tokens": 4}


@given(st.lists(st.integers(min_value=1, max_value=len(STREAM) - 1), max_size=8))
def test_how_it_is_cut_changes_nothing(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(bounds)]
    assert told(pieces) == told([STREAM])


@pytest.mark.parametrize(
    "stream",
    [
        chunk({"content": "no end"}) + b"data: [DONE]\n\n",
        b"",
        b'data: {"error": {"message": "x"}}\n\n',
        b"data: nonsense\n\n",
        chunk({"content": 7}),
        chunk({"tool_calls": 7}),
        chunk({"tool_calls": [7]}),
        chunk(call(0, "goes on")),
        chunk(call(-1, "{}", id="t", name="n")),
        # Going back to a call that has ended.
        chunk(call(0, "{", id="t", name="n")) + chunk(call(1, "{}", id="u", name="n"))
        + chunk(call(0, "}")),
    ],
)  # fmt: skip
def test_an_odd_stream_is_malformed(stream: bytes) -> None:
    with pytest.raises(FormatError):
        told([stream])


def test_it_is_not_fed_after_its_end() -> None:
    stream = MessagesStream(message_id="msg_1", model="m")
    stream.feed(STREAM)
    stream.close()
    with pytest.raises(LocalProtocolError):
        stream.feed(b"x")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (409, "invalid_request_error"),
        (429, "rate_limit_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_errors(status: int, kind: str) -> None:
    fault = ApiFault(status, "any", "code", "Our words.")
    body = json.loads(error_body(fault))
    assert (body["type"], body["error"]) == ("error", {"type": kind, "message": "Our words."})
    assert error_event(fault) == b"event: error\ndata: " + error_body(fault) + b"\n\n"
