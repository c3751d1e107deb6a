"""Training processes: killed, paused and cancelled at any moment, they end at the same bits."""

from __future__ import annotations

import hashlib
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from training_jobs import KEY, SESSION, chat_rows, order_form, text_rows, training_job
from training_stories import Story, follow

from confide.errors import Unavailable
from confide.trainer.frames import Frame
from confide.trainer.process import TrainingProcess

if TYPE_CHECKING:
    from confide.training.job import TrainingJob

_TIED = """
import ctypes, os, resource
from confide.trainer.__main__ import tie
tie(os.getppid())
most, _ = resource.getrlimit(resource.RLIMIT_CORE)
print(f"dumpable {ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)}, at most {most} bytes")
"""
TOML = (
    "micro_batch_size = 2\nlora_dropout = 0.1\nmax_steps = 24\ncheckpoint_every = 5\n"
    "state_every = 4\nval_set_size = 3\neval_steps = 4\n"
)


@pytest.fixture(scope="module")
def job(tiny: Path) -> TrainingJob:
    rows = chat_rows(20)
    for number, row in enumerate(rows):
        row["messages"][0]["content"] += f" canary{number}"
    return training_job(tiny, TOML, rows)


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, job: TrainingJob, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("plain")
    story = follow(order_form(tiny, folder, job, outputs=("adapter", "merged")), job, Story())
    story.disk = b"".join(path.read_bytes() for path in folder.iterdir())
    return story


def test_a_run_tells_all_of_itself(undisturbed: Story) -> None:
    assert undisturbed.last == (
        Frame.ENDED,
        {"outcome": "finished", "step": 24, "chain": undisturbed.head.hex(), "epsilon": None},
    )
    assert sorted(undisturbed.steps) == list(range(1, 25))
    assert [entry.step for entry in undisturbed.checkpoints] == [5, 10, 15, 20, 24]
    for entry in undisturbed.checkpoints:
        assert undisturbed.steps[entry.step].record.state == entry.state
    assert undisturbed.evaluations["tuned"]["loss"] < undisturbed.evaluations["base"]["loss"]
    judged = [step for step in undisturbed.evaluations if isinstance(step, int)]
    assert judged == [4, 8, 12, 16, 20, 24]
    last = undisturbed.evaluations[24]
    assert last == undisturbed.evaluations["tuned"] | {"step": 24}
    assert {"adapter/adapter_model.safetensors", "merged/model.safetensors"} <= set(
        undisturbed.files
    )


def test_its_memory_is_in_no_core_file(tmp_path: Path) -> None:
    """Neither in one that is written, nor in one that is piped to a program (core(5))."""
    told = subprocess.run(
        [sys.executable, "-I", "-c", _TIED],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert told.stdout == "dumpable 0, at most 0 bytes\n"


def test_nothing_of_it_is_on_the_disk_in_plain(undisturbed: Story) -> None:
    assert len(undisturbed.disk) > 100_000
    for word in (b"canary", b"question", b"lora_A", b"__metadata__"):
        assert word not in undisturbed.disk


@pytest.mark.parametrize(
    "kills", [pytest.param(20, marks=pytest.mark.slow, id="twenty"), pytest.param(1, id="one")]
)
def test_killed_at_random_moments_it_ends_at_the_same_bits(
    tiny: Path, job: TrainingJob, undisturbed: Story, tmp_path: Path, kills: int
) -> None:
    chance = random.Random(kills)  # noqa: S311 - which moments, repeatably
    runs, killed = 0, 0
    # A process is ahead of what is heard of it: one training may end before all of its kills.
    while killed < kills:
        form = order_form(tiny, tmp_path / str(runs), job, outputs=("adapter", "merged"))
        form.checkpoints.mkdir()
        story = Story()
        while story.last is None:
            begun = max(story.steps, default=0)
            victim = begun + chance.randint(1, 2) if killed < kills else 99

            def at_step(step: int, process: TrainingProcess, victim: int = victim) -> None:
                if step == victim:
                    process.kill()  # SIGKILL, while the next step or a checkpoint is on its way

            runs += 1
            session = hashlib.sha256(bytes([runs])).digest()
            try:
                follow(form, job, story, at_step=at_step, session=session)
            except Unavailable:
                killed += 1
        assert story.result == undisturbed.result


def test_killed_while_it_is_just_starting_nothing_is_lost(
    tiny: Path, job: TrainingJob, tmp_path: Path
) -> None:
    with TrainingProcess(order_form(tiny, tmp_path, job)) as process:
        process.kill()
        with pytest.raises(Unavailable, match="ended before it had its job"):
            process.begin(job, key=KEY, session=SESSION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
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


def test_memory_that_runs_out_ends_the_run_and_not_the_job(tiny: Path, tmp_path: Path) -> None:
    # Steps of tens of megabytes, which the allocator asks the kernel for each time.
    rows = [{"prompt": f"{number} ", "completion": "red blue " * 12} for number in range(256)]
    job = training_job(tiny, "max_steps = 50\nmicro_batch_size = 256\n", rows)
    story = Story()
    with TrainingProcess(order_form(tiny, tmp_path, job)) as process:
        process.begin(job, key=KEY, session=SESSION)
        for kind, payload in process.frames():
            story.hear(kind, payload)
            if kind is Frame.PREPARED:
                half = resource.getpagesize() * int(_statm(process.pid)[0]) // 2
                resource.prlimit(process.pid, resource.RLIMIT_AS, (half, half))
                process.go()
    assert story.last is not None
    assert story.last[0] is Frame.FAILED
    assert "memory ran out" in story.last[1]["message"]
    assert "can be resumed" in story.last[1]["message"]
    assert story.last[1]["resumable"] is True
    assert story.last[1]["code"] == "out_of_memory"


def _statm(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()


def test_cancelled_it_stops_and_tells_what_its_privacy_cost(tiny: Path, tmp_path: Path) -> None:
    toml = (
        "max_steps = 5000\nmicro_batch_size = 4\ncheckpoint_every = 3\n"
        "[privacy]\nnoise_multiplier = 1.0\nmax_grad_norm = 1.0\ndelta = 1e-3\n"
    )
    job = training_job(tiny, toml, text_rows(400))

    def cancel(step: int, process: TrainingProcess) -> None:
        if step == 4:
            process.cancel()

    story = follow(order_form(tiny, tmp_path, job), job, Story(), at_step=cancel)
    assert story.last is not None
    assert story.last[1]["outcome"] == "cancelled"
    assert 4 <= story.last[1]["step"] < 5000
    assert story.newest is not None
    assert all(path.suffix == ".sealed" for path in tmp_path.iterdir())
    assert 0 < story.last[1]["epsilon"] < 4


def test_what_cannot_be_trained_fails_in_words_without_rows(tiny: Path, tmp_path: Path) -> None:
    rows = [*text_rows(1), {"prompt": "the patient in bed four" * 20, "completion": "z"}]
    job = training_job(tiny, "", rows)
    story = follow(order_form(tiny, tmp_path, job), job, Story())
    assert story.last is not None
    assert story.last[0] is Frame.FAILED
    assert story.last[1]["resumable"] is False
    assert "line 2: " in story.last[1]["message"]
    assert "patient" not in story.last[1]["message"]
