"""The store of keys as several workers use it. Clauses: docs/protocols/workers.md 2.6."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import Unavailable
from confide.node.ledger_link import DistantStore, SharedStore
from confide.node.worker_link import Ask, WorkerLink
from confide.tenancy.budget import Charge
from confide.tenancy.keys import Budget, KeyRecord, Limits, Period, make_key
from confide.tenancy.ledger import Find, Reserve, Settle, Spent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from confide.tenancy.ledger import Operation, Outcome

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEY = make_key(bytes(32))
RECORD = KeyRecord(id=KEY.id, digest=KEY.digest, tenant="acme", created=NOW)
RESERVE = Reserve(
    reservation="r", key_id=KEY.id, endpoint="/v1/chat/completions", period=NOW, budget=7, tokens=3
)
SETTLE = Settle(
    reservation="r",
    key_id=KEY.id,
    hour=NOW,
    endpoint="/v1/chat/completions",
    charge=Charge(1, 2, estimated=True),
    failed=False,
    cancelled=True,
)
OPERATIONS = (
    Find(KEY.digest),
    RESERVE,
    replace(RESERVE, budget=None, tokens=0),
    SETTLE,
    replace(SETTLE, charge=Charge(0, 0, estimated=False), failed=True, cancelled=False),
)
OUTCOMES: tuple[Outcome, ...] = (
    None,
    Spent(granted=True, tokens=3),
    Spent(granted=False, tokens=0),
    RECORD,
    replace(
        RECORD,
        expires=NOW,
        revoked=NOW,
        models=("a", "b/ü"),
        endpoints=("/v1/embeddings",),
        limits=Limits(rate=5, concurrency=2, budget=Budget(1000, Period.DAY)),
    ),
)


class Scripted:
    """A store that answers what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[Operation]] = []
        self.answer: Callable[[Operation], Outcome] = lambda _operation: None
        self.open = threading.Event()
        self.open.set()
        self.broken = False

    def work(self, operations: Sequence[Operation]) -> list[Outcome]:
        self.asked.append(list(operations))
        self.open.wait(30)
        if self.broken:
            raise Unavailable("the disk is full")
        return [self.answer(operation) for operation in operations]


async def _says_nothing(_kind: Ask, _payload: bytes) -> bytes:
    raise Unavailable("nobody asks a worker here")


class Place:
    """The process above, and a store seen over a link."""

    def __init__(self) -> None:
        self.store = Scripted()
        self.at_work = asyncio.Lock()
        self.shared = SharedStore(self.store, self.at_work)

    @asynccontextmanager
    async def distant(self) -> AsyncIterator[DistantStore]:
        async def answer(kind: Ask, payload: bytes) -> bytes:
            assert kind is Ask.LEDGER
            return await self.shared.answer(payload)

        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        above, below = WorkerLink(answer), WorkerLink(_says_nothing)
        ends = [asyncio.ensure_future(above.run(ours)), asyncio.ensure_future(below.run(theirs))]
        while below._writer is None:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)
        try:
            yield DistantStore(below)
        finally:
            for end in ends:
                end.cancel()
                with suppress(asyncio.CancelledError):
                    await end


def within(work: Callable[[Place, DistantStore], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        place = Place()
        async with place.distant() as distant:
            await work(place, distant)

    asyncio.run(main())


async def asked(place: Place, count: int) -> None:
    """Wait until the store was asked so often."""
    while len(place.store.asked) < count:  # noqa: ASYNC110 - from another thread
        await asyncio.sleep(0.001)


@given(
    st.lists(
        st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(OUTCOMES)), min_size=1, max_size=9
    )
)
def test_what_is_asked_and_told_comes_over_as_it_is(pairs: list[tuple[Operation, Outcome]]) -> None:
    async def work(place: Place, distant: DistantStore) -> None:
        told = iter(outcome for _, outcome in pairs)
        place.store.answer = lambda _operation: next(told)
        operations = [operation for operation, _ in pairs]
        assert await distant.work(operations) == [outcome for _, outcome in pairs]
        assert place.store.asked == [operations]

    within(work)


def test_what_comes_while_one_transaction_is_under_way_is_the_next() -> None:
    async def work(place: Place, distant: DistantStore) -> None:
        place.store.open.clear()
        place.store.answer = lambda each: Spent(granted=True, tokens=getattr(each, "tokens", 0))
        first = asyncio.ensure_future(distant.work([RESERVE]))
        await asked(place, 1)
        # No process is forked while the store's thread is at work.
        assert place.at_work.locked()
        others = [
            asyncio.ensure_future(distant.work([replace(RESERVE, tokens=n), SETTLE]))
            for n in range(5)
        ]
        while len(place.shared._waiting) < 5:  # noqa: ASYNC110 - it crosses the kernel
            await asyncio.sleep(0.001)
        place.store.open.set()
        await first
        found = await asyncio.gather(*others)
        assert [len(each) for each in place.store.asked] == [1, 10]
        # To each its own.
        assert [told[0] for told in found] == [Spent(granted=True, tokens=n) for n in range(5)]
        assert not place.at_work.locked()

    within(work)


def test_a_store_that_fails_answers_nobody_and_the_next_are_asked_anew() -> None:
    async def work(place: Place, distant: DistantStore) -> None:
        place.store.broken = True
        found = await asyncio.gather(
            *(distant.work([RESERVE]) for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in found] == [Unavailable] * 3
        assert not place.at_work.locked()
        place.store.broken = False
        assert await distant.work([SETTLE]) == [None]

    within(work)


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"asked":[{"do":"drop"}]}', b'{"asked":[{}]}'])
def test_what_no_worker_says_is_not_done(payload: bytes) -> None:
    async def work(place: Place, distant: DistantStore) -> None:
        with pytest.raises(Unavailable):
            await distant._link.ask(Ask.LEDGER, payload)
        assert place.store.asked == []

    within(work)


def test_without_the_process_above_there_is_no_store() -> None:
    async def main() -> None:
        place = Place()
        async with place.distant() as distant:
            assert await distant.work([Find(KEY.digest)]) == [None]
        with pytest.raises(Unavailable):
            await distant.work([Find(KEY.digest)])

    asyncio.run(main())
