"""More than fits, in front of and behind a running node: inference.md §2.9, §9.4, §9.5, §9.7."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fault_world import (
    CHAT,
    EVENTS_HEAD,
    JSON_HEAD,
    QUESTION,
    STREAMED,
    WHOLE,
    Gate,
    HostileEngine,
    chunk,
    digest,
    hear,
    record_of,
    running_world,
    says,
    well,
)

from confide.adapters.answer_transport import Request
from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.receipt_db import UnsafeKeepNone
from confide.client.held import TrustPolicy
from confide.client.session import Session
from confide.inference.digest import Finish
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deployment import Node
    from engine_peers import Answer, Peer
    from fault_world import Heard, Proxy, World

_MB = 1024 * 1024
_ASKED = Request("POST", CHAT, (("content-type", "application/json"),), jcs(QUESTION))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("overload")) as made:
        yield made


@pytest.fixture(scope="module")
def node(world: World) -> Node:
    return world.node()


@pytest.fixture(scope="module")
def proxy(world: World, node: Node) -> Proxy:
    return world.proxy("--node", node.url)


def most_memory(pid: int) -> int:
    """The most that a process ever held (proc(5), VmHWM), in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


@pytest.mark.parametrize("line", ["one line", pytest.param("many lines", marks=pytest.mark.slow)])
def test_100_mb_of_a_stream_are_cut_in_bounded_memory(
    world: World, node: Node, proxy: Proxy, line: str
) -> None:
    """Lines at the 64 MiB of a node, with its receipt; one line at the 4 MiB of a client."""

    async def endless(peer: Peer, _body: bytes) -> None:
        await peer.send(EVENTS_HEAD + chunk(b"data: "))
        piece = chunk(b"x" * 65536 if line == "one line" else b"x" * 65528 + b"\n\ndata: ")
        for _ in range(1600):
            await peer.send(piece)
        await peer.send(b"0\r\n\r\n")

    pids = (node.pid, proxy.process.pid)
    before = [most_memory(pid) for pid in pids]
    world.engine.answer = endless
    heard = hear(proxy.url, STREAMED)
    told = proxy.told()
    if line == "one line":
        assert (heard.status, heard.code, heard.whole) == (200, "stream-format", False)
        assert len(heard.body) < 5 * _MB
        assert (told["problem"], told["receipt"]) == ("stream-format", None)
    else:
        assert (heard.status, heard.code, heard.whole) == (200, "engine_failed", True)
        assert 63 * _MB < len(heard.body) < 65 * _MB
        record = world.record(told["receipt"])
        assert record.finish is Finish.UPSTREAM_FAILED
        assert record.response_digest == digest(heard.body)
    grown = [most_memory(pid) - was for pid, was in zip(pids, before, strict=True)]
    assert max(grown) < 48 * _MB, grown
    still_served(world, proxy)


def still_served(world: World, proxy: Proxy) -> None:
    world.engine.answer = well
    assert hear(proxy.url, QUESTION).body == WHOLE
    assert world.record(proxy.told()["receipt"]).finish is Finish.COMPLETE


def test_more_calls_than_fit_are_told_and_receipted(world: World, node: Node, proxy: Proxy) -> None:
    """64 are asked, 256 wait, more are refused: nobody hangs, each answer has a receipt."""
    length = b"content-length: %d\r\n\r\n" % len(WHOLE)
    gate = Gate(after=JSON_HEAD + length + WHOLE)
    world.engine.answer = gate.answer
    refusals = 0

    async def one(session: Session) -> tuple[int, bytes]:
        nonlocal refusals
        answer = await session.send(_ASKED)
        body = await answer.aread()
        assert answer.receipt is not None
        if answer.status != 200:
            refusals += 1
            statement = json.loads(answer.receipt.file.envelope.payload)["predicate"]
            record = record_of(statement)
            assert (record.status, record.upstream_digest) == (answer.status, None)
            assert json.loads(body)["error"]["code"] == "node_busy"
            assert int(dict(answer.headers)["retry-after"]) > 0
        if refusals >= 10:
            gate.opened.set()
        await answer.aclose()
        return answer.status, body

    async def work() -> list[tuple[int, bytes]]:
        policy = TrustPolicy(world.expectation(), world.installation.roots)
        keeper, entropy = UnsafeKeepNone(), SystemEntropy()
        session = Session([node.url], policy, keeper=keeper, clock=SystemClock(), entropy=entropy)
        try:
            return await asyncio.gather(*(one(session) for _ in range(330)))
        finally:
            await session.close()

    found = asyncio.run(work())
    counted = Counter(status for status, _body in found)
    assert counted[429] >= 10
    # On a slow machine some of those that waited have waited too long: 503.
    assert counted[200] >= 64
    assert counted.total() == counted[200] + counted[429] + counted[503] == 330
    assert {body for status, body in found if status == 200} == {WHOLE}
    still_served(world, proxy)


