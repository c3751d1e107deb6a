"""Holding back the end of an event stream until something else has been settled. Pure, sans-IO.

Clause: docs/protocols/client.md 3.4. Programs stop reading at the event that ends an answer
(`data: [DONE]`, `response.completed`): whoever wants to say that the answer does not hold has to
say so before that event. Everything else passes as soon as its event is whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.wire.sse import SseEvent, SseParser

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.wire.sse import SseSilence

__all__ = ["EndHolder"]

_DONE = b"[DONE]"
# From: OpenAI API reference, streaming events of the Responses API: each is the last one.
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})


class EndHolder:
    """Passes an event stream on, byte for byte, up to the event that ends it."""

    __slots__ = ("_ended", "_held", "_parser")

    def __init__(self) -> None:
        self._parser = SseParser()
        self._held: list[bytes] = []
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """Return what may be handed on now. Raises `FormatError` for events above the caps."""
        return self._sorted(self._parser.feed(data)) if data else b""

    def _sorted(self, items: Iterable[SseEvent | SseSilence]) -> bytes:
        out: list[bytes] = []
        for item in items:
            if not self._ended and isinstance(item, SseEvent):
                self._ended = item.data.startswith(_DONE) or item.name in _LAST
            (self._held if self._ended else out).append(item.raw)
        return b"".join(out)

    def finish(self) -> bytes:
        """Return the rest: the end that was held, and whatever followed it."""
        rest = self._sorted(self._parser.close())
        return rest + b"".join(self._held) + self._parser.tail
