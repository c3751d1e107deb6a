"""One replay at work: its stretches, one after the other in one training process. Blocks.

docs/protocols/training-record.md 7.10. For the one thread that starts training processes; `stop`
comes from elsewhere. What a process tells is compared by `training.replay`; nothing here judges.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

from confide.errors import RemoteProtocolError, Unavailable
from confide.node.train_attempt import TrainingRun, read_ended, read_failed, read_prepared
from confide.node.train_data import make_form, read_job
from confide.node.train_results import read_output_file
from confide.node.train_store import read_file
from confide.trainer.frames import Frame, read_json
from confide.trainer.reports import read_evaluation, read_step
from confide.training.job import EvaluatedStep
from confide.training.jobs import JobError
from confide.training.replay import HARMLESS, Replay, environment_differences
from confide.training.replay_end import End, MadeFiles, compare_end, last_checkpoint, outputs_due

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from confide.node.train_attempt import Prepared
    from confide.node.train_entry import TrainPorts
    from confide.node.train_store import ResultFile, StoredFile
    from confide.trainer.order_form import OrderForm
    from confide.training.audit import AuditedLog
    from confide.training.chain import StepRecord
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.draw import Sample
    from confide.training.job import Evaluation, TrainingJob
    from confide.training.replay import Stretch, Tolerance

__all__ = ["ReplayCase", "ReplayFailed", "ReplayWork", "ReplayingRun"]

_MESSAGE: Final = "the process ended by itself; ask for the replay again"
_OTHERWISE: Final = "a process ended, or told something else, before its end"


class ReplayingRun(TrainingRun, Protocol):
    """A training process that executes stretches when it is not told to `go`."""

    def replay(self, stretch: Stretch) -> None:
        """Have a stretch executed; the next one when its last step was told."""
        ...


class ReplayFailed(Exception):
    """A replay came to no verdict, for a reason that its owner is told."""

    def __init__(self, code: str, message: str) -> None:
        self.error = JobError(code, message)
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayCase:
    """What is replayed, held together before anything is executed. `key` opens checkpoints."""

    audited: AuditedLog
    sample: Sample
    tolerance: Tolerance | None
    data: StoredFile
    validation: StoredFile | None
    checkpoints: Mapping[int, ResultFile]
    key: bytes = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether what the training ended with is to be made again: its checkpoint was sent."""
        return last_checkpoint(self.audited).step in self.checkpoints

    def begin(self) -> Replay:
        """Return the replay at its beginning."""
        return Replay(
            self.audited,
            self.sample,
            tolerance=self.tolerance,
            at_hand=self.checkpoints.keys(),
        )


