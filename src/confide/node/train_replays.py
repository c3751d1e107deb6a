"""Replays of trainings from anywhere, executed on this node: asked for, queued, signed.

docs/protocols/training-record.md 7.8. Belongs to the event loop; what blocks has threads, and
processes start in the one thread that jobs have too. What an owner sends is held together before
anything is executed; what is signed is verified first as its owner will do it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from starlette.responses import JSONResponse, Response

from confide.adapters.crash import say_crash
from confide.errors import ConfideError, Overloaded, Rejected
from confide.inference.plan import refuse
from confide.node.train_entry import error_of, seconds_of
from confide.node.train_proof import prove_met
from confide.node.train_replay_case import find_files, hold_case
from confide.node.train_replay_work import ReplayFailed, ReplayWork
from confide.training.job_request import JobRefused
from confide.training.jobs import JobError
from confide.training.replay_request import parse_replay_request
from confide.training.replay_result import ReplayFile, ReplayResult
from confide.training.replay_verify import Asked, verify_replay
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from starlette.requests import Request

    from confide.expectation import Expectation
    from confide.node.train_entry import TrainPorts
    from confide.node.train_replay_work import ReplayCase
    from confide.training.replay import Replay
    from confide.training.replay_request import ReplayRequest
    from confide.wire.json import JsonValue

__all__ = ["TrainReplays"]

_ROUTE: Final = "/v1/fine_tuning/replays"
_JSON: Final = "application/json"
# From: docs/protocols/training-record.md 7.9. A queued replay holds its log in memory.
_MAX_QUEUED: Final = 4
_MAX_KEPT: Final = 32
_MAX_BODY_BYTES: Final = 1 << 20
_RETRY_SECONDS: Final = 30
_ENDS: Final = frozenset({"succeeded", "failed", "cancelled"})
_Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(slots=True)
class _Entry:
    """One replay; `case` and `work` are there until its end."""

    id: str
    owner: str
    request: ReplayRequest
    expectation: Expectation
    machine: bytes
    case: ReplayCase | None = field(repr=False)
    created: int
    steps: int
    finished: int | None = None
    status: _Status = "queued"
    work: ReplayWork | None = None
    executed: int = 0
    error: JobError | None = None
    result: bytes = field(default=b"", repr=False)

    def end(self, status: _Status, now: int, error: JobError | None = None) -> None:
        """Come to an end, once: the owner's key is forgotten."""
        if self.status in _ENDS:
            return
        if self.work is not None:
            self.executed = self.work.executed
        self.status, self.finished, self.error = status, now, error
        self.case = self.work = None

    def value(self) -> dict[str, JsonValue]:
        """Return what its owner sees: numbers of steps, and why it failed."""
        return {
            "object": "fine_tuning.replay",
            "id": self.id,
            "created_at": self.created,
            "finished_at": self.finished,
            "status": self.status,
            "steps": self.steps,
            "executed": self.executed if self.work is None else self.work.executed,
            "error": None if self.error is None else self.error.value(),
        }


