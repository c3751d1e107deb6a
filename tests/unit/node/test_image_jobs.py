"""Jobs of owners' images, asked for by an unmodified `openai` client of a training node."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openai
import pytest
from image_trainings import (
    IMAGE,
    MADE,
    ImageSandbox,
    ImageSession,
    ImageStory,
    image_ports,
    made_manifest,
    verify_image,
)
from train_world import MODEL, ROWS, TrainWorld, opened, untar
from training_place import run

from confide.agents.sandbox import ExitKind
from confide.training.image_recipe import ImageRecipe
from confide.training.record_file import parse_record_file

if TYPE_CHECKING:
    from pathlib import Path

    from openai.types.fine_tuning import FineTuningJob

OWN = ImageRecipe(MODEL, IMAGE, ("python3", "/agent/t.py"), environment=(("SEED", "7"),))


class Place:
    """A training node that runs images, and one story about them."""

    def __init__(self, folder: Path, story: ImageStory | None = None) -> None:
        self.story = story or ImageStory()
        self.sandbox = ImageSandbox(self.story)
        self.world = TrainWorld(
            folder / "files", images=lambda node: image_ports(self.story, node, self.sandbox)
        )

    @property
    def session(self) -> ImageSession:
        """The session of the last job."""
        session = self.sandbox.sessions[-1]
        assert isinstance(session, ImageSession)
        return session

    async def ask(self, client: openai.AsyncOpenAI, **changed: Any) -> FineTuningJob:
        """Ask for a job of an image."""
        asked = {"recipe": None, "checkpoint_key": None, "image": OWN.value()}
        return await self.world.ask(client, **{**asked, **changed})


async def rested(client: openai.AsyncOpenAI, job_id: str, *statuses: str) -> FineTuningJob:
    """Wait for one of `statuses`."""
    while True:
        job = await client.fine_tuning.jobs.retrieve(job_id)
        if job.status in statuses:
            return job
        await asyncio.sleep(0.005)


def test_a_job_of_an_image_gives_sealed_weights_and_a_record_that_holds(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        world = place.world
        async with world.up(), world.client() as client:
            job = await place.ask(client)
            assert (job.method.type if job.method else None) == "supervised"
            assert job.to_dict()["confide"] == {
                "recipe": OWN.digest.hex(), "granularity": "artefact",
                "step": 0, "steps": None, "resumable": False, "checkpoint": None,
            }  # fmt: skip
            done = await world.until(client, job.id, "succeeded")
            assert done.fine_tuned_model == f"ft:{MODEL}:confide::{job.id[6:14]}"
            files = await world.results(client, done)
            assert set(files) == {
                "output.tar.sealed", "stdout.sealed", "stderr.sealed", "record.json",
            }  # fmt: skip
            name = "output.tar.sealed"
            assert untar(opened(job.id, name, files[name])) == MADE
            assert opened(job.id, "stdout.sealed", files["stdout.sealed"]) == b"epoch 1\n"
            verified = verify_image(
                parse_record_file(files["record.json"]),
                now=None,
                expectation=world.expectation,
                outputs={"output": made_manifest(MADE).digest},
            )
            assert verified.record.plan.recipe == OWN.digest
            assert place.session.inputs["rows.jsonl"] == ROWS
            told = [event.message async for event in client.fine_tuning.jobs.list_events(job.id)]
            assert "The node is proven; the image is started." in told
            attested = await client.get(
                f"/fine_tuning/jobs/{job.id}/attestation", cast_to=openai.BaseModel
            )
            assert attested.to_dict()["type"] == "confide/training-record/v1"

    run(scenario())


def test_a_node_that_runs_no_images_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        place.world.images = None
        async with place.world.up(), place.world.client() as client:
            with pytest.raises(openai.BadRequestError, match="runs no images") as refused:
                await place.ask(client)
            assert (refused.value.code, refused.value.param) == ("no_images", "confide.image")

    run(scenario())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image": replace(OWN, image="00" * 32).value()}, "does not have sha256:0000"),
        ({"image": {**OWN.value(), "network": "host"}}, "network is not one of none"),
        ({"image": {**OWN.value(), "privileged": True}}, "unknown member"),
        ({"image": replace(OWN, base_model="other").value()}, f"base_model is not {MODEL}"),
        ({"image": replace(OWN, gpu=True).value()}, "cannot hand its GPUs"),
        ({"checkpoint_key": "00" * 32}, "unknown member"),
        ({"recipe": {"type": "x"}}, "unknown member"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_is_queued(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        async with place.world.up(), place.world.client() as client:
            with pytest.raises(openai.BadRequestError, match=said):
                await place.ask(client, **changed)
            assert (await client.fine_tuning.jobs.list()).data == []
            assert place.sandbox.sessions == []

    run(scenario())


def test_seed_and_hyperparameters_are_the_images_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        world = place.world
        asked = world.asked(recipe=None, checkpoint_key=None, image=OWN.value())
        async with world.up(), world.client() as client:
            with pytest.raises(openai.BadRequestError, match="image says it already"):
                await client.fine_tuning.jobs.create(
                    model=MODEL,
                    training_file=await world.upload(client),
                    seed=7,
                    extra_body={"confide": asked},
                )

    run(scenario())


def test_a_failed_image_hands_over_its_console_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        secret = b"a row that it printed"
        place = Place(tmp_path, ImageStory(end=ExitKind.EXITED, status=3, stdout=secret))
        world = place.world
        async with world.up(), world.client() as client:
            job = await place.ask(client)
            failed = await rested(client, job.id, "failed")
            assert failed.error is not None
            assert failed.error.code == "image_failed"
            files = await world.results(client, failed)
            assert set(files) == {"stdout.sealed", "stderr.sealed"}
            assert opened(job.id, "stdout.sealed", files["stdout.sealed"]) == secret
            assert secret.decode() not in failed.to_json()
            with pytest.raises(openai.NotFoundError):
                await client.get(
                    f"/fine_tuning/jobs/{job.id}/attestation", cast_to=openai.BaseModel
                )
            with pytest.raises(openai.BadRequestError, match="cannot be resumed"):
                await client.fine_tuning.jobs.resume(job.id)

    run(scenario())


def test_rows_that_changed_on_the_disk_start_no_image(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        world = place.world
        async with world.up(), world.client() as client:
            file = await world.upload(client)
            (stored,) = [path for path in world.stored if path.name == f"{file}-rows.sealed"]
            raw = bytearray(stored.read_bytes())
            raw[-40] ^= 1
            stored.write_bytes(bytes(raw))
            asked = world.asked(recipe=None, checkpoint_key=None, image=OWN.value())
            job = await client.fine_tuning.jobs.create(
                model=MODEL, training_file=file, extra_body={"confide": asked}
            )
            failed = await rested(client, job.id, "failed")
            assert failed.error is not None
            assert failed.error.code == "unavailable"
            assert not place.session.ran
            assert failed.result_files == []

    run(scenario())


def test_a_running_image_is_cancelled_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path, ImageStory(endless=True))
        world = place.world
        async with world.up(), world.client() as client:
            job = await place.ask(client)
            await place.sandbox.running.wait()
            with pytest.raises(openai.BadRequestError, match="cannot be paused"):
                await client.fine_tuning.jobs.pause(job.id)
            rows = len(world.stored)
            cancelled = await client.fine_tuning.jobs.cancel(job.id)
            assert cancelled.status == "cancelled"
            assert cancelled.result_files == []
            assert place.session.closed
            assert len(world.stored) == rows

    run(scenario())


def test_a_job_that_waits_is_cancelled_and_never_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path, ImageStory(endless=True))
        async with place.world.up(), place.world.client() as client:
            first = await place.ask(client)
            await place.sandbox.running.wait()
            second = await place.ask(client)
            assert (await client.fine_tuning.jobs.cancel(second.id)).status == "cancelled"
            assert (await client.fine_tuning.jobs.cancel(first.id)).status == "cancelled"
            assert len(place.sandbox.sessions) == 1

    run(scenario())


def test_a_node_that_ends_ends_the_image(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path, ImageStory(endless=True))
        async with place.world.up(), place.world.client() as client:
            await place.ask(client)
            await place.sandbox.running.wait()
            place.world.jobs.drain()
        assert place.session.closed

    run(scenario())


def test_images_and_recipes_take_turns_on_one_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        world = place.world
        async with world.up(), world.client() as client:
            one = await place.ask(client)
            two = await world.ask(client)
            three = await place.ask(client)
            for job in (one, two, three):
                await world.until(client, job.id, "succeeded")
            said = [
                (await client.fine_tuning.jobs.retrieve(job.id)).to_dict()["confide"]
                for job in (one, two)
            ]
            assert [each["granularity"] for each in said] == ["artefact", "step"]  # type: ignore[index]

    run(scenario())
