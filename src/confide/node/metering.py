"""The store of keys and usage as an event loop uses it: everything that waits is one transaction.

docs/protocols/tenancy.md §4. A commit costs the disk's time, however much is in it; so while one is
under way, what comes is gathered and goes into the next. A call is not begun before its reservation
is durable. How it ended is written behind the answer, and again until it is written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from confide.errors import Overloaded, Unavailable
from confide.tenancy.budget import Charge
from confide.tenancy.ledger import Reserve, Settle, Spent, hour_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from confide.ports import Clock, TenantStore
    from confide.tenancy.ledger import Find, Operation, Outcome

__all__ = ["Meter", "Work", "in_thread"]

# Does all of it in one transaction, or none; answers in the order they were asked.
Work: TypeAlias = "Callable[[list[Operation]], Awaitable[list[Outcome]]]"

_MAX_WAITING = 512
_BATCH = 128
_RETRY_SECONDS = 1.0
_ASK_SECONDS = 5.0
_NOTHING = Charge(0, 0, estimated=False)


def in_thread(store: TenantStore) -> Work:
    """Return how a loop has `store` work: in a thread, one transaction after another."""

    async def work(operations: list[Operation]) -> list[Outcome]:
        return await asyncio.to_thread(store.work, operations)

    return work


class Meter:
    """
    Asks a store, by `work`. Belongs to one event loop, which `close` must be called in.

    `late` counts what is still to be written of calls that ended.
    """

    def __init__(self, work: Work, clock: Clock) -> None:
        self._work = work
        self._clock = clock
        self._asked: deque[tuple[Operation, asyncio.Future[Outcome]]] = deque()
        self._ended: list[Settle] = []
        self._late: list[Settle] = []
        self._writing = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._running = asyncio.ensure_future(self._run())
        self._retrying = asyncio.ensure_future(self._retry())

    @property
    def late(self) -> int:
        """How many calls have ended and are not in the ledger yet."""
        return len(self._ended) + len(self._late) + self._writing

    async def ask(self, operation: Find | Reserve) -> Outcome:
        """Return the answer of the store; `Unavailable` where there is none (§4.3)."""
        if self._closing or len(self._asked) >= _MAX_WAITING:
            raise Overloaded("the store of keys is busy", retry_after=1)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._asked.append((operation, answer))
        self._wake.set()
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                return await answer
        except TimeoutError as error:
            raise Unavailable("the store of keys did not answer in time") from error

    def settle(self, operation: Settle) -> None:
        """Have the end of a call written, now or when the store is there again."""
        self._ended.append(operation)
        self._wake.set()

    async def close(self) -> None:
        """Write what is to be written, once more, and let go of the store."""
        self._closing = True
        self._retrying.cancel()
        self._ended += self._late
        self._late = []
        self._wake.set()
        await self._running
        with suppress(asyncio.CancelledError):
            await self._retrying

    async def _run(self) -> None:
        while not (self._closing and not self._asked and not self._ended):
            await self._wake.wait()
            self._wake.clear()
            while self._asked or self._ended:
                await self._batch()

    async def _batch(self) -> None:
        asked = [self._asked.popleft() for _ in range(min(_BATCH, len(self._asked)))]
        ended, self._ended = self._ended[:_BATCH], self._ended[_BATCH:]
        operations = [operation for operation, _ in asked]
        self._writing = len(ended)
        try:
            answers = await self._work([*operations, *ended])
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing is answered from it
            # What was to be written goes alone next time: it must not fail those who ask.
            self._late, self._writing = self._late + ended, 0
            for _, future in asked:
                if not future.done():
                    lost = Unavailable("the store of keys cannot be used")
                    lost.__cause__ = error
                    future.set_exception(lost)
            return
        self._writing = 0
        for (operation, future), answer in zip(asked, answers, strict=False):
            if not future.done():
                future.set_result(answer)
            elif isinstance(operation, Reserve) and isinstance(answer, Spent) and answer.granted:
                self._give_back(operation)

    def _give_back(self, reserved: Reserve) -> None:
        """Undo a reservation that nobody waited for."""
        self._ended.append(
            Settle(
                reservation=reserved.reservation,
                key_id=reserved.key_id,
                hour=hour_of(self._clock.now()),
                endpoint=reserved.endpoint,
                charge=_NOTHING,
                failed=True,
                cancelled=False,
            )
        )

    async def _retry(self) -> None:
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            if self._late and not self._ended and not self._asked:
                self._ended, self._late = self._late, []
                self._wake.set()
