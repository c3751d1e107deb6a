"""Training processes: killed, paused and cancelled at any moment, they end at the same bits."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from training_jobs import KEY, SESSION, chat_rows, order_form, text_rows, training_job

from confide.errors import Unavailable
from confide.trainer.frames import Frame, read_json
from confide.trainer.process import TrainingProcess
from confide.trainer.reports import read_step
from confide.training.chain import chain_start, chain_step
from confide.training.checkpoints import CheckpointEntry, parse_checkpoint_entry
from confide.training.plan import parse_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from confide.trainer.order_form import OrderForm
    from confide.training.job import TrainingJob
    from confide.training.steplog import LoggedStep

TOML = (
    "micro_batch_size = 2\nlora_dropout = 0.1\nmax_steps = 24\ncheckpoint_every = 5\n"
    "state_every = 4\nval_set_size = 3\n"
)


@dataclass
class Story:
    """What a process told, over one run or several."""

    plan: bytes = b""
    steps: dict[int, LoggedStep] = field(default_factory=dict)
    checkpoints: list[CheckpointEntry] = field(default_factory=list)
    evaluations: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    last: tuple[Frame, Any] | None = None

    def hear(self, kind: Frame, payload: bytes) -> None:
        """Take one frame."""
        value: Any = None if kind is Frame.DATA else read_json(payload)
        if kind is Frame.PREPARED:
            self.plan = parse_plan(value["plan"]).digest
        elif kind is Frame.STEP:
            logged, _ = read_step(value)
            known = self.steps.setdefault(logged.record.step, logged)
            assert known == logged, "a step that was done again is another"
        elif kind is Frame.CHECKPOINT:
            self.checkpoints.append(parse_checkpoint_entry(value))
        elif kind is Frame.EVALUATION:
            self.evaluations[value.pop("model")] = value
        elif kind is Frame.FILE:
            self.files[f"{value['output']}/{value['name']}"] = b""
        elif kind is Frame.DATA:
            self.files[list(self.files)[-1]] += payload
        else:
            self.last = (kind, value)

    @property
    def newest(self) -> CheckpointEntry | None:
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def head(self) -> bytes:
        link = chain_start(self.plan)
        for number in range(1, len(self.steps) + 1):
            link = chain_step(link, self.steps[number].record)
        return link

    @property
    def result(self) -> tuple[bytes, bytes, dict[str, Any], dict[str, bytes]]:
        """Everything that must not depend on what happened on the way."""
        assert self.newest is not None
        return self.head, self.newest.state, self.evaluations, self.files


def follow(
    form: OrderForm,
    job: TrainingJob,
    story: Story,
    *,
    at_step: Callable[[int, TrainingProcess], None] | None = None,
    session: bytes = SESSION,
) -> Story:
    """Run one process to its end, however that comes; `at_step` may do something to it."""
    with TrainingProcess(replace(form, resume=story.newest)) as process:
        process.begin(job, key=KEY, session=session)
        for kind, payload in process.frames():
            story.hear(kind, payload)
            if kind is Frame.STEP and at_step is not None:
                at_step(max(story.steps), process)
    return story


@pytest.fixture(scope="module")
def job(tiny: Path) -> TrainingJob:
    return training_job(tiny, TOML, chat_rows(20))


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, job: TrainingJob, tmp_path_factory: pytest.TempPathFactory) -> Story:
    form = order_form(tiny, tmp_path_factory.mktemp("plain"), job, outputs=("adapter", "merged"))
    return follow(form, job, Story())


def test_a_run_tells_all_of_itself(undisturbed: Story, job: TrainingJob) -> None:
    assert undisturbed.last == (
        Frame.ENDED,
        {"outcome": "finished", "step": 24, "chain": undisturbed.head.hex(), "epsilon": None},
    )
    assert sorted(undisturbed.steps) == list(range(1, 25))
    assert [entry.step for entry in undisturbed.checkpoints] == [5, 10, 15, 20, 24]
    for entry in undisturbed.checkpoints:
        assert undisturbed.steps[entry.step].record.state == entry.state
    assert undisturbed.evaluations["tuned"]["loss"] < undisturbed.evaluations["base"]["loss"]
    assert {"adapter/adapter_model.safetensors", "merged/model.safetensors"} <= set(
        undisturbed.files
    )


@pytest.mark.parametrize(
    "kills", [pytest.param(20, marks=pytest.mark.slow, id="twenty"), pytest.param(3, id="three")]
)
def test_killed_at_random_moments_it_ends_at_the_same_bits(
    tiny: Path, job: TrainingJob, undisturbed: Story, tmp_path: Path, kills: int
) -> None:
    chance = random.Random(kills)  # noqa: S311 - which moments, repeatably
    form = order_form(tiny, tmp_path, job, outputs=("adapter", "merged"))
    story, killed = Story(), 0
    while story.last is None:
        begun = max(story.steps, default=0)
        victim = begun + chance.randint(1, 2) if killed < kills else 99

        def at_step(step: int, process: TrainingProcess, victim: int = victim) -> None:
            if step == victim:
                process.kill()  # SIGKILL, while the next step or a checkpoint is on its way

        try:
            follow(
                form, job, story, at_step=at_step, session=hashlib.sha256(bytes([killed])).digest()
            )
        except Unavailable as error:
            assert "status -9" in str(error)
            killed += 1
            if begun == max(story.steps):
                continue
    assert killed == kills
    assert story.result == undisturbed.result


def test_killed_while_it_is_just_starting_nothing_is_lost(
    tiny: Path, job: TrainingJob, tmp_path: Path
) -> None:
    with TrainingProcess(order_form(tiny, tmp_path, job)) as process:
        process.kill()
        with pytest.raises(Unavailable, match="ended"):
            process.begin(job, key=KEY, session=SESSION)
            list(process.frames())
    assert list(tmp_path.iterdir()) == []


def test_paused_and_resumed_it_ends_at_the_same_bits(
    tiny: Path, job: TrainingJob, undisturbed: Story, tmp_path: Path
) -> None:
    form = order_form(tiny, tmp_path, job, outputs=("adapter", "merged"))

    def pause(step: int, process: TrainingProcess) -> None:
        if step == 7:
            process.pause()

    story = follow(form, job, Story(), at_step=pause)
    assert story.last is not None
    assert story.last[1]["outcome"] == "paused"
    stopped = story.last[1]["step"]
    assert 7 <= stopped < 24
    assert story.newest is not None
    assert story.newest.step == stopped
    assert story.last[1]["chain"] == story.newest.chain.hex() == story.head.hex()
    follow(form, job, story, session=bytes(32))
    assert story.result == undisturbed.result


def test_cancelled_it_stops_and_keeps_its_checkpoints(
    tiny: Path, job: TrainingJob, tmp_path: Path
) -> None:
    def cancel(step: int, process: TrainingProcess) -> None:
        if step == 6:
            process.cancel()

    story = follow(order_form(tiny, tmp_path, job), job, Story(), at_step=cancel)
    assert story.last is not None
    assert story.last[1]["outcome"] == "cancelled"
    assert story.newest is not None
    assert story.newest.step >= 5
    assert all(path.suffix == ".sealed" for path in tmp_path.iterdir())


def test_a_disk_that_is_full_ends_the_run_and_not_the_job(
    tiny: Path, job: TrainingJob, undisturbed: Story, tmp_path: Path
) -> None:
    """A checkpoint that cannot be written is not there; the one before it is whole."""
    form = order_form(tiny, tmp_path, job, outputs=("adapter", "merged"))
    # What stands in the way of the checkpoint after step 10, as a full disk would.
    (tmp_path / "checkpoint-000000010.part").mkdir()
    story = follow(form, job, Story())
    assert story.last is not None
    assert story.last[0] is Frame.FAILED
    assert story.last[1]["kind"] == "Unavailable"
    assert story.last[1]["resumable"] is True
    assert "the checkpoint after step 10 cannot be written" in story.last[1]["message"]
    assert [entry.step for entry in story.checkpoints] == [5]
    (tmp_path / "checkpoint-000000010.part").rmdir()
    story.last = None
    follow(form, job, story)
    assert story.result == undisturbed.result


def test_an_older_checkpoint_in_place_of_the_newest_is_refused(
    tiny: Path, job: TrainingJob, undisturbed: Story, tmp_path: Path
) -> None:
    form = order_form(tiny, tmp_path, job)

    def kill(step: int, process: TrainingProcess) -> None:
        if step == 12:
            process.kill()

    story = Story()
    with pytest.raises(Unavailable):
        follow(form, job, story, at_step=kill)
    five, ten = (tmp_path / f"checkpoint-{step:09}.sealed" for step in (5, 10))
    newest = ten.read_bytes()
    for swapped, reason in (
        (five.read_bytes(), "checkpoint-rollback"),
        (newest[:-1] + bytes([newest[-1] ^ 1]), "checkpoint-mismatch"),
        (newest[:100], "checkpoint-mismatch"),
    ):
        ten.write_bytes(swapped)
        again = follow(form, job, Story(checkpoints=list(story.checkpoints)))
        assert again.last is not None
        assert again.last[0] is Frame.FAILED
        assert again.last[1]["kind"] == "ReceiptRejected"
        assert reason in again.last[1]["message"]
        assert not again.steps
    ten.write_bytes(newest)
    # An entry that names another state or link of the same file.
    wrong = replace(story.checkpoints[-1], state=bytes(32))
    again = follow(form, job, Story(checkpoints=[wrong]))
    assert again.last is not None
    assert "its state is not the one of step 10" in again.last[1]["message"]
    assert undisturbed.plan == story.plan


def test_another_job_does_not_resume_from_this_one(
    tiny: Path, job: TrainingJob, tmp_path: Path
) -> None:
    story = Story()
    form = order_form(tiny, tmp_path, job)

    def cancel(step: int, process: TrainingProcess) -> None:
        if step == 6:
            process.cancel()

    follow(form, job, story, at_step=cancel)
    other = training_job(tiny, TOML.replace("max_steps = 24", "max_steps = 25"), chat_rows(20))
    again = follow(
        order_form(tiny, tmp_path, other), other, Story(checkpoints=story.checkpoints[-1:])
    )
    assert again.last is not None
    assert again.last[0] is Frame.FAILED
    assert "sealed as another file" in again.last[1]["message"]


def test_what_cannot_be_trained_fails_in_words_without_rows(tiny: Path, tmp_path: Path) -> None:
    secret = "the patient in bed four"
    rows = [{"prompt": "x", "completion": "y"}, {"prompt": secret * 20, "completion": "z"}]
    job = training_job(tiny, "", rows)
    story = follow(order_form(tiny, tmp_path, job), job, Story())
    assert story.last is not None
    assert story.last[0] is Frame.FAILED
    assert story.last[1]["resumable"] is False
    assert "line 2: " in story.last[1]["message"]
    assert "raise sequence_len" in story.last[1]["message"]
    assert "patient" not in story.last[1]["message"]


def test_no_row_is_on_the_disk_in_plain(tiny: Path, tmp_path: Path) -> None:
    canaries = [
        f"canary-{number:04}-{hashlib.sha256(bytes([number % 251])).hexdigest()[:8]}"
        for number in range(200)
    ]
    rows = [{"prompt": f"{canary} ", "completion": "red"} for canary in canaries]
    job = training_job(tiny, "max_steps = 4\ncheckpoint_every = 2\nmicro_batch_size = 8\n", rows)
    story = follow(order_form(tiny, tmp_path, job), job, Story())
    assert story.last is not None
    assert story.last[0] is Frame.ENDED
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert len(written) > 10_000
    assert b"canary" not in written
    assert b"safetensors" not in written
    assert b"lora_A" not in written


def test_privacy_is_told_with_what_it_cost(tiny: Path, tmp_path: Path) -> None:
    toml = "max_steps = 3\nmicro_batch_size = 4\n[privacy]\nnoise_multiplier = 2.0\n"
    job = training_job(tiny, toml + "max_grad_norm = 1.0\ndelta = 1e-3\n", text_rows(40))
    story = follow(order_form(tiny, tmp_path, job), job, Story())
    assert story.last is not None
    assert 0 < story.last[1]["epsilon"] < 2
