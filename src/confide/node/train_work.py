"""One job at work: attempts until it rests, then the record. docs/protocols/training-node.md §4.

The event loop owns a job's entry; the thread of an attempt owns its account while it runs. What the
thread has to say goes through the loop, in order.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from confide.adapters.crash import say_crash
from confide.errors import ConfideError, DatasetRejected, Rejected, Unavailable
from confide.inference.faults import RequestRefused
from confide.node.train_attempt import Attempt, Ended, Order
from confide.node.train_data import make_form, outputs_of, read_job
from confide.node.train_proof import Made
from confide.node.train_results import Results
from confide.trainer.failures import DiskFull
from confide.training.account import Account
from confide.training.jobs import JobCheckpoint, JobError, JobEvent
from confide.training.owner_log import OwnerLog, SaltedEvaluation
from confide.training.record import TrainingOutput, listed_checkpoints
from confide.training.rows import RowError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from confide.crypto.kem import PublicKey
    from confide.node.train_attempt import Prepared, TrainingRun
    from confide.node.train_files import TrainFiles
    from confide.node.train_proof import JobProof, ProvenBase
    from confide.node.train_store import StoredFile
    from confide.ports import Clock, Entropy
    from confide.trainer.order_form import Device, OrderForm
    from confide.trainer.reports import Progress
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.jobs import Job, JobStatus, Level
    from confide.training.steplog import LoggedStep
    from confide.wire.json import JsonValue

__all__ = ["JobEntry", "TrainPorts", "Worker"]

# From: docs/protocols/training-node.md 4.4.
_MAX_KILLS: Final = 3
_SALT_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPorts:
    """
    What jobs need of the node: what proves it, its files, the way to start a process, time.

    `folder` is the copy of the base that processes read, `checkpoints` where sealed ones lie.
    """

    node: ProvenBase
    files: TrainFiles
    start: Callable[[OrderForm], TrainingRun]
    folder: Path
    checkpoints: Path
    threads: int
    device: Device
    clock: Clock
    entropy: Entropy


@dataclass(slots=True)
class JobEntry:
    """One job, whose it is, and what it holds in memory until its end."""

    owner: str
    job: Job
    proof: JobProof
    recipient: PublicKey
    account: Account | None = None
    attempt: Attempt | None = None
    wanted: Literal["", "pause", "cancel"] = ""
    # What goes into the event chain when the job goes on.
    going_on: Literal["", "resumed", "restarted"] = ""
    record: str = ""

    def tell(
        self,
        ports: TrainPorts,
        message: str,
        *,
        level: Level = "info",
        data: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Add an event."""
        event_id = f"ftevent-{ports.entropy.token(12).hex()}"
        self.job = self.job.told(JobEvent(event_id, _now(ports.clock), level, message, data))

    def become(
        self, ports: TrainPorts, status: JobStatus, message: str, *, error: JobError | None = None
    ) -> None:
        """Go to `status`, and say so."""
        self.job = self.job.next(status, now=_now(ports.clock), error=error)
        self.tell(ports, message, level="info" if error is None else "error")
        if self.job.ended and not (error is not None and error.resumable):
            # 2.2: the node holds the owner's key no longer than it may need it.
            self.job = replace(self.job, request=replace(self.job.request, checkpoint_key=b""))
            self.account = None


def _now(clock: Clock) -> int:
    return int(clock.now().timestamp())


