"""HTTP messages through one exchange, sans-IO: stamp, replay, padding, cells (channel.md §3-§7).

`ClientMessages` and `NodeMessages` stand between Binary HTTP events and the sealed bytes of one
`Exchange`. Both withhold `End` until the final chunk opened, so an event named `End` is proof
that the message is whole. Everything the peer does wrong is `RemoteProtocolError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from confide.channel.events import ExchangeLimits
from confide.channel.exchange import Exchange
from confide.channel.padding import (
    CADENCE_FIELD,
    CELLS_FIELD,
    CellDecoder,
    PaddingPolicy,
    StreamShape,
    encode_cell,
    encode_cells,
    parse_cadence,
    parse_cell_bytes,
)
from confide.channel.pieces import MessageReader, MessageWriter
from confide.channel.replay import NONCE_BYTES, ReplayWindow
from confide.errors import FormatError, LocalProtocolError, Reason, RemoteProtocolError
from confide.wire.bhttp import (
    BhttpEvent,
    BhttpLimits,
    Content,
    End,
    Fields,
    MessageKind,
    RequestHead,
    ResponseHead,
    encode_content,
    encode_end,
    encode_known_request,
    encode_request_head,
    encode_response_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.channel.keys import KeyRing, RecipientKey

__all__ = [
    "INNER_AUTHORITY",
    "NONCE_FIELD",
    "TIME_FIELD",
    "ClientMessages",
    "MessageLimits",
    "NodeMessages",
    "Stamp",
    "parse_stamp",
]

# From: channel.md 3.3; RFC 6761 §6.4: `.invalid` resolves nowhere.
INNER_AUTHORITY = "confide.invalid"
# From: channel.md 4.1.
NONCE_FIELD = b"confide-nonce"
TIME_FIELD = b"confide-time"
_NONCE = re.compile(rb"[0-9a-f]{64}\Z")
_TIME = re.compile(rb"[1-9][0-9]{0,10}\Z")
_OWN_FIELDS = frozenset({NONCE_FIELD, TIME_FIELD, CELLS_FIELD, CADENCE_FIELD})


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """All caps of one exchange, in one place."""

    exchange: ExchangeLimits = field(default_factory=ExchangeLimits)
    message: BhttpLimits = field(default_factory=BhttpLimits)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What makes a request unique and datable. `nonce` is 32 random bytes, `issued_at` aware."""

    nonce: bytes
    issued_at: datetime

    def __post_init__(self) -> None:
        if len(self.nonce) != NONCE_BYTES or self.issued_at.tzinfo is None:
            raise ValueError("a stamp is 32 bytes and an aware time")

    def fields(self) -> Fields:
        """Return the two fields of channel.md 4.1."""
        seconds = int(self.issued_at.timestamp())
        return ((NONCE_FIELD, self.nonce.hex().encode()), (TIME_FIELD, str(seconds).encode()))


def parse_stamp(fields: Fields) -> Stamp:
    """Return the stamp in `fields`; `FormatError` unless both stand there exactly once."""
    nonces = [value for name, value in fields if name == NONCE_FIELD]
    times = [value for name, value in fields if name == TIME_FIELD]
    if len(nonces) != 1 or len(times) != 1:
        raise _malformed("a nonce and a time, each once, were expected")
    if not _NONCE.match(nonces[0]) or not _TIME.match(times[0]):
        raise _malformed("the nonce or the time is not as specified")
    issued_at = datetime.fromtimestamp(int(times[0]), UTC)
    return Stamp(bytes.fromhex(nonces[0].decode("ascii")), issued_at)


def _malformed(what: str) -> FormatError:
    return FormatError(
        f"request stamp: {what}", reason=Reason.CHANNEL_FORMAT, clause="channel.md 4.1"
    )


def _remote(error: FormatError) -> RemoteProtocolError:
    too_large = error.reason is Reason.LIMIT_EXCEEDED
    return RemoteProtocolError(
        "the sealed message is malformed",
        reason=error.reason,
        status_hint=413 if too_large else 400,
    )


