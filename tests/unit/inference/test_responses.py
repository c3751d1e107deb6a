"""Responses over chat, the request half and the whole answer: docs/protocols/inference.md §5."""

from __future__ import annotations

import json
from typing import Any

import pytest

from confide.errors import FormatError, Reason
from confide.inference.faults import RequestRefused
from confide.inference.responses import MEMBERS, chat_request
from confide.inference.responses_answer import ResponseContext, response_body

_TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


def _chat(**members: Any) -> dict[str, Any]:
    chat, _echo = chat_request({"model": "m", "input": "hi", **members}, model="up")
    return chat


def _refused(**members: Any) -> tuple[str, str | None]:
    with pytest.raises(RequestRefused) as caught:
        _chat(**members)
    return caught.value.fault.code, caught.value.fault.param


def test_the_least_request() -> None:
    assert _chat() == {"model": "up", "messages": [{"role": "user", "content": "hi"}]}


def test_every_member_that_maps() -> None:
    chat = _chat(
        instructions="Brief.",
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=3,
        reasoning={"effort": "low", "summary": "auto"},
        tools=[_TOOL],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        stream=True,
        text={"format": {"type": "json_object"}, "verbosity": "medium"},
    )
    assert chat == {
        "model": "up",
        "messages": [
            {"role": "system", "content": "Brief."},
            {"role": "user", "content": "hi"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 3,
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_json_schema() -> None:
    style = {"type": "json_schema", "name": "n", "schema": {"a": 1}, "strict": None}
    assert _chat(text={"format": style})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"a": 1}},
    }


def test_members_without_effect_are_accepted_and_not_forwarded() -> None:
    chat = _chat(
        store=False,
        background=False,
        truncation="disabled",
        service_tier="auto",
        include=["reasoning.encrypted_content", "file_search_call.results"],
        stream_options={"include_obfuscation": False},
        max_tool_calls=4,
        user="u",
        safety_identifier="s",
        prompt_cache_key="p",
        metadata={"a": "b"},
        tool_choice="auto",
        top_logprobs=0,
        tools=[],
        parallel_tool_calls=True,
    )
    assert set(chat) == {"model", "messages"}


def test_a_plain_tool_choice_is_passed_on() -> None:
    assert _chat(tools=[_TOOL], tool_choice="required")["tool_choice"] == "required"


def test_null_is_absent() -> None:
    nulls = dict.fromkeys(MEMBERS - {"model", "input"})
    assert set(_chat(**nulls)) == {"model", "messages"}


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("previous_response_id", "resp_1", "unsupported_state"),
        ("conversation", "c", "unsupported_state"),
        ("conversation", {"id": "c"}, "unsupported_state"),
        ("prompt", {"id": "p"}, "unsupported_state"),
        ("background", True, "unsupported_state"),
        ("background", 0, "unsupported_state"),
        ("context_management", [{"type": "compaction"}], "unsupported_state"),
        ("store", True, "unsupported_state"),
        ("truncation", "auto", "unsupported_value"),
        ("service_tier", "flex", "unsupported_value"),
        ("top_logprobs", 2, "unsupported_value"),
        ("include", ["message.output_text.logprobs"], "unsupported_value"),
        ("include", ["anything"], "unsupported_value"),
        ("include", "anything", "invalid_type"),
        ("include", [7], "invalid_type"),
        ("instructions", ["a"], "invalid_type"),
        ("reasoning", "low", "invalid_type"),
        ("reasoning", {"other": 1}, "unknown_parameter"),
        ("text", {"other": 1}, "unknown_parameter"),
        ("metadata", {"a": 1}, "invalid_type"),
        ("metadata", {str(n): "" for n in range(17)}, "invalid_type"),
        ("metadata", {"a": "b" * 513}, "invalid_type"),
        ("metadata", ["a"], "invalid_type"),
        ("max_tool_calls", "1", "invalid_type"),
        ("tool_choice", "any", "unsupported_value"),
        ("tool_choice", {"type": "function", "name": "g"}, "unsupported_tool"),
        ("tool_choice", {"type": "allowed_tools", "tools": []}, "unknown_parameter"),
        ("tool_choice", {"type": "web_search"}, "unsupported_tool"),
    ],
)
def test_what_needs_more_than_chat_is_refused(name: str, value: object, code: str) -> None:
    assert _refused(**{name: value}) == (code, name)


