"""Which fields of a call NEAR's protocol seals: requests opened, answers sealed. Pure.

Clauses: docs/protocols/near-face.md §5, §6. Reading is by closed lists: a member that the protocol
does not seal and that can hold text is refused by name (`NotProtected`), so that nobody believes it
hidden. Writing is the other way round: of an answer every text is sealed but the few that say how
it is built, and numbers that could tell of the text are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.channel.near_seal import FieldKey, open_field, seal_field
from confide.crypto.aead import OpenError
from confide.errors import FormatError, Reason, RemoteProtocolError
from confide.wire.json import JsonLimits, parse_json
from confide.wire.sse import SseEvent, SseParser, encode_event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confide.channel.near_seal import FieldScheme
    from confide.wire.json import JsonValue

__all__ = [
    "SEALED_ROUTES",
    "AnswerSealer",
    "NotProtected",
    "SealedEvents",
    "encode_json",
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

# From: near-face.md 6.2.
_PLAIN_TEXTS: Final = frozenset(
    {"object", "model", "role", "finish_reason", "type", "system_fingerprint", "service_tier"}
)
_PLAIN_NUMBERS: Final = frozenset({"index", "created"})
_WITHHELD: Final = frozenset({"logprobs", "prompt_logprobs", "token_ids", "prompt_token_ids"})
_FAILED: Final[JsonValue] = {
    "error": {
        "message": "The model did not answer to the end.",
        "type": "server_error",
        "param": None,
        "code": "engine_failed",
    }
}


class NotProtected(RemoteProtocolError):
    """A request with something that this protocol leaves readable; `member` names it."""

    def __init__(self, member: str) -> None:
        super().__init__(f"{member} cannot be sealed", reason=Reason.REQUEST_FORMAT)
        self.member = member


def encode_json(value: JsonValue) -> bytes:
    """Return compact JSON as UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class _Opener:
    key: FieldKey
    all_fields: bool

    def text(self, value: JsonValue) -> JsonValue:
        """Return what a sealed string holds; null stays null, everything else is refused."""
        if value is None:
            return None
        if not isinstance(value, str):
            raise OpenError("a sealed field is a string")
        return open_field(self.key, value)

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
) -> dict[str, JsonValue]:
    """
    Return the request to `path` (of `SEALED_ROUTES`) with its fields opened.

    Raises `OpenError` for a field that does not open, one in clear among them; `NotProtected` for
    a member that is not sealed and may hold text.
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
    return opened


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


@dataclass(frozen=True, slots=True)
class AnswerSealer:
    """Seals the texts of one answer to the caller's key; `draw` gives fresh random bytes."""

    scheme: FieldScheme
    public_key: bytes
    draw: Callable[[int], bytes]

    def seal(self, answer: JsonValue) -> JsonValue:
        """Return `answer`, an object, with nothing of its text readable (near-face.md 6.2)."""
        if not isinstance(answer, dict) or "error" in answer:
            return _FAILED
        return {
            name: _counts(value)
            if name == "usage"
            else value
            if name == "id" and isinstance(value, str)
            else self._value(name, value)
            for name, value in answer.items()
        }

    def _value(self, name: str, value: JsonValue) -> JsonValue:
        if name in _WITHHELD:
            return None
        if isinstance(value, list):
            return [self._value(name, item) for item in value]
        if isinstance(value, dict):
            return {key: self._value(key, item) for key, item in value.items()}
        if isinstance(value, str) and name not in _PLAIN_TEXTS:
            return seal_field(self.scheme, self.public_key, value, self.draw)
        # A number can be a token, and a list of them a text.
        counts = isinstance(value, str | bool) or name in _PLAIN_NUMBERS
        return value if counts else None


def _counts(value: JsonValue) -> JsonValue:
    """Return numbers of tokens, and nothing else that an engine says beside them."""
    if isinstance(value, dict):
        return {name: _counts(item) for name, item in value.items()}
    return value if isinstance(value, int) else None


class SealedEvents:
    """
    An event stream sealed event by event, as it comes.

    What is no event of JSON and not the end is not passed on: `feed` then gives one closing error
    event, and nothing after it.
    """

    def __init__(self, sealer: AnswerSealer) -> None:
        self._sealer = sealer
        self._parser = SseParser()
        self._failed = False

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes of the stream and return what goes out for them."""
        if self._failed:
            return b""
        out: list[bytes] = []
        try:
            # A comment can hold anything: an empty one says as much, that the stream lives.
            out.extend(
                self._event(item) if isinstance(item, SseEvent) else b":\n\n"
                for item in self._parser.feed(chunk)
            )
        except FormatError:
            self._failed = True
            out.append(encode_event(encode_json(_FAILED)))
        return b"".join(out)

    def _event(self, event: SseEvent) -> bytes:
        if event.data == b"[DONE]":
            return encode_event(event.data)
        value = parse_json(
            event.data, what="event", reason=Reason.STREAM_FORMAT, limits=_JSON_LIMITS
        )
        return encode_event(encode_json(self._sealer.seal(value)))
