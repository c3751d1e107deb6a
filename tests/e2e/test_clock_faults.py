"""Time passes under a running node: rotation, the end of an overlap, clocks that jump.

The node is a process by a clock that the test moves (clocked_node.py); the client is a session of
the test with a clock of its own. binding.md §1.6, channel.md §4, client.md §2.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from clocked_node import MovedClock
from deployment import MODEL, WAIT_SECONDS, until
from fault_world import (
    CHAT,
    DONE,
    EVENT,
    EVENTS_HEAD,
    QUESTION,
    STREAMED,
    WHOLE,
    Gate,
    chunk,
    running_world,
    well,
)

from confide.adapters.answer_transport import Request
from confide.adapters.entropy import SystemEntropy
from confide.adapters.receipt_db import UnsafeKeepNone
from confide.adapters.sealed_http import RefusedOutside
from confide.client.held import TrustPolicy
from confide.client.session import Session
from confide.errors import ConfideError, EvidenceRejected, Reason
from confide.node.identity import LIFETIME, OVERLAP, ROTATE_AFTER
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fault_world import World

    from confide.client.answer import Answer

MINUTE = timedelta(minutes=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_world(tmp_path) as made:
        # The seed of the platform, before the node looks for it.
        assert made.installation.roots.simulated
        yield made


def clock_of(path: Path) -> MovedClock:
    path.write_text("0")
    return MovedClock(path)


@contextlib.contextmanager
def clocked(world: World, ahead: Path) -> Iterator[str]:
    """Run a node by the clock of `ahead`; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(__file__).with_name("clocked_node.py")
    log = world.installation.root / "clocked.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(program), str(port), MODEL, world.engine.url, str(ahead)],
            env=world.installation.environment, stdout=output, stderr=output,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def serves() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx2.get(f"{url}/confide/v1/health", trust_env=False).is_success
        except httpx2.HTTPError:
            return False

    try:
        until(serves, "the node serves")
        yield url
    finally:
        process.terminate()
        assert process.wait(WAIT_SECONDS) == 0, log.read_text()


@contextlib.asynccontextmanager
async def session_at(
    world: World, url: str, clock: MovedClock, *, continuity: bool = False
) -> AsyncIterator[Session]:
    policy = TrustPolicy(world.expectation(), world.installation.roots, continuity=continuity)
    entropy = SystemEntropy()
    session = Session([url], policy, keeper=UnsafeKeepNone(), clock=clock, entropy=entropy)
    try:
        yield session
    finally:
        await session.close()


async def ask(session: Session) -> Answer:
    request = Request("POST", CHAT, (("content-type", "application/json"),), jcs(QUESTION))
    answer = await session.send(request)
    assert (answer.status, await answer.aread()) == (200, WHOLE)
    assert answer.receipt is not None
    await answer.aclose()
    return answer


class Stream:
    """One stream that stands after its first event until the engine goes on."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._pieces = answer.aiter_bytes()
        self._begun = b""

    @classmethod
    async def begin(cls, session: Session) -> Stream:
        headers = (("content-type", "application/json"),)
        stream = cls(await session.send(Request("POST", CHAT, headers, jcs(STREAMED))))
        stream._begun = await anext(stream._pieces)
        return stream

    async def end(self) -> bytes:
        """Take the rest; return the keyset that its receipt names, which was verified."""
        whole = self._begun + b"".join([piece async for piece in self._pieces])
        assert whole == EVENT + DONE
        assert self._answer.receipt is not None
        await self._answer.aclose()
        return self._answer.receipt.inference.statement.keyset


def test_a_keyset_rotates_and_ends_under_64_streams_and_none_fails(
    world: World, tmp_path: Path
) -> None:
    """Begun under the old keyset, they end under it, after it was succeeded and forgotten."""
    clock = clock_of(tmp_path / "ahead")

    async def work(url: str) -> None:
        async with session_at(world, url, clock, continuity=True) as session:
            old = (await session.prove()).keyset
            gate = Gate(EVENTS_HEAD + chunk(EVENT), after=chunk(DONE) + b"0\r\n\r\n")
            world.engine.answer = gate.answer
            streams = await asyncio.gather(*(Stream.begin(session) for _ in range(64)))
            world.engine.answer = well
            clock.move(ROTATE_AFTER + MINUTE)
            await asyncio.gather(*(ask(session) for _ in range(64)))
            new = session.preferred.keyset
            assert new != old
            clock.move(OVERLAP + MINUTE)
            answer = await ask(session)
            assert answer.receipt is not None
            assert answer.receipt.inference.statement.keyset == new
            gate.opened.set()
            assert {await stream.end() for stream in streams} == {old}
            # The old keyset named the new one: no alarm.
            assert [change.reason for change in session.preferred.changes] == [None]

    with clocked(world, tmp_path / "ahead") as url:
        asyncio.run(work(url))


@pytest.mark.slow
def test_the_ends_of_a_keyset_are_told_apart(world: World, tmp_path: Path) -> None:
    """For who insists on continuity: succeeded and forgotten is revoked, outlived is expired."""
    clock = clock_of(tmp_path / "ahead")

    async def met(session: Session) -> Reason | None:
        with pytest.raises(EvidenceRejected) as refusal:
            await ask(session)
        return refusal.value.reason

    async def work(url: str) -> None:
        async with (
            session_at(world, url, clock, continuity=True) as early,
            session_at(world, url, clock, continuity=True) as late,
            session_at(world, url, clock) as other,
        ):
            await ask(early)
            await ask(late)
            clock.move(ROTATE_AFTER + MINUTE)
            # The node rotates because somebody asks it.
            await ask(other)
            clock.move(OVERLAP + MINUTE)
            assert await met(early) is Reason.KEYSET_REVOKED
            clock.move(LIFETIME - ROTATE_AFTER - OVERLAP)
            calls = world.engine.calls
            assert await met(late) is Reason.KEYSET_EXPIRED
            assert world.engine.calls == calls
            # Who met every keyset in its time goes on without an alarm.
            await ask(other)
            assert [change.reason for change in other.preferred.changes] == [None]

    with clocked(world, tmp_path / "ahead") as url:
        asyncio.run(work(url))


def test_clocks_that_jump(world: World, tmp_path: Path) -> None:
    """Whoever is wrong about the time is refused, by name, before an engine is asked."""
    node_clock = clock_of(tmp_path / "node")
    here = clock_of(tmp_path / "here")

    async def refused(session: Session) -> Reason | None:
        calls = world.engine.calls
        with pytest.raises(ConfideError) as refusal:
            await ask(session)
        assert world.engine.calls == calls
        assert isinstance(refusal.value, RefusedOutside | EvidenceRejected)
        return refusal.value.reason

    async def work(url: str) -> None:
        async with session_at(world, url, here) as session:
            await ask(session)
            # A client ahead of its proof has it made anew, and finds the keyset ended.
            here.move(LIFETIME + MINUTE)
            assert await refused(session) is Reason.KEYSET_EXPIRED
            here.move(-LIFETIME - MINUTE)
            await ask(session)
            # A node ahead of everybody sees only old requests,
            node_clock.move(10 * MINUTE)
            assert await refused(session) is Reason.REQUEST_TIME
            # also when it comes back: what it has seen as past stays past (channel.md 4.4).
            node_clock.move(-10 * MINUTE)
            assert await refused(session) is Reason.REQUEST_TIME
            for clock in (node_clock, here):
                clock.move(11 * MINUTE)
            await ask(session)

    with clocked(world, tmp_path / "node") as url:
        asyncio.run(work(url))