def test_nested_members_are_named() -> None:
    assert _refused(reasoning={"effort": 3}) == ("invalid_type", "reasoning.effort")
    assert _refused(text={"verbosity": "low"}) == ("unsupported_value", "text.verbosity")
    assert _refused(text={"format": {"type": "xml"}}) == ("unsupported_value", "text.format")


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ({"type": "custom", "name": "f"}, "unsupported_tool"),
        ({"type": "function"}, "invalid_type"),
        ({**_TOOL, "defer_loading": True}, "unsupported_tool"),
        ({**_TOOL, "allowed_callers": ["programmatic"]}, "unsupported_tool"),
        ({**_TOOL, "output_schema": {}}, "unsupported_tool"),
        ({**_TOOL, "other": 1}, "unknown_parameter"),
    ],
)
def test_tools_refused(tool: dict[str, Any], code: str) -> None:
    assert _refused(tools=[tool]) == (code, "tools")


def test_tools_accepted_with_members_that_say_nothing_new() -> None:
    tool = {**_TOOL, "defer_loading": False, "allowed_callers": ["direct"], "output_schema": None}
    assert _chat(tools=[tool])["tools"][0]["function"]["name"] == "f"


# --- §5.3 input items


def _messages(*items: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = _chat(input=list(items))["messages"]
    return messages


_CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
_OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "rain"}
_CHAT_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_roles_and_texts() -> None:
    assert _messages(
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "input_text", "text": "b"}], "type": "message"},
        {
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "c", "annotations": [], "logprobs": []},
                {"type": "output_text", "text": "d"},
            ],
        },
    ) == [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "cd"},
    ]


def test_parts_stay_parts_where_order_matters() -> None:
    image = {"type": "input_image", "image_url": "data:,", "detail": "low"}
    (message,) = _messages(
        {"role": "user", "content": [{"type": "input_text", "text": "see"}, image]}
    )
    assert message["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}},
    ]
    (message,) = _messages({"role": "user", "content": [{**image, "detail": None}]})
    assert message["content"] == [{"type": "image_url", "image_url": {"url": "data:,"}}]


def test_refusals() -> None:
    refusal = {"type": "refusal", "refusal": "no"}
    assert _messages({"role": "assistant", "content": [refusal]}) == [
        {"role": "assistant", "content": None, "refusal": "no"}
    ]


