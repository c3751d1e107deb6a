"""Binary HTTP into sealed chunks and back: the two ends of `channel.message`, sans-IO.

Clauses: docs/protocols/channel.md §2, 5.1, 7.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.channel.events import RequestOpened
from confide.errors import LocalProtocolError
from confide.wire.bhttp import BhttpEvent, BhttpLimits, End, MessageKind
from confide.wire.bhttp_decoder import BhttpDecoder

if TYPE_CHECKING:
    from confide.channel.exchange import Exchange
    from confide.channel.padding import PaddingPolicy

__all__ = ["MessageReader", "MessageWriter"]


class MessageWriter:
    """Binary HTTP bytes into an exchange; the head waits for the first content."""

    __slots__ = ("_exchange", "_held", "_padding", "_total")

    def __init__(self, exchange: Exchange, padding: PaddingPolicy) -> None:
        self._exchange = exchange
        self._padding = padding
        self._held = b""
        self._total = 0

    def hold(self, head: bytes) -> None:
        """Keep the head for the first content."""
        self._held = head

    def write(self, data: bytes) -> bytes:
        """Return `data` sealed, nothing for nothing."""
        data, self._held = self._held + data, b""
        self._total += len(data)
        return self._exchange.seal(data, final=False) if data else b""

    def finish(self, data: bytes) -> bytes:
        """Return the last chunk, with `data` and the padding."""
        data, self._held = self._held + data, b""
        self._total += len(data)
        return self._exchange.seal(data + self._padding.padding(self._total), final=True)


class MessageReader:
    """Sealed bytes to Binary HTTP events, with `End` withheld until the final chunk opened."""

    __slots__ = ("_decoder", "_end", "_exchange")

    def __init__(self, exchange: Exchange, kind: MessageKind, limits: BhttpLimits) -> None:
        self._exchange = exchange
        self._decoder = BhttpDecoder(kind, limits)
        self._end: End | None = None

    def receive(self, data: bytes) -> list[BhttpEvent]:
        """Take sealed bytes; return what they complete."""
        found: list[BhttpEvent] = []
        for event in self._exchange.receive(data):
            if not isinstance(event, RequestOpened):
                self._sort(self._decoder.feed(event.data), found)
        return found

    def receive_end(self) -> list[BhttpEvent]:
        """The sealed message has no more bytes: return what was left, `End` last."""
        found: list[BhttpEvent] = []
        for event in self._exchange.receive_end():
            if not isinstance(event, RequestOpened):
                self._sort(self._decoder.feed(event.data), found)
        self._sort(self._decoder.end(), found)
        if self._end is None:  # pragma: no cover - the decoder ends or raises
            raise LocalProtocolError("the message did not end")
        found.append(self._end)
        return found

    def _sort(self, events: tuple[BhttpEvent, ...], found: list[BhttpEvent]) -> None:
        for event in events:
            if isinstance(event, End):
                self._end = event
            else:
                found.append(event)
