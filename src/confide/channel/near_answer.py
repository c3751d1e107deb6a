"""Answers of NEAR's protocol with sealed fields: nothing of a model's text is readable. Pure.

Clauses: docs/protocols/near-face.md §6. Of an answer every text is sealed but the few that say how
it is built, and numbers that could tell of the text are left out: what an engine adds tomorrow is
sealed too. What the engine says is hostile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.channel.near_seal import seal_field
from confide.errors import FormatError, Reason
from confide.wire.json import JsonLimits, parse_json
from confide.wire.sse import SseEvent, SseParser, encode_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.channel.near_seal import FieldScheme
    from confide.wire.json import JsonValue

__all__ = ["AnswerSealer", "SealedEvents", "encode_json"]

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


def encode_json(value: JsonValue) -> bytes:
    """Return compact JSON as UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


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
