"""One replay at work: its stretches, each in a training process of its own. Blocks.

docs/protocols/training-record.md 7.10. For the one thread that starts training processes; `stop`
comes from elsewhere. What a process tells is compared by `training.replay`; nothing here judges.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from confide.errors import RemoteProtocolError, Unavailable
from confide.node.train_attempt import read_ended, read_failed, read_prepared
from confide.node.train_data import make_form, read_job
from confide.node.train_results import read_output_file
from confide.node.train_store import read_file
from confide.trainer.frames import Frame, read_json
from confide.trainer.reports import read_evaluation, read_step
from confide.training.jobs import JobError
from confide.training.replay import HARMLESS, Replay, environment_differences
from confide.training.replay_end import End, MadeFiles, compare_end, last_checkpoint, outputs_due

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from confide.node.train_attempt import Prepared, TrainingRun
    from confide.node.train_entry import TrainPorts
    from confide.node.train_store import ResultFile, StoredFile
    from confide.training.audit import AuditedLog
    from confide.training.chain import StepRecord
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.draw import Sample
    from confide.training.job import Evaluation, OutputKind
    from confide.training.replay import Stretch, Tolerance

__all__ = ["ReplayCase", "ReplayFailed", "ReplayWork"]

T = TypeVar("T")

_MESSAGE: Final = "the process ended by itself; ask for the replay again"


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
    """One replay; `run` once. `environment` is what its processes said of theirs."""

    def __init__(self, ports: TrainPorts, case: ReplayCase, place: Path) -> None:
        self.environment: Mapping[str, str] = {}
        self.executed = 0
        # Of each part of the end whether it came out again; None where none was made (7.14).
        self.made: Mapping[str, bool] | None = None
        self._ports = ports
        self._case = case
        self._place = place
        self._lock = threading.Lock()
        self._process: TrainingRun | None = None
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
        while (stretch := replay.ask()) is not None:
            listen = partial(self._hear, stretch)
            replay.tell(self._execute(stretch.start, (), listen))
        if replay.divergence is None and self._case.ended:
            kinds = outputs_due(self._case.audited, self._case.tolerance)
            self.made = self._execute(last_checkpoint(self._case.audited), kinds, self._hear_end)
        return replay

    def _execute(
        self,
        start: CheckpointEntry | None,
        outputs: tuple[OutputKind, ...],
        listen: Callable[[TrainingRun], T],
    ) -> T:
        """Begin a process at `start` and return what `listen` makes of what it tells."""
        try:
            return self._run(start, outputs, listen)
        finally:
            shutil.rmtree(self._place, ignore_errors=True)

    def _run(
        self,
        start: CheckpointEntry | None,
        outputs: tuple[OutputKind, ...],
        listen: Callable[[TrainingRun], T],
    ) -> T:
        case, ports = self._case, self._ports
        log = case.audited.log
        # One process does the work of all ranks, with the same bits (training-ranks.md 1.4).
        world = case.audited.record.record.plan.world
        try:
            # Its own each time: the process writes checkpoints beside the one that it begins at.
            self._place.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise Unavailable("no folder for checkpoints can be made") from error
        if start is not None:
            self._put(start)
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
            world=world,
        )
        job = read_job(
            ports.files.store,
            log.recipe,
            case.data,
            case.validation,
            base=ports.node.weights,
            world=world,
        )
        with ports.start(replace(form, outputs=outputs)) as process:
            with self._lock:
                self._process = process
                self._require_wanted()
            try:
                process.begin(job, key=case.key, session=ports.entropy.token(32))
                return listen(process)
            except Unavailable as error:
                self._require_wanted()
                raise ReplayFailed("trainer_ended", _MESSAGE) from error
            finally:
                with self._lock:
                    self._process = None

    def _require_wanted(self) -> None:
        if self._stopped:
            raise ReplayFailed("stopped", "the replay was stopped")

    def _hear(self, stretch: Stretch, process: TrainingRun) -> list[StepRecord]:
        """Return the records of the stretch; the process goes no further."""
        records: list[StepRecord] = []
        prepared = False
        for kind, payload in process.frames():
            if kind is Frame.PREPARED and not prepared:
                self._require_same(read_prepared(read_json(payload)))
                prepared = True
                process.go()
            elif kind is Frame.STEP and prepared:
                records.append(read_step(read_json(payload))[0].record)
                if records[-1].step != stretch.first + len(records) - 1:
                    raise RemoteProtocolError("a process skipped a step")
                self.executed += 1
                if records[-1].step == stretch.last:
                    return records
            elif kind is Frame.FAILED:
                said = read_failed(read_json(payload))
                raise ReplayFailed(said.code, said.message)
            elif kind is not Frame.CHECKPOINT:
                break
        raise RemoteProtocolError("a process ended, or told something else, before its last step")

    def _hear_end(self, process: TrainingRun) -> dict[str, bool]:
        """Return of each part of the end whether it is what was recorded; no step is done."""
        try:
            return self._compared(process)
        except ValueError as error:
            raise RemoteProtocolError("a process told no files") from error

    def _compared(self, process: TrainingRun) -> dict[str, bool]:
        made, prepared = MadeFiles(), False
        evaluations: dict[str, Evaluation] = {}
        for kind, payload in process.frames():
            if kind is Frame.PREPARED and not prepared:
                self._require_same(read_prepared(read_json(payload)))
                prepared = True
                process.go()
            elif kind is Frame.FAILED:
                said = read_failed(read_json(payload))
                raise ReplayFailed(said.code, said.message)
            elif kind is Frame.EVALUATION and prepared:
                judged = read_evaluation(read_json(payload))
                if isinstance(judged, tuple):
                    evaluations[judged[0]] = judged[1]
            elif kind is Frame.FILE and prepared:
                made.begin(*read_output_file(read_json(payload))[:2])
            elif kind is Frame.DATA and prepared:
                made.data(payload)
            elif kind is Frame.ENDED and prepared:
                case = self._case
                ended = read_ended(read_json(payload))
                end = End(made.digests(), evaluations, ended.epsilon)
                return compare_end(case.audited, case.tolerance, end)
            else:
                break
        raise RemoteProtocolError("a process ended, or told something else, before its end")

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