class TrainReplays:
    """Every replay of this node. `start` before use, `close` at the end."""

    def __init__(self, ports: TrainPorts, pool: Executor) -> None:
        """Take the one thread of training processes as `pool`: jobs and replays take turns."""
        self._ports = ports
        self._pool = pool
        self._entries: dict[str, _Entry] = {}
        self._queue: deque[_Entry] = deque()
        self._nonces: set[bytes] = set()
        self._wake = asyncio.Event()
        self._working: _Entry | None = None
        self._asking = 0
        self._draining = False
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a replay is at work, or will be."""
        return self._working is not None or bool(self._queue) or self._asking > 0

    def start(self) -> None:
        """Begin to take replays from the queue."""
        self._task = asyncio.ensure_future(self._serve())

    def drain(self) -> None:
        """Take no more, and end those that are here: they can be asked for elsewhere."""
        self._draining = True
        stopped = JobError("stopped", "The node is about to stop; ask another.")
        for entry in [*self._queue, *([self._working] if self._working else [])]:
            self._stop(entry, "failed", stopped)
        self._queue.clear()

    async def close(self) -> None:
        """End what runs. The thread of the processes is not its own: it may still have to rest."""
        self.drain()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def routes(self) -> list[tuple[str, str, Callable[[Request, str], Awaitable[Response]]]]:
        """Return path, method and handler of every route (7.9)."""
        one = f"{_ROUTE}/{{id}}"
        return [
            (_ROUTE, "POST", self._create),
            (one, "GET", self._retrieve),
            (f"{one}/cancel", "POST", self._cancel),
            (f"{one}/result", "GET", self._result),
        ]

    # --- the routes -------------------------------------------------------------------------------

    async def _create(self, request: Request, owner: str) -> Response:
        raw = bytearray()
        async for piece in request.stream():
            raw += piece
            if len(raw) > _MAX_BODY_BYTES:
                refuse("request_too_large", "The request is above 1 MiB.", status=413)
        return JSONResponse((await self._take(owner, bytes(raw))).value())

    async def _retrieve(self, request: Request, owner: str) -> Response:
        return JSONResponse(self._find(request, owner).value())

    async def _cancel(self, request: Request, owner: str) -> Response:
        entry = self._find(request, owner)
        if entry.status in _ENDS:
            refuse("invalid_status", f"A replay that is {entry.status} cannot be cancelled.")
        with suppress(ValueError):
            self._queue.remove(entry)
        self._stop(entry, "cancelled")
        return JSONResponse(entry.value())

    async def _result(self, request: Request, owner: str) -> Response:
        entry = self._find(request, owner)
        if not entry.result:
            what = f"The replay is {entry.status}: it has no result."
            refuse("no_result", what, status=404)
        return Response(entry.result, media_type=_JSON)

    def _find(self, request: Request, owner: str) -> _Entry:
        entry = self._entries.get(request.path_params["id"])
        if entry is None or entry.owner != owner:
            refuse("not_found", "No such replay.", param="id", status=404)
        return entry

    # --- within -----------------------------------------------------------------------------------

    async def _take(self, owner: str, raw: bytes) -> _Entry:
        """Take a replay, if everything about it is right (7.9). Raises as `TrainJobs.create`."""
        ports, request = self._ports, parse_replay_request(raw)
        if self._draining:
            raise Overloaded("draining", retry_after=_RETRY_SECONDS, draining=True)
        if len(self._queue) + self._asking >= _MAX_QUEUED:
            raise Overloaded("the queue is full", retry_after=_RETRY_SECONDS, status_hint=429)
        if request.nonce in self._nonces:
            what = "nonce: used before; draw 32 new random bytes"
            raise JobRefused(what, param="nonce", code="nonce_used")
        files = find_files(ports.files.table, owner, request)
        # Taken before giving way: the same request may come twice in a moment.
        self._nonces.add(request.nonce)
        self._asking += 1
        try:
            expectation, machine = await prove_met(
                request.expectation, ports.node, param="expectation"
            )
            case = await asyncio.to_thread(hold_case, ports, request, files, machine)
        except BaseException:
            self._nonces.discard(request.nonce)
            raise
        finally:
            self._asking -= 1
        entry = _Entry(
            f"ftreplay-{ports.entropy.token(16).hex()}",
            owner,
            request,
            expectation,
            machine,
            case,
            created=seconds_of(ports.clock),
            steps=sum(each.last - each.first + 1 for each in case.begin().windows),
        )
        self._forget_oldest()
        self._entries[entry.id] = entry
        self._queue.append(entry)
        self._wake.set()
        return entry

    def _forget_oldest(self) -> None:
        if len(self._entries) < _MAX_KEPT:
            return
        # As many as are kept never wait.
        ended = next(each for each in self._entries.values() if each.status in _ENDS)
        del self._entries[ended.id]

    def _stop(self, entry: _Entry, status: _Status, error: JobError | None = None) -> None:
        if entry.work is not None:
            entry.work.stop()
        entry.end(status, seconds_of(self._ports.clock), error)

    async def _serve(self) -> None:
        while True:
            await self._wake.wait()
            if not self._queue or self._draining:
                self._wake.clear()
                continue
            self._working = entry = self._queue.popleft()
            try:
                await self._work(entry)
            finally:
                self._working = None

    async def _work(self, entry: _Entry) -> None:
        """Execute, and sign what was found; whatever breaks, the replay comes to an end."""
        ports, case = self._ports, entry.case
        if case is None:  # pragma: no cover - who has ended is in no queue
            return
        work = entry.work = ReplayWork(ports, case, ports.checkpoints / entry.id)
        loop = asyncio.get_running_loop()

        def run() -> Replay:
            loop.call_soon_threadsafe(_begun, entry)
            return work.run()

        try:
            replay = await loop.run_in_executor(self._pool, run)
            raw = await self._conclude(entry, case, work, replay)
            # It may have been cancelled meanwhile.
            entry.result = raw if entry.status == "running" else b""
            entry.end("succeeded", seconds_of(ports.clock))
        except ReplayFailed as error:
            entry.end("failed", seconds_of(ports.clock), error.error)
        except Exception as error:  # noqa: BLE001 - somebody's replay, whatever broke
            if not isinstance(error, ConfideError):
                say_crash(error)
            entry.end("failed", seconds_of(ports.clock), _told(error))

    async def _conclude(
        self, entry: _Entry, case: ReplayCase, work: ReplayWork, replay: Replay
    ) -> bytes:
        """Sign and quote what was found, and verify it as its owner will (7.12)."""
        node, request, record = self._ports.node, entry.request, case.audited.record
        node.identity.tick()
        speaker = node.identity.current
        keys = speaker.keys
        result = ReplayResult(
            record=record.digest,
            nonce=request.nonce,
            keyset=keys.keyset.digest,
            expectation=entry.expectation.digest,
            software=keys.keyset.software,
            plan=record.record.plan.digest,
            base=node.weights,
            head=record.record.head,
            challenge=request.challenge,
            note=request.note,
            sample=case.sample,
            tolerance=case.tolerance,
            windows=tuple((each.first, each.last) for each in replay.windows),
            executed=replay.executed,
            states=replay.states,
            divergence=replay.divergence,
            located=replay.located,
            made=work.made,
            environment=work.environment,
            machine=entry.machine,
            same_machine=entry.machine in record.machines,
            at=node.identity.clock.now().replace(microsecond=0),
        )
        envelope = keys.signer.seal(result.payload())
        evidence = await speaker.attester.attest(
            purpose="claim",
            nonce=request.nonce,
            expectation=entry.expectation.digest,
            claim=envelope.digest,
        )
        roots = encode_roots_file(node.roots) if node.roots.simulated else b""
        file = ReplayFile(entry.expectation.canonical(), envelope, evidence, roots)
        await asyncio.to_thread(
            verify_replay,
            file,
            roots=node.roots,
            now=None,
            expectation=entry.expectation,
            record=None,
            asked=Asked(request.nonce, case.sample, case.tolerance, case.audited, case.ended),
        )
        return file.encode()


def _begun(entry: _Entry) -> None:
    if entry.status == "queued":
        entry.status = "running"


def _told(error: Exception) -> JobError:
    if isinstance(error, Rejected):
        first = error.failures[0]
        what = f"This node does not prove itself now: {first.step}: {first.detail}."
        return JobError("evidence_rejected", what)
    return error_of(error)