# What the first engine of two does, and what the caller gets: the second is asked, or it is not.
_EMPTY = b"content-length: 0\r\n\r\n"
FIRST: dict[str, tuple[Answer, Any, int, bool]] = {
    "dies before the first byte": (says(), QUESTION, 200, True),
    "is busy": (says(JSON_HEAD.replace(b"200", b"429") + _EMPTY), QUESTION, 200, True),
    "is not there": (says(JSON_HEAD.replace(b"200", b"503") + _EMPTY), QUESTION, 200, True),
    "fails": (says(JSON_HEAD.replace(b"200", b"500") + _EMPTY), QUESTION, 502, False),
    "dies within an answer": (
        says(JSON_HEAD + b"content-length: 9\r\n\r\n{"), QUESTION, 502, False,
    ),
    "dies within a stream": (says(EVENTS_HEAD + chunk(b"data: x\n\n")), STREAMED, 200, False),
}  # fmt: skip


@pytest.fixture(scope="module")
def pooled(world: World) -> Iterator[tuple[HostileEngine, Proxy]]:
    """A second engine of the same node, which is well, and the way to both."""
    with HostileEngine() as second:
        node = world.node("--upstream", second.url)
        yield second, world.proxy("--node", node.url)


@pytest.mark.parametrize("fault", FIRST)
def test_only_before_the_first_byte_another_engine_is_asked(
    world: World, pooled: tuple[HostileEngine, Proxy], fault: str
) -> None:
    answer, body, status, again = FIRST[fault]
    second, proxy = pooled
    world.engine.answer, before = answer, (world.engine.calls, second.calls)
    heard = hear(proxy.url, body)
    assert heard.status == status
    assert second.calls == before[1] + again
    record = world.record(proxy.told()["receipt"])
    assert record.response_digest == digest(heard.body)
    assert record.carriage.member == (1 if again else 0)
    assert record.finish is (Finish.COMPLETE if again else Finish.UPSTREAM_FAILED)


@pytest.mark.slow
def test_an_engine_that_stalls_is_given_up_after_two_minutes(world: World, proxy: Proxy) -> None:
    """§9.7: before its answer and within a stream; the caller is told, and there is a receipt."""
    begun = Gate(EVENTS_HEAD + chunk(b"data: x\n\n"))

    async def stalls(peer: Peer, body: bytes) -> None:
        silent = says(hangs=True) if b"stream" not in body else begun.answer
        await silent(peer, body)

    world.engine.answer = stalls
    with ThreadPoolExecutor(2) as pool:

        def patiently(body: Any) -> Heard:
            return hear(proxy.url, body, seconds=300)

        whole, stream = pool.map(patiently, (QUESTION, STREAMED))
    assert (whole.status, whole.code) == (503, "engine_unavailable")
    assert (stream.status, stream.code, stream.whole) == (200, "engine_failed", True)
    for line in (proxy.told(), proxy.told()):
        record = world.record(line["receipt"])
        assert record.finish is Finish.UPSTREAM_FAILED
        assert record.response_digest in (digest(whole.body), digest(stream.body))
    still_served(world, proxy)