class Worker:
    """Takes one job from `queued` to where it rests: paused, or an end."""

    def __init__(self, ports: TrainPorts, entry: JobEntry, pool: Executor) -> None:
        self._ports = ports
        self._entry = entry
        self._pool = pool
        self._kills = 0
        self._place = ports.checkpoints / entry.job.id

    async def run(self) -> None:
        """Work until the job rests; whatever breaks, it does."""
        entry = self._entry
        entry.become(self._ports, "running", "The job is running.")
        try:
            while not await self._attempt():
                pass
        except Exception as error:  # noqa: BLE001 - somebody's job, whatever broke
            if not isinstance(error, ConfideError):
                say_crash(error)
            self._fail(_error_of(error))
        if entry.wanted == "cancel" and entry.job.status != "succeeded":
            await self.discard()
        entry.wanted = ""

    async def discard(self) -> None:
        """End the job as cancelled, and leave nothing of it."""
        entry = self._entry
        await asyncio.to_thread(shutil.rmtree, self._place, ignore_errors=True)
        entry.job = replace(entry.job, checkpoints=())
        entry.become(self._ports, "cancelled", "The job was cancelled.")

    async def _attempt(self) -> bool:
        """Run one process; return whether the job rests."""
        ports, entry = self._ports, self._entry
        results = self._results()
        heard = _Heard(ports, entry, asyncio.get_running_loop())
        attempt = Attempt(self._order(), results, heard, start=ports.start, entropy=ports.entropy)
        heard.attempt = entry.attempt = attempt
        if entry.wanted == "pause":
            attempt.pause()
        if entry.wanted == "cancel":
            return True
        try:
            ended = await asyncio.get_running_loop().run_in_executor(self._pool, attempt.run)
            if ended.how == "finished":
                await self._conclude(ended, results)
                return True
        except BaseException:
            await asyncio.to_thread(results.abort)
            raise
        finally:
            entry.attempt = None
        return self._rests(ended)

    def _rests(self, ended: Ended) -> bool:
        """Decide what follows an attempt that did not finish the job."""
        entry = self._entry
        if ended.how == "stopped" or entry.wanted == "cancel":
            return True
        if ended.how == "failed":
            self._fail(JobError(ended.code, ended.message, resumable=ended.resumable))
            return True
        if ended.how == "paused":
            self._note_pause()
            if entry.wanted != "pause":
                return False  # The keys of this boot end: the job goes on as another one.
            entry.become(self._ports, "paused", "The job is paused after a checkpoint.")
            return True
        self._kills += 1
        if self._kills > _MAX_KILLS:
            message = "the training process ended by itself again and again"
            self._fail(JobError("trainer_ended", message, resumable=True))
            return True
        entry.going_on = "restarted"
        entry.tell(
            self._ports, "The training process ended by itself: it is started again.", level="warn"
        )
        return False

    def _note_pause(self) -> None:
        entry = self._entry
        if entry.account is not None and entry.account.turns:
            entry.account.happened("paused")
            entry.going_on = "resumed"
            if entry.wanted == "pause":
                entry.proof.interrupted(entry.account)

    def _fail(self, error: JobError) -> None:
        entry = self._entry
        if entry.wanted == "cancel":
            return
        if entry.account is not None:
            entry.proof.interrupted(entry.account)
            entry.going_on = "restarted"
        entry.become(self._ports, "failed", f"The job failed: {error.code}.", error=error)

    def _results(self) -> Results:
        ports, entry = self._ports, self._entry
        return Results(
            ports.files.store,
            recipient=entry.recipient,
            job=entry.job.id,
            owner=entry.owner,
            entropy=ports.entropy,
        )

    def _data(self) -> tuple[StoredFile, StoredFile | None]:
        table, request, owner = self._ports.files.table, self._entry.job.request, self._entry.owner
        data = table.find_data(owner, request.training_file, param="training_file")
        if request.validation_file is None:
            return data, None
        return data, table.find_data(owner, request.validation_file, param="validation_file")

    def _order(self) -> Order:
        ports, entry = self._ports, self._entry
        request, (data, validation) = entry.job.request, self._data()
        try:
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable("no folder for checkpoints can be made") from error
        form = make_form(
            request.recipe,
            data.commitment,
            None if validation is None else validation.commitment,
            base=ports.node.weights,
            folder=ports.folder,
            checkpoints=self._place,
            resume=None if entry.account is None else entry.account.newest,
            threads=ports.threads,
            device=ports.device,
        )
        return Order(
            form,
            lambda: read_job(
                ports.files.store, request.recipe, data, validation, base=ports.node.weights
            ),
            request.checkpoint_key,
        )

    async def _conclude(self, ended: Ended, results: Results) -> None:
        """Make log and record, and hand everything over; a cancel that came meanwhile wins."""
        ports, entry, account = self._ports, self._entry, self._entry.account
        if account is None:
            raise Unavailable("the process ended before it was prepared")
        account.require_end(ended.chain)
        log = self._log(account)
        raw = await asyncio.to_thread(log.encode)
        await asyncio.to_thread(results.seal, "owner-log", raw)
        output = _output(log, results, set(outputs_of(log.recipe)))
        owner_log = hashlib.sha256(raw).digest()
        made = Made(output, results.sealed, owner_log, _privacy(log, ended))
        file = await entry.proof.record(account, made)
        listed = listed_checkpoints(account.checkpoints, account.turns)
        await asyncio.to_thread(self._keep_checkpoints, results, listed)
        await asyncio.to_thread(results.public, "record.json", file.encode())
        if entry.wanted == "cancel":
            await asyncio.to_thread(results.abort)
            return
        now = _now(ports.clock)
        for each in results.files:
            ports.files.table.add(replace(each, created_at=now))
        entry.record = results.files[-1].id
        entry.job = replace(
            entry.job,
            trained_tokens=account.tokens,
            fine_tuned_model=entry.job.name,
            result_files=tuple(each.id for each in results.files),
        )
        _tell_evaluation(ports, entry, log, account)
        entry.become(ports, "succeeded", "The job has successfully completed.")

    def _log(self, account: Account) -> OwnerLog:
        entropy, (data, validation) = self._ports.entropy, self._data()
        evaluations = None
        if account.evaluations:
            base, tuned = (
                SaltedEvaluation(entropy.token(_SALT_BYTES), account.evaluations[name])
                for name in ("base", "tuned")
            )
            evaluations = (base, tuned)
        return OwnerLog(
            salt=entropy.token(_SALT_BYTES),
            recipe=self._entry.job.request.recipe,
            dataset=data.commitment,
            validation=None if validation is None else validation.commitment,
            steps=tuple(account.steps),
            events=tuple(account.events),
            evaluations=evaluations,
        )

    def _keep_checkpoints(self, results: Results, listed: tuple[CheckpointEntry, ...]) -> None:
        """Name the checkpoints that the record lists, and remove the others. Blocks."""
        kept = set()
        for each in listed:
            place = self._place / f"checkpoint-{each.step:09}.sealed"
            results.checkpoint(f"checkpoint-{each.step}.sealed", place)
            kept.add(place)
        for place in self._place.iterdir():
            if place not in kept:
                place.unlink()


