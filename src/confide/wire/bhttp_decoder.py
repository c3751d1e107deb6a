"""Read Binary HTTP (RFC 9292) in pieces, known and indeterminate length; profile channel.md §3.

Content surfaces as it arrives. An event may be surfaced before a later byte proves the message
malformed: the owner of the seal decides what is complete.
"""

from __future__ import annotations

from enum import Enum, auto

from confide.errors import Reason
from confide.wire.bhttp import (
    AUTHORITY,
    METHOD,
    PATH,
    SCHEME,
    BhttpEvent,
    BhttpLimits,
    Content,
    End,
    Fields,
    MessageKind,
    RequestHead,
    ResponseHead,
    ascii_text,
    bhttp_error,
    checked_field,
    too_large,
)
from confide.wire.reader import Reader
from confide.wire.varint import ByteQueue, read_varint

__all__ = ["BhttpDecoder"]

_CLAUSE = "RFC 9292 §3"


class _State(Enum):
    FRAMING = auto()
    HEAD = auto()
    CONTENT = auto()
    IN_CONTENT = auto()
    TRAILERS = auto()
    PADDING = auto()
    ENDED = auto()


class _Incomplete(Exception):
    """A section has not arrived as a whole; it has at least `needed` bytes. Never leaves here."""

    def __init__(self, needed: int) -> None:
        self.needed = needed
        super().__init__()


