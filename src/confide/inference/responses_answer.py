"""The OpenAI Responses API over Chat Completions: the response object. Pure.

`response_body` turns the engine's chat answer (hostile bytes) into a response object;
docs/protocols/inference.md §5.4. The parts of that object are shared with `responses_stream`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from confide.errors import FormatError, Reason
from confide.inference.digest import read_usage
from confide.wire.json import JsonLimits, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.inference.digest import Usage
    from confide.wire.json import JsonValue

__all__ = [
    "ResponseContext",
    "call_item",
    "finish_status",
    "malformed",
    "message_item",
    "one_choice",
    "parse_engine_json",
    "refusal_part",
    "response_body",
    "response_object",
    "text_part",
    "write",
]

_LIMITS = JsonLimits(max_bytes=32 * 1024 * 1024, max_depth=64)
_CLAUSE = "docs/protocols/inference.md §5.4"

# From: §5.4, finish_reason of chat to incomplete_details.reason of responses.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseContext:
    """
    What a response object says that the engine does not know.

    `token` makes its ids (hex, fresh for each response), `created_at` is in Unix seconds, `model`
    the public name, `echo` what `responses.chat_request` says to repeat.
    """

    token: str
    created_at: int
    model: str
    echo: Mapping[str, JsonValue]

    def item_id(self, kind: str, index: int) -> str:
        """Return the id of output item `index`; `kind` is `msg` or `fc`."""
        return f"{kind}_{self.token}{index:04x}"


def malformed(why: str) -> NoReturn:
    """Raise the `FormatError` of an engine whose answer cannot be understood."""
    raise FormatError(f"engine answer: {why}", reason=Reason.UPSTREAM_FORMAT, clause=_CLAUSE)


def parse_engine_json(raw: bytes) -> dict[str, JsonValue]:
    """Parse one JSON object of the engine strictly; raises `FormatError`."""
    value = parse_json(raw, what="engine answer", reason=Reason.UPSTREAM_FORMAT, limits=_LIMITS)
    if not isinstance(value, dict):
        malformed("not an object")
    return value


def write(value: Mapping[str, object]) -> bytes:
    """Return compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def one_choice(answer: Mapping[str, JsonValue], member: str) -> tuple[dict[str, JsonValue], str]:
    """Return `member` (message or delta) of the only choice, and its finish reason or ""."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        malformed("not exactly one choice")
    body = choices[0].get(member)
    reason = choices[0].get("finish_reason")
    if not isinstance(body, dict) or not isinstance(reason, str | None):
        malformed(f"a choice without {member}, or with an odd finish_reason")
    return body, reason or ""


def text_part(text: str) -> dict[str, JsonValue]:
    """Return an `output_text` part."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def refusal_part(text: str) -> dict[str, JsonValue]:
    """Return a `refusal` part."""
    return {"type": "refusal", "refusal": text}


def message_item(item_id: str, parts: list[JsonValue], status: str) -> dict[str, JsonValue]:
    """Return an assistant message as an output item."""
    return {
        "id": item_id,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": parts,
    }


def call_item(
    item_id: str, *, call_id: str, name: str, arguments: str, status: str
) -> dict[str, JsonValue]:
    """Return a function call as an output item."""
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def response_object(
    context: ResponseContext,
    *,
    status: str,
    output: list[JsonValue],
    usage: Usage | None = None,
    incomplete: str | None = None,
    error: Mapping[str, JsonValue] | None = None,
) -> dict[str, JsonValue]:
    """Return a response object; `incomplete` is the reason, `error` set only when failed."""
    return {
        "id": f"resp_{context.token}",
        "object": "response",
        "created_at": context.created_at,
        "status": status,
        "error": None if error is None else {**error},
        "incomplete_details": None if incomplete is None else {"reason": incomplete},
        "model": context.model,
        "output": output,
        **context.echo,
        "usage": None if usage is None else _usage(usage),
    }


def finish_status(finish_reason: str) -> tuple[str, str | None]:
    """Return the status of the response and, when incomplete, its reason (§5.4)."""
    incomplete = _INCOMPLETE.get(finish_reason)
    return ("completed" if incomplete is None else "incomplete"), incomplete


def _usage(usage: Usage) -> JsonValue:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def response_body(chat: bytes, context: ResponseContext) -> tuple[bytes, Usage | None]:
    """
    Return the response object for the engine's chat answer, and the usage it reported.

    Raises `FormatError` (`upstream-format`) when `chat` is not a chat answer with one choice.
    """
    answer = parse_engine_json(chat)
    message, finish_reason = one_choice(answer, "message")
    status, incomplete = finish_status(finish_reason)
    output: list[JsonValue] = []
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        malformed("tool_calls is not an array")
    parts = _parts(message)
    if parts or not calls:
        item_id = context.item_id("msg", 0)
        output.append(message_item(item_id, parts or [text_part("")], status))
    for call in calls:
        output.append(_call(call, context, len(output), status))
    usage = read_usage(answer.get("usage"))
    whole = response_object(
        context, status=status, output=output, usage=usage, incomplete=incomplete
    )
    return write(whole), usage


def _parts(message: Mapping[str, JsonValue]) -> list[JsonValue]:
    content, refusal = message.get("content"), message.get("refusal")
    if not isinstance(content, str | None) or not isinstance(refusal, str | None):
        malformed("content or refusal is not a string")
    parts: list[JsonValue] = []
    if content:
        parts.append(text_part(content))
    if refusal:
        parts.append(refusal_part(refusal))
    return parts


def _call(call: JsonValue, context: ResponseContext, index: int, status: str) -> JsonValue:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        malformed("a tool call without a function")
    name, arguments, call_id = function.get("name"), function.get("arguments"), call.get("id")
    if not isinstance(name, str) or not isinstance(arguments, str):
        malformed("a tool call without name or arguments")
    return call_item(
        context.item_id("fc", index),
        call_id=call_id if isinstance(call_id, str) and call_id else context.item_id("call", index),
        name=name,
        arguments=arguments,
        status=status,
    )
