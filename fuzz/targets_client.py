"""Targets: what a client of model nodes reads: receipts, streams, and requests of its programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from confide.errors import Reason
from confide.inference.messages import count_request, plan_messages
from confide.inference.messages_answer import MessagesStream, count_body, message_body
from confide.inference.stream_end import EndHolder
from confide.receipts.inference import ExchangeFacts, parse_inference_statement
from confide.receipts.inference_file import InferenceFile, parse_inference_file
from confide.wire.json import parse_json
from fuzz import seeds
from fuzz.driver import Target
from fuzz.pieces import cuts

if TYPE_CHECKING:
    from typing import Any

_FACTS = ExchangeFacts("/v1/chat/completions", 200, False, bytes(32), bytes(32), bytes(32))  # noqa: FBT003
_CALL = {"id": "t1", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
_USAGE = {"prompt_tokens": 3, "completion_tokens": 4}


def _files() -> tuple[bytes, ...]:
    run = seeds.receipt()
    file = InferenceFile(
        run.inferences[0], _FACTS, run.expectation, seeds.model(), bytes(32),
        datetime(2026, 11, 22, tzinfo=UTC), "vendor",
    )  # fmt: skip
    return (file.encode(),)


def _file(raw: bytes) -> None:
    found = parse_inference_file(raw)
    assert parse_inference_file(found.encode()) == found


def _requests() -> tuple[bytes, ...]:
    image = {"type": "base64", "media_type": "image/png", "data": "aWs="}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "sun", "is_error": True}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "source": image}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {}}],
        },
        {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
    ]
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    request = {
        "model": "m", "max_tokens": 9, "system": "s", "messages": messages, "tools": tools,
        "tool_choice": {"type": "tool", "name": "weather"}, "stream": True,
    }  # fmt: skip
    return (json.dumps(request).encode(),)


def _plan(raw: bytes) -> None:
    plan = plan_messages(raw)
    parse_json(plan.body, what="plan", reason=Reason.REQUEST_FORMAT)
    count_request(raw)


def _chunk(delta: object, finish: str | None = None) -> bytes:
    value = {"choices": [{"delta": delta, "finish_reason": finish}], "usage": _USAGE}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _streams() -> tuple[bytes, ...]:
    call = {"tool_calls": [{"index": 0, **_CALL}]}
    chunks = (_chunk({"content": "hi"}), _chunk(call), _chunk({}, "tool_calls"))
    return (b"".join(chunks) + b"data: [DONE]\n\n",)


def _stream(raw: bytes) -> None:
    stream = MessagesStream(message_id="msg_1", model="m")
    out = b"".join(stream.feed(piece) for piece in cuts(raw)) + stream.close()
    assert out.endswith(b'data: {"type":"message_stop"}\n\n')


def _end(raw: bytes) -> None:
    holder = EndHolder()
    early = b"".join(holder.feed(piece) for piece in cuts(raw))
    assert early + holder.finish() == raw


def _answers() -> tuple[bytes, ...]:
    message = {"content": "hi", "tool_calls": [_CALL]}
    value = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": _USAGE}
    return (json.dumps(value).encode(),)


def _answer(raw: bytes) -> None:
    message_body(raw, message_id="msg_1", model="m")
    count_body(raw)


CLIENT_TARGETS: tuple[Target, ...] = (
    Target("inference-receipt-file", _file, _files, json_values=True),
    Target(
        "inference-statement",
        lambda raw: str(parse_inference_statement(raw)),
        lambda: (seeds.receipt().inferences[0].payload,),
        json_values=True,
    ),
    Target("messages-request", _plan, _requests, json_values=True),
    Target("messages-answer", _answer, _answers, json_values=True),
    Target("messages-stream", _stream, _streams),
    Target("stream-end", _end, _streams),
)
