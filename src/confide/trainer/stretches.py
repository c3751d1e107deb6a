"""Stretches of a job executed again, for a replay: each from its checkpoint, all in one process.

docs/protocols/training.md 10.4, training-record.md 7.10. Knows neither torch nor a pipe. Nothing is
judged here: whoever asked compares the records with those of the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from confide.errors import Reason, RemoteProtocolError
from confide.trainer.reports import Progress
from confide.trainer.session import restore
from confide.training.checkpoints import parse_checkpoint_entry
from confide.training.replay import Stretch
from confide.wire.json import JsonValue, Members

if TYPE_CHECKING:
    from confide.ports import Trainer
    from confide.trainer.checkpoint_files import CheckpointFiles
    from confide.training.batches import Batch
    from confide.training.chain import StepRecord

__all__ = ["StepReporter", "Stretches", "read_stretch", "stretch_value"]


class StepReporter(Protocol):
    """Whoever is told of each step."""

    def step(self, record: StepRecord, batch: Batch, progress: Progress) -> None:
        """A step was done."""
        ...


def stretch_value(stretch: Stretch) -> dict[str, JsonValue]:
    """Return a stretch as JSON."""
    start = stretch.start
    return {"start": None if start is None else start.value(), "last": stretch.last}


def read_stretch(value: JsonValue) -> Stretch:
    """Read what `stretch_value` gave. Raises `FormatError`."""
    members = Members(value, what="stretch", reason=Reason.TRAINING_FORMAT)
    start = None if members.null("start") else parse_checkpoint_entry(members.value("start"))
    stretch = Stretch(start, members.integer("last", low=1))
    members.end()
    return stretch


class Stretches:
    """Executes stretches of a job of `steps` steps, in any order, with a prepared trainer."""

    def __init__(
        self, trainer: Trainer, files: CheckpointFiles, reporter: StepReporter, *, steps: int
    ) -> None:
        """Take a trainer at its beginning, which is kept: a later stretch may begin there."""
        self._trainer = trainer
        self._files = files
        self._reporter = reporter
        self._steps = steps
        self._beginning = b"".join(trainer.save())

    def execute(self, stretch: Stretch) -> None:
        """
        Take up the checkpoint of `stretch`, compute its steps, tell each. No checkpoint is written.

        Raises as `run_session`, and `RemoteProtocolError` for steps that the job does not have.
        """
        if not stretch.first <= stretch.last <= self._steps:
            raise RemoteProtocolError("a stretch ends within the job, after its checkpoint")
        if stretch.start is None:
            self.rewind()
        else:
            restore(self._trainer, self._files, stretch.start)
        # Nobody watches: how fast it goes says nothing about the training.
        progress = Progress(self._steps, 0.0, 0.0)
        for _ in range(stretch.first, stretch.last + 1):
            record = self._trainer.run_step()
            self._reporter.step(record, self._trainer.batch(record.step), progress)

    def rewind(self) -> None:
        """Go back to the beginning of the job."""
        self._trainer.load(self._beginning)