class _Heard:
    """Who is told of an attempt, in its thread; what it says goes through the loop."""

    def __init__(self, ports: TrainPorts, entry: JobEntry, loop: asyncio.AbstractEventLoop) -> None:
        self._ports = ports
        self._entry = entry
        self._loop = loop
        self._ending = False
        self.attempt: Attempt | None = None

    def prepared(self, said: Prepared) -> Account:
        return asyncio.run_coroutine_threadsafe(self._prove(said), self._loop).result()

    async def _prove(self, said: Prepared) -> Account:
        entry, account = self._entry, self._entry.account
        if account is None:
            account = Account(said.plan, self._root(), said.steps, said.environment)
        else:
            account.require_same(said.plan, said.steps, said.environment)
            account.go_back()
        await entry.proof.introduce(account)
        if entry.going_on and account.turns:
            account.happened(entry.going_on)
        entry.going_on, entry.account = "", account
        entry.job = replace(entry.job, steps=said.steps)
        return account

    def _root(self) -> bytes:
        request = self._entry.job.request
        data = self._ports.files.table.find_data(self._entry.owner, request.training_file)
        return data.commitment.root

    def step(self, logged: LoggedStep, progress: Progress) -> None:
        self._loop.call_soon_threadsafe(self._stepped, logged, progress)
        if not self._ending and self._entry.proof.expiring() and self.attempt is not None:
            self._ending = True
            self.attempt.pause()

    def checkpoint(self, entry: CheckpointEntry) -> None:
        self._loop.call_soon_threadsafe(self._kept, entry)

    def _stepped(self, logged: LoggedStep, progress: Progress) -> None:
        entry, record = self._entry, logged.record
        data: dict[str, JsonValue] = {
            "step": record.step,
            "steps": progress.steps,
            "train_loss": record.loss,
            "learning_rate": record.learning_rate,
            "tokens": record.tokens,
            "tokens_per_second": progress.tokens_per_second,
            "seconds_left": progress.seconds_left,
        }
        finish = _now(self._ports.clock) + int(progress.seconds_left)
        entry.job = replace(entry.job, step=record.step, estimated_finish=finish)
        words = f"Step {record.step}/{progress.steps}: training loss={record.loss:.4f}"
        entry.tell(self._ports, words, data=data)

    def _kept(self, kept: CheckpointEntry) -> None:
        entry, ports = self._entry, self._ports
        account = entry.account
        if account is None:  # pragma: no cover - a checkpoint follows what was prepared
            return
        checkpoint = JobCheckpoint(
            id=f"ftckpt-{ports.entropy.token(12).hex()}",
            at=_now(ports.clock),
            job=entry.job.id,
            step=kept.step,
            name=f"{entry.job.name}:ckpt-step-{kept.step}",
            train_loss=account.steps[kept.step - 1].record.loss,
            chain=kept.chain,
            sealed=kept.sealed,
        )
        entry.job = replace(entry.job, checkpoints=(*entry.job.checkpoints, checkpoint))


