"""Nodes that die, restart, are something else or cannot be asked; stores that cannot be written.

`confide proxy` as a process between a program and model nodes as processes: whatever happens, the
program is answered by a proven node or told why not. client.md §2, §3, §5, §7.4.
"""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from deployment import WAIT_SECONDS
from fault_world import (
    DONE,
    EVENT,
    EVENTS_HEAD,
    QUESTION,
    STREAMED,
    WHOLE,
    Gate,
    chunk,
    hear,
    running_world,
    well,
)

from confide.inference.digest import Finish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deployment import Node
    from fault_world import Proxy, World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("proven")) as made:
        yield made


@pytest.fixture(autouse=True)
def _well(world: World) -> None:
    world.engine.answer = well


def back(world: World, node: Node) -> Node:
    """The node again, at its old address: another boot with keys of its own."""
    return world.node(port=urlsplit(node.url).port or 0)


def served(world: World, proxy: Proxy) -> None:
    heard = hear(proxy.url, QUESTION)
    assert (heard.status, heard.body) == (200, WHOLE)
    assert world.record(proxy.told()["receipt"]).finish is Finish.COMPLETE


def refused(world: World, proxy: Proxy, status: int, code: str, body: object = QUESTION) -> None:
    """Told why; nothing reached an engine and nothing was kept."""
    before = world.engine.calls, world.kept()
    heard = hear(proxy.url, body)
    assert (heard.status, heard.code) == (status, code)
    line = proxy.told()
    assert (line["problem"], line["receipt"]) == (code, None)
    assert (world.engine.calls, world.kept()) == before


# --- nodes ----------------------------------------------------------------------------------------


def test_a_node_that_dies_within_a_stream_and_comes_back(world: World) -> None:
    """The stream is cut and has no receipt; the next request is proven anew, and served."""
    node = world.node()
    proxy = world.proxy("--node", node.url)
    served(world, proxy)
    kept, gate = world.kept(), Gate(EVENTS_HEAD + chunk(EVENT))
    world.engine.answer = gate.answer
    heard = hear(proxy.url, STREAMED, begun=node.process.kill)
    assert node.process.wait(WAIT_SECONDS) == -signal.SIGKILL
    assert (heard.status, heard.whole, heard.code) == (200, False, "channel-truncated")
    assert heard.body.startswith(EVENT)
    assert DONE not in heard.body
    assert (proxy.told()["problem"], world.kept()) == ("channel-truncated", kept)
    world.engine.answer = well
    refused(world, proxy, 503, "unavailable")
    back(world, node)
    served(world, proxy)
    assert proxy.stop() == 0


@pytest.mark.slow
def test_with_continuity_a_node_that_was_restarted_stays_refused(world: World) -> None:
    node = world.node()
    proxy = world.proxy("--node", node.url, "--continuity")
    served(world, proxy)
    assert node.stop() == 0
    back(world, node)
    for _ in range(2):
        refused(world, proxy, 502, "keyset-mismatch")


def test_only_a_proven_node_takes_over(world: World) -> None:
    """Of three candidates the first is refused and the second dies: the third is asked."""
    false, second, third = world.node(fault="debug-td"), world.node(), world.node()
    urls = [word for node in (false, second, third) for word in ("--node", node.url)]
    proxy = world.proxy(*urls)
    served(world, proxy)
    second.process.kill()
    second.process.wait(WAIT_SECONDS)
    served(world, proxy)
    assert third.stop() == 0
    # One that was not proven is left: a refusal, and nothing is sent to it.
    before = world.engine.calls
    heard = hear(proxy.url, QUESTION)
    line = proxy.told()
    assert (heard.status, heard.code, line["receipt"]) == (502, line["problem"], None)
    assert heard.code not in ("unavailable", "protocol")
    assert world.engine.calls == before


def test_evidence_above_its_age_is_not_used_at_the_very_request(world: World) -> None:
    """The proof ends while the node cannot be asked: stale, and nothing is sent."""
    node = world.node()
    proxy = world.proxy("--node", node.url, "--max-evidence-age", "1")
    served(world, proxy)
    assert node.stop() == 0
    proven = time.monotonic()
    while time.monotonic() < proven + 1.1:
        time.sleep(0.05)
    refused(world, proxy, 502, "evidence-stale")
    back(world, node)
    served(world, proxy)


# --- receipts that cannot be kept -----------------------------------------------------------------


def not_handed_over(world: World, proxy: Proxy, *, stream: bool) -> None:
    """The engine did answer; the program gets no answer, and a stream no end."""
    kept, calls = world.kept(), world.engine.calls
    heard = hear(proxy.url, STREAMED if stream else QUESTION)
    assert (heard.status, heard.code) == (200 if stream else 503, "receipt-not-kept")
    assert heard.whole is not stream
    assert DONE not in heard.body
    assert WHOLE not in heard.body
    assert (proxy.told()["problem"], world.kept()) == ("receipt-not-kept", kept)
    assert world.engine.calls == calls + 1


@pytest.mark.slow
def test_while_the_receipts_are_locked_nothing_goes_unreceipted(world: World) -> None:
    proxy = world.proxy("--node", world.node().url)
    served(world, proxy)
    with contextlib.closing(sqlite3.connect(world.receipts, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        not_handed_over(world, proxy, stream=True)
        other.execute("ROLLBACK")
    served(world, proxy)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for a few receipts."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("FULL DISK NOT TESTED: this process may not mount a small file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_on_a_full_disk_nothing_goes_unreceipted(tmp_path: Path, small_disk: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with running_world(home) as world:
        data = {"XDG_DATA_HOME": str(small_disk)}
        proxy = world.proxy("--node", world.node().url, **data)
        world.receipts = small_disk / "confide" / "receipts.sqlite3"
        served(world, proxy)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        for stream in (False, True):
            not_handed_over(world, proxy, stream=stream)
        filler.unlink()
        served(world, proxy)
        assert proxy.stop() == 0
