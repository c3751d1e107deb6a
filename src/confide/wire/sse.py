"""Server-sent events: an incremental, bounded, sans-IO parser, and an encoder.

Source: WHATWG HTML Living Standard §9.2.5 (parsing) and §9.2.6 (interpreting). The bytes are
hostile. Every byte fed in comes out again as `raw` of exactly one item, or is left in `tail`:
whoever hashes or forwards the items hashes and forwards the stream. The items do not depend on
how the stream was cut into chunks.

Differences from the standard, decided here: `data` stays bytes (its reader decides what UTF-8
means), and blocks that dispatch nothing are reported as `SseSilence` so that no byte is lost.
Not done here: reconnection, `last-event-id` memory, any meaning of the data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import FormatError, LocalProtocolError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SseEvent", "SseLimits", "SseParser", "SseSilence", "encode_event"]

# From: WHATWG HTML §9.2.5, end-of-line = ( CR LF / CR / LF ).
_LINE_END = re.compile(rb"\r\n|\n|\r")
# From: WHATWG HTML §9.2.5, stream = [ bom ] *event.
_BOM = b"\xef\xbb\xbf"
_CLAUSE = "WHATWG HTML §9.2.5"


@dataclass(frozen=True, slots=True)
class SseLimits:
    """Caps on a hostile stream; a chat chunk is below 1 KiB, a whole-response event below 4 MiB."""

    max_line_bytes: int = 4 * 1024 * 1024
    max_event_bytes: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SseEvent:
    """
    One dispatched event.

    `name` is the event type ("" where none was given), `data` the data lines joined by LF,
    `last_id` the id this block set (None where it set none), `raw` the exact bytes of the block,
    comments and the blank line included.
    """

    name: str
    data: bytes
    last_id: str | None
    raw: bytes


@dataclass(frozen=True, slots=True)
class SseSilence:
    """A block that dispatches nothing: comments, a lone blank line, fields without data."""

    raw: bytes


class SseParser:
    """
    Bytes in, frozen items out.

    Iterate what `feed` returns; items left in it come with the next call. A block ended by a lone
    CR is held until the next byte or `close`, because an LF may still belong to it. Raises
    `FormatError` (`stream-format`) when a line or an event is above its cap, after the items
    before it have been handed out.
    """

    __slots__ = ("_at", "_block", "_buffer", "_closed", "_limits", "_line", "_lines", "_started")

    def __init__(self, limits: SseLimits | None = None) -> None:
        self._limits = limits or SseLimits()
        self._buffer = bytearray()
        self._block = 0  # where the current block begins
        self._line = 0  # where the current line begins
        self._at = 0  # no line end before this offset
        self._lines: list[bytes] = []
        self._started = False
        self._closed = False

    @property
    def tail(self) -> bytes:
        """The bytes that belong to no item: an unfinished block. The standard discards them."""
        return bytes(self._buffer[self._block :])

    def feed(self, chunk: bytes) -> Iterator[SseEvent | SseSilence]:
        """Take `chunk` in and return an iterator over the items that are now complete."""
        if self._closed:
            raise LocalProtocolError("an event stream was fed after its end")
        self._buffer += chunk
        return self._drain()

    def close(self) -> Iterator[SseEvent | SseSilence]:
        """Say that the stream has ended; returns what a final lone CR completes."""
        self._closed = True
        return self._drain()

    def _drain(self) -> Iterator[SseEvent | SseSilence]:
        if not self._started and not self._skip_bom():
            return
        while (end := self._next_line_end()) is not None:
            line = bytes(self._buffer[self._line : end[0]])
            self._line = self._at = end[1]
            if line:
                self._lines.append(line)
                continue
            raw = bytes(self._buffer[self._block : end[1]])
            lines, self._lines = self._lines, []
            self._block = end[1]
            yield _interpret(lines, raw)
        # Compacted once per feed, not once per event: linear in the size of the stream.
        del self._buffer[: self._block]
        self._line -= self._block
        self._at -= self._block
        self._block = 0

    def _skip_bom(self) -> bool:
        head = bytes(self._buffer[:3])
        if len(head) < 3 and _BOM.startswith(head) and not self._closed:
            return False
        self._started = True
        if head == _BOM:
            # The BOM stays in the first block's raw; only its first line begins after it.
            self._line = self._at = 3
        return True

    def _next_line_end(self) -> tuple[int, int] | None:
        found = _LINE_END.search(self._buffer, self._at)
        if found is None:
            self._at = len(self._buffer)
            self._bound(self._at - self._line, self._limits.max_line_bytes, "a line")
            self._bound(self._at - self._block, self._limits.max_event_bytes, "an event")
            return None
        start, end = found.span()
        # A CR at the end of what we have may be half of a CRLF.
        lone_cr = end - start == 1 and self._buffer[start] == 0x0D
        if lone_cr and end == len(self._buffer) and not self._closed:
            self._at = start
            return None
        self._bound(start - self._line, self._limits.max_line_bytes, "a line")
        self._bound(end - self._block, self._limits.max_event_bytes, "an event")
        return start, end

    def _bound(self, size: int, cap: int, what: str) -> None:
        if size > cap:
            raise FormatError(
                f"event stream: {what} above {cap} bytes",
                reason=Reason.STREAM_FORMAT,
                clause=_CLAUSE,
            )


def _interpret(lines: list[bytes], raw: bytes) -> SseEvent | SseSilence:
    # From: WHATWG HTML §9.2.6: field, colon, at most one space, value; unknown fields ignored.
    name = b""
    data: list[bytes] = []
    last_id: str | None = None
    for line in lines:
        field, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field == b"id" and b"\0" not in value:
            last_id = value.decode("utf-8", "replace")
    # From: WHATWG HTML §9.2.6: "If the data buffer is an empty string" nothing is dispatched. One
    # empty data line leaves just its LF in the buffer, so it does dispatch, with empty data.
    if not data:
        return SseSilence(raw)
    return SseEvent(name.decode("utf-8", "replace"), b"\n".join(data), last_id, raw)


def encode_event(data: bytes, *, name: str = "", event_id: str | None = None) -> bytes:
    """
    Return one event block; every line of `data` becomes a data line.

    Line ends inside `data` come out as LF, which is all the format can say. Raises `ValueError`
    for a `name` or `event_id` that would end its own line.
    """
    head = f"event: {name}\n" if name else ""
    if event_id is not None:
        head += f"id: {event_id}\n"
    if "\r" in head or "\0" in head or head.count("\n") != bool(name) + (event_id is not None):
        raise ValueError("an event name or id holds a line end")
    if b"\n" not in data and b"\r" not in data:
        return b"%sdata: %s\n\n" % (head.encode(), data)
    lines = _LINE_END.split(data)
    return head.encode() + b"".join(b"data: %s\n" % line for line in lines) + b"\n"
