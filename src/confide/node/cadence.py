"""A fixed cadence for one streamed answer: a cell every interval, with or without content.

Clause: docs/protocols/channel.md 5.4. Who watches the stream sees when it begins and ends; what is
between looks the same whether the model speaks or thinks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from confide.channel.padding import cell_room

if TYPE_CHECKING:
    from confide.channel.padding import StreamShape

__all__ = ["Pacer", "PacerLimits", "SendCell"]

# Sends one cell with this content, at most what fits it.
SendCell: TypeAlias = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PacerLimits:
    """From: channel.md 5.4. How long and how much, and the content that waits for its cell."""

    max_seconds: float = 600.0
    max_bytes: int = 1 << 28
    max_waiting: int = 1 << 18


class Pacer:
    """
    Sends from the moment it is made. `put` waits while much is waiting; end it with `finish`.

    After the time or the bytes of its limits it is over: content then goes as it comes.
    """

    def __init__(
        self, shape: StreamShape, send: SendCell, *, limits: PacerLimits | None = None
    ) -> None:
        limits = limits or PacerLimits()
        self._room = cell_room(shape.cell_bytes)
        self._seconds = (shape.cadence_ms or 0) / 1000
        by_time = int(limits.max_seconds / self._seconds) if self._seconds else 0
        self._cells_left = min(by_time, limits.max_bytes // shape.cell_bytes)
        self._max_waiting = limits.max_waiting
        self._send = send
        self._waiting = bytearray()
        self._more = True
        self._over = False
        self._changed = asyncio.Event()
        self._task = asyncio.ensure_future(self._run())

    async def put(self, data: bytes) -> None:
        """Take content; raises what sending raised."""
        while not self._over and len(self._waiting) >= self._max_waiting:
            self._changed.clear()
            await self._changed.wait()
        self._waiting += data
        if self._over:
            await self._task
            await self._flush()

    async def finish(self, data: bytes) -> None:
        """Take the last content and return when all was sent, a beat after its last cell."""
        await self.put(data)
        self._more = False
        await self._task
        await self._flush()

    def stop(self) -> None:
        """Send no more; for an answer that ends before its end."""
        if not self._task.cancel() and not self._task.cancelled():
            # What sending raised is known to whoever put something, or to nobody.
            self._task.exception()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        try:
            while self._cells_left and (self._more or self._waiting):
                self._cells_left -= 1
                await self._one()
                self._changed.set()
                # A beat that was missed is not made up for: no burst tells of a delay.
                due = max(due + self._seconds, loop.time())
                await asyncio.sleep(due - loop.time())
        finally:
            self._over = True
            self._changed.set()

    async def _one(self) -> None:
        data = bytes(self._waiting[: self._room])
        del self._waiting[: self._room]
        await self._send(data)

    async def _flush(self) -> None:
        while self._waiting:
            await self._one()
