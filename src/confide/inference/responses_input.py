"""Input items of a Responses request as chat messages (docs/protocols/inference.md §5.3). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from confide.inference.faults import ApiFault, RequestRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.wire.json import JsonValue

__all__ = ["chat_messages"]

_Message = dict[str, "JsonValue"]

# Members of items and parts that say nothing a chat message could carry.
_WITHOUT_EFFECT = frozenset(("id", "status", "phase", "annotations", "logprobs", "type"))
_ROLES = {"user": "user", "system": "system", "developer": "system", "assistant": "assistant"}


def _refuse(code: str, message: str) -> NoReturn:
    raise RequestRefused(ApiFault(400, "invalid_request_error", code, message, "input"))


def _known(item: _Message, *members: str) -> None:
    if not _WITHOUT_EFFECT.union(members).issuperset(item):
        _refuse("unknown_parameter", "An input item has an unknown member.")


def _string(item: _Message, member: str) -> str:
    value = item.get(member)
    if not isinstance(value, str):
        _refuse("invalid_type", f"{member} of an input item is a string.")
    return value


def chat_messages(value: JsonValue, *, instructions: str | None) -> tuple[_Message, ...]:
    """
    Return the chat messages that `value` (the member `input`) and `instructions` stand for.

    Order is kept. Raises `RequestRefused` for an item that has no meaning in chat.
    """
    builder = _Builder()
    if instructions is not None:
        builder.messages.append({"role": "system", "content": instructions})
    if isinstance(value, str):
        builder.messages.append({"role": "user", "content": value})
    for item in value if isinstance(value, list) else ():
        builder.add(item)
    if not builder.messages:
        _refuse("invalid_type", "input holds no message.")
    return tuple(builder.messages)


class _Builder:
    """Collects messages; remembers calls, because an output without its call means nothing."""

    def __init__(self) -> None:
        self.messages: list[_Message] = []
        self._calls: set[str] = set()
        self._by_type: dict[str, Callable[[_Message], None]] = {
            "message": self._message,
            "function_call": self._call,
            "function_call_output": self._output,
            "reasoning": self._reasoning,
        }

    def add(self, item: JsonValue) -> None:
        if not isinstance(item, dict):
            _refuse("invalid_type", "An input item is an object.")
        kind = item.get("type", "message")
        if kind == "item_reference":
            _refuse("unsupported_state", "Nothing is stored here that an item could refer to.")
        if not isinstance(kind, str) or kind not in self._by_type:
            _refuse("unsupported_content", "An input item is of a type this node does not map.")
        self._by_type[kind](item)

    def _message(self, item: _Message) -> None:
        _known(item, "role", "content")
        role = _ROLES.get(_string(item, "role"))
        if role is None:
            _refuse("invalid_type", "A message is of an unknown role.")
        self.messages.append({"role": role, **_content(item.get("content"), role)})

    def _call(self, item: _Message) -> None:
        _known(item, "call_id", "name", "arguments")
        call_id = _string(item, "call_id")
        call: JsonValue = {
            "id": call_id,
            "type": "function",
            "function": {"name": _string(item, "name"), "arguments": _string(item, "arguments")},
        }
        self._calls.add(call_id)
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": None})
        message = self.messages[-1]
        before = message.get("tool_calls")
        message["tool_calls"] = [*(before if isinstance(before, list) else ()), call]

    def _output(self, item: _Message) -> None:
        _known(item, "call_id", "output", "name")
        call_id = _string(item, "call_id")
        if call_id not in self._calls:
            _refuse("invalid_value", "A function call output comes before or without its call.")
        content = _content(item.get("output"), "tool")["content"]
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _reasoning(self, item: _Message) -> None:
        # Made by other models for themselves; chat has no place for it (§5.3).
        _known(item, "summary", "content", "encrypted_content")


def _content(value: JsonValue, role: str) -> _Message:
    """Return `content`, and `refusal` where an assistant refused."""
    if isinstance(value, str):
        return {"content": value}
    if not isinstance(value, list):
        _refuse("invalid_type", "Content is a string or an array of parts.")
    parts = [_part(part, role) for part in value]
    refusals = [part["refusal"] for part in parts if "refusal" in part]
    texts = [part["text"] for part in parts if part.get("type") == "text"]
    if role == "assistant" or (len(texts) == len(parts) and len(parts) <= 1):
        content: JsonValue = "".join(str(text) for text in texts)
    else:
        content = [*parts]
    if refusals:
        return {
            "content": content or None,
            "refusal": "".join(str(refusal) for refusal in refusals),
        }
    return {"content": content}


def _part(part: JsonValue, role: str) -> _Message:
    if not isinstance(part, dict):
        _refuse("invalid_type", "A content part is an object.")
    kind = part.get("type")
    if kind == ("output_text" if role == "assistant" else "input_text"):
        _known(part, "text")
        return {"type": "text", "text": _string(part, "text")}
    if kind == "refusal" and role == "assistant":
        _known(part, "refusal")
        return {"refusal": _string(part, "refusal")}
    if kind == "input_image" and role == "user":
        _known(part, "image_url", "detail")
        image: _Message = {"url": _string(part, "image_url")}
        if part.get("detail") is not None:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    _refuse("unsupported_content", "A content part is of a type that this role does not have.")
