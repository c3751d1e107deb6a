"""The stream of mapped responses: docs/protocols/inference.md §5.5."""

from __future__ import annotations

import json
from typing import Any

import pytest

from confide.errors import LocalProtocolError
from confide.inference.responses_answer import ResponseContext
from confide.inference.responses_stream import ResponsesStream
from confide.wire.sse import SseEvent, SseParser


def _names(out: bytes) -> list[str]:
    return [item.name for item in SseParser().feed(out) if isinstance(item, SseEvent)]


def _stream(*datas: str) -> tuple[ResponsesStream, list[dict[str, Any]]]:
    context = ResponseContext(token="ab", created_at=1, model="m", echo={})
    mapper = ResponsesStream(context)
    out = mapper.start()
    for data in datas:
        out += mapper.feed(b"data: " + data.encode() + b"\n\n")
    out += mapper.close()
    items = [item for item in SseParser().feed(out) if isinstance(item, SseEvent)]
    events = [json.loads(item.data) for item in items]
    assert [event["type"] for event in events] == [item.name for item in items]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return mapper, events


def _delta(finish: str | None = None, **delta: Any) -> str:
    return json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]})


def _call(index: int, **function: str) -> dict[str, Any]:
    return {"index": index, "id": f"call_{index}", "function": function}


def test_items_are_sequential() -> None:
    _mapper, events = _stream(
        _delta(content="let me"),
        _delta(tool_calls=[_call(0, name="f", arguments="{")]),
        _delta(tool_calls=[_call(0, arguments="}"), _call(1, name="g", arguments="[]")]),
        _delta(refusal="no"),
        _delta("length", content=""),
        "[DONE]",
    )
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert [item["type"] for item in response["output"]] == [
        "message",
        "function_call",
        "function_call",
        "message",
    ]
    assert [item.get("arguments") for item in response["output"][1:3]] == ["{}", "[]"]
    assert response["output"][3]["content"] == [{"type": "refusal", "refusal": "no"}]
    marks = [
        (event["output_index"], event["type"].rpartition(".")[2])
        for event in events
        if event["type"].startswith("response.output_item")
    ]
    assert marks == [(i, mark) for i in range(4) for mark in ("added", "done")]
    last_words = [event for event in events if event["type"] == "response.refusal.done"]
    assert last_words[0]["refusal"] == "no"


def test_an_answer_without_words_is_an_empty_message() -> None:
    mapper, events = _stream(_delta(role="assistant"), _delta("stop"), "[DONE]", "ignored")
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""
    assert not mapper.failed


def test_an_engine_without_done_marker_is_complete_when_it_said_why_it_ended() -> None:
    mapper, events = _stream(_delta(content="a"), _delta("stop"))
    assert events[-1]["type"] == "response.completed"
    assert mapper.close() == b""
    assert mapper.fail() == b""


@pytest.mark.parametrize(
    "data",
    [
        "[DONE]",
        "not json",
        "[]",
        '{"error":"CANARY"}',
        '{"choices":[{"delta":{}},{"delta":{}}]}',
        _delta(content=7),
        _delta(tool_calls={}),
        _delta(tool_calls=[{"index": 0}]),
        _delta(tool_calls=[_call(0, arguments="{}")]),
        _delta(tool_calls=[{"index": "0", "function": {"name": "f"}}]),
        _delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": {}}}]),
    ],
)
def test_a_malformed_stream_fails_and_keeps_what_was_said(data: str) -> None:
    mapper, events = _stream(_delta(content="par"), data, _delta("stop"))
    assert events[-1]["type"] == "response.failed"
    assert mapper.failed
    response = events[-1]["response"]
    assert response["error"]["code"] == "server_error"
    assert response["output"][0]["status"] == "incomplete"
    assert "CANARY" not in json.dumps(events)


def test_a_stream_that_ends_in_a_lone_cr() -> None:
    mapper = ResponsesStream(ResponseContext(token="", created_at=0, model="m", echo={}))
    mapper.start()
    begun = mapper.feed(f"data: {_delta('stop', content='a')}\r\rdata: [DONE]\r\r".encode())
    assert _names(begun)[-1] == "response.output_text.delta"
    assert _names(mapper.close())[-1] == "response.completed"


def test_nothing_follows_the_end_in_one_chunk() -> None:
    mapper = ResponsesStream(ResponseContext(token="", created_at=0, model="m", echo={}))
    mapper.start()
    out = mapper.feed(f"data: [DONE]\n\ndata: {_delta(content='late')}\n\n".encode())
    assert _names(out) == ["response.failed"]


def test_a_mapper_is_started_once_and_first() -> None:
    mapper = ResponsesStream(ResponseContext(token="", created_at=0, model="m", echo={}))
    with pytest.raises(LocalProtocolError):
        mapper.feed(b"")
    mapper.start()
    with pytest.raises(LocalProtocolError):
        mapper.start()
