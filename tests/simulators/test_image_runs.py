"""The run of an owner's image on a training node: docs/protocols/training-image.md §2 and §3."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from image_trainings import (
    CANONICAL_ROWS,
    HELD_OUT,
    IMAGE,
    MADE,
    MOST,
    ROWS,
    ImagePlace,
    ImageStory,
    boot_place,
    made_manifest,
    verify_image,
)
from nodes import WEIGHTS

from confide.agents.egress import EgressPolicy
from confide.agents.sandbox import ExitKind, LeftOut
from confide.errors import ConfideError, DatasetRejected, Reason, Rejected, TrainingRejected
from confide.node.train_image import ImageFailed
from confide.training.image_recipe import ImageLimits, ImagePaths, ImageRecipe
from confide.training.job_request import JobRefused
from confide.training.rows import RowError

if TYPE_CHECKING:
    from confide.training.record_file import RecordFile

OWN = ImageRecipe("support-notes", IMAGE, ("python3", "/agent/t.py"))


def run(story: ImageStory) -> tuple[ImagePlace, RecordFile]:
    """Run the job of `story` to its record."""

    async def go() -> tuple[ImagePlace, RecordFile]:
        place = await boot_place(story)
        return place, await place.run()

    return asyncio.run(go())


def refused(story: ImageStory, kind: type[Exception]) -> tuple[ImagePlace, Any]:
    """Run the job of `story`, which must fail."""

    async def go() -> tuple[ImagePlace, Any]:
        place = await boot_place(story)
        with pytest.raises(kind) as error:
            await place.run()
        return place, error.value

    return asyncio.run(go())


# What the image is given


def test_it_is_given_the_rows_that_were_committed_to_and_no_other_byte() -> None:
    place, file = run(ImageStory("given"))
    assert place.session.inputs == {"rows.jsonl": CANONICAL_ROWS}
    assert CANONICAL_ROWS != ROWS
    record = verify_image(file).record
    assert record.plan.dataset == place.story.job().data.commitment.digest
    assert record.dataset_root == place.story.job().data.commitment.root


def test_it_is_given_places_limits_and_nothing_else() -> None:
    place, _ = run(ImageStory("places"))
    (spec,) = place.sandbox.specs
    assert spec.command == ("python3", "/agent/t.py")
    assert (spec.image.digest, spec.mode) == (IMAGE, "batch")
    assert (spec.places.inputs, spec.places.outputs) == ("/data", "/output")
    assert spec.places.read_only == (("/models/base", "/base"),)
    assert spec.places.devices == ()
    assert (spec.secret_files, spec.state) == (False, False)
    assert spec.limits.memory_bytes == OWN.limits.memory_bytes
    assert place.session.secrets == {}
    assert place.session.variables == {}
    assert place.measured == ["confide-training"]


def test_nothing_answers_inside_its_network() -> None:
    place, _ = run(ImageStory("alone"))
    assert place.sandbox.specs[0].egress == EgressPolicy(())
    assert place.session.ends.closed
    names = dict(place.sandbox.specs[0].environment)
    assert not [name for name in names if "PROXY" in name.upper() or "OPENAI_BASE" in name]


def test_its_environment_is_closed_and_the_owners_word_stands_over_ours() -> None:
    own = replace(OWN, environment=(("LANG", "de_DE"), ("SEED", "7")))
    place, _ = run(ImageStory("variables", recipe=own, validation=HELD_OUT))
    found = dict(place.sandbox.specs[0].environment)
    assert (found["LANG"], found["SEED"], found["HF_HUB_OFFLINE"]) == ("de_DE", "7", "1")
    assert {name: text for name, text in found.items() if name.startswith("CONFIDE_")} == {
        "CONFIDE_ROWS": "/data/rows.jsonl",
        "CONFIDE_VALIDATION": "/data/validation.jsonl",
        "CONFIDE_BASE": "/base",
        "CONFIDE_OUTPUT": "/output",
    }
    assert place.session.inputs["validation.jsonl"] == HELD_OUT


def test_the_owner_chooses_where_things_appear() -> None:
    paths = ImagePaths("/in/r.jsonl", "/in/v.jsonl", "/model", "/made")
    place, _ = run(ImageStory("elsewhere", recipe=replace(OWN, paths=paths)))
    (spec,) = place.sandbox.specs
    assert place.session.inputs == {"r.jsonl": CANONICAL_ROWS}
    assert (spec.places.inputs, spec.places.outputs) == ("/in", "/made")
    assert spec.places.read_only == (("/models/base", "/model"),)
    assert "CONFIDE_VALIDATION" not in dict(spec.environment)


def test_gpus_are_handed_over_only_where_they_are_asked_for() -> None:
    devices = ("nvidia.com/gpu=all",)
    asked = ImageStory("gpu", recipe=replace(OWN, gpu=True), devices=devices)
    assert run(asked)[0].sandbox.specs[0].places.devices == devices
    unasked = run(ImageStory("no gpu", devices=devices))[0]
    assert unasked.sandbox.specs[0].places.devices == ()
    place, error = refused(ImageStory("none", recipe=replace(OWN, gpu=True)), JobRefused)
    assert error.code == "no_gpu"
    assert place.sandbox.sessions == []


# What is refused before anything is started


def never_ran(place: ImagePlace) -> None:
    assert not any(session.ran for session in place.sandbox.sessions)  # type: ignore[attr-defined]
    assert all(session.closed for session in place.sandbox.sessions)
    assert place.results.sealed == {}


def test_an_image_that_the_node_does_not_have_is_refused() -> None:
    place, error = refused(ImageStory("absent", images=()), JobRefused)
    assert error.code == "image_not_found"
    assert IMAGE in str(error)
    never_ran(place)


@pytest.mark.parametrize("name", [*ImageLimits.__dataclass_fields__])
def test_no_limit_is_above_the_nodes_own(name: str) -> None:
    limits = replace(ImageLimits(), **{name: getattr(MOST, name) + 1})
    story = ImageStory(f"greedy {name}", recipe=replace(OWN, limits=limits))
    place, error = refused(story, JobRefused)
    assert error.code == "limit_exceeded"
    assert f"limits.{name} is at most {getattr(MOST, name)}" in str(error)
    never_ran(place)


@pytest.mark.parametrize(
    "rows",
    [ROWS[: ROWS.index(b"\n") + 1], ROWS + ROWS, ROWS.replace(b"one", b"uno")],
    ids=["dropped", "duplicated", "changed"],
)
def test_other_rows_than_were_committed_to_start_nothing(rows: bytes) -> None:
    place, error = refused(ImageStory("rows", rows=rows), DatasetRejected)
    assert error.reason is Reason.DATASET_MISMATCH
    never_ran(place)
    assert place.measured == []


def test_a_broken_row_starts_nothing() -> None:
    place, error = refused(ImageStory("broken", rows=ROWS + b"{\n"), RowError)
    assert error.line == 3
    never_ran(place)


def test_a_base_that_was_touched_starts_nothing() -> None:
    place, error = refused(ImageStory("touched", touched="before"), Rejected)
    assert error.reason is Reason.MODEL_MISMATCH
    assert place.sandbox.sessions == []


def test_a_node_that_does_not_meet_the_expectation_starts_nothing() -> None:
    story = ImageStory("unmet", held=WEIGHTS[::-1])

    class Elsewhere(ImageStory):
        expectation = ImageStory().expectation

    place, error = refused(Elsewhere(story.name, held=story.held), Rejected)
    assert error.reason is Reason.MODEL_MISMATCH
    never_ran(place)


# What is refused after it ended


def test_a_base_that_is_touched_meanwhile_gives_no_record() -> None:
    place, error = refused(ImageStory("meanwhile", touched="runs"), Rejected)
    assert error.reason is Reason.MODEL_MISMATCH
    assert place.session.ran
    assert place.session.closed
    assert place.results.sealed == {}


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (ExitKind.EXITED, 3, "image_failed"),
        (ExitKind.NOT_STARTED, None, "not_started"),
        (ExitKind.KILLED_WALL, None, "killed_wall"),
        (ExitKind.KILLED_MEMORY, None, "killed_memory"),
        (ExitKind.KILLED_OUTPUT, None, "killed_output"),
        (ExitKind.KILLED_PIDS, None, "killed_pids"),
        (ExitKind.CANCELLED, None, "cancelled"),
    ],
)
def test_an_image_that_does_not_end_well_gives_its_console_and_no_record(
    end: ExitKind, status: int | None, code: str
) -> None:
    secret = b"a row that it printed"
    story = ImageStory(f"ends {end} {status}", end=end, status=status, stdout=secret)
    place, error = refused(story, ImageFailed)
    assert error.code == code
    assert place.results.plain == {"stdout": secret, "stderr": b""}
    assert secret.decode() not in str(error) + "".join(place.told)
    assert place.session.closed


def test_links_in_the_output_are_refused_and_not_followed() -> None:
    left = (LeftOut("model.safetensors", "not a regular file"),)
    _, error = refused(ImageStory("links", left_out=left), ImageFailed)
    assert error.code == "output_refused"
    assert "links are not followed" in str(error)


def test_an_empty_output_is_no_output() -> None:
    for files in ((), ((".git/HEAD", b"x"),)):
        _, error = refused(ImageStory(f"empty {len(files)}", files=files), ImageFailed)
        assert error.code == "output_empty"


def test_what_weights_leave_out_is_left_out_of_measurement_and_result_alike() -> None:
    files = (*MADE.items(), (".git/HEAD", b"x"), (".gitignore", b"x"))
    left = (LeftOut(".git/link", "not a regular file"),)
    place, file = run(ImageStory("git", files=files, left_out=left))
    assert verify_image(file).record.made == made_manifest(MADE).digest
    assert set(place.results.plain) == {*MADE, "stdout", "stderr"}


def test_an_output_that_changes_under_our_hands_gives_no_record() -> None:
    async def go() -> None:
        place = await boot_place(ImageStory("changes"))
        sealed = place.results.end_outputs

        def changed() -> None:
            place.results.plain["config.json"] = b"[]"
            sealed()

        place.results.end_outputs = changed  # type: ignore[method-assign]
        with pytest.raises(ConfideError, match="changed while it was sealed"):
            await place.run()

    asyncio.run(go())


@pytest.mark.parametrize("measured", ["nothing", "other"])
def test_a_node_hands_out_no_record_that_does_not_hold(measured: str) -> None:
    story = ImageStory(f"own {measured}", measured=measured)
    _, error = refused(story, TrainingRejected)
    assert error.reason is Reason.TRAINING_PLAN


def test_cancelling_closes_the_sandbox() -> None:
    async def go() -> ImagePlace:
        place = await boot_place(ImageStory("cancelled"))
        begun = asyncio.Event()

        async def wait_for_ever() -> Any:
            begun.set()
            await asyncio.Event().wait()

        real = place.sandbox.prepare

        async def prepare(spec: Any) -> Any:
            session = await real(spec)
            session.run = wait_for_ever  # type: ignore[method-assign]
            return session

        place.sandbox.prepare = prepare  # type: ignore[method-assign]
        task = asyncio.ensure_future(place.run())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return place

    assert asyncio.run(go()).session.closed


def test_what_is_told_names_no_row_and_no_path() -> None:
    place, _ = run(ImageStory("told"))
    assert place.told == [
        "The image is measured; rows are written into memory and committed to again.",
        "The node is proven; the image is started.",
        "The image ended: exited.",
    ]
