"""The OpenAI Responses API over Chat Completions: the stream. Pure, sans-IO.

Chat chunks in (hostile bytes, cut anywhere), Responses events out; docs/protocols/inference.md
§5.5. Output items are sequential::

    start ─ created, in_progress
      └─ item: added ─ [part added] ─ delta … ─ done ─ [part done] ─ item done ─┐
           ▲────────────────────────────────────────────────────────────────────┤
      end ◀─ completed | incomplete | failed ───────────────────────────────────┘
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from confide.errors import FormatError, LocalProtocolError
from confide.inference.digest import read_usage
from confide.inference.responses_answer import (
    call_item,
    finish_status,
    malformed,
    message_item,
    one_choice,
    parse_engine_json,
    refusal_part,
    response_object,
    text_part,
    write,
)
from confide.wire.sse import SseEvent, SseParser, encode_event

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from confide.inference.digest import Usage
    from confide.inference.responses_answer import ResponseContext
    from confide.wire.json import JsonValue
    from confide.wire.sse import SseSilence

__all__ = ["ResponsesStream"]

# From: OpenAI API reference, Chat Completions streaming: the stream ends with this data.
_DONE = b"[DONE]"
_ERROR: Mapping[str, JsonValue] = {
    "code": "server_error",
    "message": "The model engine failed to answer.",
}


class _Item:
    """The output item that is open: one message part, or one function call."""

    __slots__ = ("call_id", "index", "item_id", "kind", "name", "text", "tool_index")

    def __init__(self, kind: str, index: int, item_id: str) -> None:
        self.kind = kind  # "output_text", "refusal" or "function_call_arguments"
        self.index = index
        self.item_id = item_id
        self.text: list[str] = []
        self.name = ""
        self.call_id = ""
        self.tool_index = -1

    @property
    def whole(self) -> str:
        return "".join(self.text)

    def part(self) -> dict[str, JsonValue]:
        return refusal_part(self.whole) if self.kind == "refusal" else text_part(self.whole)

    def as_json(self, status: str) -> dict[str, JsonValue]:
        if self.kind == "function_call_arguments":
            return call_item(
                self.item_id,
                call_id=self.call_id,
                name=self.name,
                arguments=self.whole,
                status=status,
            )
        parts: list[JsonValue] = [self.part()] if status != "in_progress" else []
        return message_item(self.item_id, parts, status)


class ResponsesStream:
    """
    One stream from the engine's chat chunks to Responses events.

    `start` first, then `feed` for each chunk, then `close`; each returns bytes for the caller. A
    malformed engine does not raise here, because the caller has already been told that a response
    began: the stream ends with `response.failed`, `failed` is set, later chunks are ignored.
    """

    def __init__(self, context: ResponseContext) -> None:
        self._context = context
        self._parser = SseParser()
        self._sequence = 0
        self._output: list[JsonValue] = []
        self._item: _Item | None = None
        self._finish_reason = ""
        self.started = False
        self._ended = False
        self.usage: Usage | None = None
        self.failed = False

    def start(self) -> bytes:
        """Return the two events that open every response."""
        if self.started:
            raise LocalProtocolError("a response stream is started once")
        self.started = True
        opening: dict[str, JsonValue] = response_object(
            self._context, status="in_progress", output=[]
        )
        return self._event("response.created", response=opening) + self._event(
            "response.in_progress", response=opening
        )

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes of the engine in; return the events they cause, perhaps none."""
        if not self.started:
            raise LocalProtocolError("a response stream is fed before its start")
        if self._ended:
            return b""
        return self._advance(self._parser.feed(chunk))

    def close(self) -> bytes:
        """Say that the engine's stream has ended; return the closing events."""
        if self._ended:
            return b""
        head = self._advance(self._parser.close())
        # A lone CR at the very end may have completed the last event just now.
        if self._ended:
            return head
        return head + (self._finish() if self._finish_reason else self.fail())

    def fail(self) -> bytes:
        """Return `response.failed`: the engine broke off or cannot be understood."""
        if self._ended:
            return b""
        self._ended = self.failed = True
        output = list(self._output)
        if self._item is not None:
            output.append(self._item.as_json("incomplete"))
        whole = response_object(
            self._context, status="failed", output=output, usage=self.usage, error=_ERROR
        )
        return self._event("response.failed", response=whole)

    def _advance(self, items: Iterable[SseEvent | SseSilence]) -> bytes:
        out: list[bytes] = []
        try:
            for item in items:
                if self._ended:
                    break
                if isinstance(item, SseEvent):
                    self._chunk(item.data, out)
        except FormatError:
            out.append(self.fail())
        return b"".join(out)

    def _chunk(self, data: bytes, out: list[bytes]) -> None:
        if data == _DONE:
            out.append(self._finish() if self._finish_reason else self.fail())
            return
        chunk = parse_engine_json(data)
        if chunk.get("error") is not None:
            malformed("an error in the stream")
        self.usage = read_usage(chunk.get("usage")) or self.usage
        if not chunk.get("choices"):
            return  # the usage chunk
        delta, finish_reason = one_choice(chunk, "delta")
        for member, kind in (("content", "output_text"), ("refusal", "refusal")):
            text = delta.get(member)
            if text is not None and not isinstance(text, str):
                malformed(f"{member} is not a string")
            if text:
                self._delta(kind, text, out)
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            for call in calls:
                self._call(call, out)
        elif calls is not None:
            malformed("tool_calls is not an array")
        self._finish_reason = finish_reason or self._finish_reason

    def _delta(self, kind: str, text: str, out: list[bytes]) -> None:
        if self._item is None or self._item.kind != kind:
            self._open(kind, "msg", out)
        self._extend(text, out)

    def _call(self, call: JsonValue, out: list[bytes]) -> None:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict):
            malformed("a tool call without a function")
        index, name, arguments = (
            call.get("index", 0),
            function.get("name"),
            function.get("arguments"),
        )
        if type(index) is not int or not isinstance(arguments, str | None):
            malformed("a tool call with an odd index or arguments")
        item = self._item
        if item is None or item.kind != "function_call_arguments" or item.tool_index != index:
            if not isinstance(name, str) or not name:
                malformed("a tool call that goes on without having begun, or has no name")
            call_id = call.get("id")
            self._open(
                "function_call_arguments",
                "fc",
                out,
                name=name,
                call_id=call_id if isinstance(call_id, str) else "",
                tool_index=index,
            )
        if arguments:
            self._extend(arguments, out)

    def _open(
        self,
        kind: str,
        prefix: str,
        out: list[bytes],
        *,
        name: str = "",
        call_id: str = "",
        tool_index: int = -1,
    ) -> None:
        self._done("completed", out)
        index = len(self._output)
        item = _Item(kind, index, self._context.item_id(prefix, index))
        item.name, item.tool_index = name, tool_index
        item.call_id = call_id or self._context.item_id("call", index)
        self._item = item
        out.append(
            self._event(
                "response.output_item.added", output_index=index, item=item.as_json("in_progress")
            )
        )
        if prefix == "msg":
            out.append(self._part_event("response.content_part.added", item))

    def _extend(self, text: str, out: list[bytes]) -> None:
        item = self._item
        if item is None:  # pragma: no cover - callers open first
            raise LocalProtocolError("a delta without an item")
        item.text.append(text)
        # The one event that comes per token: written without building an object for it.
        place = "" if item.kind == "function_call_arguments" else '"content_index":0,'
        logprobs = ',"logprobs":[]' if item.kind == "output_text" else ""
        name = f"response.{item.kind}.delta"
        out.append(
            (
                f'event: {name}\ndata: {{"type":"{name}","sequence_number":{self._sequence},'
                f'"item_id":"{item.item_id}","output_index":{item.index},{place}'
                f'"delta":{json.dumps(text)}{logprobs}}}\n\n'
            ).encode()
        )
        self._sequence += 1

    def _done(self, status: str, out: list[bytes]) -> None:
        item = self._item
        if item is None:
            return
        where: dict[str, object] = {"item_id": item.item_id, "output_index": item.index}
        if item.kind == "function_call_arguments":
            out.append(
                self._event(
                    "response.function_call_arguments.done",
                    **where,
                    arguments=item.whole,
                )
            )
        else:
            said: dict[str, object] = (
                {"refusal": item.whole}
                if item.kind == "refusal"
                else {"text": item.whole, "logprobs": []}
            )
            out.append(self._event(f"response.{item.kind}.done", **where, content_index=0, **said))
            out.append(self._part_event("response.content_part.done", item))
        whole = item.as_json(status)
        out.append(self._event("response.output_item.done", output_index=item.index, item=whole))
        self._output.append(whole)
        self._item = None

    def _finish(self) -> bytes:
        self._ended = True
        out: list[bytes] = []
        status, incomplete = finish_status(self._finish_reason)
        if self._item is None and not self._output:
            self._open("output_text", "msg", out)
        self._done(status, out)
        whole = response_object(
            self._context,
            status=status,
            output=self._output,
            usage=self.usage,
            incomplete=incomplete,
        )
        out.append(self._event(f"response.{status}", response=whole))
        return b"".join(out)

    def _part_event(self, name: str, item: _Item) -> bytes:
        return self._event(
            name, item_id=item.item_id, output_index=item.index, content_index=0, part=item.part()
        )

    def _event(self, name: str, **members: object) -> bytes:
        members = {"type": name, "sequence_number": self._sequence, **members}
        self._sequence += 1
        return encode_event(write(members), name=name)
