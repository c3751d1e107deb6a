"""Jobs that go on elsewhere: handed over by one node, held to proof and taken up by another.

docs/protocols/training-node.md §7. Two nodes in memory, on two machines or on one.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import openai
import pytest
from arithmetic import SALT
from runs import expectation_and_roots
from train_world import ROWS, Gate, TrainWorld, opened
from training_place import run

from confide.errors import SealedFileRejected
from confide.training.audit import audit_log
from confide.training.handover import HandoverFile, parse_handover, parse_handover_file
from confide.training.record_file import parse_record_file
from confide.training.record_verify import VerifiedRecord, verify_record
from confide.wire.dsse import Envelope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from openai.types.fine_tuning import FineTuningJob

    from confide.training.audit import AuditedLog

CONTENT = "/v1/fine_tuning/jobs/{}/checkpoints/{}/content"


@dataclass
class Fetched:
    """What an owner holds of a job: the opened handover, the sealed checkpoint, the nonce."""

    handover: bytes
    checkpoint: bytes
    nonce: str

    @property
    def file(self) -> HandoverFile:
        return parse_handover_file(self.handover)

    @property
    def step(self) -> int:
        return parse_handover(self.file.envelope.payload).checkpoint.step


@asynccontextmanager
async def nodes(
    tmp_path: Path, *worlds: dict[str, Any]
) -> AsyncIterator[list[tuple[TrainWorld, openai.AsyncOpenAI]]]:
    """Nodes that are up, each with a client of the same owner."""
    async with AsyncExitStack() as stack:
        found = []
        for number, more in enumerate(worlds):
            made = TrainWorld(
                tmp_path / str(number) / "files", **({"keys": b"boot %d" % number} | more)
            )
            (tmp_path / str(number)).mkdir(exist_ok=True)
            world = await stack.enter_async_context(made.up())
            found.append((world, await stack.enter_async_context(world.client())))
        yield found


HERE: dict[str, Any] = {}
ELSEWHERE: dict[str, Any] = {"gpu": "another"}
NONCE = "17" * 32


async def raw(world: TrainWorld, path: str) -> tuple[int, bytes]:
    """Ask the inner application."""
    async with world.plain() as http:
        answer = await http.get(path)
        return answer.status_code, answer.content


async def fetch(world: TrainWorld, job: FineTuningJob) -> Fetched:
    """Fetch the handover of a job, and the checkpoint that it names."""
    status, sealed = await raw(world, f"/v1/fine_tuning/jobs/{job.id}/handover")
    assert status == 200, sealed
    handover = opened(job.id, "handover.sealed", sealed)
    step = parse_handover(parse_handover_file(handover).envelope.payload).checkpoint.step
    status, checkpoint = await raw(world, CONTENT.format(job.id, step))
    assert status == 200
    nonce = world.entry(job.id).job.request.nonce.hex()
    return Fetched(handover, checkpoint, nonce)


async def stopped_at(world: TrainWorld, client: openai.AsyncOpenAI, step: int) -> Fetched:
    """A job that is in the middle of a step when its owner fetches what it has."""
    gate = Gate(step)
    world.fate.after = gate
    job = await world.ask(client, nonce=NONCE)
    await gate.wait()
    return await fetch(world, job)


async def bring(client: openai.AsyncOpenAI, name: str, data: bytes) -> str:
    made = await client.files.create(file=(name, data), purpose="fine-tune-state")  # type: ignore[arg-type]
    assert (made.purpose, made.bytes) == ("fine-tune-state", len(data))
    return made.id


async def go_on(
    world: TrainWorld, client: openai.AsyncOpenAI, fetched: Fetched, **changed: Any
) -> FineTuningJob:
    """Bring what was fetched to another node, and ask for the job again."""
    brought = {
        "handover": await bring(client, "handover.json", fetched.handover),
        "checkpoint": await bring(client, "checkpoint", fetched.checkpoint),
    }
    return await world.ask(client, **({"nonce": fetched.nonce, "continue": brought} | changed))


async def proven(
    world: TrainWorld, client: openai.AsyncOpenAI, job: FineTuningJob
) -> tuple[VerifiedRecord, AuditedLog]:
    """What a stranger and the owner find of a job that succeeds."""
    done = await world.until(client, job.id, "succeeded")
    files = await world.results(client, done)
    record = verify_record(
        parse_record_file(files["record.json"]),
        roots=expectation_and_roots()[1],
        now=None,
        expectation=world.expectation,
        nonce=bytes.fromhex(NONCE),
        outputs={},
    )
    log = opened(job.id, "owner-log.sealed", files["owner-log.sealed"])
    return record, audit_log(record, log, dataset_salt=SALT, rows=None)


async def straight(tmp_path: Path) -> VerifiedRecord:
    """The record of the same job to which nothing happened."""
    async with nodes(tmp_path / "straight", HERE) as [(world, client)]:
        return (await proven(world, client, await world.ask(client, nonce=NONCE)))[0]


def kinds(audited: AuditedLog) -> list[str]:
    return [event.kind for event in audited.log.events if event.kind != "checkpoint"]


@pytest.mark.parametrize(
    ("second", "turn", "events"),
    [(ELSEWHERE, "moved", ["restarted", "machine"]), (HERE, "restarted", ["restarted"])],
)
def test_a_job_whose_node_is_gone_goes_on_on_another_node_with_the_same_bits(
    tmp_path: Path, second: dict[str, Any], turn: str, events: list[str]
) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE, second) as [(first, client), (other, again)]:
            fetched = await stopped_at(first, client, 11)
            assert fetched.step == 8
            job = await go_on(other, again, fetched)
            assert job.model_extra is not None
            assert job.model_extra["confide"]["step"] == 8
            record, audited = await proven(other, again, job)
        assert [each.kind for each in record.record.turns] == ["started", turn]
        assert [each.step for each in record.record.turns] == [0, 8]
        assert len(set(record.machines)) == (2 if turn == "moved" else 1)
        assert kinds(audited) == events
        assert other.fate.started[0].form.resume is not None
        undisturbed = await straight(tmp_path)
        assert record.record.outputs == undisturbed.record.outputs
        assert record.record.head == undisturbed.record.head

    run(scenario())


def test_a_job_that_rests_goes_on_elsewhere_and_its_pause_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE, ELSEWHERE) as [(first, client), (other, again)]:
            gate = Gate(6)
            first.fate.after = gate
            job = await first.ask(client, nonce=NONCE)
            await gate.wait()
            await client.fine_tuning.jobs.pause(job.id)
            gate.opened.set()
            await first.until(client, job.id, "paused")
            fetched = await fetch(first, job)
            assert fetched.step == 6
            record, audited = await proven(other, again, await go_on(other, again, fetched))
        assert [turn.kind for turn in record.record.turns] == ["started", "paused", "moved"]
        assert kinds(audited) == ["paused", "resumed", "machine"]
        machine = next(event for event in audited.log.events if event.kind == "machine")
        assert machine.facts["machine"] == record.machines[1].hex()

    run(scenario())


def test_a_job_that_moved_moves_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        three = (HERE, ELSEWHERE, HERE)
        async with nodes(tmp_path, *three) as [(first, client), (second, again), (third, last)]:
            fetched = await stopped_at(first, client, 6)
            gate = Gate(22)
            second.fate.after = gate
            job = await go_on(second, again, fetched)
            await gate.wait()
            later = await fetch(second, job)
            assert (fetched.step, later.step) == (4, 20)
            taken = await go_on(third, last, later)
            record, _ = await proven(third, last, taken)
            turns = [(turn.kind, turn.step) for turn in record.record.turns]
            assert turns == [("started", 0), ("moved", 4), ("moved", 20)]
            # Every checkpoint is in the record; the files here are those since it came.
            assert [each.step for each in record.record.checkpoints] == list(range(4, 33, 4))
            files = await third.results(last, await last.fine_tuning.jobs.retrieve(taken.id))
            kept = {name for name in files if name.startswith("checkpoint-")}
            assert kept == {f"checkpoint-{step}.sealed" for step in (20, 24, 28, 32)}

    run(scenario())


async def refused(
    world: TrainWorld, client: openai.AsyncOpenAI, fetched: Fetched, **changed: Any
) -> openai.APIStatusError:
    """The refusal of a job that was to go on; nothing of it is on the disk, no job is there."""
    before = len(world.jobs._entries)
    with pytest.raises(openai.APIStatusError) as caught:
        await go_on(world, client, fetched, **changed)
    assert len(world.jobs._entries) == before
    assert not [path for path in world.stored if path.name.startswith("checkpoint-")]
    return caught.value


def test_what_was_edited_is_refused_and_the_right_one_still_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE, ELSEWHERE) as [(first, client), (other, again)]:
            fetched = await stopped_at(first, client, 11)
            file = fetched.file
            payload = parse_handover(file.envelope.payload)
            planned = replace(payload, environment={"isa": "another"}).payload()
            forged = replace(file, envelope=Envelope(planned, file.envelope.signatures))
            bad = replace(fetched, handover=forged.encode())
            error = await refused(other, again, bad)
            assert (error.status_code, error.code) == (400, "handover_rejected")
            assert "handover/4" in error.message
            error = await refused(other, again, replace(fetched, handover=b"{}"))
            assert error.code == "handover_rejected"
            error = await refused(other, again, fetched, nonce="18" * 32)
            assert "handover/2" in error.message
            await proven(other, again, await go_on(other, again, fetched))

    run(scenario())


def test_another_checkpoint_than_the_one_named_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE, ELSEWHERE) as [(first, client), (other, again)]:
            fetched = await stopped_at(first, client, 11)
            (job,) = first.jobs._entries
            status, older = await raw(first, CONTENT.format(job, 4))
            assert status == 200
            for wrong in (older, fetched.checkpoint[:-1], b""):
                error = await refused(other, again, replace(fetched, checkpoint=wrong))
                assert (error.status_code, error.code) == (400, "checkpoint_mismatch")

    run(scenario())


def test_of_one_job_a_node_takes_one_handover(tmp_path: Path) -> None:
    """Going back: an older handover after a newer one, and a job that is still here."""

    async def scenario() -> None:
        async with nodes(tmp_path, HERE, ELSEWHERE) as [(first, client), (other, again)]:
            gate, later = Gate(6), Gate(11)
            first.fate.after = lambda process, step: (gate if step == 6 else later)(process, step)
            job = await first.ask(client, nonce=NONCE)
            await gate.wait()
            older = await fetch(first, job)
            gate.opened.set()
            await later.wait()
            newer = await fetch(first, job)
            assert (older.step, newer.step) == (4, 8)
            assert (await refused_as(first, client, newer)) == "nonce_used"
            await proven(other, again, await go_on(other, again, newer))
            assert (await refused_as(other, again, older)) == "nonce_used"

    run(scenario())


async def refused_as(world: TrainWorld, client: openai.AsyncOpenAI, fetched: Fetched) -> str | None:
    with pytest.raises(openai.BadRequestError) as caught:
        await go_on(world, client, fetched)
    return caught.value.code


def test_another_environment_ends_the_job_before_any_step(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE, ELSEWHERE) as [(first, client), (other, again)]:
            fetched = await stopped_at(first, client, 11)
            other.fate.environment = {"isa": "avx512", "torch": "3"}
            job = await go_on(other, again, fetched)
            while (job := await again.fine_tuning.jobs.retrieve(job.id)).status != "failed":
                assert job.status in ("queued", "running")
                await asyncio.sleep(0.005)
            assert job.error is not None
            assert job.error.code == "environment_mismatch"
            assert "isa, torch" in job.error.message
            assert job.model_extra is not None
            assert not job.model_extra["confide"]["resumable"]
            assert not any(process.gone for process in other.fate.started)

    run(scenario())


def test_there_is_nothing_to_hand_over_before_the_first_checkpoint_and_after_the_end(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE) as [(world, client)]:
            gate = Gate(2)
            world.fate.after = gate
            job = await world.ask(client)
            await gate.wait()
            path = f"/v1/fine_tuning/jobs/{job.id}/handover"
            status, body = await raw(world, path)
            assert (status, b"no_checkpoint" in body) == (409, True)
            assert (await raw(world, CONTENT.format(job.id, 4)))[0] == 404
            gate.opened.set()
            await world.until(client, job.id, "succeeded")
            status, body = await raw(world, path)
            assert (status, b"job_ended" in body) == (409, True)
            for step in ("%2e%2e", "x", "-1", "9" * 40, "5"):
                assert (await raw(world, CONTENT.format(job.id, step)))[0] == 404

    run(scenario())


def test_keys_that_ended_sign_no_handover_until_the_job_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE) as [(world, client)]:
            gate = Gate(6)
            world.fate.after = gate
            job = await world.ask(client, nonce=NONCE)
            await gate.wait()
            await client.fine_tuning.jobs.pause(job.id)
            gate.opened.set()
            await world.until(client, job.id, "paused")
            world.clock.move(25 * 3600)
            status, body = await raw(world, f"/v1/fine_tuning/jobs/{job.id}/handover")
            assert (status, b"keys_ended" in body) == (409, True)

    run(scenario())


def test_what_an_owner_has_of_a_job_is_nobody_elses(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE, ELSEWHERE) as [(first, client), (other, again)]:
            fetched = await stopped_at(first, client, 11)
            (job,) = first.jobs._entries
            async with first.plain() as http:
                for path in (f"/v1/fine_tuning/jobs/{job}/handover", CONTENT.format(job, 8)):
                    stranger = {"authorization": "Bearer the-token-of-somebody-else"}
                    assert (await http.get(path, headers=stranger)).status_code == 404
            # Sealed to its owner: losses and rows of steps are in it.
            sealed = (await raw(first, f"/v1/fine_tuning/jobs/{job}/handover"))[1]
            assert b"confide/training-handover" not in sealed
            with pytest.raises(SealedFileRejected):
                opened("ftjob-of-another", "handover.sealed", sealed)
            await bring(again, "handover.json", fetched.handover)
            assert not [p for p in other.stored if b"confide/training" in p.read_bytes()]
            async with other.client("the-token-of-somebody-else") as thief:
                (mine,) = [f.id for f in (await again.files.list()).data]
                with pytest.raises(openai.NotFoundError):
                    await thief.files.content(mine)

    run(scenario())


def test_files_of_one_purpose_are_not_taken_for_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE, ELSEWHERE) as [(first, client), (other, again)]:
            fetched = await stopped_at(first, client, 11)
            rows = await other.upload(again)
            state = await bring(again, "handover.json", fetched.handover)
            with pytest.raises(openai.BadRequestError) as caught:
                await other.ask(again, state)
            assert caught.value.code == "invalid_file"
            for name in ("handover", "checkpoint"):
                brought = {"handover": state, "checkpoint": state, name: rows}
                with pytest.raises(openai.BadRequestError) as caught:
                    await other.ask(again, rows, nonce=NONCE, **{"continue": brought})
                assert caught.value.code == "invalid_file"
                assert caught.value.param == f"confide.continue.{name}"
            with pytest.raises(openai.BadRequestError, match="no data set"):
                await again.files.create(
                    file=("rows.jsonl", ROWS),
                    purpose="fine-tune-state",  # type: ignore[arg-type]
                    extra_body={"dataset": "11" * 32, "dataset_salt": "22" * 32},
                )

    run(scenario())


def test_a_cancelled_job_leaves_nothing_of_what_was_brought(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE, ELSEWHERE) as [(first, client), (other, again)]:
            fetched = await stopped_at(first, client, 11)
            gate = Gate(9)
            other.fate.after = gate
            job = await go_on(other, again, fetched)
            await gate.wait()
            assert {f.purpose for f in (await again.files.list()).data} == {"fine-tune"}
            await again.fine_tuning.jobs.cancel(job.id)
            assert not [path for path in other.stored if path.name.startswith("checkpoint-")]

    run(scenario())
