"""A digest is final with a proof that holds under our policy, or it is not: `FinalityLog`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx2
import log_world as world
import pytest
from log_world import LOG, NOW, WITNESSES, FixedClock, LocalWitness, MemoryDisk, policy
from nodes import CountingEntropy

from confide.adapters.final_log import HttpFinalityLog
from confide.adapters.log_files import FileLog
from confide.adapters.log_http import HttpLog
from confide.errors import Unavailable
from confide.node.log_app import log_app
from confide.node.log_keeper import LogKeeper
from confide.node.log_writer import LogWriter, WriterLimits
from confide.tlog.verify import verify_logged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from confide.wire.tlog_policy import LogPolicy

DIGEST = b"d" * 32
BELIEVED = policy(1, WITNESSES[0])


def final(log: HttpLog, believed: LogPolicy = BELIEVED) -> HttpFinalityLog:
    return HttpFinalityLog(
        log, believed, clock=FixedClock(), entropy=CountingEntropy(), seconds=1.0
    )


def with_log(work: Callable[[HttpLog, LocalWitness], Awaitable[None]]) -> None:
    async def run() -> None:
        witness = LocalWitness(WITNESSES[0], clock=FixedClock())
        store = FileLog(world.FOLDER, disk=MemoryDisk())
        keeper = LogKeeper.open(store, LOG)
        limits = WriterLimits(window_seconds=0.0, retry_seconds=0.001, witness_seconds=0.2)
        writer = LogWriter(
            keeper, witnesses=[witness], policy=BELIEVED, clock=FixedClock(), limits=limits
        )
        task = asyncio.ensure_future(writer.run())
        transport = httpx2.ASGITransport(app=log_app(keeper, writer, store, final_seconds=0.05))
        async with httpx2.AsyncClient(transport=transport) as client:
            await work(HttpLog(client, "http://log"), witness)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_digest_becomes_final_and_every_time_under_another_blinding() -> None:
    async def work(log: HttpLog, _witness: LocalWitness) -> None:
        asked = final(log)
        proofs = [await asked.final(DIGEST) for _ in range(2)]
        for proof in proofs:
            found = verify_logged(proof, digest=DIGEST, made=None, policy=BELIEVED, now=NOW)
            assert found.opening.digest == DIGEST
        assert proofs[0].extra != proofs[1].extra

    with_log(work)


def test_it_waits_for_the_witnesses_and_no_longer_than_it_was_told() -> None:
    async def work(log: HttpLog, witness: LocalWitness) -> None:
        witness.down = True
        with pytest.raises(Unavailable, match="not take it now"):
            await final(log).final(DIGEST)

        asked = asyncio.ensure_future(final(log).final(DIGEST))
        await asyncio.sleep(0.2)
        assert not asked.done()
        witness.down = False
        proof = await asked
        assert verify_logged(proof, digest=DIGEST, made=None, policy=BELIEVED, now=NOW).index == 1

    with_log(work)


def test_a_log_that_is_not_believed_is_none() -> None:
    async def work(log: HttpLog, _witness: LocalWitness) -> None:
        stranger = policy(1, WITNESSES[2])
        other = type(stranger)(
            (type(stranger.logs[0])(world.signer("other.example").key),),
            stranger.witnesses,
            stranger.quorum,
        )
        with pytest.raises(Unavailable, match="no proof"):
            await final(log, other).final(DIGEST)

    with_log(work)


def test_an_answer_that_is_no_proof_is_an_outage() -> None:
    async def work() -> None:
        def answer(_request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, content=b"yes")

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
            with pytest.raises(Unavailable, match="something else"):
                await final(HttpLog(client, "http://log")).final(DIGEST)

    asyncio.run(work())


def test_without_a_log_it_gives_up_in_time() -> None:
    async def work() -> None:
        async with httpx2.AsyncClient(trust_env=False) as client:
            with pytest.raises(Unavailable, match="does not take it now"):
                await final(HttpLog(client, "http://127.0.0.1:9")).final(DIGEST)

    asyncio.run(work())