class ClientMessages:
    """
    The client's end: seal one request, open one response.

    `ephemeral` and the stamp's nonce are fresh random bytes. With `cell_bytes` the response
    content must come in cells of that size, with `cadence_ms` a stream in time with it. **Does
    not check** that `recipient` was attested.
    """

    __slots__ = (
        "_cadence_ms",
        "_cell_bytes",
        "_cells",
        "_receiver",
        "_stamp",
        "_writer",
        "exchange",
    )

    def __init__(
        self,
        recipient: RecipientKey,
        *,
        ephemeral: bytes,
        stamp: Stamp,
        padding: PaddingPolicy,
        limits: MessageLimits,
        cell_bytes: int | None = None,
        cadence_ms: int | None = None,
    ) -> None:
        if cadence_ms is not None and cell_bytes is None:
            raise LocalProtocolError("a cadence is one of cells")
        self.exchange = Exchange.client(recipient, ephemeral=ephemeral, limits=limits.exchange)
        self._stamp = stamp
        self._writer = MessageWriter(self.exchange, padding)
        self._receiver = MessageReader(self.exchange, MessageKind.RESPONSE, limits.message)
        self._cell_bytes = cell_bytes
        self._cadence_ms = cadence_ms
        self._cells: CellDecoder | None = None

    def _head(self, method: str, path: str, fields: Fields) -> RequestHead:
        if any(name in _OWN_FIELDS for name, _ in fields):
            raise LocalProtocolError("the fields of the channel are not the caller's to set")
        own = self._stamp.fields()
        if self._cell_bytes is not None:
            own += ((CELLS_FIELD, b"%d" % self._cell_bytes),)
        if self._cadence_ms is not None:
            own += ((CADENCE_FIELD, b"%d" % self._cadence_ms),)
        return RequestHead(method, "https", INNER_AUTHORITY, path, own + fields)

    def seal_whole(self, method: str, path: str, fields: Fields, content: bytes) -> bytes:
        """Return the whole sealed request."""
        return self._writer.finish(encode_known_request(self._head(method, path, fields), content))

    def seal_head(self, method: str, path: str, fields: Fields) -> bytes:
        """Start a streamed request: return its head, sealed."""
        return self._writer.write(encode_request_head(self._head(method, path, fields)))

    def seal_content(self, data: bytes) -> bytes:
        """Return one sealed chunk for `data`, nothing for nothing."""
        return self._writer.write(encode_content(data))

    def seal_end(self) -> bytes:
        """End a streamed request."""
        return self._writer.finish(encode_end())

    def receive(self, data: bytes) -> tuple[ResponseHead | Content, ...]:
        """Take bytes of the response; informational responses are passed over."""
        return self._translated(lambda: self._receiver.receive(data))[0]

    def receive_end(self) -> tuple[tuple[ResponseHead | Content, ...], End]:
        """The response has no more bytes: return what was left, and the proof that it is whole."""
        events, end = self._translated(self._receiver.receive_end)
        if end is None:  # pragma: no cover - the receiver ends or raises
            raise LocalProtocolError("the response did not end")
        return events, end

    def _translated(
        self, events: Callable[[], list[BhttpEvent]]
    ) -> tuple[tuple[ResponseHead | Content, ...], End | None]:
        found: list[ResponseHead | Content] = []
        end: End | None = None
        try:
            for event in events():
                if isinstance(event, ResponseHead) and event.status >= 200:
                    found.append(self._response_head(event))
                elif isinstance(event, Content):
                    data = self._cells.feed(event.data) if self._cells else event.data
                    if data:
                        found.append(Content(data))
                elif isinstance(event, End):
                    end = event
                    if self._cells:
                        self._cells.end()
        except FormatError as error:
            raise _remote(error) from error
        return tuple(found), end

    def _response_head(self, head: ResponseHead) -> ResponseHead:
        wanted = [] if self._cell_bytes is None else [b"%d" % self._cell_bytes]
        paced = self._cadence_ms is not None and _is_stream(head.fields)
        cadence = [b"%d" % self._cadence_ms] if paced and self._cadence_ms else []
        if _values(head.fields, CELLS_FIELD) != wanted or (
            _values(head.fields, CADENCE_FIELD) != cadence
        ):
            raise RemoteProtocolError(
                "the response is not in the cells that were asked for", reason=Reason.CHANNEL_FORMAT
            )
        if self._cell_bytes is not None:
            self._cells = CellDecoder(self._cell_bytes)
        return ResponseHead(head.status, _without_own(head.fields))


