"""Cells in time. docs/protocols/channel.md 5.4; the clock is the loop's, and never asserted on."""

from __future__ import annotations

import asyncio

import pytest

from confide.channel.padding import StreamShape
from confide.errors import Unavailable
from confide.node.cadence import Pacer, PacerLimits

SHAPE = StreamShape(64, 10)


def run(work: object) -> list[bytes]:
    sent: list[bytes] = []

    async def send(data: bytes) -> None:
        sent.append(data)

    asyncio.run(work(send))  # type: ignore[operator]
    return sent


def test_silence_and_speech_look_alike_and_nothing_is_lost() -> None:
    async def work(send: object) -> None:
        pacer = Pacer(SHAPE, send)  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        await pacer.put(b"x" * 100)
        await asyncio.sleep(0.05)
        await pacer.finish(b"end")

    sent = run(work)
    assert b"".join(sent) == b"x" * 100 + b"end"
    assert sent[0] == b""
    assert sent.count(b"") >= 2
    assert max(map(len, sent)) == 62


def test_past_its_limit_content_goes_as_it_comes() -> None:
    async def work(send: object) -> None:
        pacer = Pacer(SHAPE, send, limits=PacerLimits(max_bytes=64 * 3))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        await pacer.put(b"y" * 200)
        await pacer.finish(b"")

    sent = run(work)
    assert sent[:3] == [b"", b"", b""]
    assert sent[3:] == [b"y" * 62] * 3 + [b"y" * 14]


def test_who_writes_faster_than_the_cadence_waits() -> None:
    taken: list[int] = []

    async def work(send: object) -> None:
        pacer = Pacer(SHAPE, send, limits=PacerLimits(max_waiting=128))  # type: ignore[arg-type]

        async def write() -> None:
            for number in range(10):
                await pacer.put(b"z" * 128)
                taken.append(number)

        writing = asyncio.ensure_future(write())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(taken) < 10
        await writing
        await pacer.finish(b"")

    assert b"".join(run(work)) == b"z" * 1280


def test_what_sending_raises_reaches_who_writes() -> None:
    async def broken(_data: bytes) -> None:
        raise Unavailable("gone")

    async def work() -> None:
        pacer = Pacer(SHAPE, broken)
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await pacer.put(b"x")
        pacer.stop()

    asyncio.run(work())


def test_stopped_it_sends_no_more() -> None:
    async def work(send: object) -> None:
        pacer = Pacer(SHAPE, send)  # type: ignore[arg-type]
        await asyncio.sleep(0.03)
        pacer.stop()
        pacer.stop()
        await asyncio.sleep(0.03)

    first = len(run(work))
    assert 1 <= first <= 4
