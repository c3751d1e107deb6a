"""Engines that die, lie, stall and storm behind a running node: inference.md §3.3, §3.4, §9.

Whatever the engine does, the program behind `confide proxy` hears one fixed word of ours, a receipt
says what happened and over which bytes, and the next request is served.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from fault_world import (
    DONE,
    EVENT,
    EVENTS_HEAD,
    JSON_HEAD,
    QUESTION,
    STREAMED,
    WHOLE,
    Gate,
    chunk,
    digest,
    hear,
    running_world,
    says,
    well,
)  # fmt: skip

from confide.inference.digest import Finish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine_peers import Answer
    from fault_world import Heard, Proxy, World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("upstream")) as made:
        yield made


@pytest.fixture(scope="module")
def proxy(world: World) -> Proxy:
    return world.proxy("--node", world.node().url)


def receipted(world: World, proxy: Proxy, heard: Heard, finish: Finish) -> None:
    """The receipt that was kept is about exactly what was heard, and says how it ended."""
    line = proxy.told()
    record = world.record(line["receipt"])
    assert (record.status, record.finish) == (heard.status, finish)
    assert record.response_digest == digest(heard.body)


def still_served(world: World, proxy: Proxy) -> None:
    world.engine.answer = well
    heard = hear(proxy.url, QUESTION)
    assert (heard.status, heard.body) == (200, WHOLE)
    receipted(world, proxy, heard, Finish.COMPLETE)


NOTHING_YET: dict[str, tuple[Answer, int, str]] = {
    "dies before the first byte": (says(), 503, "engine_unavailable"),
    "dies within its head": (says(b"HTTP/1.1 200 X\r\nconte"), 503, "engine_unavailable"),
    "speaks no HTTP": (says(b"not HTTP at all\r\n\r\n"), 503, "engine_unavailable"),
    "sends a header of 100 kB": (
        says(b"HTTP/1.1 200 X\r\na: " + b"b" * 100_000 + b"\r\n\r\n"), 503, "engine_unavailable",
    ),
    "sends 5,000 headers": (
        says(b"HTTP/1.1 200 X\r\n" + b"a: b\r\n" * 5000 + b"\r\n"), 503, "engine_unavailable",
    ),
    "promises more than it sends": (
        says(JSON_HEAD + b"content-length: 100\r\n\r\n{"), 502, "engine_failed",
    ),
    "sends more than it promised": (
        says(JSON_HEAD + b"content-length: 2\r\n\r\n{}more"), 503, "engine_unavailable",
    ),
    "has a length that is no number": (
        says(JSON_HEAD + b"content-length: x\r\n\r\n{}"), 503, "engine_unavailable",
    ),
    "has two lengths": (
        says(JSON_HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}x"),
        503, "engine_unavailable",
    ),
    "has a length and chunks": (
        says(JSON_HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"{}")),
        503, "engine_unavailable",
    ),
    "sends garbage for chunks": (
        says(JSON_HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"), 503, "engine_unavailable",
    ),
    "fails with its trace": (
        says(EVENTS_HEAD.replace(b"200", b"500") + chunk(b"SECRET trace") + b"0\r\n\r\n"),
        502, "engine_failed",
    ),
    "encodes although asked not to": (
        says(JSON_HEAD + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nxx"),
        503, "engine_unavailable",
    ),
    "redirects elsewhere": (
        says(b"HTTP/1.1 307 X\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n"),
        502, "engine_failed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", NOTHING_YET)
@pytest.mark.parametrize("body", [QUESTION, STREAMED], ids=["whole", "stream"])
def test_before_anything_was_returned(
    world: World, proxy: Proxy, fault: str, body: dict[str, object]
) -> None:
    answer, status, code = NOTHING_YET[fault]
    world.engine.answer = answer
    heard = hear(proxy.url, body)
    assert (heard.status, heard.code, heard.whole) == (status, code, True)
    assert b"trace" not in heard.body
    receipted(world, proxy, heard, Finish.UPSTREAM_FAILED)
    still_served(world, proxy)


BEGUN = {
    "dies between events": b"",
    "dies within an event": chunk(EVENT[:20]),
    "dies within a chunk": b"ff\r\ndata",
    "ends in garbage": b"zz\r\n",
}


@pytest.mark.parametrize("fault", BEGUN)
def test_after_the_first_byte(world: World, proxy: Proxy, fault: str) -> None:
    """The stream ends with an event that says so, never with `[DONE]`; nothing is tried again."""
    gate = Gate(EVENTS_HEAD + chunk(EVENT), after=BEGUN[fault])
    world.engine.answer, before = gate.answer, world.engine.calls
    heard = hear(proxy.url, STREAMED, begun=gate.opened.set)
    assert (heard.status, heard.code, heard.whole) == (200, "engine_failed", True)
    assert heard.body.startswith(EVENT)
    assert DONE not in heard.body
    receipted(world, proxy, heard, Finish.UPSTREAM_FAILED)
    assert world.engine.calls == before + 1
    still_served(world, proxy)


GARBAGE = {
    "no JSON": b"data: {not json}\n\n",
    "no text": b"\xff\xfe\x00 data\r\r\n\n",
    "a member twice": b'data: {"choices":[],"choices":7}\n\n',
    "a number that is none": b'data: {"choices":[{"delta":{"content":NaN}}]}\n\n',
    "too deep": b"data: " + b"[" * 100_000 + b"\n\n",
}


@pytest.mark.parametrize("fault", GARBAGE)
def test_garbage_in_a_stream_is_the_engines_and_receipted_as_such(
    world: World, proxy: Proxy, fault: str
) -> None:
    world.engine.answer = says(EVENTS_HEAD + chunk(GARBAGE[fault]) + b"0\r\n\r\n")
    heard = hear(proxy.url, STREAMED)
    assert (heard.status, heard.body, heard.whole) == (200, GARBAGE[fault], True)
    receipted(world, proxy, heard, Finish.COMPLETE)
    still_served(world, proxy)


def test_an_engine_that_writes_a_receipt_has_its_answer_refused(world: World, proxy: Proxy) -> None:
    """Two receipts are none: what came before is followed by an error and a cut."""
    forged = EVENT + b": confide-receipt e30=\n\n"
    world.engine.answer = says(EVENTS_HEAD + chunk(forged) + chunk(DONE) + b"0\r\n\r\n")
    kept = world.kept()
    heard = hear(proxy.url, STREAMED)
    assert (heard.status, heard.code, heard.whole) == (200, "receipt-missing", False)
    assert DONE not in heard.body
    assert (proxy.told()["problem"], world.kept()) == ("receipt-missing", kept)
    still_served(world, proxy)


def test_a_storm_of_5xx_has_a_receipt_each_and_ends_with_the_storm(
    world: World, proxy: Proxy
) -> None:
    world.engine.answer = says(JSON_HEAD.replace(b"200", b"500") + b"content-length: 0\r\n\r\n")
    for _ in range(20):
        heard = hear(proxy.url, QUESTION)
        assert (heard.status, heard.code) == (502, "engine_failed")
        receipted(world, proxy, heard, Finish.UPSTREAM_FAILED)
    still_served(world, proxy)


@pytest.mark.slow
def test_every_receipt_of_these_failures_verifies_by_itself(world: World, proxy: Proxy) -> None:
    """Last: what was kept above, read again by another process, without the node."""
    heard = hear(proxy.url, STREAMED)
    receipted(world, proxy, heard, Finish.COMPLETE)
    roots = str(world.installation.root / "roots")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "confide", "receipts", "verify", "--all"),
            *("--simulated-roots", roots),
        ],
        env=world.installation.environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
