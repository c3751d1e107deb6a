"""Several nodes at one job (training-ranks.md §4): who may sit, who may not, and who leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openai
import pytest
from arithmetic import RECIPE, SALT
from runs import expectation_and_roots
from seat_world import LINK, TIMES, SeatTable
from train_world import KEY, FakeProcess, FakeSeat, Gate, opened
from training_place import run

from confide.node.seat_host import SeatHost
from confide.node.seat_party import InvitedNode
from confide.training.audit import audit_log
from confide.training.rank_certificates import key_point, seat_key
from confide.training.record_file import parse_record_file
from confide.training.record_verify import VerifiedRecord, verify_record

if TYPE_CHECKING:
    from pathlib import Path

    from openai.types.fine_tuning import FineTuningJob

    from confide.node.seat_messages import SeatAdmission, TakenSeat

TWO: Any = RECIPE.value() | {"gradient_accumulation_steps": 2}
THREE: Any = RECIPE.value() | {"gradient_accumulation_steps": 3}


async def proven(
    table: SeatTable, client: openai.AsyncOpenAI, job: FineTuningJob
) -> tuple[VerifiedRecord, list[str]]:
    """The record of a job that succeeded, and what interrupted it by the owner's log."""
    files = await table.first.results(client, job)
    record = verify_record(
        parse_record_file(files["record.json"]),
        roots=expectation_and_roots()[1],
        now=None,
        expectation=table.first.expectation,
        nonce=None,
        outputs={},
    )
    raw = opened(job.id, "owner-log.sealed", files["owner-log.sealed"])
    log = audit_log(record, raw, dataset_salt=SALT, rows=None).log
    return record, [event.kind for event in log.events if event.kind != "checkpoint"]


async def failed(table: SeatTable, recipe: Any = TWO, engine: str | None = None) -> tuple[str, str]:
    """Ask for a job that cannot have its seats; return code and message."""
    async with table.up(), table.first.client() as client:
        job = await table.first.ask(client, recipe=recipe, engine=engine)
        ended = await table.first.until(client, job.id, "failed")
        assert ended.error is not None
        found: Any = ended.to_dict()["confide"]
        assert found["resumable"] is True, "the seats can be mended, and the job goes on"
        assert all(other.fate.started == [] for other in table.others), "nobody was given rows"
        for other in table.others:
            assert other.seats is not None
            assert not other.seats.busy
        return ended.error.code, ended.error.message


def test_two_nodes_train_one_job_and_the_record_names_both(tmp_path: Path) -> None:
    table = SeatTable(tmp_path)

    async def scenario() -> None:
        async with table.up(), table.first.client() as client:
            job = await table.first.ask(client, recipe=TWO)
            done = await table.first.until(client, job.id, "succeeded")
            record, happened = await proven(table, client, done)
            assert happened == []
            [[own, other]] = record.seats
            assert [(own.first, own.ranks), (other.first, other.ranks)] == [(0, 1), (1, 1)]
            assert own.key is not None
            assert other.key is not None
            assert own.keyset == table.first.node.keys.keyset.digest
            assert other.keyset == table.others[0].node.keys.keyset.digest
            assert own.machine != other.machine
            [guest] = table.others[0].fate.started
            [mine] = table.first.fate.started
            assert guest.job is not None
            assert mine.job is not None
            assert guest.job.data.rows == mine.job.data.rows
            assert table.others[0].stored == [], "a guest keeps nothing on its disk"
            for secret in (guest.job.data.rows[0], SALT, KEY, SALT.hex().encode()):
                assert secret not in table.wire

    run(scenario())


def test_three_nodes_stand_in_a_ring_and_only_who_is_needed_is_asked(tmp_path: Path) -> None:
    table = SeatTable(tmp_path, guests=3)

    async def scenario() -> None:
        async with table.up(), table.first.client() as client:
            job = await table.first.ask(client, recipe=THREE)
            done = await table.first.until(client, job.id, "succeeded")
            record, _ = await proven(table, client, done)
            [seats] = record.seats
            assert [(seat.first, seat.ranks) for seat in seats] == [(0, 1), (1, 1), (2, 1)]
            assert [len(other.fate.started) for other in table.others] == [1, 1, 0]

    run(scenario())


