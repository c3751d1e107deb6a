"""Requests about one job that come in the same moment: each finds the job in one state.

A tenant of a training node is hostile to the others: whatever he asks at once, the queue goes on.
"""

from __future__ import annotations

import asyncio
from itertools import permutations
from typing import TYPE_CHECKING

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from train_world import Gate, TrainWorld, nothing
from training_place import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> TrainWorld:
    return TrainWorld(tmp_path / "files")


async def paused(world: TrainWorld, client: openai.AsyncOpenAI) -> str:
    """Ask for a job and let it rest after two steps."""
    gate = world.fate.after = Gate(2)
    job = await world.ask(client)
    await gate.wait()
    await client.fine_tuning.jobs.pause(job.id)
    gate.opened.set()
    world.fate.after = nothing
    return (await world.until(client, job.id, "paused")).id


@pytest.mark.parametrize("asked", sorted({*permutations(["cancel", "resume"]), ("cancel",) * 2}))
def test_a_job_that_is_ended_and_taken_up_at_once_ends_once(
    world: TrainWorld, asked: tuple[str, str]
) -> None:
    async def scenario() -> None:
        async with world.up(), world.client() as client:
            job_id = await paused(world, client)
            jobs = client.fine_tuning.jobs
            answers = await asyncio.gather(
                *(getattr(jobs, each)(job_id) for each in asked), return_exceptions=True
            )
            refused = [each for each in answers if not isinstance(each, FineTuningJob)]
            assert all(isinstance(each, openai.BadRequestError) for each in refused)
            assert (await jobs.retrieve(job_id)).status == "cancelled"
            # Nobody else's job waits for that one.
            other = await world.ask(client)
            await world.until(client, other.id, "succeeded")

    run(scenario())
