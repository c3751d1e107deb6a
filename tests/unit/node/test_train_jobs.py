"""Jobs under what happens to them: kills, pauses, cancels, full disks, keys and nodes that end."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import openai
import pytest
from arithmetic import RECIPE, SALT
from runs import expectation_and_roots
from train_world import FakeProcess, Gate, TrainWorld, nothing, opened
from training_place import run

from confide.training.audit import audit_log
from confide.training.record_file import parse_record_file
from confide.training.record_verify import VerifiedRecord, verify_record

if TYPE_CHECKING:
    from pathlib import Path

    from openai.types.fine_tuning import FineTuningJob

    from confide.training.audit import AuditedLog


@pytest.fixture
def world(tmp_path: Path) -> TrainWorld:
    return TrainWorld(tmp_path / "files")


async def proven(
    world: TrainWorld, client: openai.AsyncOpenAI, job: FineTuningJob
) -> tuple[VerifiedRecord, AuditedLog]:
    """What a stranger and the owner find of a job that succeeded."""
    files = await world.results(client, job)
    record = verify_record(
        parse_record_file(files["record.json"]),
        roots=expectation_and_roots()[1],
        now=None,
        expectation=world.expectation,
        nonce=None,
        outputs={},
    )
    raw = opened(job.id, "owner-log.sealed", files["owner-log.sealed"])
    return record, audit_log(record, raw, dataset_salt=SALT, rows=None)


def kinds(audited: AuditedLog) -> list[str]:
    """What interrupted the job, by the owner's log."""
    return [event.kind for event in audited.log.events if event.kind != "checkpoint"]


class Kills:
    """Kills each process after so many steps more than it began with, `times` times."""

    def __init__(self, after: int, times: int) -> None:
        self.after = after
        self.left = times

    def __call__(self, process: FakeProcess, step: int) -> None:
        begun = 0 if process.form.resume is None else process.form.resume.step
        if self.left and step - begun == self.after:
            self.left -= 1
            process.kill()


async def undisturbed(world: TrainWorld, client: openai.AsyncOpenAI) -> VerifiedRecord:
    """The record of the same job to which nothing happened."""
    job = await world.ask(client)
    record, _ = await proven(world, client, await world.until(client, job.id, "succeeded"))
    return record


