"""A training node with two ranks, as processes, with a real model: one of them is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest
from dataset_rows import lines
from deployment import Installation
from tiny_models import make_model
from training_jobs import text_rows
from training_process import TrainingNode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[TrainingNode]:
    made = TrainingNode(Installation(tmp_path / "node", ""), make_model(tmp_path / "base"))
    made.start("--ranks", "2")
    try:
        yield made
    finally:
        made.node.stop(signal.SIGKILL)


def test_a_killed_rank_costs_no_bit_and_the_record_names_both(node: TrainingNode) -> None:
    async def work() -> None:
        async with node.client() as client:
            file = await node.upload(client, lines(*text_rows(40)))
            job = await node.ask(client, file, gradient_accumulation_steps=2)
            await node.at_step(client, job.id, 12)
            ranks = node.trainers()
            assert len(ranks) == 2
            os.kill(max(ranks), signal.SIGKILL)
            done = await node.until(client, job.id, "succeeded")
            found = await node.finished(client, done)
            assert found.happened == ["restarted"]
            assert found.record.record.plan.world == 2
            [[seat]] = found.record.seats
            assert (seat.first, seat.ranks, seat.key) == (0, 2, None)
            again = await node.ask(client, file, gradient_accumulation_steps=2)
            straight = await node.finished(client, await node.until(client, again.id, "succeeded"))
            assert straight.happened == []
            assert straight.record.record.head == found.record.record.head
            assert straight.trees == found.trees

    asyncio.run(work())
