"""Batches, witnesses, publication: the two loops of a running log. log.md §8.1, §8.3.

One loop commits: whatever came in during the window, or while the last batch was written, goes to
the disk as one batch. The other shows the newest head to the witnesses and publishes it when their
quorum cosigned. Entries are acknowledged by the first and final by the second.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from confide.crypto.cosign import verify_note_signature
from confide.crypto.errors import BadSignature
from confide.errors import (
    ConfideError,
    LogRejected,
    Reason,
    RemoteProtocolError,
    Unavailable,
)
from confide.rats import Finding, Status
from confide.tlog.verify import verify_head
from confide.wire.checkpoint import SignedCheckpoint
from confide.wire.witness import AddCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confide.node.log_keeper import LogKeeper
    from confide.ports import Clock, Witness
    from confide.tlog.log import Growth
    from confide.wire.note import NoteSignature
    from confide.wire.tlog_policy import LogPolicy

__all__ = ["LogWriter", "WriterLimits"]

T = TypeVar("T")

# A witness is asked again at once when it names another size, and no more often than this.
_MAX_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """
    How long a batch waits, how much may wait, when a witness counts as gone.

    `window_seconds` is at most 0.2 (8.1). An idle log has its head cosigned anew after
    `refresh_seconds` (7.1).
    """

    window_seconds: float = 0.02
    max_waiting: int = 65_536
    max_batch: int = 16_384
    witness_seconds: float = 5.0
    retry_seconds: float = 1.0
    refresh_seconds: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.window_seconds <= 0.2:
            raise ValueError("a batch waits at most 200 ms")


@dataclass(slots=True)
class _Waiting:
    entries: tuple[bytes, ...]
    since: float
    placed: asyncio.Future[int]


@dataclass(slots=True)
class _Link:
    """One witness and the size it is believed to have cosigned last."""

    witness: Witness
    size: int = 0


def _silently(_line: str) -> None:
    """Tell nobody."""


class LogWriter:
    """A running log; `run` has to run."""

    def __init__(
        self,
        keeper: LogKeeper,
        *,
        witnesses: Sequence[Witness],
        policy: LogPolicy,
        clock: Clock,
        limits: WriterLimits | None = None,
        report: Callable[[str], None] = _silently,
    ) -> None:
        """`report` is told, once for each change, which witnesses do not cosign and why."""
        self._keeper = keeper
        self._links = [_Link(witness) for witness in witnesses]
        self._policy = policy
        self._clock = clock
        self._limits = limits or WriterLimits()
        self._queue: list[_Waiting] = []
        self._waiting = 0
        self._work = asyncio.Event()
        self._grown = asyncio.Event()
        self._published = keeper.published()
        self._finals: dict[asyncio.Future[SignedCheckpoint], int] = {}
        self._ended: ConfideError | None = None
        self._report = report
        self._trouble: tuple[str, ...] = ()

    @property
    def published(self) -> SignedCheckpoint | None:
        """The public checkpoint, None where there is none yet."""
        return self._published

    async def add(self, entries: tuple[bytes, ...]) -> int:
        """
        Append `entries` in a row; return the index of the first once all are durable.

        Raises `Unavailable` when too many wait or the log ended.
        """
        if self._ended is not None:
            raise Unavailable("the log ended; start it again") from self._ended
        if self._waiting + len(entries) > self._limits.max_waiting:
            raise Unavailable("too many entries wait; try again in a moment")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(entries, loop.time(), loop.create_future())
        self._queue.append(waiting)
        self._waiting += len(entries)
        self._work.set()
        return await waiting.placed

    async def final(self, size: int, *, timeout_seconds: float) -> SignedCheckpoint | None:
        """Return a public checkpoint of at least `size` leaves; None when that takes longer."""
        if self._published is not None and self._published.head.size >= size:
            return self._published
        future: asyncio.Future[SignedCheckpoint] = asyncio.get_running_loop().create_future()
        self._finals[future] = size
        try:
            async with asyncio.timeout(timeout_seconds):
                return await future
        except TimeoutError:
            return None
        finally:
            self._finals.pop(future, None)

    async def run(self) -> None:
        """
        Commit and publish until cancelled.

        Raises what ended it: `Unavailable` for a write that failed, `LogRejected` where a tile is
        corrupt or a witness saw a larger head than the one this log starts with.
        """
        commits, publishes = (
            asyncio.ensure_future(self._commit_loop()),
            asyncio.ensure_future(self._publish_loop()),
        )
        try:
            done, _ = await asyncio.wait({commits, publishes}, return_when="FIRST_COMPLETED")
            for task in done:
                task.result()
        except ConfideError as error:
            self._end(error)
            raise
        finally:
            for task in (commits, publishes):
                task.cancel()
            await asyncio.gather(commits, publishes, return_exceptions=True)
            self._end(Unavailable("the log was stopped"))

    def _end(self, error: ConfideError) -> None:
        self._ended = self._ended or error
        for waiting in self._queue:
            if not waiting.placed.done():
                waiting.placed.set_exception(Unavailable("the log ended before this entry"))
        self._queue.clear()

    async def _commit_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            left = self._queue[0].since + self._limits.window_seconds - loop.time()
            if left > 0 and self._waiting < self._limits.max_batch:
                await asyncio.sleep(left)
            batch = self._take()
            entries = [entry for waiting in batch for entry in waiting.entries]
            work = asyncio.ensure_future(asyncio.to_thread(self._keeper.append, entries))
            try:
                await _to_its_end(work)
            finally:
                self._resolve(batch, work)

    def _resolve(self, batch: list[_Waiting], work: asyncio.Future[Growth]) -> None:
        """Tell everyone in `batch` what became of it, also where the log is being stopped."""
        if work.cancelled() or work.exception() is not None:
            for waiting in batch:
                if not waiting.placed.done():
                    waiting.placed.set_exception(Unavailable("the entry is not durable"))
            return
        growth = work.result()
        self._keeper.remember(growth)
        index = growth.first
        for waiting in batch:
            if not waiting.placed.done():
                waiting.placed.set_result(index)
            index += len(waiting.entries)
        self._grown.set()

    def _take(self) -> list[_Waiting]:
        """Take whole requests up to the size of a batch; at least one."""
        count = taken = 0
        for waiting in self._queue:
            if taken and count + len(waiting.entries) > self._limits.max_batch:
                break
            count += len(waiting.entries)
            taken += 1
        batch, self._queue = self._queue[:taken], self._queue[taken:]
        self._waiting -= count
        if not self._queue:
            self._work.clear()
        return batch

    async def _publish_loop(self) -> None:
        # First of all, what is there already: a witness that saw more knows of a rollback.
        self._grown.set()
        starting = True
        while True:
            reached = await self._publish(starting=starting)
            starting = False
            pause = self._limits.refresh_seconds if reached else self._limits.retry_seconds
            # Not `wait_for`: before Python 3.12 it may swallow the cancellation that ends this.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._grown.wait()

    async def _publish(self, *, starting: bool) -> bool:
        self._grown.clear()
        head = self._keeper.head
        lines, trouble = await self._cosignatures(head, starting=starting)
        signed = SignedCheckpoint(head.note.with_signatures(lines), head.head)
        try:
            verify_head(signed, policy=self._policy, now=self._clock.now())
        except LogRejected as error:
            self._tell((*trouble, str(error)))
            return False
        self._tell(trouble)
        await _to_its_end(asyncio.ensure_future(asyncio.to_thread(self._keeper.publish, signed)))
        self._published = signed
        for future, wanted in self._finals.items():
            if wanted <= signed.head.size and not future.done():
                future.set_result(signed)
        return True

    async def _cosignatures(
        self, head: SignedCheckpoint, *, starting: bool
    ) -> tuple[tuple[NoteSignature, ...], tuple[str, ...]]:
        """Return the lines of the witnesses that cosigned, and what kept the others."""
        tasks = [self._ask(link, head, starting=starting) for link in self._links]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        trouble: list[str] = []
        lines: list[NoteSignature] = []
        for link, each in zip(self._links, found, strict=True):
            if isinstance(each, LogRejected):
                raise each
            if isinstance(each, ConfideError | TimeoutError):
                trouble.append(f"{link.witness.key.name}: {str(each) or 'no answer in time'}")
            elif isinstance(each, BaseException):
                raise each
            else:
                lines.extend(each)
        return tuple(lines), tuple(trouble)

    def _tell(self, trouble: tuple[str, ...]) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._report("; ".join(trouble) or "every witness cosigns")

    async def _ask(
        self, link: _Link, head: SignedCheckpoint, *, starting: bool
    ) -> list[NoteSignature]:
        size = head.head.size
        for _ in range(_MAX_TRIES):
            proof = self._keeper.consistency(link.size, head)
            request = AddCheckpoint(link.size, proof, head)
            async with asyncio.timeout(self._limits.witness_seconds):
                reply = await link.witness.add_checkpoint(request)
            if reply.size is None:
                lines = self._valid(link.witness, reply.signatures, head)
                link.size = size
                return lines
            if reply.size > size and starting:
                raise _rolled_back(link.witness.key.name, size, reply.size)
            if reply.size == link.size or reply.size > size:
                raise RemoteProtocolError("it knows another head of this size, or a larger one")
            link.size = reply.size
        raise RemoteProtocolError("it keeps naming other sizes")

    def _valid(
        self, witness: Witness, lines: Sequence[NoteSignature], head: SignedCheckpoint
    ) -> list[NoteSignature]:
        """Return the one line of the witness's key; others are ignored (tlog-witness)."""
        key = witness.key
        mine = [each for each in lines if (each.name, each.key_id) == (key.name, key.key_id)]
        if len(mine) != 1:
            raise RemoteProtocolError("not one line of its key")
        try:
            seconds = verify_note_signature(key, mine[0], head)
        except BadSignature as error:
            raise RemoteProtocolError("its cosignature does not verify") from error
        limit = self._clock.now() + timedelta(seconds=300)
        if seconds is None or seconds > limit.timestamp():
            raise RemoteProtocolError("its cosignature is of a time to come")
        return mine


async def _to_its_end(work: asyncio.Future[T]) -> T:
    """Wait for a thread that writes, even when cancelled: the lock is given back after it."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


def _rolled_back(name: str, size: int, seen: int) -> LogRejected:
    detail = f"{size} entries here; the witness cosigned {seen}"
    clause = "docs/protocols/log.md#3.6"
    return LogRejected(
        (Finding(Status.FAIL, "log-store/3", clause, name, detail, Reason.TLOG_ROLLBACK),)
    )