@pytest.mark.parametrize("after", [1, 3, 4, 6, 9])
def test_a_killed_process_is_started_again_from_its_last_checkpoint(
    world: TrainWorld, after: int
) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            straight = await undisturbed(world, client)
            world.fate.after = Kills(after, 3)
            job = await world.ask(client)
            done = await world.until(client, job.id, "succeeded")
            record, audited = await proven(world, client, done)
            assert record.record.outputs == straight.record.outputs
            assert record.record.head == straight.record.head
            assert kinds(audited) == ["restarted"] * 3
            assert [turn.kind for turn in record.record.turns] == ["started"]
            resumed = [process.form.resume for process in world.fate.started[1:]]
            assert [0 if entry is None else entry.step for entry in resumed] == [
                count * ((after - 1) // 4 * 4) for count in range(4)
            ]
            told = [e.message async for e in client.fine_tuning.jobs.list_events(job.id)]
            assert sum("started again" in message for message in told) == 3

    run(scenario())


def test_a_process_that_ends_again_and_again_fails_the_job_which_can_be_resumed(
    world: TrainWorld,
) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            world.fate.after = Kills(6, 4)
            job = await world.ask(client)
            failed = await until_failed(world, client, job.id)
            assert failed.error is not None
            assert failed.error.code == "trainer_ended"
            assert len(world.fate.started) == 4
            await client.fine_tuning.jobs.resume(job.id)
            done = await world.until(client, job.id, "succeeded")
            record, audited = await proven(world, client, done)
            assert [turn.kind for turn in record.record.turns] == ["started", "paused", "resumed"]
            assert kinds(audited) == ["restarted"] * 4

    run(scenario())


async def until_failed(world: TrainWorld, client: openai.AsyncOpenAI, job_id: str) -> FineTuningJob:
    while (job := await client.fine_tuning.jobs.retrieve(job_id)).status != "failed":
        assert job.status != "succeeded"
        await asyncio.sleep(0.005)
    del world
    return job


@pytest.mark.parametrize(
    ("code", "resumable"),
    [("out_of_memory", True), ("disk_full", True), ("not_finite", False), ("invalid_job", False)],
)
def test_what_a_process_says_fails_the_job_in_its_words(
    world: TrainWorld, code: str, resumable: bool
) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            world.fate.failure = {"code": code, "message": "what to do", "resumable": resumable}
            job = await world.ask(client)
            failed = await until_failed(world, client, job.id)
            assert failed.error is not None
            assert (failed.error.code, failed.error.message) == (code, "what to do")
            assert failed.finished_at is not None
            world.fate.failure = None
            if resumable:
                await client.fine_tuning.jobs.resume(job.id)
                await world.until(client, job.id, "succeeded")
            else:
                with pytest.raises(openai.BadRequestError):
                    await client.fine_tuning.jobs.resume(job.id)
                assert world.entry(job.id).job.request.checkpoint_key == b""

    run(scenario())


async def _queued(world: TrainWorld, client: openai.AsyncOpenAI) -> str:
    gate = world.fate.after = Gate(1)
    await world.ask(client)
    job = await world.ask(client)
    await gate.wait()
    return job.id


def _at(step: int) -> Any:
    async def moment(world: TrainWorld, client: openai.AsyncOpenAI) -> str:
        gate = world.fate.after = Gate(step)
        job = await world.ask(client)
        await gate.wait()
        return job.id

    return moment


async def _pausing(world: TrainWorld, client: openai.AsyncOpenAI) -> str:
    job = await _at(6)(world, client)
    await client.fine_tuning.jobs.pause(job)
    return str(job)


async def _paused(world: TrainWorld, client: openai.AsyncOpenAI) -> str:
    job = await _pausing(world, client)
    gate: Any = world.fate.after
    gate.opened.set()
    await world.until(client, job, "paused")
    return job


async def _giving(world: TrainWorld, client: openai.AsyncOpenAI) -> str:
    gate = Gate(0)
    world.fate.giving = lambda process, name: gate(process, 0 if name == "model.safetensors" else 1)
    job = await world.ask(client)
    await gate.wait()
    return job.id


async def _failed(world: TrainWorld, client: openai.AsyncOpenAI) -> str:
    world.fate.after = Kills(6, 4)
    job = await world.ask(client)
    return (await until_failed(world, client, job.id)).id


async def _at_once(world: TrainWorld, client: openai.AsyncOpenAI) -> str:
    return (await world.ask(client)).id


@pytest.mark.parametrize(
    "moment",
    [_at_once, _queued, _at(1), _at(4), _at(32), _pausing, _paused, _giving, _failed],
    ids=["at-once", "queued", "1", "4", "32", "pausing", "paused", "giving", "failed"],
)
def test_cancelled_at_any_moment_nothing_is_left(world: TrainWorld, moment: Any) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            file = await world.upload(client)
            before = world.stored
            job_id = await moment(world, client)
            cancelled = await client.fine_tuning.jobs.cancel(job_id)
            assert cancelled.status == "cancelled"
            assert cancelled.result_files == []
            assert not (world.checkpoints / job_id).exists()
            left = [path for path in world.stored if path.suffix == ".part" or job_id in str(path)]
            assert left == []
            assert not [path for path in world.stored if path.name.endswith("-result.sealed")]
            listed = [each async for each in client.files.list(purpose="fine-tune-results")]
            assert listed == []
            assert (await client.fine_tuning.jobs.checkpoints.list(job_id)).data == []
            assert world.entry(job_id).job.request.checkpoint_key == b""
            assert set(before) <= set(world.stored)
            with pytest.raises(openai.BadRequestError):
                await client.fine_tuning.jobs.cancel(job_id)
            # The node goes on.
            for process in world.fate.started:
                process.kill()
            world.fate.after = world.fate.giving = nothing
            again = await world.ask(client, file)
            await world.until(client, again.id, "succeeded")

    run(scenario())


def test_a_job_that_succeeded_cannot_be_cancelled_paused_or_resumed(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            job = await world.ask(client)
            await world.until(client, job.id, "succeeded")
            jobs = client.fine_tuning.jobs
            for call in (jobs.cancel, jobs.pause, jobs.resume):
                with pytest.raises(openai.BadRequestError) as caught:
                    await call(job.id)
                assert caught.value.code == "invalid_status"

    run(scenario())


def test_a_disk_that_is_full_leaves_no_result_and_the_job_can_be_resumed(
    world: TrainWorld,
) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            file = await world.upload(client)
            for left in (0, 50_000, 101_000, 103_000):
                world.disk.left = None

                def fill(_process: FakeProcess, step: int, left: int = left) -> None:
                    if step == 32:
                        world.disk.left = left

                world.fate.after = fill
                job = await world.ask(client, file)
                failed = await until_failed(world, client, job.id)
                assert failed.error is not None
                assert failed.error.code == "disk_full"
                stored = [path.name for path in world.stored]
                assert not [name for name in stored if "result" in name]
                assert f"checkpoint-{32:09}.sealed" in stored
                world.disk.left = None
                await client.fine_tuning.jobs.resume(job.id)
                done = await world.until(client, job.id, "succeeded")
                assert world.fate.started[-1].form.resume is not None
                await proven(world, client, done)
                for each in done.result_files:
                    await client.files.delete(each)

    run(scenario())


def test_rows_that_changed_on_the_disk_are_not_trained_on(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            gate = world.fate.after = Gate(1)
            first = await world.ask(client)
            await gate.wait()
            job = await world.ask(client)
            rows = world.folder / f"{job.training_file}-rows.sealed"
            raw = bytearray(rows.read_bytes())
            raw[-20] ^= 1
            rows.write_bytes(raw)
            gate.opened.set()
            await world.until(client, first.id, "succeeded")
            failed = await until_failed(world, client, job.id)
            assert failed.error is not None
            assert failed.error.code == "unavailable"
            assert len(world.fate.started) == 1

    run(scenario())


def test_a_file_that_was_deleted_fails_its_job(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            gate = world.fate.after = Gate(1)
            await world.ask(client)
            await gate.wait()
            job = await world.ask(client)
            await client.files.delete(job.training_file)
            gate.opened.set()
            failed = await until_failed(world, client, job.id)
            assert failed.error is not None
            assert (failed.error.code, failed.error.param) == ("not_found", "training_file")

    run(scenario())


async def after_hours(world: TrainWorld, client: openai.AsyncOpenAI) -> FineTuningJob:
    """Ask for a job that takes longer than a request may be on its way."""
    job = await world.ask(client)
    while not world.entry(job.id).job.ended:  # noqa: ASYNC110 - the clock of requests jumps
        await asyncio.sleep(0.005)
    return await client.fine_tuning.jobs.retrieve(job.id)


def test_keys_that_end_while_a_job_runs_make_another_boot(world: TrainWorld) -> None:
    def later(_process: FakeProcess, step: int) -> None:
        if step in (5, 20):
            world.clock.time += timedelta(hours=23)

    async def scenario() -> None:
        async with world.up(), world.client() as client:
            world.fate.after = later
            done = await after_hours(world, client)
            record, audited = await proven(world, client, done)
            turns = record.record.turns
            assert [(turn.kind, turn.boot) for turn in turns] == [
                ("started", 0),
                ("restarted", 1),
                ("restarted", 2),
            ]
            keysets = [boot.keyset.digest for boot in record.boots]
            assert len(set(keysets)) == 3
            assert keysets[-1] == record.record.keyset
            assert len(set(record.machines)) == 1
            assert kinds(audited) == ["paused", "resumed"] * 2

    run(scenario())


def test_a_job_keeps_the_keys_it_began_with_over_a_rotation(world: TrainWorld) -> None:
    def rotate(_process: FakeProcess, step: int) -> None:
        if step == 5:
            world.clock.time += timedelta(hours=13)

    async def scenario() -> None:
        async with world.up(), world.client() as client:
            world.fate.after = rotate
            before = world.identity.current.keys.keyset.digest
            done = await after_hours(world, client)
            world.identity.tick()
            assert world.identity.current.keys.keyset.digest != before
            record, _ = await proven(world, client, done)
            assert record.record.keyset == before
            assert len(record.boots) == 1

    run(scenario())


def test_a_node_that_is_told_to_stop_pauses_its_job(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            gate = world.fate.after = Gate(6)
            job, waiting = await world.ask(client), await world.ask(client)
            await gate.wait()
            assert world.jobs.busy
            world.jobs.drain()
            gate.opened.set()
            await world.until(client, job.id, "paused")
            while world.jobs.busy:  # noqa: ASYNC110 - told to nobody
                await asyncio.sleep(0.005)
            assert (world.checkpoints / job.id / f"checkpoint-{6:09}.sealed").exists()
            assert (await client.fine_tuning.jobs.retrieve(waiting.id)).status == "queued"
            for call in (world.ask(client), client.fine_tuning.jobs.resume(job.id)):
                with pytest.raises(openai.InternalServerError) as caught:
                    await call
                assert caught.value.code == "node_draining"

    run(scenario())


def test_a_node_that_ends_ends_its_process(world: TrainWorld) -> None:
    async def scenario() -> None:
        gate = world.fate.after = Gate(6)
        async with world.up(), world.client() as client:
            await world.ask(client)
            await gate.wait()
        assert world.fate.started[-1].killed.is_set()

    run(scenario())


def test_the_queue_ends_and_a_nonce_is_used_once(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            gate = world.fate.after = Gate(1)
            file = await world.upload(client)
            await world.ask(client, file)
            await gate.wait()
            nonce = world.asked()["nonce"]
            queued = [await world.ask(client, file, nonce=nonce)]
            with pytest.raises(openai.BadRequestError) as caught:
                await world.ask(client, file, nonce=nonce)
            assert caught.value.code == "nonce_used"
            queued += [await world.ask(client, file) for _ in range(15)]
            assert {job.status for job in queued} == {"queued"}
            with pytest.raises(openai.RateLimitError):
                await world.ask(client, file)
            await client.fine_tuning.jobs.cancel(queued[3].id)
            await world.ask(client, file)

    run(scenario())


def test_jobs_that_come_in_one_moment_are_all_counted(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            gate = world.fate.after = Gate(1)
            file = await world.upload(client)
            await world.ask(client, file)
            await gate.wait()
            nonce = world.asked()["nonce"]
            same = [world.ask(client, file, nonce=nonce) for _ in range(4)]
            found = await asyncio.gather(*same, return_exceptions=True)
            assert sum(isinstance(each, openai.BadRequestError) for each in found) == 3
            many = [world.ask(client, file) for _ in range(20)]
            found = await asyncio.gather(*many, return_exceptions=True)
            assert sum(isinstance(each, openai.RateLimitError) for each in found) == 5

    run(scenario())


def test_a_process_that_goes_on_in_another_environment_is_refused(world: TrainWorld) -> None:
    def kill(process: FakeProcess, step: int) -> None:
        if step == 6:
            world.fate.environment = {"isa": "another"}
            process.kill()

    async def scenario() -> None:
        async with world.up(), world.client() as client:
            world.fate.after = kill
            job = await world.ask(client)
            failed = await until_failed(world, client, job.id)
            assert failed.error is not None
            assert failed.error.code == "server_error"
            assert failed.result_files == []

    run(scenario())


def test_a_node_that_cannot_prove_itself_any_more_gives_no_record(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            gate = world.fate.after = Gate(32)
            job = await world.ask(client)
            await gate.wait()
            # The hardware goes on quoting; what it quotes is another machine's firmware.
            entry = world.entry(job.id)
            entry.proof.expectation = _other(entry.proof.expectation)
            gate.opened.set()
            failed = await until_failed(world, client, job.id)
            assert failed.error is not None
            assert failed.error.code == "evidence_rejected"
            assert failed.result_files == []
            assert not [path for path in world.stored if "result" in path.name]
            with pytest.raises(openai.NotFoundError):
                await client.get(f"/fine_tuning/jobs/{job.id}/attestation", cast_to=object)

    run(scenario())


def _other(expectation: Any) -> Any:
    from dataclasses import replace  # noqa: PLC0415 - for this one value

    spec = replace(expectation.model_node, mrtd=("00" * 48,))
    return replace(expectation, model_node=spec)


def test_a_full_training_gives_no_adapter_and_no_evaluation_where_nothing_is_held_out(
    world: TrainWorld,
) -> None:
    recipe = {
        name: value for name, value in RECIPE.value().items() if not name.startswith("lora")
    } | {"adapter": "full", "val_set_size": 0}

    async def scenario() -> None:
        async with world.up(), world.client() as client:
            job = await world.ask(client, recipe=recipe)
            done = await world.until(client, job.id, "succeeded")
            record, audited = await proven(world, client, done)
            assert set(record.record.outputs) == {"merged"}
            assert record.evaluation is None
            assert audited.log.evaluations is None

    run(scenario())


@pytest.mark.parametrize(("epsilon", "said"), [(3.25, "3.25"), (None, "infinite")])
def test_what_privacy_costs_stands_in_the_record(
    world: TrainWorld, epsilon: float | None, said: str
) -> None:
    privacy = {"noise_multiplier": 1, "max_grad_norm": 0.5, "delta": 0.001}

    async def scenario() -> None:
        async with world.up(), world.client() as client:
            world.fate.epsilon = epsilon
            job = await world.ask(client, recipe=RECIPE.value() | {"privacy": privacy})
            done = await world.until(client, job.id, "succeeded")
            record, _ = await proven(world, client, done)
            assert record.record.privacy == {
                "noise_multiplier": "1.0",
                "max_grad_norm": "0.5",
                "delta": "0.001",
                "epsilon": said,
            }

    run(scenario())


def test_a_job_has_as_many_ranks_as_it_can_use_and_they_stand_in_the_record(
    world: TrainWorld,
) -> None:
    """Three processes at most, two micro batches a step: two ranks, proven in each boot."""
    world.ranks = 3

    def later(_process: FakeProcess, step: int) -> None:
        if step == 5:
            world.clock.time += timedelta(hours=23)

    async def scenario() -> None:
        async with world.up(), world.client() as client:
            recipe = RECIPE.value() | {"gradient_accumulation_steps": 2}
            job = await world.ask(client, recipe=recipe)
            done = await world.until(client, job.id, "succeeded")
            record, _ = await proven(world, client, done)
            assert [(each.form.world, each.ranks) for each in world.fate.started] == [(2, 2)]
            async with world.plain() as http:
                # Handovers name no seats: such a job goes on where it began.
                answer = await http.get(f"/v1/fine_tuning/jobs/{job.id}/handover")
                assert answer.status_code == 409
            assert record.record.plan.world == 2
            world.fate.after = later
            moved = await world.ask(client, recipe=recipe)
            while not world.entry(moved.id).job.ended:  # noqa: ASYNC110 - as `after_hours`
                await asyncio.sleep(0.005)
            record, _ = await proven(
                world, client, await client.fine_tuning.jobs.retrieve(moved.id)
            )
            assert [
                (seat.first, seat.ranks, seat.key) for boot in record.seats for seat in boot
            ] == [(0, 2, None)] * 2
            assert [boot[0].keyset for boot in record.seats] == [
                boot.keyset.digest for boot in record.boots
            ]

    run(scenario())


def test_a_job_has_as_many_ranks_as_its_recipe_can_use(world: TrainWorld) -> None:
    world.ranks = 4
    private = {"privacy": {"noise_multiplier": 1, "max_grad_norm": 0.5, "delta": 0.001}}

    async def scenario() -> None:
        async with world.up(), world.client() as client:
            for changed, ranks in (
                ({"gradient_accumulation_steps": 1}, 1),
                ({"gradient_accumulation_steps": 3}, 3),
                # Each row is a micro batch: as many as a step expects.
                ({"gradient_accumulation_steps": 1, "micro_batch_size": 2, **private}, 2),
                ({"gradient_accumulation_steps": 1, "micro_batch_size": 1, **private}, 1),
            ):
                job = await world.ask(client, recipe=RECIPE.value() | changed)
                done = await world.until(client, job.id, "succeeded")
                record, _ = await proven(world, client, done)
                assert record.record.plan.world == ranks
                assert len(record.seats) == (ranks > 1)

    run(scenario())
