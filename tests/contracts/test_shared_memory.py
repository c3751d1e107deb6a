"""Memory and a lock shared over a fork: what a killed process leaves behind (workers.md §2)."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from confide.adapters.shared_memory import SharedMemory
from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.errors import Reason, RemoteProtocolError, Unavailable
from confide.node.forked import Forked, fork_process
from confide.node.receipt_store import DIGEST_TABLE_BYTES, IssuedDigests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = ReplayPolicy(max_entries=1 << 12)


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    shared = SharedMemory(POLICY.table_bytes, DIGEST_TABLE_BYTES, patience_seconds=0.05)
    yield shared
    shared.close()


def window_over(memory: SharedMemory) -> ReplayWindow:
    return ReplayWindow(POLICY, secret=bytes(32), table=memory.areas[0], guard=memory.guard())


def admit(window: ReplayWindow, index: int) -> Reason | None:
    """Return why a nonce was refused, None where it was admitted."""
    try:
        window.admit(1, index.to_bytes(32, "big"), NOW, now=NOW)
    except RemoteProtocolError as error:
        return error.reason
    return None


@contextmanager
def another(memory: SharedMemory, work: Callable[[], None]) -> Iterator[Forked]:
    """Another process that has done `work` and then waits to be killed."""
    reading, writing = os.pipe()

    def run() -> None:
        work()
        os.write(writing, b"done")
        signal.pause()

    child = fork_process(run, keep=(memory.lock_handle, writing))
    os.close(writing)
    try:
        assert os.read(reading, 4) == b"done"
        yield child
    finally:
        os.close(reading)
        child.send(signal.SIGKILL)
        assert child.collect() == -signal.SIGKILL


def test_what_one_process_admitted_another_refuses(memory: SharedMemory) -> None:
    window, digests = window_over(memory), IssuedDigests(table=memory.areas[1])

    def work() -> None:
        window.admit(1, (1).to_bytes(32, "big"), NOW, now=NOW)
        digests.add(b"d" * 32)

    with another(memory, work):
        assert admit(window, 1) is Reason.REPLAYED
        assert b"d" * 32 in digests
    assert admit(window, 1) is Reason.REPLAYED
    assert admit(window, 2) is None


def test_a_process_killed_with_the_lock_stops_nobody_and_opens_nothing(
    memory: SharedMemory,
) -> None:
    window = window_over(memory)
    assert admit(window, 1) is None

    with another(memory, memory.guard().__enter__) as holder:
        # While somebody else holds it nothing is admitted, neither old nor new.
        assert admit(window, 1) is Reason.NODE_BUSY
        assert admit(window, 2) is Reason.NODE_BUSY
        digests = IssuedDigests(table=memory.areas[1], guard=memory.guard())
        with pytest.raises(Unavailable):
            digests.add(b"d" * 32)
        holder.send(signal.SIGKILL)
        while admit(window, 3) is Reason.NODE_BUSY:
            time.sleep(0.01)
    assert admit(window, 3) is Reason.REPLAYED
    assert admit(window, 1) is Reason.REPLAYED
    assert admit(window, 2) is None


def test_many_processes_admit_each_nonce_once(memory: SharedMemory) -> None:
    window, count, processes = window_over(memory), 500, 4
    reading, writing = os.pipe()

    def run() -> None:
        admitted = [index for index in range(count) if admit(window, index) is None]
        os.write(writing, b"".join(index.to_bytes(2, "big") for index in admitted))

    keep = (memory.lock_handle, writing)
    children = [fork_process(run, keep=keep) for _ in range(processes)]
    os.close(writing)
    with open(reading, "rb") as file:  # noqa: PTH123 - a pipe
        raw = file.read()
    assert [child.collect() for child in children] == [0] * processes
    admitted = sorted(int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2))
    assert admitted == list(range(count))
