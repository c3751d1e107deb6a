"""The process above a node's workers: keys, evidence, and who is alive. docs/protocols/workers.md.

It booted the node and serves nobody. It forks workers, which inherit the keys; it alone asks the
hardware for evidence and makes new keys; it replaces a worker that died. It forks only while none
of its threads is at work: what such a thread holds locked would stay locked in the worker.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from confide.errors import Reason, Unavailable
from confide.node.forked import Forked, fork_process
from confide.node.ledger_link import SharedStore
from confide.node.pacing import SharedPace
from confide.node.serve import first_of
from confide.node.worker_link import Ask, WorkerLink
from confide.telemetry.metrics import WorkerMetrics
from confide.wire.evidence import encode_evidence_file
from confide.wire.json import Members, jcs, parse_json
from confide.wire.keyset import format_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from confide.node.identity import Identity, NodeIdentity
    from confide.ports import Entropy, TenantStore

__all__ = ["Seat", "WorkerParent"]

# A quote costs the platform tens of milliseconds: more callers wait, they do not pile up.
_MAX_CONCURRENT_EVIDENCE = 4
_TICK_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# A worker that lived that long did not die of its start.
_SETTLED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Seat:
    """
    What a worker gets beside what it inherits: its number, and its end of the link.

    A `draining` one begins no calls.
    """

    number: int
    end: socket.socket
    draining: bool


@dataclass(eq=False, slots=True)
class _Worker:
    number: int
    child: Forked
    link: WorkerLink
    talking: asyncio.Task[None]
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class _Recorded:
    """Randomness, and what was drawn of it."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self.drawn: list[bytes] = []

    def token(self, size: int) -> bytes:
        self.drawn.append(self._entropy.token(size))
        return self.drawn[-1]