class NodeMessages:
    """
    The node's end: open one request, seal one response.

    The request head is admitted to `window` before it is returned, so a replay never reaches the
    caller. `response_nonce` is 32 fresh random bytes. `paced` is how a held head said that the
    content comes: then as `seal_cell` gives it, one at a time.
    """

    __slots__ = (
        "_cadence_ms",
        "_cell_bytes",
        "_receiver",
        "_window",
        "_writer",
        "exchange",
        "paced",
        "stamp",
    )

    def __init__(
        self,
        ring: KeyRing,
        *,
        response_nonce: bytes,
        window: ReplayWindow,
        padding: PaddingPolicy,
        limits: MessageLimits,
    ) -> None:
        self.exchange = Exchange.node(ring, response_nonce=response_nonce, limits=limits.exchange)
        self.stamp: Stamp | None = None
        self._window = window
        self._writer = MessageWriter(self.exchange, padding)
        self._receiver = MessageReader(self.exchange, MessageKind.REQUEST, limits.message)
        self._cell_bytes: int | None = None
        self._cadence_ms: int | None = None
        self.paced: StreamShape | None = None

    def receive(self, data: bytes, *, now: datetime) -> tuple[BhttpEvent, ...]:
        """Take bytes of the request; return its head (admitted, without our fields) and content."""
        return self._admitted(lambda: self._receiver.receive(data), now)

    def receive_end(self, *, now: datetime) -> tuple[BhttpEvent, ...]:
        """The request has no more bytes: the last event is `End`."""
        return self._admitted(self._receiver.receive_end, now)

    def _admitted(
        self, events: Callable[[], list[BhttpEvent]], now: datetime
    ) -> tuple[BhttpEvent, ...]:
        try:
            return tuple(
                self._admit(event, now) if isinstance(event, RequestHead) else event
                for event in events()
            )
        except FormatError as error:
            raise _remote(error) from error

    def _admit(self, head: RequestHead, now: datetime) -> RequestHead:
        if head.authority != INNER_AUTHORITY or head.scheme != "https":
            raise RemoteProtocolError(
                "the inner authority is not the placeholder", reason=Reason.CHANNEL_FORMAT
            )
        stamp = parse_stamp(head.fields)
        cells, cadence = (_values(head.fields, name) for name in (CELLS_FIELD, CADENCE_FIELD))
        if len(cells) > 1 or len(cadence) > len(cells):
            raise _malformed("one cell size was expected, and one cadence of cells at most")
        self._cell_bytes = parse_cell_bytes(cells[0]) if cells else None
        self._cadence_ms = parse_cadence(cadence[0]) if cadence else None
        self._window.admit(self.exchange.key_id, stamp.nonce, stamp.issued_at, now=now)
        self.stamp = stamp
        own = _without_own(head.fields)
        return RequestHead(head.method, head.scheme, head.authority, head.path, own)

    def hold_head(self, head: ResponseHead) -> None:
        """Start the response; its head is sealed with the first content."""
        fields = _without_own(head.fields)
        if self._cell_bytes is not None:
            kept = tuple(item for item in fields if item[0] != b"content-length")
            fields = (*kept, (CELLS_FIELD, b"%d" % self._cell_bytes))
            if self._cadence_ms is not None and _is_stream(kept):
                self.paced = StreamShape(self._cell_bytes, self._cadence_ms)
                fields = (*fields, (CADENCE_FIELD, b"%d" % self._cadence_ms))
        self._writer.hold(encode_response_head(ResponseHead(head.status, fields)))

    def seal_content(self, data: bytes) -> bytes:
        """Return one sealed chunk for `data` (one a cell); for no data the head, if still held."""
        if self._cell_bytes is None or not data:
            return self._writer.write(encode_content(data))
        cells = encode_cells(data, self._cell_bytes)
        return b"".join(self._writer.write(encode_content(cell)) for cell in cells)

    def seal_cell(self, data: bytes) -> bytes:
        """Return one sealed chunk, a cell with `data` in it; also for no data (channel.md 5.4)."""
        if self._cell_bytes is None:
            raise LocalProtocolError("nobody asked for cells")
        return self._writer.write(encode_content(encode_cell(data, self._cell_bytes)))

    def seal_end(self, data: bytes = b"", trailers: Fields = ()) -> bytes:
        """Seal the last content, the trailers and the padding; the response is then complete."""
        if self._cell_bytes is None:
            return self._writer.finish(encode_content(data) + encode_end(trailers))
        return self.seal_content(data) + self._writer.finish(encode_end(trailers))


def _values(fields: Fields, wanted: bytes) -> list[bytes]:
    return [value for name, value in fields if name == wanted]


def _is_stream(fields: Fields) -> bool:
    """Whether the content is an event stream: what a cadence is for (channel.md 5.4)."""
    kinds = _values(fields, b"content-type")
    return [kind.partition(b";")[0].strip().lower() for kind in kinds] == [b"text/event-stream"]


def _without_own(fields: Fields) -> Fields:
    return tuple(item for item in fields if item[0] not in _OWN_FIELDS)
