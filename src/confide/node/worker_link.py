"""What a node's parent and one of its workers say to each other. docs/protocols/workers.md §3.

Over a pair of sockets that was made before the fork: no name, no address, nobody else's. Either
side asks; an answer is bytes. `u32 length ‖ what ‖ kind ‖ u32 number ‖ payload`.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from confide.errors import Unavailable

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    Handler: TypeAlias = "Callable[[Ask, bytes], Awaitable[bytes]]"

__all__ = ["Ask", "WorkerLink"]

_HEAD = struct.Struct(">IBBI")
# Evidence of eight GPUs and four switches is about 4 MiB.
_MAX_BYTES = 64 * 1024 * 1024


class Ask(IntEnum):
    """What is asked for."""

    EVIDENCE = 1  # of the parent: JSON of a statement → an evidence file
    RECEIPT = 2  # of either: an id → the envelope, or nothing
    KEYS = 3  # of a worker: make these keys the current ones → the digest of their keyset
    IDLE = 4  # of a worker: → milliseconds without a request, as decimals
    DRAIN = 5  # of a worker: begin no more calls
    PACE = 6  # of the parent: a call of a key, and its limits → whether it may go on (§2.6)
    LEAVE = 7  # of the parent: such a call has ended
    LEDGER = 9  # of the parent: look-ups, reservations, settlements → what the store says (§2.6)
    COUNTS = 8  # of the parent: take these numbers, all since the worker began (§2.7)


class _What(IntEnum):
    ASKED = 0
    ANSWERED = 1
    FAILED = 2


class WorkerLink:
    """One end. `handler` answers the other; what it raises says no, without words."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._number = 0

    async def run(self, end: socket.socket) -> None:
        """Answer and hear answers until the other side is gone."""
        reader, self._writer = await asyncio.open_unix_connection(sock=end)
        try:
            with suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    await self._take(reader)
        finally:
            self._close()

    async def ask(self, kind: Ask, payload: bytes = b"") -> bytes:
        """Ask the other side. `Unavailable` where it says no, or is gone."""
        self._number = (self._number + 1) % (1 << 32)
        number = self._number
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send(_What.ASKED, kind, number, payload)
            return await answer
        finally:
            del self._waiting[number]

    def tell(self, kind: Ask, payload: bytes) -> None:
        """Ask, and wait for no answer. `Unavailable` where the other side is gone."""
        self._number = (self._number + 1) % (1 << 32)
        self._send(_What.ASKED, kind, self._number, payload)

    async def _take(self, reader: asyncio.StreamReader) -> None:
        length, what, kind, number = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if length > _MAX_BYTES:
            raise OSError("a message beyond every size there is")
        payload = await reader.readexactly(length)
        if what == _What.ASKED:
            task = asyncio.ensure_future(self._answer(Ask(kind), number, payload))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return
        if what == _What.ANSWERED:
            waiting.set_result(payload)
        else:
            waiting.set_exception(Unavailable("the other process of this node said no"))

    async def _answer(self, kind: Ask, number: int, payload: bytes) -> None:
        try:
            answer = await self._handler(kind, payload)
        except Exception:  # noqa: BLE001 - whatever went wrong, who asked must not wait for ever
            what, answer = _What.FAILED, b""
        else:
            what = _What.ANSWERED
        with suppress(Unavailable):
            self._send(what, kind, number, answer)

    def _send(self, what: _What, kind: Ask, number: int, payload: bytes) -> None:
        if self._writer is None or self._writer.is_closing():
            raise Unavailable("the other process of this node is gone")
        self._writer.write(_HEAD.pack(len(payload), what, kind, number) + payload)

    def _close(self) -> None:
        for task in self._answering:
            task.cancel()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("the other process of this node is gone"))
        if self._writer is not None:
            self._writer.close()
