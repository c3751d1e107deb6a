"""Requests of NEAR's protocol with sealed fields: which members are opened, which refused. Pure.

Clauses: docs/protocols/near-face.md §5. Reading is by closed lists: a member that the protocol does
not seal and that can hold text is refused by name (`NotProtected`), so that nobody believes it
hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.channel.near_seal import FieldKey, open_field
from confide.crypto.aead import OpenError
from confide.errors import FormatError, Reason, RemoteProtocolError
from confide.wire.json import JsonLimits, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from confide.wire.json import JsonValue

__all__ = [
    "SEALED_ROUTES",
    "FieldWindow",
    "NotProtected",
    "OpenedFields",
    "open_request",
]

_CHAT: Final = "/v1/chat/completions"
_COMPLETIONS: Final = "/v1/completions"
SEALED_ROUTES: Final = frozenset({_CHAT, _COMPLETIONS})
# Members that hold numbers, switches or words of a closed list: readable on the way.
_OPEN: Final = frozenset(
    {
        *("model", "stream", "stream_options", "n", "seed", "temperature", "top_p", "top_k"),
        *("min_p", "max_tokens", "max_completion_tokens", "min_tokens", "presence_penalty"),
        *("frequency_penalty", "repetition_penalty", "length_penalty", "ignore_eos"),
        *("skip_special_tokens", "stop_token_ids", "parallel_tool_calls", "reasoning_effort"),
        *("service_tier", "store", "best_of", "use_beam_search", "modalities"),
    }
)
# From: near-face.md 5.5: sealed by those who ask for all fields, and refused from the others.
_ALL_FIELDS: Final = frozenset({"tools", "tool_choice", "function_call"})
_MESSAGE_TEXTS: Final = frozenset({"reasoning_content", "reasoning"})
_MESSAGE_ALL_FIELDS: Final = frozenset({"name", "refusal", "tool_calls", "function_call"})
_MESSAGE_OPEN: Final = frozenset({"role", "tool_call_id"})
_PART_OPEN: Final = frozenset({"type", "detail", "format"})
_JSON_LIMITS: Final = JsonLimits(max_bytes=8 * 1024 * 1024, max_depth=64)


class FieldWindow:
    """
    The fields that were opened with one set of keys: each is accepted once.

    The protocol seals field by field to a public key, so whoever saw a field could put it into a
    request of his own and have the model repeat it. Bounded: what is full refuses.
    """

    def __init__(self, *, max_fields: int = 1 << 20) -> None:
        self._seen: set[int] = set()
        self._max_fields = max_fields

    def admit(self, marks: Sequence[int]) -> None:
        """Take `marks` in. Raises `RemoteProtocolError` (REPLAYED, NODE_BUSY), taking in none."""
        fresh = set(marks)
        if len(fresh) != len(marks) or fresh & self._seen:
            raise RemoteProtocolError(
                "a field was opened before", reason=Reason.REPLAYED, status_hint=409
            )
        if len(self._seen) + len(fresh) > self._max_fields:
            raise RemoteProtocolError(
                "too many fields to remember", reason=Reason.NODE_BUSY, status_hint=503
            )
        self._seen |= fresh


class NotProtected(RemoteProtocolError):
    """A request with something that this protocol leaves readable; `member` names it."""

    def __init__(self, member: str) -> None:
        super().__init__(f"{member} cannot be sealed", reason=Reason.REQUEST_FORMAT)
        self.member = member


@dataclass(frozen=True, slots=True)
class OpenedFields:
    """A request in clear, and the marks of the fields that it was sealed in."""

    request: dict[str, JsonValue]
    marks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Opener:
    key: FieldKey
    all_fields: bool
    marks: list[int] = field(default_factory=list)

    def text(self, value: JsonValue) -> JsonValue:
        """Return what a sealed string holds; null stays null, everything else is refused."""
        if value is None:
            return None
        if not isinstance(value, str):
            raise OpenError("a sealed field is a string")
        if not value:
            return ""
        opened = open_field(self.key, value)
        self.marks.append(opened.mark)
        return opened.text

    def texts(self, value: JsonValue) -> JsonValue:
        if isinstance(value, list):
            return [self.text(item) for item in value]
        return self.text(value)

    def json(self, value: JsonValue) -> JsonValue:
        """Return the JSON value that a sealed string holds."""
        text = self.text(value)
        if not isinstance(text, str) or not text:
            return text
        try:
            return parse_json(
                text.encode(), what="field", reason=Reason.REQUEST_FORMAT, limits=_JSON_LIMITS
            )
        except FormatError as error:
            raise OpenError("a sealed value that is no JSON") from error

    def require_all(self, value: JsonValue, member: str) -> None:
        """Refuse a member that only those who ask for all fields seal."""
        if not self.all_fields and value is not None:
            raise NotProtected(member)


def open_request(
    path: str, request: Mapping[str, JsonValue], key: FieldKey, *, all_fields: bool
) -> OpenedFields:
    """
    Return the request to `path` (of `SEALED_ROUTES`) with its fields opened.

    Raises `OpenError` for a field that does not open, one in clear among them; `NotProtected` for
    a member that is not sealed and may hold text. **Does not check** that the fields are new: that
    is `FieldWindow`.
    """
    opener = _Opener(key, all_fields)
    opened: dict[str, JsonValue] = {}
    for name, value in request.items():
        if name in _OPEN:
            opened[name] = value
        elif name in {"logprobs", "top_logprobs", "echo"}:
            if value:
                raise NotProtected(name)
            opened[name] = value
        elif name == "response_format":
            opened[name] = _response_format(value)
        elif path == _COMPLETIONS and name == "prompt":
            opened[name] = opener.texts(value)
        elif path == _CHAT and name == "messages":
            opened[name] = [_message(item, opener) for item in _items(value)]
        elif path == _CHAT and name in _ALL_FIELDS:
            opened[name] = _tooling(name, value, opener)
        else:
            raise NotProtected(name)
    return OpenedFields(opened, tuple(opener.marks))


def _items(value: JsonValue) -> list[JsonValue]:
    if not isinstance(value, list):
        raise OpenError("an array was expected")
    return value


def _object(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise OpenError("an object was expected")
    return value


def _response_format(value: JsonValue) -> JsonValue:
    # A schema is text of the caller, and the protocol does not seal it.
    if value is not None and (not isinstance(value, dict) or value.keys() != {"type"}):
        raise NotProtected("response_format")
    return value


def _message(value: JsonValue, opener: _Opener) -> JsonValue:
    opened: dict[str, JsonValue] = {}
    for name, item in _object(value).items():
        if name in _MESSAGE_OPEN:
            opened[name] = item
        elif name == "content" and isinstance(item, list):
            opened[name] = [_part(part, opener) for part in item]
        elif name == "content":
            opened[name] = _parts_or_text(opener.text(item))
        elif name in _MESSAGE_TEXTS:
            opened[name] = opener.text(item)
        elif name == "audio":
            opened[name] = _nested(item, {"data": opener.text}, frozenset({"id"}))
        elif name in _MESSAGE_ALL_FIELDS:
            opener.require_all(item, f"messages[].{name}")
            opened[name] = _said(name, item, opener)
        else:
            raise NotProtected("a member of messages[]")
    return opened


def _parts_or_text(text: JsonValue) -> JsonValue:
    """
    Return content parts where `text` is JSON of a list of them, which clients seal as one field.

    The protocol has no other mark: a text that is exactly such a list is read as parts.
    """
    if not isinstance(text, str) or not text.startswith("["):
        return text
    try:
        value = parse_json(
            text.encode(), what="field", reason=Reason.REQUEST_FORMAT, limits=_JSON_LIMITS
        )
    except FormatError:
        return text
    parts = value if isinstance(value, list) else []
    typed = [isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts]
    return value if typed and all(typed) else text


def _part(value: JsonValue, opener: _Opener) -> JsonValue:
    """Return a content part with every text opened but those that say what it is."""
    return {
        name: item
        if name in _PART_OPEN
        else _part(item, opener)
        if isinstance(item, dict)
        else opener.text(item)
        for name, item in _object(value).items()
    }


def _said(name: str, value: JsonValue, opener: _Opener) -> JsonValue:
    if value is None or name in {"name", "refusal"}:
        return opener.text(value)
    called = {"name": opener.text, "arguments": opener.text}
    if name == "function_call":
        return _nested(value, called)
    return [
        _nested(
            call,
            {"function": lambda item: _nested(item, called)},
            frozenset({"id", "type", "index"}),
        )
        for call in _items(value)
    ]


def _tooling(name: str, value: JsonValue, opener: _Opener) -> JsonValue:
    if value is None or (isinstance(value, str) and name != "tools"):
        return value
    opener.require_all(value, name)
    if name == "function_call":
        return _nested(value, {"name": opener.text})
    kind = frozenset({"type"})
    if name == "tool_choice":
        return _nested(value, {"function": lambda item: _nested(item, {"name": opener.text})}, kind)
    described = {"name": opener.text, "description": opener.text, "parameters": opener.json}

    def function(item: JsonValue) -> JsonValue:
        return _nested(item, described, frozenset({"strict"}))

    return [_nested(tool, {"function": function}, kind) for tool in _items(value)]


def _nested(
    value: JsonValue,
    openers: Mapping[str, Callable[[JsonValue], JsonValue]],
    plain: frozenset[str] = frozenset(),
) -> JsonValue:
    opened: dict[str, JsonValue] = {}
    for name, item in _object(value).items():
        if name in openers:
            opened[name] = openers[name](item)
        elif name in plain:
            opened[name] = item
        else:
            raise NotProtected("a member of a tool, a call or a message")
    return opened