def test_calls_join_the_assistant_message_before_them() -> None:
    second = {**_CALL, "call_id": "2"}
    assert _messages(
        {"role": "assistant", "content": "wait"},
        {**_CALL, "id": "fc_1", "status": "completed"},
        second,
        _OUTPUT,
        {**_OUTPUT, "call_id": "2", "output": [{"type": "input_text", "text": "sun"}]},
    ) == [
        {
            "role": "assistant",
            "content": "wait",
            "tool_calls": [_CHAT_CALL, {**_CHAT_CALL, "id": "2"}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "tool", "tool_call_id": "2", "content": "sun"},
    ]


def test_a_call_without_an_assistant_message_makes_one() -> None:
    assert _messages({"role": "user", "content": "q"}, _CALL)[1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [_CHAT_CALL],
    }


def test_reasoning_of_other_models_is_dropped() -> None:
    assert _messages({"type": "reasoning", "summary": []}, {"role": "user", "content": "q"}) == [
        {"role": "user", "content": "q"}
    ]


@pytest.mark.parametrize(
    ("items", "code"),
    [
        (["hi"], "invalid_type"),
        ([{"type": "item_reference", "id": "x"}], "unsupported_state"),
        ([{"type": "mcp_call"}], "unsupported_content"),
        ([{"type": 7}], "unsupported_content"),
        ([{"type": "reasoning", "summary": []}], "invalid_type"),
        ([{"role": "tool", "content": "x"}], "invalid_type"),
        ([{"content": "x"}], "invalid_type"),
        ([{"role": "user", "content": 7}], "invalid_type"),
        ([{"role": "user", "content": ["x"]}], "invalid_type"),
        ([{"role": "user", "content": "x", "other": 1}], "unknown_parameter"),
        (
            [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}],
            "unsupported_content",
        ),
        (
            [{"role": "assistant", "content": [{"type": "input_text", "text": "x"}]}],
            "unsupported_content",
        ),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "invalid_type"),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "", "x": 1}]}],
            "unknown_parameter",
        ),
        ([_OUTPUT], "invalid_value"),
        ([_OUTPUT, _CALL], "invalid_value"),
        ([_CALL, {**_OUTPUT, "call_id": "2"}], "invalid_value"),
        ([{**_CALL, "arguments": {}}], "invalid_type"),
        ([_CALL, {**_OUTPUT, "output": [{"type": "input_image"}]}], "unsupported_content"),
    ],
)
def test_items_refused(items: list[Any], code: str) -> None:
    assert _refused(input=items) == (code, "input")


# --- §5.4 the response object

_CONTEXT = ResponseContext(token="ab", created_at=9, model="m", echo={"store": False})


def _answer(message: object, finish: str | None = "stop", **members: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    chat = json.dumps({"choices": [choice], **members}).encode()
    body, _usage = response_body(chat, _CONTEXT)
    whole: dict[str, Any] = json.loads(body)
    return whole


def test_text_answer() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    answer = _answer({"content": "hi"}, usage=usage)
    assert (answer["id"], answer["status"], answer["store"]) == ("resp_ab", "completed", False)
    assert (answer["created_at"], answer["model"]) == (9, "m")
    (item,) = answer["output"]
    assert item["content"] == [
        {"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}
    ]
    assert answer["usage"]["total_tokens"] == 3
    assert answer["error"] is None


def test_text_then_calls() -> None:
    nameless = {"function": {"name": "g", "arguments": ""}}
    answer = _answer({"content": "wait", "tool_calls": [_CHAT_CALL, nameless]}, "tool_calls")
    assert [item["type"] for item in answer["output"]] == [
        "message",
        "function_call",
        "function_call",
    ]
    assert [item.get("call_id") for item in answer["output"]] == [None, "1", "call_ab0002"]
    assert len({item["id"] for item in answer["output"]}) == 3


def test_empty_and_refused_answers() -> None:
    assert _answer({"content": None})["output"][0]["content"][0]["text"] == ""
    refused = _answer({"content": None, "refusal": "no"})
    assert refused["output"][0]["content"] == [{"type": "refusal", "refusal": "no"}]
    assert refused["usage"] is None


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_incomplete_answers(finish: str, reason: str) -> None:
    answer = _answer({"content": "par"}, finish)
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert answer["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    "chat",
    [
        b"",
        b"[]",
        b"{}",
        b'{"choices":[]}',
        b'{"choices":[{"message":{}},{"message":{}}]}',
        b'{"choices":[{}]}',
        b'{"choices":[{"message":{},"finish_reason":7}]}',
        b'{"choices":[{"message":{"content":7}}]}',
        b'{"choices":[{"message":{"refusal":[]}}]}',
        b'{"choices":[{"message":{"tool_calls":{"a":1}}}]}',
        b'{"choices":[{"message":{"tool_calls":[{}]}}]}',
        b'{"choices":[{"message":{"tool_calls":[{"function":{"name":"f"}}]}}]}',
        b'{"choices":[{"message":{"content":"a","content":"b"}}]}',
    ],
)
def test_a_malformed_engine_is_a_format_error(chat: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        response_body(chat, _CONTEXT)
    assert caught.value.reason is Reason.UPSTREAM_FORMAT
