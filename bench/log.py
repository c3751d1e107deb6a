"""The transparency log: entries made durable, proofs, memory; on the disk of temporary files.

Entries are synthetic (SHA-256 of a counter); the files, the syncs and the signatures are real. The
peer of a batch is one bare write and sync of a small file on the same disk in the same run.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from bench.rows import MB, Row, resident_bytes, row

from confide.adapters.clock import SystemClock
from confide.adapters.log_files import FileLog
from confide.crypto.cosign import NoteSigner
from confide.node.log_keeper import LogKeeper
from confide.node.log_writer import LogWriter, WriterLimits
from confide.wire.note import SignatureType
from confide.wire.tlog_policy import LogEntry, LogPolicy, Quorum

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS = 4.0
_SENDERS = 512
_LARGE = 10_000_000
_EARLY = 1_000_000
_BATCH = 65_536
_SIGNER = NoteSigner("bench.example/log", SignatureType.ED25519, bytes(range(32)))
_POLICY = LogPolicy((LogEntry(_SIGNER.key),), (), Quorum(0, ()))


@contextmanager
def _opened() -> Iterator[tuple[FileLog, LogKeeper]]:
    with tempfile.TemporaryDirectory(prefix="bench-log-") as folder:
        store = FileLog(Path(folder) / "log")
        try:
            yield store, LogKeeper.open(store, _SIGNER)
        finally:
            store.close()


def _entry(number: int) -> bytes:
    return sha256(b"%d" % number).digest()


async def _acknowledged(keeper: LogKeeper) -> tuple[float, list[float]]:
    """Return entries a second that came back durable, and how long each took, in ms."""
    writer = LogWriter(
        keeper, witnesses=(), policy=_POLICY, clock=SystemClock(), limits=WriterLimits()
    )
    running = asyncio.ensure_future(writer.run())
    end = time.monotonic() + _SECONDS
    waits: list[float] = []

    async def send(number: int) -> None:
        while (start := time.monotonic()) < end:
            await writer.add((_entry(number),))
            waits.append(1000 * (time.monotonic() - start))

    start = time.monotonic()
    await asyncio.gather(*(send(number) for number in range(_SENDERS)))
    spent = time.monotonic() - start
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return len(waits) / spent, waits


def _bare_sync() -> float:
    """Return how many small files a second this disk takes, one after the other."""
    with tempfile.TemporaryDirectory(prefix="bench-log-") as folder:
        start, count = time.monotonic(), 0
        while time.monotonic() - start < 1.0:
            handle = os.open(Path(folder) / str(count), os.O_WRONLY | os.O_CREAT)
            os.write(handle, bytes(4096))
            os.fsync(handle)
            os.close(handle)
            count += 1
        return count / (time.monotonic() - start)


def _proof_ms(keeper: LogKeeper, *, count: int, fresh: bool, store: FileLog) -> float:
    """Return the median of inclusion proofs at places all over the log, in ms."""
    size = keeper.head.head.size
    found = []
    for number in range(count):
        asked = LogKeeper.open(store, _SIGNER) if fresh else keeper
        index = int.from_bytes(_entry(number)[:8], "big") % size
        start = time.perf_counter()
        asked.prove(index, asked.head)
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found)


def log_rows() -> Iterator[Row]:
    """Yield what a log does with many senders at once."""
    with _opened() as (store, keeper):
        rate, waits = asyncio.run(_acknowledged(keeper))
        yield row(
            f"log: entries acknowledged, each durable, {_SENDERS} senders, beside bare syncs",
            rate,
            "entries/s",
            peer=_bare_sync(),
            budget=">= 5000",
            met=rate >= 5000,
        )
        slow = statistics.quantiles(waits, n=100)[98]
        yield row(
            "log: an entry until it is durable, 99 of 100, same run",
            slow,
            "ms",
            budget="<= 200",
            met=slow <= 200,
        )
        spent = _proof_ms(keeper, count=200, fresh=False, store=store)
        yield row(
            "log: inclusion proof, tiles read and verified, entries all over the log of that run",
            spent,
            "ms",
            budget="<= 1",
            met=spent <= 1,
        )


def large_log_rows() -> Iterator[Row]:
    """Yield memory and proofs at 10 million entries; takes minutes and 700 MB of disk."""
    with _opened() as (store, keeper):
        early, start = 0, time.monotonic()
        for first in range(0, _LARGE, _BATCH):
            last = min(first + _BATCH, _LARGE)
            keeper.remember(keeper.append([_entry(number) for number in range(first, last)]))
            if not early and last >= _EARLY:
                early = resident_bytes(os.getpid())
        rate = _LARGE / (time.monotonic() - start)
        late = resident_bytes(os.getpid())
        yield row(
            "log: 10 million entries in batches of 65,536, each batch durable", rate, "entries/s"
        )
        yield row(
            "log: resident memory at 10 million entries, beside 1 million",
            late / MB,
            "MB",
            peer=early / MB,
            budget="ratio <= 1.1",
            met=late <= 1.1 * early,
        )
        for name, fresh in (("caches as they come", False), ("nothing cached", True)):
            spent = _proof_ms(keeper, count=300, fresh=fresh, store=store)
            yield row(
                f"log: inclusion proof at 10 million entries, tiles verified, {name}",
                spent,
                "ms",
                budget="<= 1",
                met=spent <= 1,
            )
