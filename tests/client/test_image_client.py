"""The owner's side of a training with an image, against a genuine node that lies on demand."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from image_trainings import (
    IMAGE,
    MADE,
    ImageSandbox,
    ImageStory,
    forge_image,
    image_ports,
    made_manifest,
)
from rich.console import Console
from runs import payload_of
from train_world import ROWS
from training_owners import TrainingOwners, run, running_training_node
from trainings import dependency, train

from confide.agents.sandbox import ExitKind
from confide.cli.screen import Screen
from confide.cli.train_result import Made, show_result
from confide.cli.train_target import read_recipe
from confide.client.train_folder import OwnerFolder
from confide.client.train_results import REFUSED
from confide.errors import FormatError, Reason, SealedFileRejected, TrainingRejected
from confide.training.image_recipe import ImageRecipe
from confide.training.limits import COARSER, IMAGE_LIMITS
from confide.training.recipe import Recipe
from confide.training.record_file import parse_record_file
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.client.train_results import OpenedResults
    from confide.node.image_proof import ProvenNode
    from confide.node.train_image import ImagePorts

TOML = (
    f'base_model = "support-notes"\nimage = "oci:images/trl@sha256:{IMAGE}"\n'
    'command = ["python3", "/agent/t.py"]\n[environment]\nSEED = "7"\n'
)


class World:
    """A node that runs images, and what an owner has."""

    def __init__(self, place: TrainingOwners, story: list[ImageStory], tmp: Path) -> None:
        self.place = place
        self.story = story
        self.toml = tmp / "train.toml"
        self.toml.write_text(TOML)
        self.rows = tmp / "rows.jsonl"
        self.rows.write_bytes(ROWS)
        self.folder = tmp / "job"

    def train(self) -> OwnerFolder:
        """Ask for the job of `train.toml` and wait for its end."""
        recipe = read_recipe(self.toml)
        assert isinstance(recipe, ImageRecipe)

        async def work() -> OwnerFolder:
            async with self.place.owner(self.place.folder(self.folder, recipe=recipe)) as training:
                training.commit(self.rows, None)
                await training.send()
                await training.start()
                await training.follow()
                return training.folder

        found: OwnerFolder = run(work())
        return found

    def collect(self) -> OpenedResults:
        """Open what the job made."""

        async def work() -> OpenedResults:
            async with self.place.owner(OwnerFolder.open(self.folder)) as training:
                return await training.collect()

        opened: OpenedResults = run(work())
        return opened

    def refused(self, kind: type[Exception] = TrainingRejected) -> Any:
        """Open what the job made, which has to be refused: nothing is there then."""
        with pytest.raises(kind) as caught:
            self.collect()
        assert not OwnerFolder.open(self.folder).done
        return caught.value


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    story = [ImageStory()]

    def images(node: ProvenNode) -> ImagePorts:
        sandbox = ImageSandbox(story[0])
        prepare = sandbox.prepare

        async def as_told(spec: Any) -> Any:
            sandbox.story = story[0]
            return await prepare(spec)

        sandbox.prepare = as_told  # type: ignore[method-assign]
        return image_ports(story[0], node, sandbox)

    with running_training_node(tmp_path / "node", images=images) as place:
        yield World(place, story, tmp_path)


def test_a_train_toml_and_a_recipe_are_told_apart_by_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "any-name.toml"
    path.write_text(TOML)
    assert isinstance(read_recipe(path), ImageRecipe)
    path.write_text('base_model = "tiny"\nlearning_rate = 1e-3\n')
    assert isinstance(read_recipe(path), Recipe)
    path.write_text('base_model = "tiny"\nimages = "x"\n')
    with pytest.raises(FormatError, match="unknown key 'images'"):
        read_recipe(path)


def test_an_image_trains_and_what_it_left_is_opened_and_held_to_its_record(world: World) -> None:
    folder = world.train()
    assert folder.state.recipe == read_recipe(world.toml)
    # The state that was kept says so too: a training is taken up as what it is.
    assert OwnerFolder.open(world.folder).state == folder.state
    opened = world.collect()
    assert opened.merged == folder.result / "output"
    assert {path.name: path.read_bytes() for path in opened.merged.iterdir()} == MADE
    assert (folder.result / "stdout.txt").read_bytes() == b"epoch 1\n"
    assert opened.record.record.made == made_manifest(MADE).digest
    assert opened.audited is None
    assert opened.adapter is None
    assert sorted(path.name for path in folder.result.iterdir()) == [
        "output", "record.json", "stderr.txt", "stdout.txt",
    ]  # fmt: skip


def test_the_last_screen_says_that_the_record_is_coarser(world: World) -> None:
    world.train()
    opened = world.collect()
    made = Made(OwnerFolder.open(world.folder), opened, "ft:support-notes:confide::x")
    out = io.StringIO()
    screen = Screen(as_json=False)
    screen.out = Console(file=out, width=400)
    show_result(screen, made)
    text = " ".join(out.getvalue().split())
    assert f"This training record is {COARSER}." in text
    for limit in IMAGE_LIMITS:
        assert limit in text
    assert "--owner-log" not in text
    assert "each one, at its learning rate" not in text


def test_a_failed_image_tells_its_owner_what_it_printed(world: World) -> None:
    world.story[0] = ImageStory(end=ExitKind.EXITED, status=3, stdout=b"why it failed")
    folder = world.train()

    async def work() -> tuple[Any, Path | None]:
        async with world.place.owner(folder) as training:
            return await training.jobs.retrieve(training.job), await training.printed()

    job, printed = run(work())
    assert job.error[0] == "image_failed"
    assert printed == folder.path / "printed"
    assert printed is not None
    assert (printed / "stdout.txt").read_bytes() == b"why it failed"
    assert not folder.done


# --- a node that lies -----------------------------------------------------------------------------


def lie(world: World, part: str, answer: bytes) -> None:
    """Have the node answer every path with `part` in it so."""
    world.place.liar.answer = lambda path, body: answer if part in path else body


def test_a_record_of_steps_is_no_answer_to_an_image(world: World) -> None:
    folder = world.train()
    lie(world, "attestation", train().file.encode())
    assert world.refused().reason is Reason.TRAINING_GRANULARITY
    assert (folder.path / REFUSED).exists()


def test_a_coarse_record_is_no_answer_to_a_recipe(world: World) -> None:
    async def work() -> OwnerFolder:
        async with world.place.owner(world.place.folder(world.folder)) as training:
            training.commit(world.rows, None)
            await training.send()
            await training.start()
            await training.follow()
            return training.folder

    run(work())
    lie(world, "attestation", forge_image(ImageStory("elsewhere")).file.encode())
    assert world.refused().reason is Reason.TRAINING_GRANULARITY


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image": "00" * 32}, Reason.AGENT_IMAGE_MISMATCH),
        ({"command": ("another",)}, Reason.TRAINING_PLAN),
    ],
)
def test_another_image_or_command_than_was_asked_for_is_refused(
    world: World, changed: dict[str, Any], reason: Reason
) -> None:
    folder = world.train()
    asked = folder.state.recipe
    assert isinstance(asked, ImageRecipe)
    folder.now_at(replace(folder.state, recipe=replace(asked, **changed)))
    error = world.refused()
    assert (error.failures[0].step, error.reason) == ("owner/1", reason)


def test_other_rows_than_were_sent_are_refused(world: World) -> None:
    folder = world.train()
    assert folder.state.data is not None
    other = replace(folder.state.data.commitment, root=bytes(32))
    folder.now_at(replace(folder.state, data=replace(folder.state.data, commitment=other)))
    assert world.refused().reason is Reason.DATASET_MISMATCH


def test_a_record_that_shows_another_root_than_that_of_the_rows_is_refused(world: World) -> None:
    """No log and no row holds the root of such a record to the data set: its owner does."""
    folder, told = world.train(), list[bytes]()

    def listen(path: str, body: bytes) -> bytes:
        if "attestation" not in path:
            return body
        told.append(body)
        return b"{}"

    world.place.liar.answer = listen
    world.refused(FormatError)
    file, node = parse_record_file(told[0]), world.place.world.node
    document = payload_of(file.record)
    dependency(document, "dataset-root")["digest"]["sha256"] = bytes(32).hex()
    record = node.keys.signer.seal(jcs(document))
    expectation = hashlib.sha256(file.expectation).digest()
    after = asyncio.run(node.attest("claim", folder.nonce, expectation, record.digest))
    lying = replace(file, record=record, after=after)
    lie(world, "attestation", lying.encode())
    error = world.refused()
    assert (error.failures[0].step, error.reason) == ("owner/1", Reason.DATASET_MISMATCH)


def test_a_result_that_the_record_does_not_name_is_refused(world: World) -> None:
    world.train()

    def swap(path: str, body: bytes) -> bytes:
        if path.endswith("/content") or not path.startswith("/v1/files/"):
            return body
        document = json.loads(body)
        names = {"stdout.sealed": "stderr.sealed", "stderr.sealed": "stdout.sealed"}
        document["filename"] = names.get(document["filename"], document["filename"])
        return json.dumps(document).encode()

    world.place.liar.answer = swap
    assert world.refused(SealedFileRejected).reason is Reason.SEALED_KEY


def test_a_result_that_is_missing_is_named(world: World) -> None:
    world.train()

    def hide(path: str, body: bytes) -> bytes:
        if "/fine_tuning/jobs/" not in path or "attestation" in path:
            return body
        document = json.loads(body)
        document["result_files"] = document["result_files"][:-2]
        return json.dumps(document).encode()

    world.place.liar.answer = hide
    error = world.refused()
    assert error.reason is Reason.OUTPUT_MISMATCH
    assert "output.tar.sealed is missing" in str(error)
