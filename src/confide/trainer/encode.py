"""Rows as tokens: what the model reads, and which of it the model is to learn.

docs/protocols/training.md 9.1. Rows were validated before (dataset.md §1); errors name the line and
hold no text of it. The text is written once and tokenised once: what is learnt is told by where
characters stand, so that no token is learnt that training alone would produce.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import jinja2

from confide.errors import ConfigurationError, FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerFast

    from confide.training.recipe import TooLong
    from confide.training.row_shapes import Kind

__all__ = ["Encoded", "Example", "RowEncoder"]

_Message: TypeAlias = dict[str, Any]
# What a template is told when it asks: its answer would change from day to day.
_NO_CLOCK = "no_clock"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one text; `learn` has a 1 for each token whose prediction is trained."""

    ids: array[int] = field(repr=False)
    learn: bytes = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)


# One text, or with preferences the chosen one and the rejected one.
Example: TypeAlias = tuple[Encoded, ...]
_Spans: TypeAlias = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Turns the records of one kind into examples of at most `sequence_len` tokens a text."""

    tokenizer: PreTrainedTokenizerFast
    kind: Kind
    sequence_len: int
    too_long: TooLong

    def encode(self, index: int, record: bytes) -> Example:
        """
        Return the example of the row at `index`, which counts from 0.

        Raises `FormatError` for a row that is too long, that the template cannot write, or in which
        nothing is left to learn; `ConfigurationError` where the template itself is at fault.
        """
        row = json.loads(record)
        return tuple(self._cut(index, encoded) for encoded in self._texts(index, row))

    def _texts(self, index: int, row: dict[str, Any]) -> Iterator[Encoded]:
        if self.kind == "chat":
            learnt = [message.get("weight", 1) == 1 for message in row["messages"]]
            yield self._conversation(index, row["messages"], learnt, row.get("tools") or None)
        elif self.kind == "completion":
            yield self._answer(index, row["prompt"], row["completion"], None)
        elif "input" in row:
            given = row["input"]
            for name in ("preferred_output", "non_preferred_output"):
                yield self._answer(index, given["messages"], row[name], given.get("tools") or None)
        else:
            for name in ("chosen", "rejected"):
                yield self._answer(index, row["prompt"], row[name], None)

    def _answer(
        self,
        index: int,
        prompt: str | list[_Message],
        answer: str | list[_Message],
        tools: list[_Message] | None,
    ) -> Encoded:
        if isinstance(prompt, str) and isinstance(answer, str):
            return self._tokens(prompt + answer, [(len(prompt), len(prompt) + len(answer))])
        if isinstance(prompt, str) or isinstance(answer, str):
            _refuse(index, "a text beside a list of messages")
        learnt = [False] * len(prompt) + [True] * len(answer)
        return self._conversation(index, [*prompt, *answer], learnt, tools)

    def _tokens(self, text: str, spans: _Spans) -> Encoded:
        """Encode a text without a template: with the tokenizer's own beginning, and an end."""
        encoded = self._learn(text, spans, special=True)
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ConfigurationError("model folder: its tokenizer has no end token")
        if encoded.ids[-1] == end:
            return Encoded(encoded.ids, encoded.learn[:-1] + b"\1")
        return Encoded(encoded.ids + array("i", [end]), encoded.learn + b"\1")

    def _conversation(
        self, index: int, messages: list[_Message], learnt: list[bool], tools: list[_Message] | None
    ) -> Encoded:
        """Encode a conversation; what its `assistant` says is learnt where `learnt` allows it."""
        plain = [_plain(message) for message in messages]
        wanted = [
            at for at, message in enumerate(plain) if message["role"] == "assistant" and learnt[at]
        ]
        whole = self._write(index, plain, tools)
        spans: _Spans = []
        for at in wanted:
            before = self._write(index, plain[:at], tools, ask=True) if at else ""
            last = at + 1 == len(plain)
            upto = whole if last else self._write(index, plain[: at + 1], tools)
            if not upto.startswith(before) or not whole.startswith(upto):
                _refuse(
                    index,
                    "the chat template writes this conversation otherwise than its beginning; "
                    "give earlier answers the weight 0",
                )
            spans.append((len(before), len(upto)))
        return self._learn(whole, spans, special=False)

    def _learn(self, text: str, spans: _Spans, *, special: bool) -> Encoded:
        made = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        learn = bytearray(len(made["input_ids"]))
        pending = iter(spans)
        begin, end = next(pending, (0, 0))
        for at, (start, stop) in enumerate(made["offset_mapping"]):
            while start >= end and begin < end:
                begin, end = next(pending, (0, 0))
            learn[at] = begin <= start < stop <= end
        return Encoded(array("i", made["input_ids"]), bytes(learn))

    def _write(
        self,
        index: int,
        messages: Sequence[_Message],
        tools: list[_Message] | None,
        *,
        ask: bool = False,
    ) -> str:
        template = self.tokenizer.chat_template
        if not isinstance(template, str):
            raise ConfigurationError("model folder: its tokenizer has no chat template, or several")
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=template.replace("strftime_now", _NO_CLOCK),
                tokenize=False,
                add_generation_prompt=ask,
            )
        except (jinja2.TemplateError, TypeError, ValueError):
            # Its words may quote the row.
            _refuse(index, "the chat template of the model does not take this conversation")
        return str(text)

    def _cut(self, index: int, encoded: Encoded) -> Encoded:
        if len(encoded) > self.sequence_len:
            if self.too_long == "raise":
                _refuse(
                    index,
                    f"{len(encoded)} tokens, at most {self.sequence_len}; raise sequence_len or "
                    'write excess_length_strategy = "truncate"',
                )
            encoded = Encoded(encoded.ids[: self.sequence_len], encoded.learn[: self.sequence_len])
        # Nothing stands before the first token that it could be predicted from.
        if 1 not in encoded.learn[1:]:
            _refuse(index, "nothing in it is left to learn")
        return Encoded(encoded.ids, b"\0" + encoded.learn[1:])


def _plain(message: _Message) -> _Message:
    """Return a message as templates expect it: one text, arguments of calls as an object."""
    plain = {name: value for name, value in message.items() if name != "weight"}
    if isinstance(plain.get("content"), list):
        plain["content"] = "".join(part["text"] for part in plain["content"])
    if "tool_calls" in plain:
        plain["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _arguments(call["function"])}}
            for call in plain["tool_calls"]
        ]
    return plain


def _arguments(function: _Message) -> object:
    try:
        value = json.loads(function["arguments"])
    except ValueError:
        return function["arguments"]
    return value if isinstance(value, dict) else function["arguments"]


def _refuse(index: int, why: str) -> NoReturn:
    raise FormatError(f"line {index + 1}: {why}", reason=Reason.ROW_FORMAT, clause="training.md §9")
