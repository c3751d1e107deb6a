"""A running log: batches, witnesses that come and go, publication, HTTP. log.md §8, §9."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx2
import log_world as world
import pytest
from log_world import LOG, NOW, WITNESSES, FixedClock, LocalWitness, MemoryDisk, entry, policy

from confide.adapters.log_files import FileLog
from confide.adapters.log_http import HttpLog, HttpWitness, Pending
from confide.client.log_monitor import look_at_log
from confide.errors import (
    ConfigurationError,
    FormatError,
    LogRejected,
    Reason,
    RemoteProtocolError,
    Unavailable,
)
from confide.node.log_app import log_app
from confide.node.log_check import check_log
from confide.node.log_keeper import LogKeeper
from confide.node.log_writer import LogWriter, WriterLimits
from confide.node.serve_log import LogSettings, WitnessSettings, serve_log, serve_witness
from confide.node.witness_app import witness_app
from confide.tlog.leaf import LeafOpening
from confide.tlog.verify import verify_logged
from confide.wire.checkpoint import SignedCheckpoint, parse_checkpoint
from confide.wire.note import Note
from confide.wire.tlog_proof import TlogProof
from confide.wire.witness import AddCheckpoint, WitnessReply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence
    from pathlib import Path

    from starlette.types import ASGIApp

    from confide.ports import Witness
    from confide.wire.tlog_policy import LogPolicy

FAST = WriterLimits(window_seconds=0.0, retry_seconds=0.001, witness_seconds=0.2)
HOUR = timedelta(hours=1)


class Running:
    """A log on a memory disk, with its loops running and a client of its HTTP side."""

    def __init__(
        self, disk: MemoryDisk, store: FileLog, keeper: LogKeeper, writer: LogWriter
    ) -> None:
        self.disk = disk
        self.store = store
        self.keeper = keeper
        self.writer = writer
        self.app = log_app(keeper, writer, store, final_seconds=0.2)


@asynccontextmanager
async def running(
    *,
    disk: MemoryDisk | None = None,
    witnesses: Sequence[Witness] = (),
    believed: LogPolicy | None = None,
    limits: WriterLimits = FAST,
    told: list[str] | None = None,
) -> AsyncIterator[Running]:
    memory = disk or MemoryDisk()
    store = FileLog(world.FOLDER, disk=memory)
    keeper = LogKeeper.open(store, LOG)
    writer = LogWriter(
        keeper,
        witnesses=witnesses,
        policy=believed or policy(0),
        clock=FixedClock(),
        limits=limits,
        report=(told if told is not None else []).append,
    )
    task = asyncio.ensure_future(writer.run())
    if not witnesses:
        await writer.final(0, timeout_seconds=5)
    try:
        yield Running(memory, store, keeper, writer)
    finally:
        task.cancel()
        await asyncio.wait({task})
        store.close()


def client(app: ASGIApp) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://log")


def run(work: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_many_entries_share_a_batch_and_every_one_gets_its_place() -> None:
    async def work() -> None:
        async with running(limits=replace(FAST, window_seconds=0.2)) as log:
            before = log.disk.operations
            places = await asyncio.gather(*(log.writer.add((entry(n),)) for n in range(700)))
            assert sorted(places) == list(range(700))
            # Two full tiles, their bundles, three partial files, a head: not 700 of anything.
            assert log.disk.operations - before < 80
            stored = world.logged(log.disk, 700)
            assert all(stored[place] == entry(n) for n, place in enumerate(places))

    run(work())


def test_entries_are_final_when_the_quorum_cosigned() -> None:
    async def work() -> None:
        witnesses = [LocalWitness(each, clock=FixedClock()) for each in WITNESSES]
        witnesses[2].down = True
        told: list[str] = []
        believed = policy(2, *WITNESSES)
        async with running(witnesses=witnesses, believed=believed, told=told) as log:
            first = await log.writer.add((entry(0), entry(1)))
            at = await log.writer.final(first + 2, timeout_seconds=5)
            assert at is not None
            assert at.head.size == 2
            assert len(at.note.signatures) == 3
            assert any("witness.example/c" in line for line in told)
            # Every witness that is up is asked from the size that it saw.
            await log.writer.add((entry(2),))
            assert await log.writer.final(3, timeout_seconds=5)
            assert witnesses[0].asked[-1].old == 2

    run(work())


def test_without_the_quorum_the_public_checkpoint_stays_and_catches_up_later() -> None:
    async def work() -> None:
        witness = LocalWitness(WITNESSES[0], clock=FixedClock())
        believed = policy(1, WITNESSES[0])
        async with running(witnesses=[witness], believed=believed) as log:
            await log.writer.add((entry(0),))
            assert await log.writer.final(1, timeout_seconds=5)
            witness.down = True
            assert await log.writer.add((entry(1),)) == 1
            assert await log.writer.final(2, timeout_seconds=0.05) is None
            assert log.keeper.head.head.size == 2
            assert log.writer.published is not None
            assert log.writer.published.head.size == 1
            witness.down = False
            assert await log.writer.final(2, timeout_seconds=5)

    run(work())


def test_a_witness_that_knows_less_or_more_is_asked_from_its_own_size() -> None:
    async def work() -> None:
        disk = MemoryDisk()
        witness = LocalWitness(WITNESSES[0], clock=FixedClock())
        believed = policy(1, WITNESSES[0])
        async with running(disk=disk, witnesses=[witness], believed=believed) as log:
            await log.writer.add(tuple(entry(n) for n in range(5)))
            assert await log.writer.final(5, timeout_seconds=5)
        # Restarted: the log does not know what the witness saw, and learns it from the 409.
        async with running(disk=disk, witnesses=[witness], believed=believed) as log:
            await log.writer.add((entry(5),))
            assert await log.writer.final(6, timeout_seconds=5)
            assert [each.old for each in witness.asked[-4:]][-1] in (5, 6)

    run(work())


def test_a_log_that_was_rolled_back_does_not_start() -> None:
    async def work() -> None:
        witness = LocalWitness(WITNESSES[0], clock=FixedClock())
        believed = policy(1, WITNESSES[0])
        async with running(witnesses=[witness], believed=believed) as log:
            await log.writer.add((entry(0), entry(1)))
            assert await log.writer.final(2, timeout_seconds=5)
        store = FileLog(world.FOLDER, disk=MemoryDisk())
        older = LogWriter(
            LogKeeper.open(store, LOG),
            witnesses=[witness],
            policy=believed,
            clock=FixedClock(),
            limits=FAST,
        )
        with pytest.raises(LogRejected) as caught:
            await older.run()
        assert caught.value.reason is Reason.TLOG_ROLLBACK
        with pytest.raises(Unavailable, match="ended"):
            await older.add((entry(9),))

    run(work())


class Liar:
    """A witness that answers what it is told to."""

    def __init__(self, reply: WitnessReply) -> None:
        self.reply = reply
        self.key = WITNESSES[0].key

    async def add_checkpoint(self, _request: AddCheckpoint) -> WitnessReply:
        return self.reply


def test_what_a_witness_answers_is_not_believed() -> None:
    async def work() -> None:
        believed = policy(1, WITNESSES[0])
        line = WITNESSES[0].cosign(world.signed_head(9), seconds=int(NOW.timestamp()))
        for reply in (
            WitnessReply((line,)),
            WitnessReply((line, line)),
            WitnessReply(()),
            WitnessReply((), 0),
        ):
            told: list[str] = []
            async with running(witnesses=[Liar(reply)], believed=believed, told=told) as log:
                await log.writer.add((entry(0),))
                assert await log.writer.final(1, timeout_seconds=0.05) is None
                assert told

    run(work())


def test_a_full_queue_is_said_so() -> None:
    async def work() -> None:
        limits = replace(FAST, window_seconds=0.2, max_waiting=3)
        async with running(limits=limits) as log:
            first = asyncio.ensure_future(log.writer.add((entry(0), entry(1))))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable, match="too many"):
                await log.writer.add((entry(2), entry(3)))
            assert await first == 0

    run(work())


def test_a_failed_write_acknowledges_nothing_and_ends_the_log() -> None:
    async def work() -> None:
        async with running() as log:
            await log.writer.add((entry(0),))
            assert await log.writer.final(1, timeout_seconds=5)
            log.disk.fails = log.disk.operations
            with pytest.raises(Unavailable):
                await log.writer.add((entry(1),))
            with pytest.raises(Unavailable):
                await log.writer.add((entry(2),))

    run(work())


def test_the_window_is_at_most_200_ms() -> None:
    with pytest.raises(ValueError, match="200 ms"):
        WriterLimits(window_seconds=0.3)


def test_an_entry_over_http_comes_back_with_its_proof_and_static_tiles_give_the_same() -> None:
    async def work() -> None:
        witness = LocalWitness(WITNESSES[0], clock=FixedClock())
        believed = policy(1, WITNESSES[0])
        opening = LeafOpening(b"b" * 32, b"d" * 32)
        async with running(witnesses=[witness], believed=believed) as log, client(log.app) as http:
            remote = HttpLog(http, "http://log/")
            placed = await remote.add_entries([entry(n) for n in range(600)])
            assert placed.index == 0
            proof = await remote.add(opening.entry)
            assert isinstance(proof, TlogProof)
            whole = replace(proof, extra=opening.blinding)
            found = verify_logged(whole, digest=b"d" * 32, made=NOW, policy=believed, now=NOW)
            assert (found.index, found.witnesses) == (600, ("witness.example/a",))
            checkpoint = await remote.checkpoint()
            assert await remote.prove(600, checkpoint) == proof
            assert await remote.consistency(3, checkpoint) == log.keeper.consistency(3, checkpoint)

    run(work())


def test_a_partial_tile_that_is_gone_is_cut_from_the_full_one() -> None:
    async def work() -> None:
        async with running() as log, client(log.app) as http:
            remote = HttpLog(http, "http://log")
            await remote.add_entries([entry(n) for n in range(100)])
            old = await remote.checkpoint()
            await remote.add_entries([entry(n) for n in range(100, 600)])
            assert old.head.size == 100
            assert log.store.read("tile/0/000.p/100") is None
            proof = await remote.prove(7, old)
            assert proof == log.keeper.prove(7, old)

    run(work())


def test_only_what_the_public_checkpoint_covers_is_served() -> None:
    async def work() -> None:
        witness = LocalWitness(WITNESSES[0], clock=FixedClock())
        async with (
            running(witnesses=[witness], believed=policy(1, WITNESSES[0])) as log,
            client(log.app) as http,
        ):
            await log.writer.final(0, timeout_seconds=5)
            witness.down = True
            answer = await http.post("/add", content=entry(0))
            assert (answer.status_code, answer.text) == (202, "index 0\n")
            answer = await http.post("/add-entries", content=entry(1) + entry(2))
            assert (answer.status_code, answer.text) == (202, "index 1\ncount 2\n")
            assert isinstance(await HttpLog(http, "http://log").add(entry(3)), Pending)
            assert log.store.read("tile/0/000.p/1") is not None
            for path in ("0/000.p/1", "0/000.p/3", "entries/000.p/1", "0/000", "9/000", "../head"):
                assert (await http.get(f"/tile/{path}")).status_code == 404
            assert (await http.get("/head")).status_code == 404

    run(work())


def test_what_is_no_entry_is_refused() -> None:
    async def work() -> None:
        async with running() as log, client(log.app) as http:
            for path, size, status in (
                ("/add", 0, 400),
                ("/add", 31, 400),
                ("/add", 33, 413),
                ("/add", 64, 413),
                ("/add-entries", 33, 400),
                ("/add-entries", 32 * 4097, 413),
            ):
                assert (await http.post(path, content=bytes(size))).status_code == status
            assert (await http.get("/add")).status_code == 405
            assert log.keeper.head.head.size == 0
            answer = await http.get("/checkpoint")
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert answer.headers["cache-control"] == "no-cache"

    run(work())


def test_a_witness_over_http() -> None:
    async def work() -> None:
        local = LocalWitness(WITNESSES[0], clock=FixedClock())
        async with client(witness_app(local.service)) as http:
            remote = HttpWitness(http, "http://log/", WITNESSES[0].key)
            believed = policy(1, WITNESSES[0])
            async with running(witnesses=[remote], believed=believed) as log:
                await log.writer.add((entry(0), entry(1)))
                assert await log.writer.final(2, timeout_seconds=5)
                head = log.keeper.head
            behind = await remote.add_checkpoint(AddCheckpoint(0, (), head))
            assert behind == WitnessReply((), 2)
            bad = SignedCheckpoint(Note(head.note.text, ()), head.head)
            with pytest.raises(RemoteProtocolError, match="400"):
                await remote.add_checkpoint(AddCheckpoint(2, (), bad))
            assert (await http.post("/add-checkpoint", content=bytes(1 << 21))).status_code == 413
            assert (await http.get("/add-checkpoint")).status_code == 405
            local.disk.fails = local.disk.operations
            with pytest.raises(Unavailable, match="503"):
                await remote.add_checkpoint(AddCheckpoint(2, (), head))

    run(work())


def test_of_two_requests_at_once_one_is_first() -> None:
    # The race of tlog-witness: two heads, both from the size last cosigned.
    keeper = world.open_log(MemoryDisk())
    keeper.append([entry(0)])
    small = keeper.head
    keeper.append([entry(1)])
    large = keeper.head
    for _ in range(20):
        local = LocalWitness(WITNESSES[0], clock=FixedClock())
        answers: list[int] = []

        def ask(head: SignedCheckpoint, to: LocalWitness = local) -> None:
            answers.append(to.service.answer(AddCheckpoint(0, (), head).encode()).status)  # noqa: B023

        threads = [threading.Thread(target=ask, args=(head,)) for head in (small, large)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [200, 409]


async def _look(app: ASGIApp, known: SignedCheckpoint | None, *, by: LogPolicy) -> list[str]:
    async with client(app) as http:
        log = HttpLog(http, "http://log")
        look = await look_at_log(log, known=known, policy=by, now=NOW, max_age=HOUR)
        assert look.good is not any(finding.failed for finding in look.findings)
        return [str(finding.reason) for finding in look.findings if finding.failed]


def test_a_monitor_follows_and_sees_a_fork_a_rollback_and_a_split_view() -> None:
    async def work() -> None:
        async with running() as honest, running() as forked:
            by = policy(0)
            assert await _look(honest.app, None, by=by) == []
            await honest.writer.add(tuple(entry(n) for n in range(300)))
            await honest.writer.final(300, timeout_seconds=5)
            first = honest.writer.published
            await honest.writer.add(tuple(entry(300 + n) for n in range(300)))
            await honest.writer.final(600, timeout_seconds=5)
            assert await _look(honest.app, first, by=by) == []
            # The same key, another past: larger, of one size, and smaller.
            second = honest.writer.published
            await forked.writer.add(tuple(entry(9000 + n) for n in range(300)))
            await forked.writer.final(300, timeout_seconds=5)
            assert await _look(forked.app, first, by=by) == ["tlog-fork"]
            assert await _look(forked.app, second, by=by) == ["tlog-rollback"]
            await forked.writer.add(tuple(entry(9300 + n) for n in range(400)))
            await forked.writer.final(700, timeout_seconds=5)
            assert await _look(forked.app, second, by=by) == ["tlog-fork"]

    run(work())


def test_tiles_that_do_not_fit_are_named_to_a_monitor() -> None:
    async def work() -> None:
        async with running() as log:
            await log.writer.add(tuple(entry(n) for n in range(600)))
            await log.writer.final(600, timeout_seconds=5)
            known = parse_checkpoint((await _get(log.app, "/checkpoint")).content)
            await log.writer.add((entry(600),))
            await log.writer.final(601, timeout_seconds=5)
            file = log.disk.names[world.FOLDER / "public/tile/0/002.p/89"]
            file.data = file.data[::-1]
            with pytest.raises(LogRejected) as caught:
                await _look(log.app, known, by=policy(0))
            assert caught.value.reason is Reason.TLOG_TILE
            assert "tile/0/002.p/89" in str(caught.value)
            file.data = file.data[1:]
            with pytest.raises(LogRejected):
                await _look(log.app, known, by=policy(0))

    run(work())


async def _get(app: ASGIApp, path: str) -> httpx2.Response:
    async with client(app) as http:
        return await http.get(path)


def test_answers_that_are_none_are_unavailable_or_malformed() -> None:
    async def work() -> None:
        async def answer(request: httpx2.Request) -> httpx2.Response:
            name = request.url.path
            status, body = {"/checkpoint": (200, b"x"), "/add": (200, b"y")}.get(name, (500, b""))
            return httpx2.Response(status, content=body)

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
            log = HttpLog(http, "http://log")
            with pytest.raises(FormatError):
                await log.checkpoint()
            with pytest.raises(FormatError):
                await log.add(entry(0))
            with pytest.raises(Unavailable):
                await log.add_entries([entry(0)])
            keeper = world.open_log(MemoryDisk())
            keeper.append([entry(0), entry(1)])
            with pytest.raises(Unavailable, match=r"tile/0/000\.p/2"):
                await log.prove(0, keeper.head)
            with pytest.raises(ValueError, match="32 bytes"):
                await log.add(b"")

        async def endless(_request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, content=bytes(4 << 20))

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(endless)) as http:
            with pytest.raises(Unavailable, match="more than"):
                await HttpLog(http, "http://log").checkpoint()

        async def gone(_request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ConnectError("refused")

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(gone)) as http:
            with pytest.raises(Unavailable, match="no answer"):
                await HttpLog(http, "http://log").checkpoint()

    run(work())


@pytest.mark.parametrize(
    "name", ["tile/0/000", "tile/0/255", "tile/1/000", "tile/entries/100", "tile/entries/257.p/208"]
)
def test_reading_everything_again_names_the_tile_that_changed(name: str) -> None:
    disk = MemoryDisk()
    keeper = world.open_log(disk)
    keeper.append([entry(n) for n in range(66_000)])
    disk.locked.clear()
    store = FileLog(world.FOLDER, disk=disk)
    if name != "tile/0/000":
        file = disk.names[world.FOLDER / "public" / name]
        file.data = bytes(33) + file.data[33:]
        assert {found.subject for found in check_log(store, keeper.head.head)} == {name}
        return
    assert list(check_log(store, keeper.head.head)) == []
    del disk.names[world.FOLDER / "public" / name]
    [found] = check_log(store, keeper.head.head)
    assert (found.subject, found.reason) == (name, Reason.TLOG_TILE)


def test_what_cannot_be_served_is_not_started(tmp_path: Path) -> None:
    def log(**changes: object) -> LogSettings:
        plain = LogSettings("127.0.0.1", 1, tmp_path / "log", LOG, lambda _line: None)
        return replace(plain, **changes)  # type: ignore[arg-type]

    def witness(**changes: object) -> WitnessSettings:
        plain = WitnessSettings("127.0.0.1", 1, tmp_path / "w", (WITNESSES[0],), (LOG.key,))
        return replace(plain, **changes)  # type: ignore[arg-type]

    other = world.signer("log.example/other")
    for settings in (
        log(signer=WITNESSES[0]),
        log(signer=other, policy=policy(0)),
        log(policy=policy(1, WITNESSES[0])),
    ):
        with pytest.raises(ConfigurationError):
            asyncio.run(serve_log(settings))
    for started in (
        witness(signers=(LOG,)),
        witness(logs=()),
        witness(logs=(WITNESSES[0].key,)),
    ):
        with pytest.raises(ConfigurationError):
            asyncio.run(serve_witness(started))


def test_a_log_that_is_stopped_finishes_the_write_and_says_what_became_of_it() -> None:
    class SlowDisk(MemoryDisk):
        """A disk that is at work until it is let go."""

        def sync_directory(self, path: Path) -> None:
            if busy.is_set():
                begun.set()
                go_on.wait(10)
            super().sync_directory(path)

    begun, go_on, busy = threading.Event(), threading.Event(), threading.Event()

    async def work() -> None:
        disk = SlowDisk()
        async with running(disk=disk) as log:
            busy.set()
            waiting = asyncio.ensure_future(log.writer.add((entry(0),)))
            await asyncio.to_thread(begun.wait, 10)
            asyncio.get_running_loop().call_later(0.05, go_on.set)
        # The loops were cancelled in the middle of a batch; the lock came back after it.
        assert await waiting == 0
        assert world.logged(disk, 1) == [entry(0)]
        assert world.open_log(disk).head.head.size == 1

    run(work())
