"""Stretches: one process executes any of a job's steps again, in any order, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from training_jobs import KEY, SESSION, chat_rows, order_form, training_job
from training_stories import Story, follow

from confide.errors import FormatError, Reason
from confide.trainer.frames import Frame, read_json
from confide.trainer.process import TrainingProcess
from confide.trainer.reports import read_step
from confide.trainer.stretches import read_stretch, stretch_value
from confide.training.checkpoints import CheckpointEntry
from confide.training.replay import Stretch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from confide.training.chain import StepRecord
    from confide.training.job import TrainingJob

TOML = (
    "micro_batch_size = 2\nlora_dropout = 0.1\nmax_steps = 12\ncheckpoint_every = 4\n"
    "state_every = 2\nval_set_size = 3\n"
)


@pytest.fixture(scope="module")
def job(tiny: Path) -> TrainingJob:
    return training_job(tiny, TOML, chat_rows(20))


@pytest.fixture(scope="module")
def trained(
    tiny: Path, job: TrainingJob, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Story, Path]:
    """What the training told, and where its checkpoints are."""
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    return follow(order_form(tiny, checkpoints, job), job, Story()), checkpoints


def told(
    tiny: Path, job: TrainingJob, place: Path, stretches: Sequence[Stretch]
) -> Iterator[StepRecord | dict[str, object]]:
    """Yield the records of `stretches`, each asked for when the one before is done, and the end."""
    waiting = list(stretches)
    with TrainingProcess(order_form(tiny, place, job)) as process:
        process.begin(job, key=KEY, session=SESSION)
        last = 0
        for kind, payload in process.frames():
            value = read_json(payload)
            if kind is Frame.STEP:
                record = read_step(value)[0].record
                yield record
                if record.step < last:
                    continue
            elif kind is not Frame.PREPARED:
                assert isinstance(value, dict)
                yield {"kind": kind, **value}
                continue
            if waiting:
                last = waiting[0].last
                process.replay(waiting.pop(0))
            else:
                process.cancel()


def test_stretches_in_any_order_are_the_steps_that_were_told_first(
    tiny: Path, job: TrainingJob, trained: tuple[Story, Path]
) -> None:
    story, checkpoints = trained
    fourth, eighth, _ = story.checkpoints
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    asked = [Stretch(eighth, 12), Stretch(None, 2), Stretch(fourth, 6), Stretch(fourth, 5)]
    *records, end = told(tiny, job, checkpoints, asked)
    steps = [9, 10, 11, 12, 1, 2, 5, 6, 5]
    assert records == [story.steps[step].record for step in steps]
    assert [record.step for record in records if not isinstance(record, dict) and record.state] == [
        *(10, 12, 2, 6)
    ]
    assert isinstance(end, dict)
    assert (end["kind"], end["outcome"], end["step"]) == (Frame.ENDED, "cancelled", 0)
    # It only reads.
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == before


@pytest.mark.parametrize("resumed", [True, False])
def test_a_job_that_is_done_after_stretches_is_what_it_would_have_been(
    tiny: Path, job: TrainingJob, trained: tuple[Story, Path], tmp_path: Path, resumed: bool
) -> None:
    story, checkpoints = trained
    for path in checkpoints.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    eighth = story.checkpoints[1]
    form = replace(order_form(tiny, tmp_path, job), resume=eighth if resumed else None)
    heard = Story(steps={number: story.steps[number] for number in range(1, 9) if resumed})
    with TrainingProcess(form) as process:
        process.begin(job, key=KEY, session=SESSION)
        told = process.frames()
        heard.hear(*next(told))
        process.replay(Stretch(story.checkpoints[0], 5))
        kind, payload = next(told)
        assert (kind, read_step(read_json(payload))[0].record) == (
            Frame.STEP,
            story.steps[5].record,
        )
        process.go()
        for kind, payload in told:
            heard.hear(kind, payload)
    assert heard.last == story.last
    assert heard.head == story.head


@pytest.mark.parametrize("fault", ["older", "state", "beyond", "empty"])
def test_what_is_not_a_stretch_of_the_job_ends_the_process(
    tiny: Path, job: TrainingJob, trained: tuple[Story, Path], tmp_path: Path, fault: str
) -> None:
    story, checkpoints = trained
    fourth, eighth, _ = story.checkpoints
    for path in checkpoints.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if fault == "older":
        older = (tmp_path / "checkpoint-000000004.sealed").read_bytes()
        (tmp_path / "checkpoint-000000008.sealed").write_bytes(older)
    stretch = {
        "older": Stretch(eighth, 9),
        "state": Stretch(replace(fourth, state=bytes(32)), 5),
        "beyond": Stretch(eighth, 13),
        "empty": Stretch(eighth, 8),
    }[fault]
    good = Stretch(None, 1)
    first, end = told(tiny, job, tmp_path, [good, stretch])
    assert first == story.steps[1].record
    assert isinstance(end, dict)
    assert end["kind"] is Frame.FAILED
    said = {"older": "an older one", "state": "its state is not", "beyond": "within the job"}
    assert said.get(fault, "within the job") in str(end["message"])


def test_a_stretch_travels_as_json() -> None:
    entry = CheckpointEntry(4, b"c" * 32, b"s" * 32, b"f" * 32)
    for stretch in (Stretch(entry, 6), Stretch(None, 1)):
        assert read_stretch(stretch_value(stretch)) == stretch
    good = stretch_value(Stretch(entry, 6))
    bads: tuple[dict[str, Any], ...] = (
        {**good, "more": 1},
        {**good, "last": 0},
        {"last": 6},
        {"start": None},
        {**good, "start": {}},
    )
    for bad in bads:
        with pytest.raises(FormatError) as refused:
            read_stretch(bad)
        assert refused.value.reason is Reason.TRAINING_FORMAT
