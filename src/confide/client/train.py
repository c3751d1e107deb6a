"""A private training, its owner's side: prove, commit, send, watch, open, verify. In that order.

docs/protocols/training-node.md §6. Nothing is sent before the node was proven against the owner's
Expectation, and no result is there before the record, the log and the opened files were held
together. Every stage is kept in the owner's folder: what was interrupted is taken up by doing the
same again.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from confide.client.train_folder import OwnedFile
from confide.client.train_handover import bring_state, is_settled, keep_state, kept_state
from confide.client.train_job import JobView, TrainingJobs, failure_of, job_request
from confide.client.train_node import NodeRefused, words_of_the_node
from confide.client.train_results import (
    CONSOLE,
    PRINTED,
    ReceivedResults,
    missing_result,
    printed_sink,
)
from confide.client.train_upload import PartSizes, commit_file, find_upload, send_file, send_upload
from confide.errors import (
    ConfigurationError,
    RemoteProtocolError,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from confide.client.held import Proof
    from confide.client.train_folder import OwnerFolder, TrainingState
    from confide.client.train_job import JobNews
    from confide.client.train_node import TrainingNode
    from confide.client.train_results import OpenedResults
    from confide.client.train_sinks import ResultSink
    from confide.ports import Clock, Entropy, Sleeper

__all__ = ["Training", "Watcher"]

# How often a job is asked after, and how long a node may be silent before watching ends.
_INTERVAL: Final = 1.0
_LONGEST_WAIT: Final = 30.0
_PATIENCE_SECONDS: Final = 900.0
# One answer carries at most 1 GiB (channel.md 2.6); a lost connection costs one of these.
_STRETCH: Final = 64 * 1024 * 1024
_TRIES: Final = 6
_LOST: Final = (Unavailable, RemoteProtocolError)


@dataclass(slots=True)
class Watcher:
    """What is told while it goes on; each does nothing unless it is given."""

    read: Callable[[int, int], None] = field(default=lambda _bytes, _rows: None)
    sent: Callable[[int, int], None] = field(default=lambda _bytes, _of: None)
    news: Callable[[JobNews], None] = field(default=lambda _news: None)
    stood: Callable[[JobView], None] = field(default=lambda _job: None)
    silent: Callable[[float], None] = field(default=lambda _seconds: None)
    kept: Callable[[int], None] = field(default=lambda _step: None)
    fetched: Callable[[int, int], None] = field(default=lambda _bytes, _of: None)


class Training:
    """
    One training in its `folder`, on `node`. Belongs to one event loop.

    The stages are methods, in order: `prove`, `commit`, `send`, `start`, `follow`, `collect`. Each
    does what is left to do, so that they can all be called again.
    """

    def __init__(
        self,
        folder: OwnerFolder,
        node: TrainingNode,
        *,
        clock: Clock,
        entropy: Entropy,
        sleeper: Sleeper,
        watcher: Watcher | None = None,
        sizes: PartSizes | None = None,
    ) -> None:
        self.folder = folder
        self.jobs = TrainingJobs(node)
        self._node = node
        self._clock = clock
        self._entropy = entropy
        self._sleeper = sleeper
        self._watcher = watcher or Watcher()
        self._sizes = sizes or PartSizes()

    @property
    def job(self) -> str:
        """The node's id of the job. Raises `ConfigurationError` where there is none yet."""
        if self.folder.state.job is None:
            raise ConfigurationError(f"{self.folder.path}: no job was asked for yet")
        return self.folder.state.job

    async def prove(self) -> Proof:
        """Prove the node; a nonce and a digest are sent. Raises as `HeldNode.current`."""
        return await self._node.prove()

    def commit(self, data: Path, validation: Path | None) -> None:
        """
        Read the rows, all of them, and commit to them. Nothing is sent.

        Raises `RowError` with line and place, `ConfigurationError`.
        """
        folder = self.folder
        apart = None
        if validation is not None:
            apart = self._owned(validation, folder.validation_salt, folder.state.validation)
        owned = self._owned(data, folder.salt, folder.state.data)
        self._keep(replace(folder.state, data=owned, validation=apart))

    def _owned(self, path: Path, salt: bytes, known: OwnedFile | None) -> OwnedFile:
        size, commitment = commit_file(path, salt, self._watcher.read)
        if known is not None and known.commitment == commitment and known.size == size:
            return replace(known, path=path.absolute())
        if known is not None:
            raise ConfigurationError(f"{path} holds other rows than when this training was begun")
        return OwnedFile(path.absolute(), size, commitment)

    async def send(self) -> None:
        """
        Send the rows that the node does not have.

        Raises `NodeRefused`, `Rejected`, `Unavailable`: what was sent need not be sent again.
        """
        state = self.folder.state
        if state.job is not None or state.data is None:
            return
        await self._send("data", state.data, self.folder.salt)
        if state.validation is not None:
            await self._send("validation", state.validation, self.folder.validation_salt)

    async def _send(self, which: str, owned: OwnedFile, salt: bytes) -> None:
        if owned.file is not None and await self._is_there(owned.file):
            return

        def sent(count: int) -> None:
            self._watcher.sent(count, owned.size)

        if owned.size <= self._sizes.whole_bytes:
            file = await send_file(self._node, owned, salt, entropy=self._entropy, on_sent=sent)
        else:
            owned = replace(owned, upload=await find_upload(self._node, owned, salt))
            self._keep(self._with(which, owned))
            file = await send_upload(
                self._node,
                owned,
                owned.upload or "",
                sizes=self._sizes,
                entropy=self._entropy,
                on_sent=sent,
            )
        self._keep(self._with(which, replace(owned, file=file)))

    async def _is_there(self, file: str) -> bool:
        try:
            await self._node.ask("GET", f"/v1/files/{file}")
        except NodeRefused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    def _with(self, which: str, owned: OwnedFile) -> TrainingState:
        state = self.folder.state
        if which == "data":
            return replace(state, data=owned)
        return replace(state, validation=owned)

    async def start(self, *, suffix: str = "") -> JobView:
        """Ask for the job, once: one that was asked for and whose answer was lost is found."""
        state = self.folder.state
        if state.job is not None:
            return await self.jobs.retrieve(state.job)
        job = await self.jobs.find(state.run)
        if job is None:
            brought = await bring_state(
                self._node, self.folder, sizes=self._sizes, entropy=self._entropy
            )
            asked = job_request(self.folder, suffix=suffix, brought=brought)
            job = await self.jobs.create(asked)
        self._keep(replace(state, job=job.id))
        return job

    async def keep(self, job: JobView) -> None:
        """
        Keep what `job` goes on from elsewhere, where there is something newer (§7).

        Raises as `keep_state`.
        """
        kept = kept_state(self.folder)
        known = 0 if kept is None else kept.step
        if job.checkpoint is None or (job.ended and not job.resumable):
            return
        # A pause adds a turn to what is told of the same checkpoint.
        if job.checkpoint > known or job.status in {"paused", "failed"}:
            try:
                stretch = self._sizes.part_bytes
                step = await keep_state(self._node, self.folder, job.id, stretch=stretch)
            except NodeRefused as error:
                if not is_settled(error):
                    raise
            else:
                self._watcher.kept(step)

    async def follow(self) -> JobView:
        """
        Watch the job until it has ended or is paused; a lost connection is made again.

        Raises `Unavailable` where the node is silent for a quarter of an hour, `NodeRefused`
        where it does not know the job, `Rejected` where it is no more what was expected.
        """
        seen: str | None = None
        heard, wait = self._clock.now(), _INTERVAL
        while True:
            try:
                job = await self.jobs.retrieve(self.job)
                for each in await self.jobs.news(self.job, since=seen):
                    seen = each.id
                    self._watcher.news(each)
                await self.keep(job)
            except _LOST as error:
                silent = (self._clock.now() - heard).total_seconds()
                if silent > _PATIENCE_SECONDS:
                    raise Unavailable(
                        f"the training node has not answered for {silent:.0f} seconds"
                    ) from error
                self._watcher.silent(silent)
                await self._sleeper.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            self._watcher.stood(job)
            if job.ended or job.status == "paused":
                return job
            heard, wait = self._clock.now(), _INTERVAL
            await self._sleeper.sleep(_INTERVAL)

    async def collect(self, *, checkpoints: bool = False) -> OpenedResults:
        """
        Fetch, open and verify what the job made; only then it is in `folder.result`.

        The record comes first, and has to hold before anything else is fetched. Raises
        `TrainingRejected`, `SealedFileRejected`, `FormatError`, `Unavailable`; nothing that looks
        like a result is there then.
        """
        job = await self.jobs.retrieve(self.job)
        if job.ended and job.status != "succeeded":
            raise failure_of(job)
        if job.status != "succeeded":
            raise ConfigurationError(
                f"the job is {job.status.replace('_', ' ')}: there are no results yet; "
                f"confide train resume {self.folder.path} stays with it to its end"
            )
        with ReceivedResults(self.folder) as received:
            received.take_record(
                await self._node.read(f"/v1/fine_tuning/jobs/{job.id}/attestation")
            )
            names = received.wanted(checkpoints=checkpoints)
            there = await self._results(job, names)
            if checkpoints:
                names += received.earlier(there)
            total = sum(there[name][1] for name in names)
            # Opened, they are about as large as they are sealed.
            received.require_room(total)
            done = 0
            for name in names:
                file, size = there[name]
                await self._fetch(file, size, received.sink(name), (done, total))
                done += size
            return received.publish()

    async def printed(self) -> Path | None:
        """
        Fetch what the image of a failed job printed; return the folder, None where there is none.

        It is the node's word: no record names it. Raises as `collect`.
        """
        job = await self.jobs.retrieve(self.job)
        there = await self._results(job, ())
        names = [name for name in CONSOLE if name in there]
        for name in names:
            file, size = there[name]
            await self._fetch(file, size, printed_sink(self.folder, name), (0, size))
        return self.folder.path / PRINTED if names else None

    async def _results(self, job: JobView, names: tuple[str, ...]) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for file in job.result_files:
            document = await self._node.ask("GET", f"/v1/files/{file}")
            with words_of_the_node():
                name = document.text("filename", max_chars=256)
                if name in found:
                    document.refuse("two results have one name")
                found[name] = (file, document.integer("bytes"))
        for name in names:
            if name not in found:
                raise missing_result(name)
        return found

    async def _fetch(self, file: str, size: int, sink: ResultSink, told: tuple[int, int]) -> None:
        at = failures = 0
        while at < size:
            last = min(at + _STRETCH, size) - 1
            pieces = self._node.pieces(f"/v1/files/{file}/content", first=at, last=last)
            async with aclosing(pieces):
                while True:
                    try:
                        piece = await anext(pieces, None)
                    except _LOST:
                        failures += 1
                        if failures == _TRIES:
                            raise
                        await self._sleeper.sleep(min(2**failures, _LONGEST_WAIT))
                        break
                    if piece is None:
                        break
                    # Outside: a disk that is full is not a connection that was lost.
                    sink.write(piece)
                    at, failures = at + len(piece), 0
                    self._watcher.fetched(told[0] + at, told[1])
        sink.finish()

    def _keep(self, state: TrainingState) -> None:
        self.folder = self.folder.now_at(state)