def _output(log: OwnerLog, results: Results, wanted: set[str]) -> TrainingOutput:
    if set(results.manifests) != wanted:
        raise Unavailable("the process did not give what the job asks for")
    base, tuned = log.evaluations or (None, None)
    return TrainingOutput(
        manifests=results.manifests,
        base_metrics=None if base is None else base.commitment,
        tuned_metrics=None if tuned is None else tuned.commitment,
        better=base is not None and tuned is not None and tuned.metrics.loss < base.metrics.loss,
    )


def _privacy(log: OwnerLog, ended: Ended) -> dict[str, str] | None:
    privacy = log.recipe.privacy
    if privacy is None:
        return None
    return {
        "noise_multiplier": repr(privacy.noise_multiplier),
        "max_grad_norm": repr(privacy.max_grad_norm),
        "delta": repr(privacy.delta),
        # No number: the accountant finds no finite bound.
        "epsilon": "infinite" if ended.epsilon is None else repr(ended.epsilon),
    }


def _tell_evaluation(ports: TrainPorts, entry: JobEntry, log: OwnerLog, account: Account) -> None:
    if log.evaluations is None:
        return
    base, tuned = (each.metrics for each in log.evaluations)
    data: dict[str, JsonValue] = {
        "step": len(account.steps),
        "base_loss": base.loss,
        "base_accuracy": base.accuracy,
        "valid_loss": tuned.loss,
        "valid_accuracy": tuned.accuracy,
    }
    entry.tell(ports, f"Held-out loss {base.loss:.4f} before, {tuned.loss:.4f} after.", data=data)


def _error_of(error: Exception) -> JobError:
    """Say what broke, in words of ours; what is the machine's can be tried again."""
    match error:
        case RequestRefused():
            return JobError(error.fault.code, error.fault.message, error.fault.param)
        case RowError():
            return JobError("invalid_training_file", f"{error}.", "training_file")
        case DatasetRejected():
            detail = error.failures[0].detail
            return JobError("dataset_mismatch", f"Not what was committed to: {detail}.")
        case Rejected():
            first = error.failures[0]
            words = f"This node does not prove itself now: {first.step}: {first.detail}."
            return JobError("evidence_rejected", words, resumable=True)
        case Unavailable():
            cause = error.__cause__
            full = isinstance(error, DiskFull) or (
                isinstance(cause, OSError) and DiskFull.means(cause)
            )
            return JobError("disk_full" if full else "unavailable", f"{error}.", resumable=True)
        case _:
            return JobError("server_error", "Something broke in this node.")
