"""One job at work: attempts until it rests, then the record. docs/protocols/training-node.md §4."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from confide.adapters.crash import say_crash
from confide.errors import ConfideError, Unavailable
from confide.node.seat_party import SeatParty
from confide.node.train_attempt import Attempt, Ended, Order
from confide.node.train_data import data_files, make_form, outputs_of, read_job
from confide.node.train_entry import error_of, seconds_of
from confide.node.train_proof import Made
from confide.node.train_results import Results
from confide.node.train_telling import Telling
from confide.training.jobs import JobError
from confide.training.owner_log import OwnerLog, SaltedEvaluation
from confide.training.privacy_texts import privacy_texts
from confide.training.record import TrainingOutput, listed_checkpoints
from confide.training.shares import ranks_for

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from confide.node.train_entry import JobEntry, TrainPorts
    from confide.node.train_store import StoredFile
    from confide.training.account import Account
    from confide.training.checkpoints import CheckpointEntry
    from confide.wire.json import JsonValue

__all__ = ["Worker"]

# From: docs/protocols/training-node.md 4.4.
_MAX_KILLS: Final = 3
_SALT_BYTES: Final = 32


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
            self._fail(error_of(error))
        if entry.wanted == "cancel" and entry.job.status != "succeeded":
            await self.discard()
        entry.wanted = ""

    async def discard(self) -> None:
        """End the job as cancelled, and leave nothing of it."""
        entry = self._entry
        entry.job = replace(entry.job, checkpoints=())
        # Before giving way: what is asked of the job meanwhile finds it at its end.
        entry.become(self._ports, "cancelled", "The job was cancelled.")
        await asyncio.to_thread(shutil.rmtree, self._place, ignore_errors=True)

    async def _attempt(self) -> bool:
        """Run one process; return whether the job rests."""
        ports, entry = self._ports, self._entry
        results = self._results()
        heard = Telling(ports, entry, asyncio.get_running_loop())
        order = self._order()
        party = entry.proof.party = self._invited(order)
        start = ports.start if order.form.world == 1 else ports.start_ranks
        if party is not None:
            start = party.start
        attempt = Attempt(order, results, heard, start=start, entropy=ports.entropy)
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
            told = [] if party is None else await party.close()
        return self._rests(_held_to(ended, told))

    def _invited(self, order: Order) -> SeatParty | None:
        """Return the seats of other nodes at an attempt; None where this node has all ranks."""
        ports, party = self._ports, self._ports.party
        if party is None or order.form.world <= ports.ranks:
            return None
        return SeatParty(
            ports,
            party,
            world=order.form.world,
            engine=self._entry.job.request.engine,
            read=order.read,
        )

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
        entry = self._entry
        return data_files(self._ports.files.table, entry.owner, entry.job.request)

    def _order(self) -> Order:
        ports, entry = self._ports, self._entry
        request, (data, validation) = entry.job.request, self._data()
        # What has begun goes on with as many ranks: another number is another plan.
        began = entry.account
        most = ports.ranks + (0 if ports.party is None else ports.party.ranks)
        world = ranks_for(request.steps, most) if began is None else began.plan.world
        try:
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable("no folder for checkpoints can be made") from error
        form = make_form(
            request.steps,
            data.commitment,
            None if validation is None else validation.commitment,
            base=ports.node.weights,
            folder=ports.folder,
            checkpoints=self._place,
            resume=None if entry.account is None else entry.account.newest,
            threads=ports.threads,
            device=ports.device,
            world=world,
        )
        return Order(
            form,
            lambda: read_job(
                ports.files.store,
                request.steps,
                data,
                validation,
                base=ports.node.weights,
                world=world,
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
        made = Made(output, results.sealed, owner_log, privacy_texts(log.recipe, ended.epsilon))
        file = await entry.proof.record(account, made)
        listed = listed_checkpoints(account.checkpoints, account.turns)
        await asyncio.to_thread(self._keep_checkpoints, results, listed)
        await asyncio.to_thread(results.public, "record.json", file.encode())
        if entry.wanted == "cancel":
            await asyncio.to_thread(results.abort)
            return
        now = seconds_of(ports.clock)
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
            recipe=self._entry.job.request.steps,
            dataset=data.commitment,
            validation=None if validation is None else validation.commitment,
            steps=tuple(account.steps),
            events=tuple(account.events),
            evaluations=evaluations,
            evaluated=tuple(account.evaluated),
        )

    def _keep_checkpoints(self, results: Results, listed: tuple[CheckpointEntry, ...]) -> None:
        """Name the checkpoints that the record lists, and remove the others. Blocks."""
        kept = set()
        for each in listed:
            if each.step < self._entry.taken_up:
                continue  # 7.7: where it was made, or where its owner put it.
            place = self._place / f"checkpoint-{each.step:09}.sealed"
            results.checkpoint(f"checkpoint-{each.step}.sealed", place)
            kept.add(place)
        for place in self._place.iterdir():
            if place not in kept:
                place.unlink()


def _held_to(ended: Ended, told: list[str]) -> Ended:
    """Return how an attempt ended, as its other seats `told`: lost ones are to be taken anew."""
    if not told or ended.how != "killed":
        return ended
    words = f"The ranks ended before the job did: {'; '.join(told)}."
    return Ended("failed", code="seat_lost", message=words, resumable=True)


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