class _SectionReader(Reader):
    """A `Reader` over what has arrived so far: short input means wait, not malformed."""

    __slots__ = ()

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes or wait for them."""
        start, end = self._pos, self._pos + count
        if end > self._end:
            raise _Incomplete(end)
        self._pos = end
        return self._raw[start:end]

    def u8(self) -> int:
        """Return one byte or wait for it."""
        start = self._pos
        if start >= self._end:
            raise _Incomplete(start + 1)
        self._pos = start + 1
        return self._raw[start]


class BhttpDecoder:
    """
    Read one message in pieces. `feed` returns events; `end` says that no byte follows.

    Holds one section (control data and fields, or trailers) at most, never content. After a
    `FormatError` the decoder is useless.
    """

    __slots__ = (
        "_announced",
        "_content_bytes",
        "_indeterminate",
        "_informational",
        "_kind",
        "_left",
        "_limits",
        "_needed",
        "_padding",
        "_queue",
        "_state",
    )

    def __init__(self, kind: MessageKind, limits: BhttpLimits | None = None) -> None:
        self._kind = kind
        self._limits = limits or BhttpLimits()
        self._queue = ByteQueue()
        self._state = _State.FRAMING
        self._indeterminate = False
        self._left = 0
        self._content_bytes = 0
        self._informational = 0
        self._padding = 0
        self._announced: int | None = None
        self._needed = 1

    def feed(self, data: bytes) -> tuple[BhttpEvent, ...]:
        """Add `data`; return what it completes. Content surfaces at once, in the given cuts."""
        if self._state is _State.ENDED:
            raise bhttp_error("bytes after the end")
        self._queue.append(data)
        events: list[BhttpEvent] = []
        while self._step(events):
            pass
        return tuple(events)

    def end(self) -> tuple[BhttpEvent, ...]:
        """
        The message has no more bytes: return `End`, once.

        Raises `FormatError` when it was cut anywhere but after a section with only empty ones
        following (RFC 9292 §3.8).
        """
        state, self._state = self._state, _State.ENDED
        if state is _State.PADDING:
            return ()
        if state is _State.HEAD and len(self._queue):
            return self._end_after_control()
        # Content without its terminator is cut content; no content at all is an empty section.
        unfinished = state is _State.CONTENT and self._content_bytes
        if len(self._queue) or unfinished or state not in {_State.CONTENT, _State.TRAILERS}:
            raise bhttp_error("the message ends inside a section", "RFC 9292 §3.8")
        return self._finish(())

    # Each step consumes something and returns True, or needs more bytes and returns False.

    def _step(self, events: list[BhttpEvent]) -> bool:
        match self._state:
            case _State.FRAMING:
                return self._framing()
            case _State.HEAD:
                return self._head(events)
            case _State.CONTENT:
                return self._content_length()
            case _State.IN_CONTENT:
                return self._content(events)
            case _State.TRAILERS:
                return self._trailers(events)
            case _:
                return self._pad()

    def _framing(self) -> bool:
        indicator = self._queue.take_varint()
        if indicator is None:
            return False
        expected = {MessageKind.REQUEST: (0, 2), MessageKind.RESPONSE: (1, 3)}[self._kind]
        if indicator not in expected:
            raise bhttp_error("another framing indicator", "RFC 9292 §3.3")
        self._indeterminate = indicator >= 2
        self._state = _State.HEAD
        return True

    def _section(self, *, ended: bool) -> _SectionReader | None:
        # A section is parsed again from its start once the element it stopped at can be there:
        # a peer that sends single bytes causes one attempt per element, not one per byte.
        if not ended and len(self._queue) < self._needed:
            return None
        return _SectionReader(
            self._queue.peek(self._limits.max_field_bytes + 1),
            what="binary HTTP",
            clause=_CLAUSE,
            truncated=Reason.CHANNEL_FORMAT,
        )

    def _consume(self, reader: _SectionReader) -> None:
        if reader.offset > self._limits.max_field_bytes:
            raise too_large("a field section")
        self._queue.take(reader.offset)
        self._needed = 1

    def _wait(self, needed: int) -> bool:
        if needed > self._limits.max_field_bytes:
            raise too_large("a field section")
        self._needed = needed
        return False

    def _fields(self, reader: _SectionReader) -> Fields:
        if self._indeterminate:
            return self._field_lines(reader, None)
        size = read_varint(reader)
        if size > self._limits.max_field_bytes:
            raise too_large("a field section")
        section = reader.take(size)
        inner = Reader(
            section, what="binary HTTP", clause="RFC 9292 §3.6", truncated=Reason.CHANNEL_FORMAT
        )
        return self._field_lines(inner, size)

    def _field_lines(self, reader: Reader, size: int | None) -> Fields:
        found: list[tuple[bytes, bytes]] = []
        while size is None or reader.remaining:
            length = read_varint(reader)
            if length == 0 and size is None:
                break
            name = reader.take(length)
            found.append(checked_field(name, reader.take(read_varint(reader))))
            if len(found) > self._limits.max_fields:
                raise too_large("the number of fields")
        return tuple(found)

    def _control(self, reader: _SectionReader) -> tuple[str, str, str, str] | int:
        if self._kind is MessageKind.RESPONSE:
            status = read_varint(reader)
            if not 100 <= status <= 599:
                raise bhttp_error("a status outside 100 to 599", "RFC 9292 §3.5")
            return status
        method, scheme, authority, path = (reader.take(read_varint(reader)) for _ in range(4))
        return (
            ascii_text(METHOD, method, "the method"),
            ascii_text(SCHEME, scheme, "the scheme"),
            ascii_text(AUTHORITY, authority, "the authority"),
            ascii_text(PATH, path, "the path"),
        )

    def _head(self, events: list[BhttpEvent]) -> bool:
        reader = self._section(ended=False)
        if reader is None:
            return False
        try:
            control = self._control(reader)
            fields = self._fields(reader)
        except _Incomplete as wait:
            return self._wait(wait.needed)
        self._consume(reader)
        events.append(self._head_event(control, fields))
        return True

    def _head_event(self, control: tuple[str, str, str, str] | int, fields: Fields) -> BhttpEvent:
        if isinstance(control, int):
            if control < 200:
                self._informational += 1
                if self._informational > self._limits.max_informational:
                    raise too_large("the number of informational responses")
            else:
                self._state = _State.CONTENT
            return ResponseHead(control, fields)
        self._state = _State.CONTENT
        self._announced = _content_length(fields)
        return RequestHead(*control, fields)

    def _end_after_control(self) -> tuple[BhttpEvent, ...]:
        # The whole header section may be missing too, as in the examples of RFC 9458.
        reader = self._section(ended=True)
        if reader is None:  # pragma: no cover - `ended` always gives a reader
            raise bhttp_error("the message ends inside a section")
        try:
            control = self._control(reader)
        except _Incomplete:
            raise bhttp_error("the message ends inside its control data", "RFC 9292 §3.8") from None
        if reader.remaining or (isinstance(control, int) and control < 200):
            raise bhttp_error("the message ends inside its fields", "RFC 9292 §3.8")
        return (self._head_event(control, ()), *self._finish(()))

    def _content_length(self) -> bool:
        length = self._queue.take_varint()
        if length is None:
            return False
        self._content_bytes += length
        if self._content_bytes > self._limits.max_content_bytes:
            raise too_large("the content")
        self._left = length
        self._state = _State.IN_CONTENT if length else _State.TRAILERS
        return True

    def _content(self, events: list[BhttpEvent]) -> bool:
        count = min(self._left, len(self._queue))
        if not count:
            return False
        events.append(Content(self._queue.take(count)))
        self._left -= count
        if not self._left:
            self._state = _State.CONTENT if self._indeterminate else _State.TRAILERS
        return True

    def _trailers(self, events: list[BhttpEvent]) -> bool:
        reader = self._section(ended=False)
        if reader is None:
            return False
        try:
            trailers = self._fields(reader)
        except _Incomplete as wait:
            return self._wait(wait.needed)
        self._consume(reader)
        events.extend(self._finish(trailers))
        self._state = _State.PADDING
        return True

    def _finish(self, trailers: Fields) -> tuple[End]:
        if self._announced is not None and self._announced != self._content_bytes:
            raise bhttp_error("content-length is not the length of the content", "RFC 9110 §8.6")
        return (End(trailers),)

    def _pad(self) -> bool:
        padding = self._queue.take(len(self._queue))
        self._padding += len(padding)
        if self._padding > self._limits.max_padding_bytes:
            raise too_large("the padding")
        if padding.strip(b"\0"):
            raise bhttp_error("padding that is not zero", "RFC 9292 §3.8")
        return False


def _content_length(fields: Fields) -> int | None:
    values = {value for name, value in fields if name == b"content-length"}
    if not values:
        return None
    value = values.pop()
    if values or not value.isdigit() or len(value) > 15:
        raise bhttp_error("content-length is not one number", "RFC 9110 §8.6")
    return int(value)
