"""One run of a job from where it stands to its end, a pause, or a kill. training.md §7, §10.

Drives the port `confide.ports.Trainer`; knows neither torch nor a pipe. Whatever ends a run, the
newest checkpoint is whole, and a run that resumes from it goes on as if nothing had happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from confide.errors import Reason, ReceiptRejected
from confide.rats import Finding, Status
from confide.trainer.reports import Progress
from confide.training.chain import chain_start, chain_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.ports import Trainer
    from confide.trainer.checkpoint_files import CheckpointFiles
    from confide.training.batches import Batch
    from confide.training.chain import StepRecord
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.job import Evaluation
    from confide.training.recipe import Recipe

__all__ = ["Command", "Outcome", "Reporter", "Session", "restore", "run_session"]

Command: TypeAlias = Literal["pause", "cancel"]
Outcome: TypeAlias = Literal["finished", "paused", "cancelled"]


class Reporter(Protocol):
    """Whoever watches a run."""

    def step(self, record: StepRecord, batch: Batch, progress: Progress) -> None:
        """A step was done."""
        ...

    def evaluation(self, step: int, found: Evaluation) -> None:
        """The model was judged after `step`."""
        ...

    def checkpoint(self, entry: CheckpointEntry) -> None:
        """A checkpoint is durable."""
        ...


@dataclass(frozen=True, slots=True)
class Session:
    """
    What a run needs beside the trainer, which is prepared.

    `command` is asked between steps; `clock` gives seconds from any beginning.
    """

    plan: bytes
    recipe: Recipe
    steps: int
    files: CheckpointFiles
    reporter: Reporter
    command: Callable[[], Command | None]
    clock: Callable[[], float]


def run_session(
    trainer: Trainer, session: Session, *, resume: CheckpointEntry | None
) -> tuple[Outcome, bytes]:
    """
    Go on from `resume`, or from the beginning; return how it ended, and the link it ended at.

    Raises `ReceiptRejected` for a checkpoint that is not the one named, `Unavailable` where memory
    or disk end the run.
    """
    link = chain_start(session.plan)
    saved = 0
    if resume is not None:
        link, saved = restore(trainer, session.files, resume), resume.step
    began, tokens, first = session.clock(), 0, trainer.step
    while trainer.step < session.steps:
        command = session.command()
        if command == "cancel":
            return "cancelled", link
        if command == "pause":
            if saved < trainer.step:
                _save(trainer, session, link)
            return "paused", link
        record = trainer.run_step()
        link = chain_step(link, record)
        tokens += record.tokens
        spent = session.clock() - began
        progress = Progress(
            steps=session.steps,
            tokens_per_second=tokens / spent if spent > 0 else 0.0,
            seconds_left=spent / (record.step - first) * (session.steps - record.step),
        )
        session.reporter.step(record, trainer.batch(record.step), progress)
        # Before the checkpoint: whoever goes on from that has what was found here.
        _evaluate(trainer, session)
        if not record.step % session.recipe.checkpoint_every or record.step == session.steps:
            _save(trainer, session, link, state=record.state)
            saved = record.step
    return "finished", link


def _evaluate(trainer: Trainer, session: Session) -> None:
    """Judge the model where the recipe asks for it after the step just done (9.3)."""
    due = session.recipe.evaluation_is_due(trainer.step, planned=session.steps)
    if due and (found := trainer.evaluate(base=False)) is not None:
        session.reporter.evaluation(trainer.step, found)


def _save(trainer: Trainer, session: Session, link: bytes, *, state: bytes | None = None) -> None:
    digest = trainer.state_digest() if state is None else state
    entry = session.files.write(trainer.step, trainer.save(), chain=link, state=digest)
    session.reporter.checkpoint(entry)


def restore(trainer: Trainer, files: CheckpointFiles, entry: CheckpointEntry) -> bytes:
    """
    Load the checkpoint of `entry`, compare everything that it names, and return its link.

    Raises as `run_session`.
    """
    trainer.load(files.read(entry))
    if trainer.step != entry.step or trainer.state_digest() != entry.state:
        raise ReceiptRejected(
            (
                Finding(
                    Status.FAIL,
                    "training/resume/2",
                    "training.md 7.4",
                    "checkpoint",
                    f"its state is not the one of step {entry.step}",
                    Reason.CHECKPOINT_MISMATCH,
                ),
            )
        )
    return entry.chain
