"""How much a broker does at once. docs/protocols/broker.md §6.

Work that costs processor time runs `running` at a time, the next `waiting` wait in the order in
which they came, more are turned away. Bodies that are being received hold at most `body_bytes`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.broker.refusal import refusal
from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

__all__ = ["Gate", "LoadLimits"]


@dataclass(frozen=True, slots=True)
class LoadLimits:
    """From: broker.md 6.1. A body that takes longer than `body_seconds` to come is given up."""

    running: int = 4
    waiting: int = 64
    body_bytes: int = 256 << 20
    body_seconds: float = 30.0


@dataclass(slots=True)
class Gate:
    """The one gate of a process."""

    limits: LoadLimits
    _slots: asyncio.Semaphore = field(init=False)
    _waiting: int = 0
    _held: int = 0

    def __post_init__(self) -> None:
        """Make the slots."""
        self._slots = asyncio.Semaphore(self.limits.running)

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait for a slot. Raises `ReleaseRefused` with NODE_BUSY where too many wait."""
        if self._waiting >= self.limits.waiting:
            raise _busy()
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    @asynccontextmanager
    async def body(self, request: Request, *, max_bytes: int) -> AsyncIterator[bytes]:
        """
        Yield the body of `request`, which counts against the memory of bodies until the end.

        Raises `FormatError` with LIMIT_EXCEEDED above `max_bytes`, before anything is read where
        the head says so; `ReleaseRefused` with NODE_BUSY for want of memory or of time.
        """
        stated = request.headers.get("content-length", "0")
        if not stated.isascii() or not stated.isdigit() or int(stated[:20]) > max_bytes:
            raise _too_large(max_bytes)
        raw = bytearray()
        try:
            await self._read(request, raw, max_bytes=max_bytes)
            yield bytes(raw)
        finally:
            self._held -= len(raw)

    async def _read(self, request: Request, raw: bytearray, *, max_bytes: int) -> None:
        """Read into `raw`, whose bytes are counted as they come."""
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for piece in request.stream():
                    if self._held + len(piece) > self.limits.body_bytes:
                        raise _busy()
                    self._held += len(piece)
                    raw += piece
                    if len(raw) > max_bytes:
                        raise _too_large(max_bytes)
        except TimeoutError as error:
            raise _busy() from error


def _busy() -> Exception:
    return refusal(Reason.NODE_BUSY, "too much at once; come again", step="1", clause="6.1")


def _too_large(max_bytes: int) -> FormatError:
    return FormatError(
        f"a body of more than {max_bytes} bytes",
        reason=Reason.LIMIT_EXCEEDED,
        clause="docs/protocols/broker.md#6.1",
    )
