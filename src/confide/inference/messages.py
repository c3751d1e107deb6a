"""The Anthropic Messages API over Chat Completions: requests, and errors. Pure.

docs/protocols/client.md §8. A caller's request (hostile bytes) becomes a chat request, or is
refused: what has no meaning for another model is either listed as without effect or not taken.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from confide.errors import FormatError, Reason
from confide.inference.faults import ApiFault, RequestRefused
from confide.wire.json import JsonLimits, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.wire.json import JsonValue

__all__ = [
    "COUNT_PATH",
    "MESSAGES_PATH",
    "MessagesPlan",
    "count_request",
    "error_body",
    "error_event",
    "plan_messages",
]

MESSAGES_PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
_LIMITS = JsonLimits(max_bytes=64 * 1024 * 1024, max_depth=64)
_INVALID = "invalid_request_error"

# From: Anthropic API reference, Messages: members with a counterpart, and those without effect
# here (client.md 8.2). Whatever is in neither list is refused.
_MEANT = frozenset(
    {
        "max_tokens", "messages", "model", "output_config", "stop_sequences", "stream", "system",
        "temperature", "tool_choice", "tools", "top_k", "top_p",
    }
)  # fmt: skip
_WITHOUT_EFFECT = frozenset(
    {
        "betas", "cache_control", "context_management", "inference_geo", "metadata",
        "service_tier", "speed", "thinking",
    }
)  # fmt: skip
_TOOL = frozenset(
    {
        "allowed_callers", "cache_control", "defer_loading", "description",
        "eager_input_streaming", "input_examples", "input_schema", "name", "strict", "type",
    }
)  # fmt: skip
_KINDS = {
    400: _INVALID,
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CHOICES: Mapping[str, JsonValue] = {"auto": "auto", "any": "required", "none": "none"}


@dataclass(frozen=True, slots=True)
class MessagesPlan:
    """A Messages request as a chat request: its `body`, and what the answer has to know."""

    body: bytes
    model: str
    streamed: bool


def error_body(fault: ApiFault, *, request_id: str | None = None) -> bytes:
    """Return `fault` as the Anthropic SDKs understand it."""
    kind = _KINDS.get(fault.status, _INVALID if fault.status < 500 else "api_error")
    error = {"type": kind, "message": fault.message}
    return json.dumps({"type": "error", "error": error, "request_id": request_id}).encode()


def error_event(fault: ApiFault) -> bytes:
    """Return the same as an event, for a stream that has already begun."""
    return b"event: error\ndata: " + error_body(fault) + b"\n\n"


def _refuse(message: str, *, status: int = 400) -> NoReturn:
    raise RequestRefused(ApiFault(status, _INVALID, "unsupported", message))


def plan_messages(raw: bytes) -> MessagesPlan:
    """Return the chat request that `raw` means (8.2 to 8.5). Raises `RequestRefused`."""
    return _plan(_parse(raw))


def count_request(raw: bytes) -> MessagesPlan:
    """Return a chat request whose usage says how many tokens `raw` has (8.8)."""
    return _plan({"max_tokens": 1, **_parse(raw), "stream": False}, count=True)


def _parse(raw: bytes) -> dict[str, JsonValue]:
    try:
        value = parse_json(raw, what="request", reason=Reason.REQUEST_FORMAT, limits=_LIMITS)
    except FormatError as error:
        fault = ApiFault(400, _INVALID, "invalid_json", f"The body is refused: {error.what}.")
        raise RequestRefused(fault) from error
    if not isinstance(value, dict):
        _refuse("The body is not a JSON object.")
    return value


def _plan(request: Mapping[str, JsonValue], *, count: bool = False) -> MessagesPlan:
    if request.keys() - _MEANT - _WITHOUT_EFFECT:
        _refuse("The request has a member that has no meaning here.")
    model, limit = request.get("model"), 1 if count else request.get("max_tokens")
    if not isinstance(model, str) or not model:
        _refuse("model is a string.")
    if type(limit) is not int or limit < 1:
        _refuse("max_tokens is a positive integer.")
    streamed = request.get("stream", False)
    if not isinstance(streamed, bool):
        _refuse("stream is true or false.")
    messages = _system(request.get("system")) + _messages(request.get("messages"))
    chat: dict[str, JsonValue] = {"model": model, "messages": messages, "max_tokens": limit}
    for name in ("temperature", "top_p", "top_k"):
        if request.get(name) is not None:
            chat[name] = request[name]
    if request.get("stop_sequences"):
        chat["stop"] = request["stop_sequences"]
    chat.update(_tools(request))
    chat.update(_format(request.get("output_config")))
    if streamed:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(chat, allow_nan=False, separators=(",", ":")).encode()
    return MessagesPlan(body, model, streamed)


def _blocks(content: JsonValue, what: str) -> list[dict[str, JsonValue]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        _refuse(f"{what} is a string or an array of blocks.")
    found: list[dict[str, JsonValue]] = []
    for block in content:
        if not isinstance(block, dict):
            _refuse(f"{what} holds something that is not a block.")
        found.append(block)
    return found


def _text(block: Mapping[str, JsonValue], name: str = "text") -> str:
    value = block.get(name)
    if not isinstance(value, str):
        _refuse(f"{name} of a block is a string.")
    return value


def _system(value: JsonValue) -> list[JsonValue]:
    if value is None:
        return []
    blocks = _blocks(value, "system")
    if any(block.get("type") != "text" for block in blocks):
        _refuse("system holds text only.")
    text = "\n\n".join(_text(block) for block in blocks)
    return [{"role": "system", "content": text}] if text else []


def _messages(value: JsonValue) -> list[JsonValue]:
    if not isinstance(value, list) or not value:
        _refuse("messages is an array of at least one.")
    found: list[JsonValue] = []
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(message, dict) or role not in ("user", "assistant", "system"):
            _refuse("a message is of the user or of the assistant.")
        blocks = _blocks(message.get("content"), "content")
        if role == "system":
            found += _system(message.get("content"))
        else:
            found += _user(blocks) if role == "user" else _assistant(blocks)
    return found


def _image(block: Mapping[str, JsonValue]) -> JsonValue:
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        _refuse("An image is given as base64; nothing is fetched.")
    url = f"data:{_text(source, 'media_type')};base64,{_text(source, 'data')}"
    return {"type": "image_url", "image_url": {"url": url}}


def _user(blocks: list[dict[str, JsonValue]]) -> list[JsonValue]:
    # Results of tools come first: they answer the calls of the message before.
    results: list[JsonValue] = []
    parts: list[JsonValue] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            parts.append({"type": "text", "text": _text(block)})
        elif kind == "image":
            parts.append(_image(block))
        elif kind == "tool_result":
            result, images = _tool_result(block)
            results.append(result)
            parts += images
        else:
            _refuse("A block of the user is of a type that is not taken here.")
    if not parts:
        return results
    only_text = all(isinstance(part, dict) and part["type"] == "text" for part in parts)
    if only_text and len(parts) == 1 and isinstance(parts[0], dict):
        return [*results, {"role": "user", "content": parts[0]["text"]}]
    return [*results, {"role": "user", "content": parts}]


def _tool_result(block: Mapping[str, JsonValue]) -> tuple[JsonValue, list[JsonValue]]:
    texts: list[str] = []
    images: list[JsonValue] = []
    content = block.get("content")
    for inner in [] if content is None else _blocks(content, "the content of a tool result"):
        if inner.get("type") == "text":
            texts.append(_text(inner))
        elif inner.get("type") == "image":
            images.append(_image(inner))
        else:
            _refuse("A tool result holds text and images only.")
    text = "\n\n".join(texts)
    if block.get("is_error") is True:
        text = f"Error: {text}"
    result: JsonValue = {
        "role": "tool", "tool_call_id": _text(block, "tool_use_id"), "content": text
    }  # fmt: skip
    return result, images


def _assistant(blocks: list[dict[str, JsonValue]]) -> list[JsonValue]:
    texts: list[str] = []
    calls: list[JsonValue] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            texts.append(_text(block))
        elif kind == "tool_use":
            function: JsonValue = {
                "name": _text(block, "name"),
                "arguments": json.dumps(block.get("input", {}), separators=(",", ":")),
            }
            calls.append({"id": _text(block, "id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):
            _refuse("A block of the assistant is of a type that is not taken here.")
    message: dict[str, JsonValue] = {"role": "assistant", "content": "".join(texts) or None}
    if calls:
        message["tool_calls"] = calls
    return [message] if texts or calls else []


def _tools(request: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    tools = request.get("tools")
    if not tools:
        return {}
    if not isinstance(tools, list):
        _refuse("tools is an array.")
    found: dict[str, JsonValue] = {"tools": [_tool(tool) for tool in tools]}
    choice = request.get("tool_choice")
    if choice is None:
        return found
    kind = choice.get("type") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(kind, str):
        _refuse("tool_choice is an object with a type.")
    if kind == "tool":
        named: JsonValue = {"name": _text(choice, "name")}
        found["tool_choice"] = {"type": "function", "function": named}
    elif kind in _CHOICES:
        found["tool_choice"] = _CHOICES[kind]
    else:
        _refuse("tool_choice is auto, any, none or one tool.")
    if choice.get("disable_parallel_tool_use") is True:
        found["parallel_tool_calls"] = False
    return found


def _tool(tool: JsonValue) -> JsonValue:
    if not isinstance(tool, dict) or tool.get("type") not in (None, "custom"):
        _refuse("Only tools of the caller are served here.")
    if tool.keys() - _TOOL:
        _refuse("A tool has a member that has no meaning here.")
    function: dict[str, JsonValue] = {"name": _text(tool, "name")}
    for name, chat in (
        ("description", "description"), ("input_schema", "parameters"), ("strict", "strict")
    ):  # fmt: skip
        if tool.get(name) is not None:
            function[chat] = tool[name]
    return {"type": "function", "function": function}


def _format(config: JsonValue) -> dict[str, JsonValue]:
    if config is None:
        return {}
    wanted = config.get("format") if isinstance(config, dict) else None
    if not isinstance(config, dict) or config.keys() - {"effort", "format"}:
        _refuse("output_config holds effort and format only.")
    if wanted is None:
        return {}
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        _refuse("The format of an output is a JSON schema.")
    schema: JsonValue = {"name": "output", "schema": wanted.get("schema"), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
