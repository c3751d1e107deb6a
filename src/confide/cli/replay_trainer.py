"""The trainer of a replay, in this process: base measured, rows committed, checkpoints opened.

docs/protocols/training-record.md 7.4. Loaded where a replay begins: it needs torch.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.adapters.weights_dir import measure_weights
from confide.errors import ConfigurationError, Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.training.job import TrainingData, TrainingJob
from confide.training.record import environment_texts
from confide.training.replay import HARMLESS, environment_differences, require_checkpoint
from confide.training.replay_end import (
    EVALUATION,
    End,
    MadeFiles,
    compare_end,
    last_checkpoint,
    outputs_due,
    parts_due,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from confide.ports import Trainer
    from confide.training.audit import AuditedLog
    from confide.training.chain import StepRecord
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.dataset import Commitment
    from confide.training.job import Evaluation
    from confide.training.replay import Stretch, Tolerance

__all__ = ["Materials", "PreparedReplay", "prepare_replay"]

_CLAUSE: Final = "docs/protocols/training-record.md#7"


@dataclass(frozen=True, slots=True)
class Materials:
    """
    What only the owner has: the base, the rows, the sealed checkpoints and their key.

    `rows` and `validation` are RFC 8785 bytes of rows whose commitments were compared.
    """

    base: Path
    checkpoints: Path
    key: bytes = field(repr=False)
    salt: bytes = field(repr=False)
    rows: Sequence[bytes] = field(repr=False)
    validation: Sequence[bytes] = field(repr=False)
    threads: int
    device: str


class PreparedReplay:
    """A trainer at the beginning of a job; `differences` is what the environment has otherwise."""

    def __init__(
        self,
        trainer: Trainer,
        materials: Materials,
        plan: bytes,
        differences: tuple[str, ...],
        *,
        rows: int,
    ) -> None:
        """Take a prepared `trainer`; `rows` are trained on, those held out do not count."""
        self.differences = differences
        self.executed = 0
        self._trainer = trainer
        self._materials = materials
        self._plan = plan
        self._rows = rows
        self._beginning = b"".join(trainer.save())

    def execute(self, stretch: Stretch) -> list[StepRecord]:
        """Return the records of `stretch`. Raises `TrainingRejected` for another checkpoint."""
        self._take_up(stretch.start)
        records = [self._trainer.run_step() for _ in range(stretch.first, stretch.last + 1)]
        self.executed += len(records)
        return records

    def end(self, audited: AuditedLog, tolerance: Tolerance | None) -> dict[str, bool]:
        """
        Return of each part of the end whether it is what was recorded (7.14); no step is done.

        Raises `TrainingRejected` for another checkpoint.
        """
        trainer, made = self._trainer, MadeFiles()
        self._take_up(last_checkpoint(audited))
        evaluations: dict[str, Evaluation] = {}
        if EVALUATION in parts_due(audited, tolerance):
            for name in ("base", "tuned"):
                found = trainer.evaluate(base=name == "base")
                if found is not None:
                    evaluations[name] = found
        for kind in outputs_due(audited, tolerance):
            for file, data in trainer.output(kind):
                made.begin(kind, file)
                made.data(data)
        end = End(made.digests(), evaluations, self._spent(audited))
        return compare_end(audited, tolerance, end)

    def _spent(self, audited: AuditedLog) -> float | None:
        from confide.trainer.privacy import spent  # noqa: PLC0415 - as below

        return spent(audited.log.recipe, rows=self._rows, steps=audited.record.record.steps)

    def _take_up(self, start: CheckpointEntry | None) -> None:
        if start is None:
            self._trainer.load(self._beginning)
            return
        from confide.trainer.checkpoint_files import CheckpointFiles  # noqa: PLC0415 - as above

        materials = self._materials
        files = CheckpointFiles(
            materials.checkpoints, plan=self._plan, key=materials.key, session=bytes(32)
        )
        self._trainer.load(files.read(start))
        # What was read hashes to `start.sealed`; the state is compared once it is loaded.
        require_checkpoint(start, sealed=start.sealed, state=self._trainer.state_digest())


def prepare_replay(audited: AuditedLog, materials: Materials) -> PreparedReplay:
    """
    Return a trainer that stands at step 0 of the job of `audited`.

    Raises `TrainingRejected` where the base at hand is another one or the plan does not follow from
    what is at hand, `ConfigurationError` where the training extra is not installed.
    """
    record, log = audited.record.record, audited.log
    if measure_weights(materials.base).digest != record.plan.base:
        raise _refused(Reason.MODEL_MISMATCH, "the base at hand is not the one of the record")
    trainer = _make_trainer(materials)
    prepared = trainer.prepare(
        TrainingJob(
            log.recipe,
            _data(log.dataset, materials.salt, materials.rows),
            None
            if log.validation is None
            else _data(log.validation, materials.salt, materials.validation),
            record.plan.base,
            # One process does the work of all ranks, with the same bits (training-ranks.md 1.4).
            record.plan.world,
        )
    )
    if prepared.plan.digest != record.plan.digest:
        raise _refused(Reason.TRAINING_PLAN, "what is at hand makes another plan")
    here = environment_texts(prepared.environment)
    differences = environment_differences(record.environment, here)
    left = tuple(name for name in differences if name not in HARMLESS)
    rows = log.dataset.rows - len(prepared.held_out)
    return PreparedReplay(trainer, materials, record.plan.digest, left, rows=rows)


def _make_trainer(materials: Materials) -> Trainer:
    try:
        from confide.trainer.process import worker_environment  # noqa: PLC0415 - an extra

        settings = worker_environment(materials.threads)
        for name in ("HOME", "LANG", "PATH"):
            del settings[name]
        # Before torch is loaded: the arithmetic of a training process, and no network.
        os.environ.update(settings)  # noqa: TID251 - the process of one command
        # What libraries announce for their later versions is nothing for whoever replays.
        warnings.simplefilter("ignore", FutureWarning)
        from confide.trainer.loop import TorchTrainer  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "a replay needs the training extra: pip install 'confide[train]'"
        ) from error
    return TorchTrainer(materials.base, threads=materials.threads, device=materials.device)


def _data(commitment: Commitment, salt: bytes, rows: Sequence[bytes]) -> TrainingData:
    return TrainingData(commitment.kind, commitment.digest, commitment.root, salt, rows)


def _refused(reason: Reason, detail: str) -> TrainingRejected:
    return TrainingRejected((Finding(Status.FAIL, "replay/1", _CLAUSE, "replay", detail, reason),))