class WorkerParent:
    """
    Keeps `count` workers running; each runs `work` and inherits the open files `keep`.

    `store` is the one of keys, which this process asks for all of them; None where there is none.
    `drain_seconds` is how long a worker may take to end once it was told to. `metrics` are the
    numbers of all of them.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        work: Callable[[Seat], None],
        *,
        count: int,
        store: TenantStore | None,
        keep: Sequence[int],
        drain_seconds: float,
    ) -> None:
        self._identity = identity
        self._work = work
        self._count = count
        self._keep = tuple(keep)
        self._drain_seconds = drain_seconds
        self._started = 0
        self._workers: list[_Worker] = []
        self._stopping = self._draining = False
        self.metrics = WorkerMetrics()
        self._pace = SharedPace()
        # A lock of its own: whoever floods the node with requests for evidence stops no calls.
        self._ledger_at_work = asyncio.Lock()
        self._ledger = None if store is None else SharedStore(store, self._ledger_at_work)
        # Held while the keys change, and while a worker begins with those there are.
        self._changing = asyncio.Lock()
        self._threads = asyncio.Semaphore(_MAX_CONCURRENT_EVIDENCE)

    @asynccontextmanager
    async def threads(self) -> AsyncIterator[None]:
        """Work that uses threads of this process is done inside: no fork meanwhile."""
        async with self._threads:
            yield

    async def serve(self, *, idle_seconds: int | None) -> None:
        """Run the workers until SIGTERM or SIGINT, or until all were idle for `idle_seconds`."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        keeping = [asyncio.ensure_future(self._keep_one()) for _ in range(self._count)]
        try:
            await first_of(
                asyncio.ensure_future(_set(stopping)),
                asyncio.ensure_future(self._keep_keys()),
                asyncio.ensure_future(self._until_idle(idle_seconds)),
                asyncio.ensure_future(_failure(keeping)),
            )
        finally:
            await self._stop(keeping)

    async def drain(self) -> None:
        """Have every worker begin no more calls; those that come later as well."""
        self._draining = True
        for worker in tuple(self._workers):
            try:
                await self._ask(worker, Ask.DRAIN)
            except Unavailable:
                worker.child.send(signal.SIGKILL)

    async def rotate(self) -> None:
        """
        Make new keys: first every worker opens requests with them, then evidence names them.

        A worker that does not take them is ended: its successor begins with them.
        """
        async with self._changing:
            identity, entropy = self._identity, _Recorded(self._identity.entropy)
            made = identity.clock.now().replace(microsecond=0)
            following = identity.propose(made, entropy)
            drawn = [token.hex() for token in entropy.drawn]
            message = jcs({"made": format_time(made), "drawn": list(drawn)})
            workers = tuple(self._workers)
            answers = await asyncio.gather(
                *(self._ask(worker, Ask.KEYS, message) for worker in workers),
                return_exceptions=True,
            )
            for worker, answer in zip(workers, answers, strict=True):
                if answer != following.keys.keyset.digest:
                    worker.child.send(signal.SIGKILL)
                    await worker.ended.wait()
            identity.adopt(following)

    # --- processes --------------------------------------------------------------------------------

    async def _keep_one(self) -> None:
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        while not self._stopping:
            began = loop.time()
            worker = await self._start()
            await worker.ended.wait()
            # What it said before it ended is heard: the link ends by itself then.
            await asyncio.wait({worker.talking})
            self._forget(worker)
            if loop.time() - began > _SETTLED_SECONDS:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _start(self) -> _Worker:
        async with self._changing, self._no_thread_at_work():
            ours, theirs = socket.socketpair()
            seat = Seat(self._started, theirs, self._draining)
            self._started += 1
            with theirs:
                child = fork_process(lambda: self._work(seat), keep=(theirs.fileno(), *self._keep))
            ours.setblocking(False)  # noqa: FBT003 - the name of the method says it
            link = WorkerLink(partial(self._answer, seat.number))
            talking = asyncio.ensure_future(link.run(ours))
            worker = _Worker(seat.number, child, link, talking)
            asyncio.get_running_loop().add_reader(child.handle, worker.ended.set)
            self._workers.append(worker)
            return worker

    @asynccontextmanager
    async def _no_thread_at_work(self) -> AsyncIterator[None]:
        for _ in range(_MAX_CONCURRENT_EVIDENCE):
            await self._threads.acquire()
        try:
            async with self._ledger_at_work:
                yield
        finally:
            for _ in range(_MAX_CONCURRENT_EVIDENCE):
                self._threads.release()

    def _forget(self, worker: _Worker) -> None:
        asyncio.get_running_loop().remove_reader(worker.child.handle)
        worker.child.collect()
        worker.talking.cancel()
        self._workers.remove(worker)
        self._pace.end(worker.number)
        self.metrics.end(worker.number)

    async def _stop(self, keeping: Sequence[asyncio.Task[None]]) -> None:
        self._stopping = True
        for worker in self._workers:
            worker.child.send(signal.SIGTERM)
        # Runs in progress still ask for evidence: the links stay open meanwhile.
        ending = [asyncio.ensure_future(worker.ended.wait()) for worker in self._workers]
        if ending:
            await asyncio.wait(ending, timeout=self._drain_seconds)
        for worker in self._workers:
            worker.child.send(signal.SIGKILL)
        for task in (*ending, *keeping):
            task.cancel()
        await asyncio.gather(*keeping, *ending, return_exceptions=True)
        for worker in tuple(self._workers):
            self._forget(worker)

    # --- time -------------------------------------------------------------------------------------

    async def _keep_keys(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            if self._identity.due:
                await self.rotate()
            self._identity.tick()

    async def _until_idle(self, limit: int | None) -> None:
        left = float("inf") if limit is None else float(limit)
        while left > 0:
            await asyncio.sleep(min(left, 3600.0))
            if limit is not None:
                left = limit - await self._idle_seconds()

    async def _idle_seconds(self) -> float:
        answers = await asyncio.gather(
            *(self._ask(worker, Ask.IDLE) for worker in self._workers), return_exceptions=True
        )
        # Whoever does not answer may be at work.
        spans = [int(a) / 1000 if isinstance(a, bytes) else 0.0 for a in answers]
        return min(spans, default=0.0)

    # --- asked by workers -------------------------------------------------------------------------

    async def _ask(self, worker: _Worker, kind: Ask, payload: bytes = b"") -> bytes:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await worker.link.ask(kind, payload)
        except TimeoutError as error:
            raise Unavailable("a worker does not answer") from error

    async def _answer(self, worker: int, kind: Ask, payload: bytes) -> bytes:
        match kind:
            case Ask.EVIDENCE:
                return await self._evidence(payload)
            case Ask.RECEIPT:
                return await self._receipt(payload)
            case Ask.LEDGER if self._ledger is not None:
                return await self._ledger.answer(payload)
            # These do not wait for anything, so they happen in the order they were asked.
            case Ask.PACE:
                return self._pace.take(worker, payload, asyncio.get_running_loop().time())
            case Ask.LEAVE:
                return self._pace.leave(worker, payload)
            case Ask.COUNTS:
                self.metrics.take(worker, payload)
                return b""
            case _:
                raise Unavailable("a worker does not ask for that")

    async def _evidence(self, payload: bytes) -> bytes:
        value = parse_json(payload, what="statement", reason=Reason.STATEMENT_MISMATCH)
        members = Members(value, what="statement", reason=Reason.STATEMENT_MISMATCH)
        claim = None if members.null("claim") else members.hexes("claim", 32)
        async with self.threads():
            bundle = await self._spoken_for(members.hexes("keyset", 32)).attester.attest(
                purpose=members.choice("purpose", ("channel", "claim")),
                nonce=members.hexes("nonce", 32),
                expectation=members.hexes("expectation", 32),
                claim=claim,
            )
        return encode_evidence_file(bundle)

    def _spoken_for(self, keyset: bytes) -> Identity:
        for known in self._identity.known():
            if known.keys.keyset.digest == keyset:
                return known
        # A worker was told of keys that are not current yet: there is no evidence for them.
        return self._identity.current

    async def _receipt(self, payload: bytes) -> bytes:
        for worker in tuple(self._workers):
            try:
                if found := await self._ask(worker, Ask.RECEIPT, payload):
                    return found
            except Unavailable:
                continue
        return b""


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _failure(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Return or raise as the first of `tasks` does; they go on."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
