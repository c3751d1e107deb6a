"""The Anthropic Messages API over Chat Completions: answers, whole and streamed. Pure, sans-IO.

docs/protocols/client.md 8.6 and 8.7. Chat answers in (hostile bytes, cut anywhere), messages out.
Blocks are sequential: one ends before the next begins::

    message_start ─ [content_block_start ─ content_block_delta … ─ content_block_stop] …
                  ─ message_delta ─ message_stop
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from confide.errors import LocalProtocolError
from confide.inference.digest import Usage, read_usage
from confide.inference.responses_answer import malformed, one_choice, parse_engine_json, write
from confide.wire.sse import SseEvent, SseParser, encode_event

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from confide.wire.json import JsonValue
    from confide.wire.sse import SseSilence

__all__ = ["MessagesStream", "count_body", "message_body"]

_DONE = b"[DONE]"
# From: 8.6, finish_reason of chat to stop_reason of messages; whatever else is an end.
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def _stop_reason(finish_reason: str) -> str:
    return _REASONS.get(finish_reason, "end_turn")


def _usage(usage: Usage | None) -> dict[str, JsonValue]:
    found = usage or Usage(0, 0)
    return {"input_tokens": found.input_tokens, "output_tokens": found.output_tokens}


def _message(message_id: str, model: str, content: list[JsonValue]) -> dict[str, JsonValue]:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(None),
    }


def message_body(raw: bytes, *, message_id: str, model: str) -> bytes:
    """Return the message that a whole chat answer means. Raises `FormatError`."""
    answer = parse_engine_json(raw)
    said, finish_reason = one_choice(answer, "message")
    content: list[JsonValue] = []
    text = said.get("content") or said.get("refusal")
    if text is not None and not isinstance(text, str):
        malformed("content is not a string")
    if text:
        content.append({"type": "text", "text": text})
    calls = said.get("tool_calls") or []
    if not isinstance(calls, list):
        malformed("tool_calls is not an array")
    content += [_tool_use(call) for call in calls]
    return write(
        {
            **_message(message_id, model, content),
            "stop_reason": _stop_reason(finish_reason),
            "usage": _usage(read_usage(answer.get("usage"))),
        }
    )


def count_body(raw: bytes) -> bytes:
    """Return the token count that the usage of a chat answer is. Raises `FormatError`."""
    usage = read_usage(parse_engine_json(raw).get("usage"))
    if usage is None:
        malformed("no usage, so nothing was counted")
    return write({"input_tokens": usage.input_tokens})


def _tool_use(call: JsonValue) -> JsonValue:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        malformed("a tool call without a function")
    call_id, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
    if not isinstance(call_id, str) or not isinstance(name, str) or not isinstance(arguments, str):
        malformed("a tool call without id, name or arguments")
    given = parse_engine_json(arguments.encode()) if arguments.strip() else {}
    return {"type": "tool_use", "id": call_id, "name": name, "input": given}


class MessagesStream:
    """
    One stream from chat chunks to events of the Messages API.

    `feed` for each chunk, then `close`; each returns bytes for the caller. Raises `FormatError`
    for a stream that cannot be understood or that ends without a reason.
    """

    def __init__(self, *, message_id: str, model: str) -> None:
        self._message_id = message_id
        self._model = model
        self._parser = SseParser()
        self._started = False
        self._ended = False
        # The block that is open: its index, and the tool call that it is, -1 for text.
        self._index = -1
        self._open: int | None = None
        self._finish_reason = ""
        self._usage: Usage | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes of the chat stream; return the events they cause."""
        if self._ended:
            raise LocalProtocolError("a stream was fed after its end")
        return self._advance(self._parser.feed(chunk))

    def close(self) -> bytes:
        """Say that the stream has ended, in order and verified; return the closing events."""
        rest = self._advance(self._parser.close())
        if not self._finish_reason:
            malformed("a stream that ends without a finish_reason")
        self._ended = True
        out = [self._start(), rest, self._end_block()]
        delta = {"stop_reason": _stop_reason(self._finish_reason), "stop_sequence": None}
        out.append(self._event("message_delta", delta=delta, usage=_usage(self._usage)))
        out.append(self._event("message_stop"))
        return b"".join(out)

    def _advance(self, items: Iterable[SseEvent | SseSilence]) -> bytes:
        out: list[bytes] = []
        for item in items:
            if isinstance(item, SseEvent) and item.data != _DONE:
                self._chunk(parse_engine_json(item.data), out)
        return b"".join(out)

    def _chunk(self, chunk: Mapping[str, JsonValue], out: list[bytes]) -> None:
        if chunk.get("error") is not None:
            malformed("an error in the stream")
        out.append(self._start())
        self._usage = read_usage(chunk.get("usage")) or self._usage
        if not chunk.get("choices"):
            return
        delta, finish_reason = one_choice(chunk, "delta")
        for member in ("content", "refusal"):
            text = delta.get(member)
            if text is not None and not isinstance(text, str):
                malformed(f"{member} is not a string")
            if text:
                self._text(text, out)
        calls = delta.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            malformed("tool_calls is not an array")
        for call in calls or ():
            self._call(call, out)
        self._finish_reason = finish_reason or self._finish_reason

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return self._event("message_start", message=_message(self._message_id, self._model, []))

    def _text(self, text: str, out: list[bytes]) -> None:
        if self._open != -1:
            self._begin(-1, {"type": "text", "text": ""}, out)
        # The one event that comes per token: written without building an object for it.
        out.append(
            f"event: content_block_delta\ndata: "
            f'{{"type":"content_block_delta","index":{self._index},'
            f'"delta":{{"type":"text_delta","text":{json.dumps(text)}}}}}\n\n'.encode()
        )

    def _call(self, call: JsonValue, out: list[bytes]) -> None:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict):
            malformed("a tool call without a function")
        index, arguments = call.get("index", 0), function.get("arguments")
        if type(index) is not int or index < 0 or not isinstance(arguments, str | None):
            malformed("a tool call with an odd index or arguments")
        if self._open != index:
            call_id, name = call.get("id"), function.get("name")
            if not isinstance(call_id, str) or not isinstance(name, str) or not name:
                malformed("a tool call that goes on without having begun")
            self._begin(index, {"type": "tool_use", "id": call_id, "name": name, "input": {}}, out)
        if arguments:
            delta = {"type": "input_json_delta", "partial_json": arguments}
            out.append(self._event("content_block_delta", index=self._index, delta=delta))

    def _begin(self, which: int, block: Mapping[str, JsonValue], out: list[bytes]) -> None:
        out.append(self._end_block())
        self._index += 1
        self._open = which
        out.append(self._event("content_block_start", index=self._index, content_block=block))

    def _end_block(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return self._event("content_block_stop", index=self._index)

    @staticmethod
    def _event(name: str, **members: object) -> bytes:
        return encode_event(write({"type": name, **members}), name=name)
