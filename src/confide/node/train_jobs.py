"""The jobs of a training node: who asked for what, which one runs, what its owner may change.

docs/protocols/training-node.md §2, §4. Belongs to the event loop; what blocks has threads of its
own. An owner sees no other's job, not even that it is there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from confide.crypto.kem import load_public_key
from confide.errors import FormatError, Overloaded, Unavailable
from confide.inference.plan import refuse
from confide.node.image_work import ImageWorker, require_image
from confide.node.seat_links import require_engine
from confide.node.train_entry import JobEntry
from confide.node.train_handover import checkpoint_file, enter, hand_over, take_up
from confide.node.train_proof import JobProof, require_met
from confide.node.train_store import remove_kept
from confide.node.train_work import Worker
from confide.training.account import MAX_TURNS
from confide.training.job_request import JobRefused, parse_job_request
from confide.training.jobs import Job
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from confide.crypto.kem import PublicKey
    from confide.expectation import Expectation
    from confide.node.train_entry import TrainPorts
    from confide.node.train_store import ResultFile
    from confide.training.job_request import JobRequest

__all__ = ["TrainJobs"]

# From: docs/protocols/training-node.md 1.2.
_MAX_QUEUED: Final = 16
_MAX_JOBS: Final = 1000
_RETRY_SECONDS: Final = 30
# A pause is two turns with what goes on after it, and a failure may come between.
_TURNS_LEFT: Final = 8
_KINDS: Final = {"sft": ("chat", "completion"), "dpo": ("preference",)}


class TrainJobs:
    """Every job of this node. `start` before use, `close` at the end."""

    def __init__(self, ports: TrainPorts) -> None:
        self._ports = ports
        self._entries: dict[str, JobEntry] = {}
        self._queue: deque[JobEntry] = deque()
        self._nonces: set[bytes] = set()
        self._wake = asyncio.Event()
        self._rested = asyncio.Condition()
        self._working: JobEntry | None = None
        self._asking = 0
        self._draining = False
        # One thread: a process is bound to the thread that started it, and one job runs at a time.
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is at work, or will be."""
        return self._working is not None or (bool(self._queue) and not self._draining)

    def start(self) -> None:
        """Begin to take jobs from the queue."""
        self._task = asyncio.ensure_future(self._serve())

    def drain(self) -> None:
        """Take no more jobs; pause the one that runs."""
        self._draining = True
        entry = self._working
        if entry is not None and entry.job.may("pausing") and entry.job.request.image is None:
            self._pause(entry, "The node is about to stop: the job is paused.")

    async def close(self) -> None:
        """End what runs. Jobs are forgotten with the node."""
        self._draining = True
        if self._working is not None and self._working.attempt is not None:
            self._working.attempt.stop()
        async with self._rested:
            await self._rested.wait_for(lambda: self._working is None)
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self.pool.shutdown)

    def find(self, owner: str, job_id: str) -> Job:
        """Return a job of `owner`; `RequestRefused` (404) where it has none of this id."""
        return self._find(owner, job_id).job

    def of(self, owner: str) -> list[Job]:
        """Return the jobs of `owner`, newest first."""
        return [each.job for each in reversed(self._entries.values()) if each.owner == owner]

    def record_file(self, owner: str, job_id: str) -> str:
        """Return the id of the file with a job's record; `RequestRefused` where there is none."""
        entry = self._find(owner, job_id)
        if not entry.record:
            refuse("no_record", f"The job is {entry.job.status}: it has no record.", status=404)
        return entry.record

    async def create(self, owner: str, raw: bytes) -> Job:
        """
        Take a job, if everything about it is right (§2).

        Raises `JobRefused` and `RequestRefused` for what its owner can mend, `Overloaded` where the
        queue is full, `Unavailable` where this node cannot be proven now.
        """
        ports = self._ports
        request = parse_job_request(raw, model=ports.node.model)
        recipient = _recipient(request)
        self._require_files(owner, request)
        require_engine(request, ports)
        self._require_room()
        if request.nonce in self._nonces:
            raise JobRefused(
                "confide.nonce: used before; draw 32 new random bytes",
                param="confide.nonce",
                code="nonce_used",
            )
        # Taken before giving way: the same request may come twice in a moment.
        self._nonces.add(request.nonce)
        self._asking += 1
        try:
            await require_image(request, ports.images)
            expectation = await require_met(request, ports.node)
            await self._forget_oldest()
            entry = await self._entered(owner, request, recipient, expectation)
        except BaseException:
            self._nonces.discard(request.nonce)
            raise
        finally:
            self._asking -= 1
        self._entries[entry.job.id] = entry
        self._enqueue(entry, "Files and Expectation are right: the job is queued.")
        return entry.job

    async def hand_over(self, owner: str, job_id: str) -> bytes:
        """Return what a job goes on from elsewhere, sealed to its owner (§7)."""
        return await hand_over(self._ports, self._find(owner, job_id))

    def checkpoint_file(self, owner: str, job_id: str, step: str) -> ResultFile:
        """Return a sealed checkpoint of a job; `RequestRefused` (404) for one not here."""
        return checkpoint_file(self._ports, self._find(owner, job_id), step)

    async def cancel(self, owner: str, job_id: str) -> Job:
        """End a job and leave nothing of it."""
        entry = self._find(owner, job_id)
        _require(entry, entry.job.may("cancelled"), "cancelled")
        entry.wanted = "cancel"
        if entry is not self._working:
            with suppress(ValueError):
                self._queue.remove(entry)
            await self._worker(entry).discard()
            return entry.job
        if entry.attempt is not None:
            entry.attempt.stop()
        async with self._rested:
            await self._rested.wait_for(lambda: self._working is not entry)
        return entry.job

    def pause(self, owner: str, job_id: str) -> Job:
        """Ask for a checkpoint and a rest."""
        entry = self._find(owner, job_id)
        _require(entry, entry.job.may("pausing"), "paused")
        if entry.job.request.image is not None:
            refuse("invalid_status", "A job of an image cannot be paused: it has no checkpoints.")
        _require_turns(entry)
        self._pause(entry, "The job will be paused after a checkpoint.")
        return entry.job

    def resume(self, owner: str, job_id: str) -> Job:
        """Let a job go on that is paused, or failed where it can go on."""
        entry = self._find(owner, job_id)
        _require(
            entry, entry.job.status in {"paused", "failed"} and entry.job.may("queued"), "resumed"
        )
        _require_turns(entry)
        self._require_room()
        self._enqueue(entry, "The job goes on: it is queued.")
        return entry.job

    # --- within -----------------------------------------------------------------------------------

    async def _entered(
        self, owner: str, request: JobRequest, recipient: PublicKey, expectation: Expectation
    ) -> JobEntry:
        """Return a new job, at its beginning or where another node handed it over."""
        ports = self._ports
        taken = await take_up(ports, owner, request, expectation)
        training_id = ports.entropy.token(32) if taken is None else taken.handover.job
        job = Job(
            id=f"ftjob-{ports.entropy.token(16).hex()}",
            training_id=training_id,
            request=request,
            created=int(ports.clock.now().timestamp()),
        )
        proof = JobProof(ports.node, request, training_id, expectation)
        entry = JobEntry(owner, job, proof, recipient)
        if taken is None:
            entry.tell(ports, "The job was created.")
        else:
            await enter(ports, entry, taken)
            entry.tell(ports, f"The job goes on here, after step {entry.taken_up}.")
        return entry

    async def _serve(self) -> None:
        while True:
            await self._wake.wait()
            if not self._queue or self._draining:
                self._wake.clear()
                continue
            self._working = entry = self._queue.popleft()
            try:
                await self._worker(entry).run()
            finally:
                async with self._rested:
                    self._working = None
                    self._rested.notify_all()

    def _worker(self, entry: JobEntry) -> Worker | ImageWorker:
        if entry.job.request.image is not None:
            return ImageWorker(self._ports, entry)
        return Worker(self._ports, entry, self.pool)

    def _find(self, owner: str, job_id: str) -> JobEntry:
        entry = self._entries.get(job_id)
        if entry is None or entry.owner != owner:
            refuse("not_found", "No such job.", param="fine_tuning_job_id", status=404)
        return entry

    def _pause(self, entry: JobEntry, message: str) -> None:
        entry.wanted = "pause"
        entry.become(self._ports, "pausing", message)
        if entry.attempt is not None:
            entry.attempt.pause()

    def _enqueue(self, entry: JobEntry, message: str) -> None:
        entry.become(self._ports, "queued", message)
        self._queue.append(entry)
        self._wake.set()

    def _require_room(self) -> None:
        if self._draining:
            raise Overloaded("draining", retry_after=_RETRY_SECONDS, draining=True)
        if len(self._queue) + self._asking >= _MAX_QUEUED:
            raise Overloaded("the queue is full", retry_after=_RETRY_SECONDS, status_hint=429)

    def _require_files(self, owner: str, request: JobRequest) -> None:
        for param in ("training_file", "validation_file"):
            file_id: str | None = getattr(request, param)
            if file_id is None:
                continue
            kind = self._ports.files.table.find_data(owner, file_id, param=param).commitment.kind
            if request.image is not None:
                continue  # Rows of any kind: the image knows what it reads.
            wanted = _KINDS[request.steps.method]
            if kind not in wanted:
                raise JobRefused(
                    f"{param}: holds {kind} rows; method {request.mode} trains on "
                    f"{' or '.join(wanted)} rows",
                    param=param,
                    code="invalid_training_file",
                )

    async def _forget_oldest(self) -> None:
        if len(self._entries) < _MAX_JOBS:
            return
        ended = next((each for each in self._entries.values() if each.job.ended), None)
        if ended is None:
            raise Overloaded("too many jobs", retry_after=_RETRY_SECONDS, status_hint=429)
        del self._entries[ended.job.id]
        files = self._ports.files
        for file in files.table.of(ended.owner):
            if file.id in ended.job.result_files:
                files.table.forget(file)
                with suppress(Unavailable):
                    await asyncio.to_thread(remove_kept, files.store, file)


def _recipient(request: JobRequest) -> PublicKey:
    try:
        return load_public_key(Kem.X_WING, request.recipient)
    except FormatError as error:
        raise JobRefused(
            "confide.recipient: an X-Wing public key, raw", param="confide.recipient"
        ) from error


def _require(entry: JobEntry, allowed: bool, what: str) -> None:  # noqa: FBT001 - private
    if not allowed:
        status = entry.job.status
        refuse("invalid_status", f"A job that is {status} cannot be {what}.")


def _require_turns(entry: JobEntry) -> None:
    account = entry.account
    if account is not None and len(account.turns) > MAX_TURNS - _TURNS_LEFT:
        refuse("too_many_interruptions", "The job was interrupted too often to be paused again.")
