"""Sessions: interrupted anywhere, with anything on the disk, nothing is lost or rolled back."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from training_jobs import KEY, SESSION, chat_rows, training_job

from confide.errors import FormatError, Reason, ReceiptRejected, SealedFileRejected, Unavailable
from confide.trainer.checkpoint_files import CheckpointFiles
from confide.trainer.loop import TorchTrainer
from confide.trainer.session import Session, run_session
from confide.training.chain import chain_start, chain_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.trainer.reports import Progress
    from confide.trainer.session import Command, Outcome
    from confide.training.batches import Batch
    from confide.training.chain import StepRecord
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.job import Evaluation, TrainingJob
    from confide.training.recipe import Recipe

TOML = "micro_batch_size = 2\nlora_dropout = 0.1\nmax_steps = 8\ncheckpoint_every = 3\n"


class Diary:
    """A reporter that keeps what it is told, and asks for an end after a step."""

    def __init__(self, stop: dict[int, Command] | None = None) -> None:
        self.records: list[StepRecord] = []
        self.entries: list[CheckpointEntry] = []
        self.progress: list[Progress] = []
        self.found: dict[int, Evaluation] = {}
        self._stop = stop or {}

    def step(self, record: StepRecord, batch: Batch, progress: Progress) -> None:
        assert batch
        self.records.append(record)
        self.progress.append(progress)

    def evaluation(self, step: int, found: Evaluation) -> None:
        assert step == self.records[-1].step
        assert all(entry.step < step for entry in self.entries)
        self.found[step] = found

    def checkpoint(self, entry: CheckpointEntry) -> None:
        self.entries.append(entry)

    def command(self) -> Command | None:
        return self._stop.get(self.records[-1].step if self.records else 0)


def run(
    folder: Path,
    job: TrainingJob,
    place: Path,
    diary: Diary,
    *,
    resume: CheckpointEntry | None = None,
    recipe: Recipe | None = None,
) -> tuple[Outcome, bytes, TorchTrainer]:
    """Run one session on a fresh trainer, as a process would."""
    trainer = TorchTrainer(folder)
    prepared = trainer.prepare(job)
    seconds = iter(range(10_000))
    session = Session(
        plan=prepared.plan.digest,
        recipe=recipe or job.recipe,
        steps=prepared.steps,
        files=CheckpointFiles(place, plan=prepared.plan.digest, key=KEY, session=SESSION),
        reporter=diary,
        command=diary.command,
        clock=lambda: float(next(seconds)),
    )
    outcome, link = run_session(trainer, session, resume=resume)
    return outcome, link, trainer


@pytest.fixture(scope="module")
def job(tiny: Path) -> TrainingJob:
    return training_job(tiny, TOML, chat_rows(11))


@pytest.fixture(scope="module")
def whole(
    tiny: Path, job: TrainingJob, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, Diary]:
    diary = Diary()
    outcome, link, _ = run(tiny, job, tmp_path_factory.mktemp("whole"), diary)
    assert outcome == "finished"
    return link, diary


def test_checkpoints_are_at_their_steps_and_links(
    whole: tuple[bytes, Diary], tiny: Path, job: TrainingJob
) -> None:
    head, diary = whole
    assert [entry.step for entry in diary.entries] == [3, 6, 8]
    plan = TorchTrainer(tiny).prepare(job).plan.digest
    link = chain_start(plan)
    for record in diary.records:
        link = chain_step(link, record)
        for entry in diary.entries:
            if entry.step == record.step:
                assert (entry.chain, entry.state) == (link, record.state)
    assert link == head
    # The clock of the test goes one second a step.
    assert [p.seconds_left for p in diary.progress] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert diary.progress[0].tokens_per_second == diary.records[0].tokens


JUDGED = TOML + "val_set_size = 3\neval_steps = 2\n"


@pytest.fixture(scope="module")
def judged(tiny: Path) -> TrainingJob:
    return training_job(tiny, JUDGED, chat_rows(14))


def test_evaluating_on_the_way_changes_no_bit(
    tiny: Path, judged: TrainingJob, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with_it, without = Diary(), Diary()
    outcome, head, trainer = run(tiny, judged, tmp_path / "one", with_it)
    silence = replace(judged.recipe, eval_steps=None)
    other, link, silent = run(tiny, judged, tmp_path / "two", without, recipe=silence)
    assert (outcome, other) == ("finished", "finished")
    assert list(with_it.found) == [2, 4, 6, 8]
    assert without.found == {}
    assert (head, trainer.state_digest()) == (link, silent.state_digest())
    assert with_it.records == without.records
    assert with_it.found[8] == trainer.evaluate(base=False)
    assert len({found.loss for found in with_it.found.values()}) == 4


@pytest.mark.parametrize(
    ("step", "how"), [(4, "pause"), (5, "cancel"), (6, "cancel"), (7, "pause")]
)
def test_evaluations_are_the_same_after_an_interruption(
    tiny: Path, judged: TrainingJob, tmp_path: Path, step: int, how: Command
) -> None:
    (tmp_path / "whole").mkdir()
    whole, first, second = Diary(), Diary({step: how}), Diary()
    run(tiny, judged, tmp_path / "whole", whole)
    run(tiny, judged, tmp_path, first)
    outcome, _, _ = run(tiny, judged, tmp_path, second, resume=first.entries[-1])
    assert outcome == "finished"
    assert first.found | second.found == whole.found
    # What was found before the checkpoint is not computed again.
    assert min(second.found) > first.entries[-1].step


@pytest.mark.parametrize(
    ("step", "how"), [(step, how) for step in range(9) for how in ("pause", "cancel")]
)
def test_interrupted_after_any_step_it_ends_at_the_same_bits(
    tiny: Path,
    job: TrainingJob,
    whole: tuple[bytes, Diary],
    tmp_path: Path,
    *,
    step: int,
    how: Command,
) -> None:
    first, second = Diary({step: how}), Diary()
    outcome, link, _ = run(tiny, job, tmp_path, first)
    if step == 8:
        assert outcome == "finished"
        assert link == whole[0]
        return
    assert outcome == {"pause": "paused", "cancel": "cancelled"}[how]
    newest = first.entries[-1] if first.entries else None
    # A pause loses nothing; after a cancel, or a kill, steps since the checkpoint are done again.
    begun = step if how == "pause" else step - step % 3
    assert (newest.step if newest else 0) == begun
    outcome, link, trainer = run(tiny, job, tmp_path, second, resume=newest)
    assert (outcome, link) == ("finished", whole[0])
    assert first.records[:begun] + second.records == whole[1].records
    assert trainer.state_digest() == whole[1].entries[-1].state


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let the kernel refuse to make a file longer, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_does_not_fit_on_the_disk_is_not_there_and_the_rest_is_whole(
    tiny: Path, job: TrainingJob, whole: tuple[bytes, Diary], tmp_path: Path
) -> None:
    first = Diary({4: "cancel"})
    run(tiny, job, tmp_path, first)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    [kept] = first.entries
    with (
        small_files(10_000),
        pytest.raises(Unavailable, match="the checkpoint after step 6 cannot be written"),
    ):
        run(tiny, job, tmp_path, Diary(), resume=kept)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run(tiny, job, tmp_path, Diary(), resume=kept)[1] == whole[0]


def test_what_a_kill_left_half_written_is_in_nobodys_way(
    tiny: Path, job: TrainingJob, whole: tuple[bytes, Diary], tmp_path: Path
) -> None:
    (tmp_path / "checkpoint-000000003.part").write_bytes(b"half a checkpoint")
    (tmp_path / "checkpoint-000000006.sealed").write_bytes(b"of another run")
    assert run(tiny, job, tmp_path, Diary())[1] == whole[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"checkpoint-{step:09}.sealed" for step in (3, 6, 8)
    ]


@pytest.fixture
def stopped(tiny: Path, job: TrainingJob, tmp_path: Path) -> tuple[CheckpointEntry, Path, Path]:
    """A job that was killed after step 7: its newest entry, the file, and the one before."""
    diary = Diary({7: "cancel"})
    run(tiny, job, tmp_path, diary)
    older, newer = (tmp_path / f"checkpoint-{step:09}.sealed" for step in (3, 6))
    return diary.entries[-1], newer, older


def test_an_older_checkpoint_in_place_of_the_newest_is_a_rollback(
    tiny: Path, job: TrainingJob, stopped: tuple[CheckpointEntry, Path, Path], tmp_path: Path
) -> None:
    entry, newer, older = stopped
    newer.write_bytes(older.read_bytes())
    with pytest.raises(ReceiptRejected, match="an older one") as refused:
        run(tiny, job, tmp_path, Diary(), resume=entry)
    assert refused.value.reason is Reason.CHECKPOINT_ROLLBACK


@pytest.mark.parametrize("what", ["bit", "cut", "empty", "foreign"])
def test_another_file_in_its_place_is_refused(
    tiny: Path,
    job: TrainingJob,
    stopped: tuple[CheckpointEntry, Path, Path],
    tmp_path: Path,
    what: str,
) -> None:
    entry, newer, _ = stopped
    raw = newer.read_bytes()
    made = {"bit": raw[:-1] + bytes([raw[-1] ^ 1]), "cut": raw[:-1], "empty": b"", "foreign": b"{}"}
    newer.write_bytes(made[what])
    with pytest.raises(ReceiptRejected) as refused:
        run(tiny, job, tmp_path, Diary(), resume=entry)
    assert refused.value.reason is Reason.CHECKPOINT_MISMATCH


def test_a_missing_checkpoint_is_no_beginning(
    tiny: Path, job: TrainingJob, stopped: tuple[CheckpointEntry, Path, Path], tmp_path: Path
) -> None:
    entry, newer, _ = stopped
    newer.unlink()
    with pytest.raises(Unavailable, match="after step 6 cannot be read"):
        run(tiny, job, tmp_path, Diary(), resume=entry)


def test_a_state_that_is_not_the_one_named_is_refused(
    tiny: Path, job: TrainingJob, stopped: tuple[CheckpointEntry, Path, Path], tmp_path: Path
) -> None:
    entry, _, _ = stopped
    with pytest.raises(ReceiptRejected, match="its state is not the one of step 6") as refused:
        run(tiny, job, tmp_path, Diary(), resume=replace(entry, state=bytes(32)))
    assert refused.value.reason is Reason.CHECKPOINT_MISMATCH


def test_another_plan_does_not_go_on_from_this_one(
    tiny: Path, job: TrainingJob, stopped: tuple[CheckpointEntry, Path, Path], tmp_path: Path
) -> None:
    entry, newer, _ = stopped
    other = replace(job, recipe=replace(job.recipe, seed=1))
    with pytest.raises(SealedFileRejected, match="sealed as another file"):
        run(tiny, other, tmp_path, Diary(), resume=entry)
    # Nor in plain, where the seal was opened by other means.
    trainer = TorchTrainer(tiny)
    plan = trainer.prepare(job).plan.digest
    plain = CheckpointFiles(newer.parent, plan=plan, key=KEY, session=SESSION).read(entry)
    stranger = TorchTrainer(tiny)
    stranger.prepare(other)
    with pytest.raises(FormatError, match="it is not of this plan"):
        stranger.load(plain)
    trainer.load(plain)
    assert (trainer.step, trainer.state_digest()) == (6, entry.state)


def test_a_key_opens_only_its_own(
    tiny: Path, job: TrainingJob, stopped: tuple[CheckpointEntry, Path, Path]
) -> None:
    entry, newer, _ = stopped
    plan = TorchTrainer(tiny).prepare(job).plan.digest
    with pytest.raises(SealedFileRejected):
        CheckpointFiles(newer.parent, plan=plan, key=bytes(32), session=SESSION).read(entry)