def test_a_job_that_one_node_can_do_alone_asks_nobody(tmp_path: Path) -> None:
    table = SeatTable(tmp_path)

    async def scenario() -> None:
        async with table.up(), table.first.client() as client:
            job = await table.first.ask(client)
            done = await table.first.until(client, job.id, "succeeded")
            record, _ = await proven(table, client, done)
            assert record.seats == ()
            assert table.wire == b""

    run(scenario())


def test_other_weights_are_refused_before_anything_is_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        code, message = await failed(SeatTable(tmp_path, changed={"weights": bytes(32)}))
        assert code == "seat_refused"
        assert message.startswith("seat 1 is not proven: ")

    run(scenario())


def test_other_software_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        table = SeatTable(tmp_path, changed={"fault": "wrong-measurement"})
        code, message = await failed(table)
        assert code == "seat_refused"
        assert message.startswith("seat 1 is not proven: ")

    run(scenario())


class AnotherJob(SeatHost):
    """Proves itself for a job of its own choice."""

    async def _offer(self, seat: Any) -> TakenSeat:
        seat.invitation = replace(seat.invitation, job=bytes(32))
        return await super()._offer(seat)


class AnotherKey(SeatHost):
    """Tells of a TLS key that it did not prove."""

    async def _offer(self, seat: Any) -> TakenSeat:
        taken = await super()._offer(seat)
        return replace(taken, point=key_point(seat_key(bytes(32))))


@pytest.mark.parametrize("host", [AnotherJob, AnotherKey])
def test_a_seat_that_proves_something_else_is_refused(tmp_path: Path, host: type[SeatHost]) -> None:
    async def scenario() -> None:
        code, message = await failed(SeatTable(tmp_path, host=host))
        assert code == "seat_refused"
        assert message.startswith("the seats are not proven: seat/1")

    run(scenario())


def test_one_gpu_cannot_have_two_seats(tmp_path: Path) -> None:
    async def scenario() -> None:
        code, message = await failed(SeatTable(tmp_path, gpu="seat 1"))
        assert code == "seat_refused"
        assert message == "the seats are not proven: seat/5: one GPU serves two seats."

    run(scenario())


class Wary(SeatHost):
    """Is shown another job's seat 0 than the one it is invited to."""

    async def _hold(self, seat: Any, told: SeatAdmission) -> None:
        seat.invitation = replace(seat.invitation, boot=seat.invitation.boot + 1)
        await super()._hold(seat, told)


class Unseated(SeatHost):
    """Is shown seats that are admissible, and not its own among them."""

    async def _hold(self, seat: Any, told: SeatAdmission) -> None:
        seat.taken = replace(seat.taken, point=key_point(seat_key(bytes(32))))
        await super()._hold(seat, told)


@pytest.mark.parametrize("host", [Wary, Unseated])
def test_a_guest_holds_seat_0_to_the_same_steps(tmp_path: Path, host: type[SeatHost]) -> None:
    async def scenario() -> None:
        assert await failed(SeatTable(tmp_path, host=host)) == (
            "seat_refused",
            "seat 1 refuses: seat_refused.",
        )

    run(scenario())


def by_ray(table: SeatTable) -> None:
    """Let seat 0 offer Ray."""
    table.link = replace(LINK, host="127.0.0.2", engines=("ring", "ray"))


def test_a_guest_that_does_not_offer_ray_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        table = SeatTable(tmp_path)
        by_ray(table)
        assert await failed(table, engine="ray") == (
            "seat_refused",
            "seat 1 refuses: engine_unavailable.",
        )

    run(scenario())


class AnotherEngine(SeatHost):
    """Proves its seat for the ring, whatever it was invited to."""

    async def _offer(self, seat: Any) -> TakenSeat:
        seat.invitation = replace(seat.invitation, engine="ring")
        return await super()._offer(seat)


