"""The unmodified `openai` client and the jobs of a training node, over the sealed channel."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openai
import pytest
from arithmetic import RECIPE, SALT
from dataset_rows import commit
from openai.types import Model
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from runs import expectation_and_roots
from train_world import KEY, MODEL, OUTPUTS, ROWS, Gate, TrainWorld, opened, untar
from training_place import run

from confide.crypto.sealed_file import open_file_under
from confide.training.audit import audit_log
from confide.training.record_file import parse_record_file
from confide.training.record_verify import verify_record

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> TrainWorld:
    return TrainWorld(tmp_path / "files")


def exactly(value: Any, kind: type[Any]) -> None:
    """Every member that the SDK's type has is in the answer, and has that type."""
    assert type(value) is kind
    said = value.to_dict()
    if said.get("status") in ("pausing", "paused"):
        # The service has these states, the SDK has `pause` and `resume`; its type lacks the states.
        said["status"] = "running"
    kind.model_validate(said, strict=True)
    given = value.to_dict(exclude_unset=True)
    needed = {name for name, field in kind.model_fields.items() if field.is_required()}
    assert needed <= given.keys()


def test_a_job_to_its_end_and_its_record_as_a_stranger_verifies_it(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            made = await world.ask(client)
            exactly(made, FineTuningJob)
            assert made.status == "queued"
            job = await world.until(client, made.id, "succeeded")
            exactly(job, FineTuningJob)
            assert job.fine_tuned_model is not None
            assert job.fine_tuned_model.startswith(f"ft:{MODEL}:confide::")
            assert (job.trained_tokens, job.error) == (4 * 16 * 5, None)
            files = await world.results(client, job)
            record = files["record.json"]
            assert set(files) == {
                "adapter.tar.sealed",
                "merged.tar.sealed",
                "owner-log.sealed",
                "record.json",
                *(f"checkpoint-{step}.sealed" for step in range(4, 33, 4)),
            }
            answer = await client.get(
                f"/fine_tuning/jobs/{job.id}/attestation", cast_to=openai.BaseModel
            )
            file = parse_record_file(record)
            assert answer.to_dict()["type"] == "confide/training-record/v1"
        merged = untar(opened(job.id, "merged.tar.sealed", files["merged.tar.sealed"]))
        assert OUTPUTS["merged"].items() <= merged.items()
        verified = verify_record(
            file,
            roots=expectation_and_roots()[1],
            now=None,
            expectation=world.expectation,
            nonce=None,
            outputs={},
        )
        said = verified.record
        for name in ("adapter", "merged"):
            digest = hashlib.sha256(files[f"{name}.tar.sealed"]).digest()
            assert said.sealed[name] == digest
        entries = verified.manifests["merged"].entries
        assert {each.name: each.sha256 for each in entries} == {
            name: hashlib.sha256(data).hexdigest() for name, data in merged.items()
        }
        raw = opened(job.id, "owner-log.sealed", files["owner-log.sealed"])
        audited = audit_log(verified, raw, dataset_salt=SALT, rows=commit(ROWS, SALT))
        for each in audited.log.checkpoints:
            sealed = files[f"checkpoint-{each.step}.sealed"]
            assert hashlib.sha256(sealed).digest() == each.sealed
            name = f"checkpoint/{said.plan.digest.hex()}/{each.step}"
            opener = open_file_under(KEY, name=name)
            assert opener.write(sealed) + opener.end()

    run(scenario())


def test_lists_are_typed_and_come_in_pages(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            file = await world.upload(client)
            made = [await world.ask(client, file) for _ in range(3)]
            for each in made:
                await world.until(client, each.id, "succeeded")
            jobs = [job async for job in client.fine_tuning.jobs.list(limit=2)]
            assert [job.id for job in jobs] == [job.id for job in made[::-1]]
            for job in jobs:
                exactly(job, FineTuningJob)
            one = made[0].id
            events = [e async for e in client.fine_tuning.jobs.list_events(one, limit=7)]
            for event in events:
                exactly(event, FineTuningJobEvent)
            assert len({event.id for event in events}) == len(events)
            told = [event for event in events if event.type == "metrics"][::-1]
            assert [event.data["step"] for event in told[:-1]] == list(range(1, 33))  # type: ignore[index]
            assert set(told[0].data or {}) == {  # type: ignore[call-overload]
                *("step", "steps", "train_loss", "learning_rate", "tokens"),
                *("tokens_per_second", "seconds_left"),
            }
            assert told[-1].data == {
                "step": 32,
                "base_loss": 2.5,
                "base_accuracy": 0.2,
                "valid_loss": 0.5,
                "valid_accuracy": 0.9,
            }
            kept = [c async for c in client.fine_tuning.jobs.checkpoints.list(one, limit=3)]
            for checkpoint in kept:
                exactly(checkpoint, FineTuningJobCheckpoint)
            assert [c.step_number for c in kept] == list(range(32, 0, -4))
            models = [model async for model in client.models.list()]
            exactly(models[0], Model)
            assert [model.id for model in models] == [MODEL]
            exactly(await client.models.retrieve(MODEL), Model)

    run(scenario())


def test_checkpoints_and_events_have_openais_metrics_of_held_out_rows(world: TrainWorld) -> None:
    recipe = replace(RECIPE, eval_steps=6).value()

    async def scenario() -> None:
        async with world.up(), world.client() as client:
            job = await world.ask(client, recipe=recipe)
            await world.until(client, job.id, "succeeded")
            kept = [c async for c in client.fine_tuning.jobs.checkpoints.list(job.id)]
            metrics = {c.step_number: c.metrics for c in kept}
            for checkpoint in kept:
                exactly(checkpoint, FineTuningJobCheckpoint)
            assert [s for s, m in metrics.items() if m.full_valid_loss is not None] == [32, 24, 12]
            judged = metrics[24]
            assert judged.train_loss is not None
            assert (judged.valid_loss, judged.full_valid_loss) == (0.58, 0.58)
            assert judged.valid_mean_token_accuracy == 0.9
            assert judged.full_valid_mean_token_accuracy == 0.9
            events = [e async for e in client.fine_tuning.jobs.list_events(job.id, limit=100)]
            told: list[Any] = [e.data for e in events if "held-out loss" in e.message][::-1]
            assert [data["step"] for data in told] == [6, 12, 18, 24, 30, 32]
            assert told[3] == {
                "step": 24,
                "steps": 32,
                "valid_loss": 0.58,
                "valid_accuracy": 0.9,
                "valid_mean_token_accuracy": 0.9,
                "full_valid_loss": 0.58,
                "full_valid_mean_token_accuracy": 0.9,
            }

    run(scenario())


def test_jobs_are_found_by_metadata(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            file = await world.upload(client)
            named = await client.fine_tuning.jobs.create(
                model=MODEL,
                training_file=file,
                suffix="mine",
                metadata={"team": "blue"},
                extra_body={"confide": world.asked()},
            )
            other = await world.ask(client, file)
            found = await client.fine_tuning.jobs.list(metadata={"team": "blue"})
            assert [job.id for job in found.data] == [named.id]
            assert named.metadata == {"team": "blue"}
            none = await client.fine_tuning.jobs.list(extra_query={"metadata": "null"})
            assert [job.id for job in none.data] == [other.id]
            done = await world.until(client, named.id, "succeeded")
            assert (done.fine_tuned_model or "").startswith(f"ft:{MODEL}:confide:mine:")

    run(scenario())


def test_paused_and_resumed_it_makes_the_same(world: TrainWorld) -> None:
    gate = Gate(6)

    async def scenario() -> None:
        async with world.up(), world.client() as client:
            file = await world.upload(client)
            straight = await world.ask(client, file)
            straight = await world.until(client, straight.id, "succeeded")
            world.fate.after = gate
            made = await world.ask(client, file)
            await gate.wait()
            pausing = await client.fine_tuning.jobs.pause(made.id)
            exactly(pausing, FineTuningJob)
            assert pausing.to_dict()["status"] == "pausing"
            gate.opened.set()
            paused = await world.until(client, made.id, "paused")
            assert paused.to_dict()["status"] == "paused"
            resumed = await client.fine_tuning.jobs.resume(made.id)
            exactly(resumed, FineTuningJob)
            done = await world.until(client, made.id, "succeeded")
            records = []
            for each in (straight, done):
                files = await world.results(client, each)
                records.append(_verified(files["record.json"]))
            one, two = records
            assert one.record.outputs == two.record.outputs
            assert one.record.head == two.record.head
            assert one.record.events_head != two.record.events_head
            assert [turn.kind for turn in two.record.turns] == ["started", "paused", "resumed"]
            assert two.record.turns[1].step == 6
            raw = opened(done.id, "owner-log.sealed", files["owner-log.sealed"])
            audit_log(two, raw, dataset_salt=SALT, rows=None)

    run(scenario())


def _verified(raw: bytes) -> Any:
    return verify_record(
        parse_record_file(raw),
        roots=expectation_and_roots()[1],
        now=None,
        expectation=None,
        nonce=None,
        outputs={},
    )


def test_nobody_else_sees_a_job(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with (
            world.up(),
            world.client() as mine,
            world.client("the-token-of-somebody-else") as theirs,
        ):
            job = await world.ask(mine)
            done = await world.until(mine, job.id, "succeeded")
            assert (await theirs.fine_tuning.jobs.list()).data == []
            jobs = theirs.fine_tuning.jobs
            calls = (
                jobs.retrieve(job.id),
                jobs.cancel(job.id),
                jobs.pause(job.id),
                jobs.resume(job.id),
                jobs.list_events(job.id),
                jobs.checkpoints.list(job.id),
                theirs.get(f"/fine_tuning/jobs/{job.id}/attestation", cast_to=object),
                theirs.files.content(done.result_files[0]),
            )
            for call in calls:
                with pytest.raises(openai.NotFoundError):
                    await call
            with pytest.raises(openai.NotFoundError):
                await world.ask(theirs, done.training_file)
        async with world.client("short") as nobody:
            with pytest.raises(openai.AuthenticationError):
                await nobody.fine_tuning.jobs.list()

    run(scenario())


def test_what_is_wrong_with_a_request_is_said(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            file = await world.upload(client)
            good = world.asked()
            create = client.fine_tuning.jobs.create
            wrong: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
                ({}, {}, "confide_required", "confide"),
                ({"model": "gpt-4o-mini"}, good, "model_not_found", "model"),
                ({"suffix": "a b"}, good, "invalid_value", "suffix"),
                ({"seed": 4}, good, "invalid_value", "seed"),
                ({}, good | {"more": 1}, "invalid_request", ""),
                ({}, good | {"recipient": "AAAA"}, "invalid_value", "confide.recipient"),
                ({}, good | {"nonce": "00"}, "invalid_request", ""),
                (
                    {},
                    good | {"recipe": good["recipe"] | {"method": "dpo", "dpo_beta": 0.1}},
                    "invalid_training_file",
                    "training_file",
                ),
            ]
            for changed, confide, code, param in wrong:
                arguments: Any = {"model": MODEL, "training_file": file} | changed
                body = {"confide": confide} if confide else None
                with pytest.raises(openai.BadRequestError) as caught:
                    await create(**arguments, extra_body=body)
                assert (caught.value.code, caught.value.param or "") == (code, param)
            with pytest.raises(openai.NotFoundError) as missing:
                await create(
                    model=MODEL, training_file="file-0", extra_body={"confide": world.asked()}
                )
            assert missing.value.param == "training_file"
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model=MODEL, messages=[])
            assert (await client.fine_tuning.jobs.list()).data == []
            for wrong_page in ({"limit": 0}, {"limit": 101}, {"after": "ftjob-0"}):
                with pytest.raises(openai.BadRequestError):
                    await client.fine_tuning.jobs.list(**wrong_page)

    run(scenario())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": {"name": MODEL, "weights": "00" * 32}}, "names other weights"),
        ({"model": {"name": "another", "weights": "00" * 32}}, "names another model"),
        ({"hardware": {"roots": "vendor"}}, "names roots vendor"),
        ({"model_node": {"software": ["00" * 32]}}, "does not meet it"),
        ({"gpu": {"count": 2}}, "does not meet it"),
    ],
    ids=["weights", "model", "roots", "software", "gpus"],
)
def test_a_node_that_does_not_meet_the_expectation_refuses_before_it_queues(
    world: TrainWorld, changed: dict[str, Any], said: str
) -> None:
    value = world.expectation_value()
    for name, members in changed.items():
        value[name] = value[name] | members

    async def scenario() -> None:
        async with world.up(), world.client() as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await world.ask(client, expectation=value)
            assert caught.value.code == "expectation_mismatch"
            assert said in caught.value.message
            assert (await client.fine_tuning.jobs.list()).data == []
            assert world.fate.started == []

    run(scenario())
