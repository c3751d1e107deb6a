"""The training node as a process, with a real model: kills, pauses, a full disk, canaries."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest
from dataset_rows import commit, lines
from deployment import Installation, until
from leaks import Canaries, Place, process_leaks
from tiny_models import make_model
from training_jobs import SALT
from training_process import Finished, TrainingNode

from confide.adapters.entropy import SystemEntropy
from confide.adapters.weights_dir import measure_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.model


@dataclass
class Site:
    """A node, rows with a canary in each, and a job to which nothing happened."""

    node: TrainingNode
    canaries: Canaries
    since: float
    rows: bytes = b""
    straight: Finished = field(init=False)

    def leaks(self) -> set[str]:
        """Where in this machine's files a canary stands."""
        root = self.node.installation.root
        places = [
            Place("installation", root),
            Place("temporary files", Path("/tmp"), without=(root,)),  # noqa: S108 - looked at
            Place("system logs", Path("/var/log")),
        ]
        return {leak for each in places for leak in each.leaks(self.canaries, self.since)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = make_model(tmp_path_factory.mktemp("model") / "base")
    node = TrainingNode(Installation(tmp_path_factory.mktemp("node"), ""), base)
    node.start()
    canaries = Canaries(1000, SystemEntropy().token)
    found = Site(node, canaries, time.time() - 1)
    found.rows = lines(
        *({"prompt": f"{word}: ", "completion": f" {word[::-1]}"} for word in canaries.words)
    )

    async def work() -> None:
        async with node.client() as client:
            file = await node.upload(client, found.rows)
            job = await node.ask(client, file)
            done = await node.until(client, job.id, "succeeded")
            found.straight = await node.finished(client, done)

    try:
        asyncio.run(work())
        yield found
    finally:
        node.node.stop(signal.SIGKILL)


def test_a_job_gives_its_owner_weights_and_everybody_a_record(place: Site, tmp_path: Path) -> None:
    done = place.straight
    said = done.record.record
    assert said.plan.base == measure_weights(place.node.weights).digest
    assert said.dataset_root == commit(place.rows, SALT).root
    for name in ("adapter", "merged"):
        folder = done.written(name, tmp_path / name)
        assert measure_weights(folder).digest == said.outputs[name]
    assert (said.steps, [turn.kind for turn in said.turns]) == (60, ["started"])
    assert done.record.evaluation is not None
    assert len(done.files["record.json"]) < 2_000_000
    base, tuned = done.audited.log.evaluations or (None, None)
    assert base is not None
    assert tuned is not None
    assert tuned.metrics.loss < base.metrics.loss


def same(one: Finished, two: Finished) -> None:
    assert one.record.record.outputs == two.record.record.outputs
    assert one.record.record.head == two.record.record.head
    assert one.trees == two.trees


def test_killed_and_paused_it_ends_at_the_same_bits(place: Site) -> None:
    node = place.node

    async def work() -> None:
        async with node.client() as client:
            file = await node.upload(client, place.rows)
            job = await node.ask(client, file)
            await node.at_step(client, job.id, 12)
            [trainer] = node.trainers()
            os.kill(trainer, signal.SIGKILL)
            await node.at_step(client, job.id, 22)
            await client.fine_tuning.jobs.pause(job.id)
            await node.until(client, job.id, "paused")
            assert node.trainers() == []
            await client.fine_tuning.jobs.resume(job.id)
            done = await node.until(client, job.id, "succeeded")
            found = await node.finished(client, done)
            same(place.straight, found)
            assert found.happened == ["restarted", "paused", "resumed"]
            kinds = [turn.kind for turn in found.record.record.turns]
            assert kinds == ["started", "paused", "resumed"]

    asyncio.run(work())


@pytest.mark.slow
def test_a_disk_that_is_full_at_a_checkpoint_costs_no_more_than_steps(place: Site) -> None:
    node = place.node

    async def work() -> None:
        async with node.client() as client:
            file = await node.upload(client, place.rows)
            job = await node.ask(client, file)
            await node.at_step(client, job.id, 12)
            [trainer] = node.trainers()
            resource.prlimit(trainer, resource.RLIMIT_FSIZE, (1000, 1000))
            failed = await node.until(client, job.id, "failed")
            assert failed.error is not None
            assert failed.error.code == "disk_full"
            left = sorted(path.name for path in (node.state / "checkpoints" / job.id).iterdir())
            assert left
            assert all(name.endswith(".sealed") for name in left)
            await client.fine_tuning.jobs.resume(job.id)
            done = await node.until(client, job.id, "succeeded")
            same(place.straight, await node.finished(client, done))

    asyncio.run(work())


def test_a_cancelled_job_leaves_nothing_and_no_process(place: Site) -> None:
    node = place.node

    async def work() -> None:
        async with node.client() as client, node.client("the-token-of-somebody-else") as other:
            file = await node.upload(client, place.rows)
            before = set(node.state.rglob("*"))
            job = await node.ask(client, file)
            await node.at_step(client, job.id, 12)
            with pytest.raises(openai.NotFoundError):
                await other.fine_tuning.jobs.cancel(job.id)
            assert (node.state / "checkpoints" / job.id).is_dir()
            cancelled = await client.fine_tuning.jobs.cancel(job.id)
            assert cancelled.status == "cancelled"
            assert set(node.state.rglob("*")) == before
            assert node.trainers() == []

    asyncio.run(work())


@pytest.mark.slow
def test_told_to_stop_it_pauses_the_job_and_ends(
    place: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("stopped")
    node = TrainingNode(Installation(root, ""), place.node.weights)
    node.start()

    async def work() -> str:
        async with node.client() as client:
            file = await node.upload(client, place.rows)
            job = await node.ask(client, file, max_steps=5000, checkpoint_every=1000)
            await node.at_step(client, job.id, 12)
            node.node.process.send_signal(signal.SIGTERM)
            return job.id

    job_id = asyncio.run(work())
    assert node.node.process.wait(60) == 0
    assert node.trainers() == []
    # Not one of those every thousand steps: the one that a pause makes.
    [kept] = (node.state / "checkpoints" / job_id).iterdir()
    assert kept.name.endswith(".sealed")
    assert not (node.state / "base").exists()


def test_no_canary_of_a_thousand_is_on_the_disk_or_the_wire(place: Site) -> None:
    """Last but one: after jobs that ended, failed, were killed and cancelled."""

    async def hold() -> None:
        async with place.node.client() as client:
            file = await place.node.upload(client, place.rows)
            job = await place.node.ask(client, file, max_steps=2000)
            await place.node.at_step(client, job.id, 12)
            assert process_leaks(place.canaries) == set()
            assert place.leaks() == set()

    asyncio.run(hold())
    assert not place.canaries.inside(b"\n".join(place.node.wire))
    # The search is of something: the rows were there, and were learnt from.
    assert len(place.canaries.inside(place.rows)) == 1000
    # A crash with rows in two processes: neither says a word of them.
    [trainer] = place.node.trainers()
    os.kill(trainer, signal.SIGSEGV)
    assert place.node.node.stop(signal.SIGABRT) == -signal.SIGABRT
    until(lambda: place.node.trainers() == [], "the training process ended with its node")
    said = place.node.node.log.read_text().splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "training node of tiny at http",
        "SIMULATED",
    ], "what it says when it starts, and nothing of its end"
    assert place.leaks() == set()