class ReplayWork:
    """One replay; `run` once. `environment` is what its process said of its own."""

    def __init__(self, ports: TrainPorts, case: ReplayCase, place: Path) -> None:
        self.environment: Mapping[str, str] = {}
        self.executed = 0
        # Of each part of the end whether it came out again; None where none was made (7.14).
        self.made: Mapping[str, bool] | None = None
        self._ports = ports
        self._case = case
        self._place = place
        self._lock = threading.Lock()
        self._process: ReplayingRun | None = None
        self._stopped = False

    def stop(self) -> None:
        """End the process at once; `run` then raises."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def run(self) -> Replay:
        """
        Execute what the replay asks for; return it at its end, with or without a divergence.

        Raises `ReplayFailed`, and the `ConfideError` of whatever is not the process.
        """
        replay = self._case.begin()
        with self._prepared() as (process, told):
            while (stretch := replay.ask()) is not None:
                replay.tell(self._execute(process, told, stretch))
            if replay.divergence is None and self._case.ended:
                self.made = self._make_end(process, told)
        return replay

    @contextmanager
    def _prepared(self) -> Iterator[tuple[ReplayingRun, Iterator[tuple[Frame, bytes]]]]:
        """Run a process; give it and what it tells, prepared."""
        form, job = self._form(), self._job()
        with self._ports.start(form) as process:
            with self._lock:
                self._process = process
                self._require_wanted()
            try:
                with self._hearing():
                    process.begin(job, key=self._case.key, session=self._ports.entropy.token(32))
                del job  # the rows are with the process: not here for as long as it works
                told = process.frames()
                self._await_prepared(told)
                yield process, told
            finally:
                with self._lock:
                    self._process = None

    def _form(self) -> OrderForm:
        case, ports, log = self._case, self._ports, self._case.audited.log
        # What is done after the stretches: the end is made again, or nothing.
        start = last_checkpoint(case.audited) if case.ended else None
        form = make_form(
            log.recipe,
            log.dataset,
            log.validation,
            base=ports.node.weights,
            folder=ports.folder,
            checkpoints=self._place,
            resume=start,
            threads=ports.threads,
            device=ports.device,
            # One process does the work of all ranks, with the same bits (training-ranks.md 1.4).
            world=case.audited.record.record.plan.world,
        )
        outputs = outputs_due(case.audited, case.tolerance) if case.ended else ()
        return replace(form, outputs=outputs)

    def _job(self) -> TrainingJob:
        case, ports = self._case, self._ports
        return read_job(
            ports.files.store,
            case.audited.log.recipe,
            case.data,
            case.validation,
            base=ports.node.weights,
            world=case.audited.record.record.plan.world,
        )

    def _execute(
        self, process: ReplayingRun, told: Iterator[tuple[Frame, bytes]], stretch: Stretch
    ) -> list[StepRecord]:
        with self._placed(stretch.start):
            process.replay(stretch)
            return self._hear(told, stretch)

    def _make_end(
        self, process: ReplayingRun, told: Iterator[tuple[Frame, bytes]]
    ) -> dict[str, bool]:
        """Have what the training ended with made again from its last checkpoint (7.14)."""
        with self._placed(last_checkpoint(self._case.audited)):
            process.go()
            try:
                return self._hear_end(told)
            except ValueError as error:
                raise RemoteProtocolError("a process told no files") from error

    @contextmanager
    def _placed(self, start: CheckpointEntry | None) -> Iterator[None]:
        """Have no more in the folder than the checkpoint that is taken up."""
        try:
            self._place.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise Unavailable("no folder for checkpoints can be made") from error
        try:
            if start is not None:
                self._put(start)
            yield
        finally:
            shutil.rmtree(self._place, ignore_errors=True)

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Tell a process that ended by itself from one that was stopped."""
        try:
            yield
        except Unavailable as error:
            self._require_wanted()
            raise ReplayFailed("trainer_ended", _MESSAGE) from error

    def _require_wanted(self) -> None:
        if self._stopped:
            raise ReplayFailed("stopped", "the replay was stopped")

    def _await_prepared(self, told: Iterator[tuple[Frame, bytes]]) -> None:
        kind, payload = self._next(told)
        if kind is not Frame.PREPARED:
            raise RemoteProtocolError(_OTHERWISE)
        self._require_same(read_prepared(read_json(payload)))

    def _hear(self, told: Iterator[tuple[Frame, bytes]], stretch: Stretch) -> list[StepRecord]:
        """Return the records of the stretch; the process waits after them."""
        records: list[StepRecord] = []
        for step in range(stretch.first, stretch.last + 1):
            kind, payload = self._next(told)
            if kind is not Frame.STEP:
                raise RemoteProtocolError(_OTHERWISE)
            records.append(read_step(read_json(payload))[0].record)
            if records[-1].step != step:
                raise RemoteProtocolError("a process skipped a step")
            self.executed += 1
        return records

    def _hear_end(self, told: Iterator[tuple[Frame, bytes]]) -> dict[str, bool]:
        """Return of each part of the end whether it is what was recorded; no step is done."""
        made = MadeFiles()
        evaluations: dict[str, Evaluation] = {}
        while True:
            kind, payload = self._next(told)
            if kind is Frame.EVALUATION:
                said = read_evaluation(read_json(payload))
                if isinstance(said, EvaluatedStep):
                    raise RemoteProtocolError(_OTHERWISE)
                evaluations.update([said])
            elif kind is Frame.FILE:
                made.begin(*read_output_file(read_json(payload))[:2])
            elif kind is Frame.DATA:
                made.data(payload)
            elif kind is Frame.ENDED and payload:
                case = self._case
                ended = read_ended(read_json(payload))
                end = End(made.digests(), evaluations, ended.epsilon)
                return compare_end(case.audited, case.tolerance, end)
            else:
                raise RemoteProtocolError(_OTHERWISE)

    def _next(self, told: Iterator[tuple[Frame, bytes]]) -> tuple[Frame, bytes]:
        with self._hearing():
            found = next(told, None)
        if found is None:
            raise RemoteProtocolError(_OTHERWISE)
        kind, payload = found
        if kind is Frame.FAILED:
            said = read_failed(read_json(payload))
            raise ReplayFailed(said.code, said.message)
        return kind, payload

    def _require_same(self, said: Prepared) -> None:
        """Hold plan and environment to those of the record (7.10), before any step."""
        record = self._case.audited.record.record
        if said.plan.digest != record.plan.digest or said.steps != record.planned:
            raise ReplayFailed("training_plan", "rows and base here make another plan")
        differences = environment_differences(record.environment, said.environment)
        left = [name for name in differences if name not in HARMLESS]
        if self._case.tolerance is None and left:
            raise ReplayFailed(
                "environment_mismatch",
                f"this environment is not the recorded one ({', '.join(left)}): bits may differ; "
                "ask for a tolerance, or another node",
            )
        self.environment = said.environment

    def _put(self, entry: CheckpointEntry) -> None:
        """Put a sealed checkpoint where the process reads it, if it is the one of the log."""
        file = self._case.checkpoints.get(entry.step)
        if file is None:
            raise ReplayFailed("missing_checkpoint", f"the checkpoint of step {entry.step}")
        sha256 = hashlib.sha256()
        try:
            with (self._place / f"checkpoint-{entry.step:09}.sealed").open("xb") as out:
                for piece in read_file(self._ports.files.store, file):
                    sha256.update(piece)
                    out.write(piece)
        except OSError as error:
            raise Unavailable(f"a checkpoint cannot be written: {error.strerror}") from error
        if sha256.digest() != entry.sealed:
            raise ReplayFailed(
                "checkpoint_mismatch",
                f"the file of step {entry.step} is not the sealed checkpoint of the log",
            )
