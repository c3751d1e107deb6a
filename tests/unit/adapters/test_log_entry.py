"""A digest is final with a proof that holds, and pending until then; a log is not believed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import log_world as world
import pytest
from log_world import LOG, NOW, WITNESSES, FixedClock, LocalWitness, MemoryDisk, entry, policy

from confide.adapters.log_entry import Logged, Waiting, settle_entry, wait_until_final
from confide.adapters.log_files import FileLog
from confide.adapters.log_http import HttpLog
from confide.errors import FormatError, LogRejected, Reason
from confide.node.log_app import log_app
from confide.node.log_keeper import LogKeeper
from confide.node.log_writer import LogWriter, WriterLimits
from confide.tlog.leaf import LeafOpening, PendingEntry, parse_pending
from confide.tlog.verify import verify_logged
from confide.wire.tlog_proof import TlogProof, parse_tlog_proof

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from confide.wire.tlog_policy import LogPolicy

DIGEST, BLINDING = b"d" * 32, b"b" * 32
PENDING = PendingEntry(LeafOpening(BLINDING, DIGEST), b"p" * 32)
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
    asyncio.run(asyncio.wait_for(work, 60))


async def settle(
    log: HttpLog, pending: PendingEntry = PENDING, by: LogPolicy = BELIEVED
) -> Logged | Waiting:
    """Try once, at the time at which everything here happens."""
    return await settle_entry(log, pending, made=NOW, policy=by, now=NOW)


def answering(handler: Callable[[httpx2.Request], httpx2.Response]) -> httpx2.MockTransport:
    """A log that is somebody else's program."""
    return httpx2.MockTransport(handler)


async def ask(transport: httpx2.MockTransport, pending: PendingEntry = PENDING) -> Any:
    async with httpx2.AsyncClient(transport=transport) as client:
        return await settle(HttpLog(client, "http://log"), pending)


def test_a_digest_becomes_final_and_its_file_is_verified_by_anyone() -> None:
    async def work(log: HttpLog, _witness: LocalWitness, _writer: LogWriter) -> None:
        await log.add_entries([entry(n) for n in range(300)])
        found = await settle(log)
        assert isinstance(found, Logged)
        assert (found.inclusion.index, found.inclusion.time) == (300, NOW)
        again = parse_tlog_proof(found.proof.encode())
        known: Any = {"digest": DIGEST, "made": NOW, "policy": BELIEVED, "now": NOW}
        assert verify_logged(again, **known).index == 300

    with_log(work)


def test_without_witnesses_it_is_pending_and_settled_later() -> None:
    async def work(log: HttpLog, witness: LocalWitness, writer: LogWriter) -> None:
        await writer.final(0, timeout_seconds=5)
        witness.down = True
        found = await settle(log)
        assert isinstance(found, Waiting)
        assert (found.entry, found.why) == (
            replace(PENDING, index=0),
            "too few witnesses have seen it yet",
        )
        kept = parse_pending(found.entry.encode())
        # Still down: still pending, and nothing is sent twice.
        assert (await settle(log, kept)) == found
        # A policy that asks for more than the log has: pending, not refused.
        more = policy(2, *WITNESSES[:2])
        assert await settle(log, kept, more) == found
        witness.down = False
        assert await writer.final(1, timeout_seconds=5)
        settled = await settle(log, kept)
        assert isinstance(settled, Logged)
        assert settled.inclusion.index == 0
        # The same where the log answers at once, with a proof that satisfies its own policy.
        asked = await settle(log, PENDING, more)
        assert isinstance(asked, Waiting)
        assert asked.entry.index == 1
        # An index that is another entry's does not hold.
        await log.add(entry(1))
        with pytest.raises(LogRejected) as caught:
            await settle(log, replace(kept, index=2))
        assert caught.value.reason is Reason.TLOG_INCLUSION

    with_log(work)


def test_waiting_ends_with_the_proof_and_keeps_what_is_known_meanwhile() -> None:
    async def work(log: HttpLog, witness: LocalWitness, writer: LogWriter) -> None:
        await writer.final(0, timeout_seconds=5)
        witness.down = True
        kept: list[PendingEntry] = []

        def keep(pending: PendingEntry) -> None:
            kept.append(pending)
            witness.down = False

        known: Any = {"made": NOW, "policy": BELIEVED, "clock": FixedClock(), "keep": keep}
        found = await wait_until_final(log, PENDING, wait_seconds=20, **known)
        assert isinstance(found, Logged)
        assert kept == [replace(PENDING, index=0)]

    with_log(work)