class Unclustered(SeatHost):
    """Is admitted to a job by Ray without being told of a cluster."""

    async def _hold(self, seat: Any, told: SeatAdmission) -> None:
        assert told.cluster is not None
        await super()._hold(seat, replace(told, cluster=None))


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (AnotherEngine, "the seats are not proven: seat/1"),
        (Unclustered, "seat 1 refuses: seat_refused."),
    ],
)
def test_a_seat_that_is_linked_otherwise_is_refused(
    tmp_path: Path, host: type[SeatHost], message: str
) -> None:
    async def scenario() -> None:
        table = SeatTable(tmp_path, host=host, theirs=replace(LINK, engines=("ring", "ray")))
        by_ray(table)
        table.theirs = replace(table.theirs, host="127.0.0.3")
        code, said = await failed(table, engine="ray")
        assert code == "seat_refused"
        assert said.startswith(message)

    run(scenario())


@pytest.mark.parametrize("host", ["name.example", "127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_a_seat_that_ray_cannot_name_is_refused(tmp_path: Path, host: str) -> None:
    async def scenario() -> None:
        theirs = replace(LINK, host=host, engines=("ring", "ray"))
        table = SeatTable(tmp_path, theirs=theirs)
        by_ray(table)
        assert await failed(table, engine="ray") == (
            "seat_refused",
            "a seat of a Ray cluster is not at an IPv4 address that others reach.",
        )

    run(scenario())


async def refused(table: SeatTable, **asked: Any) -> str:
    """Ask seat 0 for a job that it does not take; return why."""
    async with table.up(), table.first.client() as client:
        with pytest.raises(openai.BadRequestError) as error:
            await table.first.ask(client, **asked)
        body: Any = error.value.body
        assert (body["code"], body["param"]) == ("engine_unavailable", "confide.engine")
        return str(body["message"])


def test_a_node_that_does_not_offer_ray_takes_no_job_that_wants_it(tmp_path: Path) -> None:
    said = asyncio.run(refused(SeatTable(tmp_path), recipe=TWO, engine="ray"))
    assert "started with --ray and --seat" in said


def test_a_job_for_one_node_has_nothing_that_ray_could_link(tmp_path: Path) -> None:
    table = SeatTable(tmp_path)
    by_ray(table)
    assert "this job needs one" in asyncio.run(refused(table, engine="ray"))


def test_a_node_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        table = SeatTable(tmp_path)
        async with table.up(), table.first.client() as client:
            table.invited[:] = [InvitedNode("http://127.0.0.1:9")]
            job = await table.first.ask(client, recipe=TWO)
            ended = await table.first.until(client, job.id, "failed")
            assert ended.error is not None
            assert ended.error.code == "seat_lost"
            assert ended.error.message == "seat 1 does not answer."

    run(scenario())


def test_a_node_without_seats_refuses(tmp_path: Path) -> None:
    async def scenario() -> None:
        table = SeatTable(tmp_path, changed={"host": None})
        async with table.up(), table.first.client() as client:
            job = await table.first.ask(client, recipe=TWO)
            ended = await table.first.until(client, job.id, "failed")
            assert ended.error is not None
            assert ended.error.message == "seat 1 refuses: not_found."

    run(scenario())


def test_a_seat_that_is_lost_fails_the_job_and_it_goes_on_with_new_seats(tmp_path: Path) -> None:
    table = SeatTable(tmp_path)
    lost: list[FakeProcess] = []

    def leave(process: FakeProcess, step: int) -> None:
        if isinstance(process, FakeSeat) and step == 7 and not lost:
            lost.append(process)
            process.kill()

    async def scenario() -> None:
        async with table.up(), table.first.client() as client:
            table.others[0].fate.after = leave
            job = await table.first.ask(client, recipe=TWO)
            ended = await table.first.until(client, job.id, "failed")
            assert ended.error is not None
            assert ended.error.code == "seat_lost"
            assert "seat 1: " in ended.error.message
            await client.fine_tuning.jobs.resume(job.id)
            done = await table.first.until(client, job.id, "succeeded")
            record, happened = await proven(table, client, done)
            assert happened == ["restarted"]
            assert [len(boot) for boot in record.seats] == [2, 2]
            assert len({seat.key for boot in record.seats for seat in boot}) == 4, "new keys"
            straight = await table.first.ask(client, recipe=TWO)
            again, _ = await proven(
                table, client, await table.first.until(client, straight.id, "succeeded")
            )
            assert again.record.head == record.record.head

    run(scenario())


def test_a_guest_that_is_told_to_stop_ends_its_seat(tmp_path: Path) -> None:
    table = SeatTable(tmp_path)

    async def scenario() -> None:
        async with table.up(), table.first.client() as client:
            gate = Gate(4)
            table.first.fate.after = gate
            job = await table.first.ask(client, recipe=TWO)
            await gate.wait()
            seats = table.others[0].seats
            assert seats is not None
            assert seats.busy
            seats.drain()
            gate.opened.set()
            ended = await table.first.until(client, job.id, "failed")
            assert ended.error is not None
            assert ended.error.code == "seat_lost"
            assert not seats.busy

    run(scenario())


@pytest.mark.parametrize("what", ["cancel", "pause"])
def test_a_job_that_ends_lets_its_seats_go(tmp_path: Path, what: str) -> None:
    table = SeatTable(tmp_path)

    async def scenario() -> None:
        async with table.up(), table.first.client() as client:
            gate = Gate(4)
            table.first.fate.after = gate
            job = await table.first.ask(client, recipe=TWO)
            await gate.wait()
            if what == "cancel":
                await client.fine_tuning.jobs.cancel(job.id)
                ended = await client.fine_tuning.jobs.retrieve(job.id)
                assert ended.status == "cancelled"
            else:
                await client.fine_tuning.jobs.pause(job.id)
                gate.opened.set()
                await table.first.until(client, job.id, "paused")
            seats = table.others[0].seats
            assert seats is not None
            assert not seats.busy
            if what == "pause":
                await client.fine_tuning.jobs.resume(job.id)
                done = await table.first.until(client, job.id, "succeeded")
                record, happened = await proven(table, client, done)
                assert happened == ["paused", "resumed"]
                assert [len(boot) for boot in record.seats] == [2, 2]

    run(scenario())


class Hired(SeatHost):
    """Has begun a job of its own by the time that rows come."""

    async def _hold(self, seat: Any, told: SeatAdmission) -> None:
        await super()._hold(seat, told)
        self._occupied = lambda: True


def test_a_node_that_began_work_of_its_own_takes_no_rows(tmp_path: Path) -> None:
    async def scenario() -> None:
        assert await failed(SeatTable(tmp_path, host=Hired)) == (
            "seat_refused",
            "seat 1 refuses: node_busy.",
        )

    run(scenario())


class Slow(SeatHost):
    """Takes its time with an invitation."""

    reached = asyncio.Event()

    async def _offer(self, seat: Any) -> TakenSeat:
        self.reached.set()
        await asyncio.Event().wait()
        return await super()._offer(seat)


def test_a_job_is_cancelled_while_seats_are_taken(tmp_path: Path) -> None:
    table = SeatTable(tmp_path, host=Slow)

    async def scenario() -> None:
        Slow.reached = asyncio.Event()
        async with table.up(), table.first.client() as client:
            job = await table.first.ask(client, recipe=TWO)
            await Slow.reached.wait()
            await client.fine_tuning.jobs.cancel(job.id)
            ended = await client.fine_tuning.jobs.retrieve(job.id)
            assert ended.status == "cancelled"

    run(scenario())


def test_nobody_waits_for_a_guest_for_ever(tmp_path: Path) -> None:
    table = SeatTable(tmp_path, host=Slow, times=replace(TIMES, talk=0.5))

    async def scenario() -> None:
        Slow.reached = asyncio.Event()
        async with table.up(), table.first.client() as client:
            job = await table.first.ask(client, recipe=TWO)
            ended = await table.first.until(client, job.id, "failed")
            assert ended.error is not None
            assert ended.error.code == "seat_lost"

    run(scenario())
