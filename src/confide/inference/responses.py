"""The OpenAI Responses API over Chat Completions: the request. Pure.

`chat_request` says in chat what a `/v1/responses` request says, or refuses it; nothing is
dropped that would change the answer. The table of members is docs/protocols/inference.md §5.2,
the items §5.3; the answer is in `responses_answer`, the stream in `responses_stream`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from confide.inference.faults import ApiFault, RequestRefused
from confide.inference.responses_input import chat_messages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.wire.json import JsonValue

__all__ = ["MEMBERS", "chat_request"]

# From: §5.2. Members the OpenAI API has and this node knows; what is not here is unknown.
MEMBERS = frozenset(
    [
        "background",
        "context_management",
        "conversation",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "model",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    ]
)

# Members that chat has too, and their name there.
_SAME = {"temperature": "temperature", "top_p": "top_p", "max_output_tokens": "max_tokens"}
# Where a value other than null or these is refused, and with which code.
_ONLY: Mapping[str, tuple[tuple[JsonValue, ...], str]] = {
    "background": ((False,), "unsupported_state"),
    "context_management": (([],), "unsupported_state"),
    "conversation": ((), "unsupported_state"),
    "previous_response_id": ((), "unsupported_state"),
    "prompt": ((), "unsupported_state"),
    "store": ((False,), "unsupported_state"),
    "service_tier": (("auto", "default"), "unsupported_value"),
    "top_logprobs": ((0,), "unsupported_value"),
    "truncation": (("disabled",), "unsupported_value"),
}
# From: OpenAI API reference, `include`: all but the log probabilities of the text.
_INCLUDE_WITHOUT_EFFECT = frozenset(
    (
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
        "reasoning.encrypted_content",
    )
)
_FUNCTION = frozenset(
    [
        "type",
        "name",
        "description",
        "parameters",
        "strict",
        "defer_loading",
        "allowed_callers",
        "output_schema",
    ]
)
_TOOL_CHOICES = ("auto", "none", "required")


def _refuse(code: str, message: str, param: str) -> NoReturn:
    raise RequestRefused(ApiFault(400, "invalid_request_error", code, message, param))


def chat_request(
    request: Mapping[str, JsonValue], *, model: str
) -> tuple[dict[str, JsonValue], dict[str, JsonValue]]:
    """
    Return the chat request for `request`, and what the response object repeats of it.

    `request` has passed `routes.plan_request` steps (1) to (4); `model` is the engine's name.
    Raises `RequestRefused` for whatever §5.2 and §5.3 refuse.
    """
    _require_stateless(request)
    instructions = _optional_text(request, "instructions")
    chat: dict[str, JsonValue] = {
        "model": model,
        "messages": [*chat_messages(request["input"], instructions=instructions)],
    }
    for name, target in _SAME.items():
        if request.get(name) is not None:
            chat[target] = request[name]
    reasoning = _reasoning(request.get("reasoning"), chat)
    text = _text(request.get("text"), chat)
    tools = request.get("tools") or []
    choice = _tool_choice(request.get("tool_choice"), tools)
    if isinstance(tools, list) and tools:
        chat["tools"] = [_chat_tool(tool) for tool in tools]
        if request.get("tool_choice") is not None:
            chat["tool_choice"] = _chat_choice(choice)
        if request.get("parallel_tool_calls") is not None:
            chat["parallel_tool_calls"] = request["parallel_tool_calls"]
    if request.get("stream") is True:
        chat["stream"] = True
        # The completed response reports usage; a chat stream does so only when asked.
        chat["stream_options"] = {"include_usage": True}
    return chat, {
        "background": False,
        "instructions": instructions,
        "max_output_tokens": request.get("max_output_tokens"),
        "max_tool_calls": _max_tool_calls(request.get("max_tool_calls")),
        "metadata": _metadata(request.get("metadata")),
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": reasoning,
        "service_tier": "default",
        "store": False,
        "temperature": request.get("temperature"),
        "text": text,
        "tool_choice": choice,
        "tools": tools,
        "top_logprobs": 0,
        "top_p": request.get("top_p"),
        "truncation": "disabled",
    }


def _require_stateless(request: Mapping[str, JsonValue]) -> None:
    for name, (allowed, code) in _ONLY.items():
        value = request.get(name)
        # `True == 1` in Python, not in JSON.
        if value is not None and not any(value == a and type(value) is type(a) for a in allowed):
            _refuse(code, f"{name} has a value that needs what this node does not have.", name)
    include = request.get("include")
    if include is None:
        return
    if not isinstance(include, list) or not all(isinstance(entry, str) for entry in include):
        _refuse("invalid_type", "include is an array of strings.", "include")
    if not _INCLUDE_WITHOUT_EFFECT.issuperset(entry for entry in include if isinstance(entry, str)):
        _refuse("unsupported_value", "include asks for what this node does not have.", "include")


def _max_tool_calls(value: JsonValue) -> JsonValue:
    if value is not None and type(value) is not int:
        _refuse("invalid_type", "max_tool_calls is an integer.", "max_tool_calls")
    return value


def _optional_text(request: Mapping[str, JsonValue], name: str) -> str | None:
    value = request.get(name)
    if value is not None and not isinstance(value, str):
        _refuse("invalid_type", f"{name} is a string.", name)
    return value


def _metadata(value: JsonValue) -> JsonValue:
    # From: OpenAI API reference, `metadata`: strings of at most 512 characters, 16 of them.
    if value is None:
        return {}
    if (
        not isinstance(value, dict)
        or len(value) > 16
        or not all(isinstance(text, str) and len(text) <= 512 for text in value.values())
    ):
        _refuse("invalid_type", "metadata is an object of at most 16 strings.", "metadata")
    return value


def _object(value: JsonValue, name: str, known: frozenset[str]) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        _refuse("invalid_type", f"{name} is an object.", name)
    if not known.issuperset(value):
        _refuse("unknown_parameter", f"{name} has an unknown member.", name)
    return value


def _reasoning(value: JsonValue, chat: dict[str, JsonValue]) -> JsonValue:
    given = (
        {}
        if value is None
        else _object(value, "reasoning", frozenset(("effort", "summary", "generate_summary")))
    )
    effort = given.get("effort")
    if effort is not None and not isinstance(effort, str):
        _refuse("invalid_type", "reasoning.effort is a string.", "reasoning.effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    return {"effort": effort, "summary": None}


def _text(value: JsonValue, chat: dict[str, JsonValue]) -> JsonValue:
    given = {} if value is None else _object(value, "text", frozenset(("format", "verbosity")))
    if given.get("verbosity") not in (None, "medium"):
        _refuse("unsupported_value", "text.verbosity is not supported here.", "text.verbosity")
    style: JsonValue = given.get("format")
    if style is None:
        style = {"type": "text"}
    known = frozenset(("type", "name", "schema", "description", "strict"))
    members = _object(style, "text.format", known)
    kind = members.get("type")
    if kind == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                name: entry
                for name, entry in members.items()
                if name != "type" and entry is not None
            },
        }
    elif kind != "text":
        _refuse("unsupported_value", "text.format is of an unknown type.", "text.format")
    return {"format": members, "verbosity": "medium"}


def _chat_tool(tool: JsonValue) -> JsonValue:
    members = _object(tool, "tools", _FUNCTION)
    if members.get("type") != "function":
        _refuse("unsupported_tool", "Only function tools are served here.", "tools")
    if not isinstance(members.get("name"), str):
        _refuse("invalid_type", "a function tool has a name.", "tools")
    if members.get("defer_loading") not in (None, False):
        _refuse("unsupported_tool", "Deferred tools are not served here.", "tools")
    if members.get("allowed_callers") not in (None, ["direct"]):
        _refuse("unsupported_tool", "Only direct tool calls are served here.", "tools")
    if members.get("output_schema") is not None:
        _refuse("unsupported_tool", "Tool output schemas are not served here.", "tools")
    function: dict[str, JsonValue] = {
        name: members[name]
        for name in ("name", "description", "parameters", "strict")
        if members.get(name) is not None
    }
    return {"type": "function", "function": function}


def _tool_choice(value: JsonValue, tools: JsonValue) -> JsonValue:
    if value is None:
        return "auto"
    if isinstance(value, dict):
        members = _object(value, "tool_choice", frozenset(("type", "name")))
        listed = tools if isinstance(tools, list) else []
        names = [tool.get("name") for tool in listed if isinstance(tool, dict)]
        if members.get("type") != "function" or members.get("name") not in names:
            _refuse("unsupported_tool", "tool_choice names no function of tools.", "tool_choice")
        return members
    if value not in _TOOL_CHOICES:
        _refuse("unsupported_value", "tool_choice is not one this node knows.", "tool_choice")
    return value


def _chat_choice(choice: JsonValue) -> JsonValue:
    if isinstance(choice, dict):
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice
