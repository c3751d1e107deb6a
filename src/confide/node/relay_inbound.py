"""The one reader of a relayed request: its pieces as they come, and whether its client left.

Clauses: docs/protocols/relay.md 3.3 to 3.5. A piece is taken from the client only when the node
took the one before.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from confide.errors import Reason, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive

    from confide.node.relay_table import RelayLimits

__all__ = ["Inbound"]


class Inbound:
    """
    `refusal` says why the request was ended here, `left` that its client is gone.

    `watching` cancels its body when the client leaves.
    """

    def __init__(self, receive: Receive, limits: RelayLimits, *, max_bytes: int) -> None:
        self.refusal: RemoteProtocolError | None = None
        self.left = False
        self._receive = receive
        self._limits = limits
        self._max_bytes = max_bytes
        self._whole = asyncio.Event()
        self._here: asyncio.Task[object] | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the request; raises where it does not come to its end."""
        deadline = asyncio.get_running_loop().time() + self._limits.receive_seconds
        seen, more = 0, True
        while more:
            piece, more = await self._piece(deadline)
            seen += len(piece)
            if seen > self._max_bytes:
                raise self._refuse("request too long", Reason.LIMIT_EXCEEDED, 413)
            if piece:
                yield piece
        self._whole.set()

    async def whole(self) -> bytes:
        """Return the request in one piece."""
        return b"".join([piece async for piece in self.pieces()])

    async def _piece(self, deadline: float) -> tuple[bytes, bool]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + self._limits.piece_seconds)):
                message = await self._receive()
        except TimeoutError as error:
            raise self._refuse("request too slow", Reason.CHANNEL_TRUNCATED, 408) from error
        if message["type"] == "http.disconnect":
            # It may still be there: a body that is none looks like a client that left.
            raise self._refuse("request cut", Reason.CHANNEL_TRUNCATED, 400)
        return message.get("body", b""), message.get("more_body", False)

    def _refuse(self, what: str, reason: Reason, status: int) -> RemoteProtocolError:
        self.refusal = RemoteProtocolError(what, reason=reason, status_hint=status)
        # Whoever waits for the node's answer waits for a request that will never be whole.
        self._end()
        return self.refusal

    def _leave(self) -> None:
        self.left = True
        self._end()

    def _end(self) -> None:
        if self._here is not None and self._here is not asyncio.current_task():
            self._here.cancel()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Run the body until it ends, the client leaves, or the request was refused."""
        here = self._here = asyncio.current_task()
        listening = asyncio.ensure_future(self._listen())
        try:
            yield
            if self.left or self.refusal is not None:
                # A cancellation that is on its way arrives here, and nowhere later.
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            ended = self.left or self.refusal is not None
            if not ended or here is None or here.uncancel() > 0:
                raise
        finally:
            self._here = None
            listening.cancel()

    async def _listen(self) -> None:
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()
