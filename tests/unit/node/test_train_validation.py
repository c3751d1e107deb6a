"""Jobs with rows that are only evaluated on. training-node.md 2.1, training-record.md 4.3."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import openai
import pytest
from arithmetic import RECIPE, SALT
from dataset_rows import commit, lines
from replay_world import Bundle, put, refusal, replayed, two_nodes, verified
from train_world import MODEL, ROWS, TrainWorld, opened
from training_place import run

if TYPE_CHECKING:
    from pathlib import Path

APART = lines(*({"prompt": f"apart {n}", "completion": f"label {n}"} for n in range(5)))
APART_SALT = hashlib.sha256(b"the salt of the validation rows").digest()
PLAIN = RECIPE.value() | {"val_set_size": 0}


async def upload(client: openai.AsyncOpenAI, rows: bytes, salt: bytes) -> str:
    """Upload rows that are committed to."""
    said = {"dataset": commit(rows, salt).digest.hex(), "dataset_salt": salt.hex()}
    made = await client.files.create(
        file=("rows.jsonl", rows), purpose="fine-tune", extra_body=said
    )
    return made.id


async def train(world: TrainWorld, client: openai.AsyncOpenAI, **changed: Any) -> Bundle:
    """Train with validation rows; what the owner gets of it."""
    job = await client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=await upload(client, ROWS, SALT),
        validation_file=await upload(client, APART, APART_SALT),
        extra_body={"confide": world.asked(recipe=PLAIN, **changed)},
    )
    done = await world.until(client, job.id, "succeeded")
    files = await world.results(client, done)
    checkpoints = {
        int(name.removeprefix("checkpoint-").removesuffix(".sealed")): data
        for name, data in files.items()
        if name.startswith("checkpoint-")
    }
    log = opened(job.id, "owner-log.sealed", files["owner-log.sealed"])
    return Bundle(files["record.json"], log, checkpoints)


def test_both_models_are_evaluated_on_the_rows_that_the_plan_names(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = TrainWorld(tmp_path / "files")
        async with world.up(), world.client() as client:
            audited = (await train(world, client)).audited
            plan = audited.record.record.plan
            assert plan.validation == commit(APART, APART_SALT).digest
            assert plan.dataset == commit(ROWS, SALT).digest
            assert audited.record.evaluation is not None
            assert audited.log.validation is not None
            assert audited.log.validation.rows == 5
            # They are read for every process, and no row of them is in a batch.
            [process] = world.fate.started
            assert process.job is not None
            assert process.job.validation is not None
            assert len(process.job.validation.rows) == 5
            rows = {
                row for each in audited.log.steps for m in each.batch for p in m for row, _ in p
            }
            assert rows == set(range(20))

    run(scenario())


def test_validation_rows_are_the_owners_and_of_the_right_kind(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = TrainWorld(tmp_path / "files")
        async with world.up(), world.client() as client:
            data = await upload(client, ROWS, SALT)
            pairs = lines({"prompt": "p", "chosen": "a", "rejected": "b"})
            wrong = await upload(client, pairs, APART_SALT)
            async with world.client("another-owner-of-files") as other:
                foreign = await upload(other, APART, APART_SALT)
            for file, kind in (
                (wrong, openai.BadRequestError),
                (foreign, openai.NotFoundError),
                ("file-nowhere", openai.NotFoundError),
            ):
                with pytest.raises(kind) as caught:
                    await client.fine_tuning.jobs.create(
                        model=MODEL,
                        training_file=data,
                        validation_file=file,
                        extra_body={"confide": world.asked(recipe=PLAIN)},
                    )
                assert caught.value.param == "validation_file"
            assert world.fate.started == []

    run(scenario())


def test_a_replay_needs_the_validation_rows_of_the_plan(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            async with first.client() as client:
                bundle = await train(first, client)
            assert await refusal(second, bundle) == ("dataset_mismatch", "validation_file")
            async with second.plain() as http:
                digest = commit(APART, APART_SALT).digest.hex()
                said = {"dataset": digest, "dataset_salt": APART_SALT.hex()}
                apart = await put(http, APART, purpose="fine-tune", **said)
                other = await put(http, APART, purpose="fine-tune")
            wrong = await refusal(second, bundle, validation_file=other)
            assert wrong == ("dataset_mismatch", "validation_file")
            file = await replayed(second, bundle, validation_file=apart)
            verified(file, bundle).require_agreement()

    run(scenario())
