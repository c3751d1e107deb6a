"""A digest is final with a proof that holds, and pending until then; a log is not believed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx2
import log_world as world
import pytest
from log_world import LOG, NOW, WITNESSES, FixedClock, LocalWitness, MemoryDisk, entry, policy

from confide.adapters.log_entry import Logged, log_digest, settle_entry
from confide.adapters.log_files import FileLog
from confide.adapters.log_http import HttpLog
from confide.errors import FormatError, LogRejected, Reason
from confide.node.log_app import log_app
from confide.node.log_keeper import LogKeeper
from confide.node.log_writer import LogWriter, WriterLimits
from confide.tlog.leaf import LeafOpening, PendingEntry, parse_pending
from confide.tlog.verify import verify_logged
from confide.wire.tlog_proof import parse_tlog_proof

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

DIGEST, BLINDING = b"d" * 32, b"b" * 32
BELIEVED = policy(1, WITNESSES[0])
FAST = WriterLimits(window_seconds=0.0, retry_seconds=0.001, witness_seconds=0.2)


def with_log(work: Callable[[HttpLog, LocalWitness, LogWriter], Awaitable[None]]) -> None:
    async def run() -> None:
        witness = LocalWitness(WITNESSES[0], clock=FixedClock())
        store = FileLog(world.FOLDER, disk=MemoryDisk())
        keeper = LogKeeper.open(store, LOG)
        writer = LogWriter(
            keeper, witnesses=[witness], policy=BELIEVED, clock=FixedClock(), limits=FAST
        )
        task = asyncio.ensure_future(writer.run())
        transport = httpx2.ASGITransport(app=log_app(keeper, writer, store, final_seconds=0.1))
        async with httpx2.AsyncClient(transport=transport) as client:
            await work(HttpLog(client, "http://log"), witness, writer)
        task.cancel()
        await asyncio.wait({task})

    _run(run())


def _run(work: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def test_a_digest_becomes_final_and_its_file_is_verified_by_anyone() -> None:
    async def work(log: HttpLog, _witness: LocalWitness, _writer: LogWriter) -> None:
        await log.add_entries([entry(n) for n in range(300)])
        found = await log_digest(log, digest=DIGEST, blinding=BLINDING, policy=BELIEVED, now=NOW)
        assert isinstance(found, Logged)
        assert (found.inclusion.index, found.inclusion.time) == (300, NOW)
        again = parse_tlog_proof(found.proof.encode())
        assert verify_logged(again, digest=DIGEST, policy=BELIEVED, now=NOW).index == 300

    with_log(work)


def test_without_witnesses_it_is_pending_and_settled_later() -> None:
    async def work(log: HttpLog, witness: LocalWitness, writer: LogWriter) -> None:
        await writer.final(0, timeout_seconds=5)
        witness.down = True
        found = await log_digest(log, digest=DIGEST, blinding=BLINDING, policy=BELIEVED, now=NOW)
        assert found == PendingEntry(LeafOpening(BLINDING, DIGEST), 0)
        kept = parse_pending(found.encode())
        # Still down: still pending, and nothing is sent twice.
        assert await settle_entry(log, kept, policy=BELIEVED, now=NOW) == kept
        # A policy that asks for more than the log has: pending, not refused.
        more = policy(2, *WITNESSES[:2])
        assert await settle_entry(log, kept, policy=more, now=NOW) == kept
        witness.down = False
        assert await writer.final(1, timeout_seconds=5)
        settled = await settle_entry(log, kept, policy=BELIEVED, now=NOW)
        assert isinstance(settled, Logged)
        assert settled.inclusion.index == 0
        # An index that is another entry's does not hold.
        await log.add(entry(1))
        with pytest.raises(LogRejected) as caught:
            await settle_entry(log, replace(kept, index=1), policy=BELIEVED, now=NOW)
        assert caught.value.reason is Reason.TLOG_INCLUSION

    with_log(work)


def test_a_log_that_is_down_leaves_the_entry_pending() -> None:
    async def gone(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    async def work() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(gone)) as client:
            log = HttpLog(client, "http://log")
            found = await log_digest(
                log, digest=DIGEST, blinding=BLINDING, policy=BELIEVED, now=NOW
            )
            assert found == PendingEntry(LeafOpening(BLINDING, DIGEST))
            placed = replace(found, index=3)
            assert await settle_entry(log, placed, policy=BELIEVED, now=NOW) == placed

    _run(work())


def test_a_log_of_another_key_is_refused_not_pending() -> None:
    other = world.signer("log.example/other")
    stranger = replace(BELIEVED, logs=(replace(BELIEVED.logs[0], key=other.key),))

    async def work(log: HttpLog, witness: LocalWitness, _writer: LogWriter) -> None:
        with pytest.raises(LogRejected) as caught:
            await log_digest(log, digest=DIGEST, blinding=BLINDING, policy=stranger, now=NOW)
        assert caught.value.reason is Reason.TLOG_LOG_UNKNOWN
        assert witness.asked
        pending = PendingEntry(LeafOpening(BLINDING, DIGEST), 0)
        with pytest.raises(LogRejected):
            await settle_entry(log, pending, policy=stranger, now=NOW)

    with_log(work)


def test_what_is_kept_of_a_pending_entry_reads_back() -> None:
    for index in (None, 0, 2**62):
        pending = PendingEntry(LeafOpening(BLINDING, DIGEST), index)
        assert parse_pending(pending.encode()) == pending
    raw = PendingEntry(LeafOpening(BLINDING, DIGEST), 7).encode()
    for broken in (raw[:-1], raw.replace(b'"7"', b"7"), raw.replace(b'"7"', b'"07"'), b"[]"):
        with pytest.raises(FormatError):
            parse_pending(broken)