def test_a_log_that_never_answers_is_waited_for_no_longer_than_said() -> None:
    async def silent(_request: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def work() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(silent)) as client:
            found = await wait_until_final(
                HttpLog(client, "http://log"), PENDING, made=NOW, policy=BELIEVED,
                clock=FixedClock(), wait_seconds=0, keep=lambda _entry: None,
            )  # fmt: skip
        assert found == Waiting(PENDING, "the log did not answer in time")

    _run(work())


def test_a_log_that_is_down_or_talks_nonsense_leaves_the_entry_pending() -> None:
    def gone(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    async def work() -> None:
        for pending in (PENDING, replace(PENDING, index=3)):
            found = await ask(answering(gone), pending)
            assert found == Waiting(
                pending, "the log does not take it now: no answer: ConnectError"
            )
        for status, body in ((200, b"no proof"), (202, b"no index"), (202, b"index 01\n")):
            found = await ask(answering(lambda _asked: httpx2.Response(status, content=body)))  # noqa: B023 - called at once
            assert found.entry == PENDING
            assert found.why.startswith("the log answered something else: ")

    _run(work())


def test_a_log_of_another_key_is_refused_not_pending() -> None:
    other = world.signer("log.example/other")
    stranger = replace(BELIEVED, logs=(replace(BELIEVED.logs[0], key=other.key),))

    async def work(log: HttpLog, witness: LocalWitness, _writer: LogWriter) -> None:
        for pending in (PENDING, replace(PENDING, index=0)):
            with pytest.raises(LogRejected) as caught:
                await settle(log, pending, stranger)
            assert caught.value.reason is Reason.TLOG_LOG_UNKNOWN
        assert witness.asked

    with_log(work)


def _lying(size: int, *, key: Any = LOG, at: int | None = None) -> TlogProof:
    """The proof of another entry than the one that was sent, in a log of `size` entries."""
    keeper = world.open_log(MemoryDisk())
    keeper.append([entry(n) for n in range(size)])
    head = keeper.head.head
    proof = keeper.prove(size - 1 if at is None else at, keeper.head)
    return replace(proof, checkpoint=world.signed(head, WITNESSES[0], by=key))


@pytest.mark.parametrize(
    ("proof", "reason"),
    [
        (_lying(5), Reason.TLOG_INCLUSION),
        (replace(_lying(5), index=5), Reason.TLOG_INCLUSION),
        (
            _lying(5, key=type(LOG)(world.ORIGIN, LOG.key.kind, b"z" * 32)),
            Reason.TLOG_SIGNATURE,
        ),
    ],
    ids=["another entry", "a checkpoint from before the entry", "another key of the same name"],
)
def test_a_proof_that_does_not_hold_is_refused(proof: TlogProof, reason: Reason) -> None:
    async def work() -> None:
        with pytest.raises(LogRejected) as caught:
            await ask(answering(lambda _asked: httpx2.Response(200, content=proof.encode())))
        assert caught.value.reason is reason

    _run(work())


def test_what_claims_to_be_made_later_than_the_log_saw_it_is_refused() -> None:
    async def work(log: HttpLog, _witness: LocalWitness, _writer: LogWriter) -> None:
        late = NOW + timedelta(seconds=301)
        with pytest.raises(LogRejected) as caught:
            await settle_entry(log, PENDING, made=late, policy=BELIEVED, now=NOW)
        assert caught.value.reason is Reason.TLOG_POSTDATED

    with_log(work)


def test_what_is_kept_of_a_pending_entry_reads_back() -> None:
    for index in (None, 0, 2**62):
        pending = replace(PENDING, index=index)
        assert parse_pending(pending.encode()) == pending
    raw = replace(PENDING, index=7).encode()
    for broken in (
        raw[:-1],
        raw.replace(b'"7"', b"7"),
        raw.replace(b'"7"', b'"07"'),
        raw.replace(b'"policy"', b'"policies"'),
        b"[]",
    ):
        with pytest.raises(FormatError):
            parse_pending(broken)
