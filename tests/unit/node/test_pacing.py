"""Rates and calls at once of several workers, over the link to the process above them.

Clauses: docs/protocols/workers.md 2.6, docs/protocols/tenancy.md 3.1 and 3.2.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from confide.errors import Unavailable
from confide.node.pacing import DistantPace, OwnPace, SharedPace
from confide.node.worker_link import Ask, WorkerLink
from confide.tenancy.keys import Limits
from confide.tenancy.limits import Held

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RATE = Limits(rate=3)
ALONE = Limits(concurrency=1)


async def _says_nothing(_kind: Ask, _payload: bytes) -> bytes:
    raise Unavailable("nobody asks a worker here")


class Desk:
    """The process above: its buckets, and a link to each worker."""

    def __init__(self) -> None:
        self.shared = SharedPace()
        self.seconds = 0.0
        self.asked: list[Ask] = []
        # Closed, it lets nobody have an answer; what is asked still happens.
        self.door = asyncio.Event()
        self.door.set()

    @asynccontextmanager
    async def worker(self, number: int) -> AsyncIterator[DistantPace]:
        async def answer(kind: Ask, payload: bytes) -> bytes:
            self.asked.append(kind)
            if kind is Ask.LEAVE:
                return self.shared.leave(number, payload)
            taken = self.shared.take(number, payload, self.seconds)
            await self.door.wait()
            return taken

        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        above, below = WorkerLink(answer), WorkerLink(_says_nothing)
        ends = [asyncio.ensure_future(above.run(ours)), asyncio.ensure_future(below.run(theirs))]
        while below._writer is None:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)
        try:
            yield DistantPace(below)
        finally:
            for end in ends:
                end.cancel()
                with suppress(asyncio.CancelledError):
                    await end

    async def asked_for(self, *kinds: Ask) -> None:
        """Wait until exactly this was asked."""
        while self.asked != list(kinds):  # noqa: ASYNC110 - it crosses the kernel
            await asyncio.sleep(0.001)


def test_a_bucket_is_one_for_all_workers() -> None:
    async def main() -> None:
        desk = Desk()
        async with desk.worker(0) as one, desk.worker(1) as other:
            found = [(await each.take("key_a", RATE)).taken for each in (one, other, one, other)]
            assert [taken.held for taken in found] == [None, None, None, Held.RATE]
            assert found[3].retry_seconds == 20
            assert [taken.pace.left for taken in found if taken.pace] == [2, 1, 0, 0]
            assert (await other.take("key_b", RATE)).taken.held is None
            desk.seconds = 20.0
            assert (await one.take("key_a", RATE)).taken.held is None

    asyncio.run(main())


def test_it_says_what_one_process_would() -> None:
    async def main() -> None:
        desk, own = Desk(), OwnPace()
        async with desk.worker(0) as distant:
            for limits in (RATE, RATE, ALONE, Limits(rate=1, concurrency=5), Limits()):
                far, near = [await each.take("key_a", limits) for each in (distant, own)]
                assert far.taken.held == near.taken.held
                if limits.rate is not None:
                    assert far.taken.pace is not None
                    assert near.taken.pace is not None
                    assert far.taken.pace.left == near.taken.pace.left

    asyncio.run(main())


def test_calls_at_once_are_given_back_once() -> None:
    async def main() -> None:
        desk = Desk()
        async with desk.worker(0) as one, desk.worker(1) as other:
            first = await one.take("key_a", ALONE)
            refused = await other.take("key_a", ALONE)
            assert (first.taken.held, refused.taken.held) == (None, Held.CONCURRENCY)
            # One that was held back has nothing to give back.
            refused.leave()
            assert (await other.take("key_a", ALONE)).taken.held is Held.CONCURRENCY
            first.leave()
            first.leave()
            again = await one.take("key_a", ALONE)
            assert again.taken.held is None
            assert (await other.take("key_a", ALONE)).taken.held is Held.CONCURRENCY

    asyncio.run(main())


def test_a_worker_that_ended_holds_nothing() -> None:
    async def main() -> None:
        desk = Desk()
        async with desk.worker(0) as one, desk.worker(1) as other:
            assert (await one.take("key_a", ALONE)).taken.held is None
            desk.shared.end(1)
            assert (await other.take("key_a", ALONE)).taken.held is Held.CONCURRENCY
            desk.shared.end(0)
            assert (await other.take("key_a", ALONE)).taken.held is None

    asyncio.run(main())


def test_a_caller_that_left_before_the_answer_holds_nothing() -> None:
    async def main() -> None:
        desk = Desk()
        async with desk.worker(0) as one, desk.worker(1) as other:
            desk.door.clear()
            asking = asyncio.ensure_future(one.take("key_a", ALONE))
            await desk.asked_for(Ask.PACE)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
            await desk.asked_for(Ask.PACE, Ask.LEAVE)
            desk.door.set()
            assert (await other.take("key_a", ALONE)).taken.held is None

    asyncio.run(main())


def test_without_the_process_above_nobody_with_limits_is_let_in() -> None:
    async def main() -> None:
        desk = Desk()
        async with desk.worker(0) as one:
            held = await one.take("key_a", ALONE)
        with pytest.raises(Unavailable):
            await one.take("key_a", ALONE)
        held.leave()
        # Of keys without such limits nobody has to be asked.
        assert (await one.take("key_b", Limits())).taken.held is None
        assert Ask.LEAVE not in desk.asked

    asyncio.run(main())
