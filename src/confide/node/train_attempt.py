"""One attempt at a job: one training process, listened to by the thread that started it.

docs/protocols/training-node.md 1.2, §4; training.md §10. The process is a port: whoever speaks its
frames will do. A thread of its own runs `Attempt.run`; `pause` and `stop` come from elsewhere.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self, TypeAlias

from confide.errors import ConfideError, Reason, RemoteProtocolError, Unavailable
from confide.trainer.frames import Frame, read_json
from confide.trainer.reports import read_evaluation, read_step
from confide.training.checkpoints import parse_checkpoint_entry
from confide.training.job import EvaluatedStep
from confide.training.plan import parse_plan
from confide.training.record import environment_texts
from confide.wire.json import JsonValue, Members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from confide.node.train_results import Results
    from confide.ports import Entropy
    from confide.trainer.order_form import OrderForm
    from confide.trainer.reports import Progress
    from confide.training.account import Account
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.job import TrainingJob
    from confide.training.plan import TrainingPlan
    from confide.training.steplog import LoggedStep

__all__ = [
    "Attempt",
    "Ended",
    "Listener",
    "Order",
    "Prepared",
    "TrainingRun",
    "read_ended",
    "read_failed",
    "read_prepared",
]

_REASON: Final = Reason.TRAINING_FORMAT
_How: TypeAlias = Literal["finished", "paused", "stopped", "killed", "failed"]


class TrainingRun(Protocol):
    """A training process from outside, as `trainer.process.TrainingProcess` is one."""

    def begin(self, job: TrainingJob, *, key: bytes, session: bytes) -> None:
        """Hand over the job. Raises `Unavailable` where the process is gone."""
        ...

    def go(self) -> None:
        """Let the first step begin."""
        ...

    def pause(self) -> None:
        """Ask for a checkpoint and an end."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def frames(self) -> Iterator[tuple[Frame, bytes]]:
        """Yield what it tells; `Unavailable` where it ends without a last word."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a process says before its first step."""

    plan: TrainingPlan
    steps: int
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ended:
    """
    How an attempt ended, and what a process said with its last word.

    `failed`: the process told `code` and `message`, and whether the job can be resumed.
    """

    how: _How
    chain: bytes = b""
    epsilon: float | None = None
    code: str = ""
    message: str = ""
    resumable: bool = False


class Listener(Protocol):
    """Who is told of an attempt, in its thread. What it raises ends the attempt."""

    def prepared(self, said: Prepared) -> Account:
        """Prove the boot, and return what the job's account is from here."""
        ...

    def step(self, logged: LoggedStep, progress: Progress) -> None:
        """A step was done."""
        ...

    def evaluation(self, found: EvaluatedStep) -> None:
        """The model was judged on the way."""
        ...

    def checkpoint(self, entry: CheckpointEntry) -> None:
        """A checkpoint is durable."""
        ...


@dataclass(frozen=True, slots=True)
class Order:
    """
    What an attempt is about: how to say it to the process, and how to read the rows.

    `read` gives the job with its rows; it blocks, and raises what is wrong with them.
    """

    form: OrderForm
    read: Callable[[], TrainingJob]
    key: bytes


class Attempt:
    """One process from its start to its end. Not to be used again."""

    def __init__(
        self,
        order: Order,
        results: Results,
        listener: Listener,
        *,
        start: Callable[[OrderForm], TrainingRun],
        entropy: Entropy,
    ) -> None:
        self._order = order
        self._results = results
        self._listener = listener
        self._start = start
        self._entropy = entropy
        self._lock = threading.Lock()
        self._run: TrainingRun | None = None
        self._going = self._paused = self._stopped = False
        self._account: Account | None = None

    def pause(self) -> None:
        """Ask for a checkpoint and an end; before the first step there is nothing to keep."""
        with self._lock:
            self._paused = True
            # Commands are frames of the pipe that the job goes through: not before that is done.
            if self._run is not None and self._going:
                self._run.pause()

    def stop(self) -> None:
        """End the process at once."""
        with self._lock:
            self._stopped = True
            if self._run is not None:
                self._run.kill()

    def run(self) -> Ended:
        """
        Follow the process to its end. Blocks.

        Raises the `ConfideError` of whatever is not the process: rows, disk, evidence.
        """
        try:
            ended = self._follow()
        except ConfideError:
            self._results.abort()
            if self._stopped:
                return Ended("stopped")
            raise
        except BaseException:
            self._results.abort()
            raise
        if ended.how != "finished":
            self._results.abort()
        return Ended("stopped") if self._stopped else ended

    def _follow(self) -> Ended:
        job = self._order.read()
        with self._start(self._order.form) as run:
            with self._lock:
                self._run = run
                if self._stopped:
                    return Ended("stopped")
            try:
                run.begin(job, key=self._order.key, session=self._entropy.token(32))
            except Unavailable:
                return Ended("killed")
            del job  # The process has the rows now.
            frames = run.frames()
            while True:
                try:
                    kind, payload = next(frames)
                except (Unavailable, StopIteration):
                    return Ended("killed")
                ended = self._hear(run, kind, payload)
                if ended is not None:
                    return ended

    def _hear(self, run: TrainingRun, kind: Frame, payload: bytes) -> Ended | None:
        if kind is Frame.DATA:
            self._results.data(payload)
            return None
        if kind is Frame.FILE:
            self._results.file(read_json(payload))
            return None
        if kind is Frame.PREPARED:
            return self._prepared(run, read_json(payload))
        if kind is Frame.ENDED:
            self._results.end_outputs()
            return read_ended(read_json(payload))
        if kind is Frame.FAILED:
            return read_failed(read_json(payload))
        account = self._account
        if account is None:
            raise RemoteProtocolError("a step before the process was prepared")
        if kind is Frame.STEP:
            logged, progress = read_step(read_json(payload))
            account.step(logged)
            self._listener.step(logged, progress)
        elif kind is Frame.CHECKPOINT:
            entry = parse_checkpoint_entry(read_json(payload))
            account.checkpoint(entry)
            self._listener.checkpoint(entry)
        elif kind is Frame.EVALUATION:
            self._evaluated(account, read_json(payload))
        else:
            raise RemoteProtocolError("a frame that no process sends")
        return None

    def _evaluated(self, account: Account, value: JsonValue) -> None:
        found = read_evaluation(value)
        if isinstance(found, EvaluatedStep):
            account.judged(found)
            self._listener.evaluation(found)
        else:
            name, evaluation = found
            account.evaluations[name] = evaluation

    def _prepared(self, run: TrainingRun, value: JsonValue) -> Ended | None:
        if self._account is not None:
            raise RemoteProtocolError("the process was prepared twice")
        said = read_prepared(value)
        self._account = self._listener.prepared(said)
        with self._lock:
            if self._paused:
                return Ended("paused")
            run.go()
            self._going = True
        return None


def read_prepared(value: JsonValue) -> Prepared:
    """Read the payload of a PREPARED frame. Raises `FormatError`."""
    members = Members(value, what="prepared training", reason=_REASON)
    said = Prepared(
        parse_plan(members.value("plan")),
        members.integer("steps", low=1),
        _environment(members),
    )
    members.integer("held_out")
    members.end()
    return said


def _environment(members: Members) -> dict[str, str]:
    value = members.value("environment")
    if not isinstance(value, dict):
        members.refuse("environment is not an object")
    return environment_texts(value)


def read_ended(value: JsonValue) -> Ended:
    """Read the payload of an ENDED frame. Raises `FormatError`."""
    members = Members(value, what="end of a training", reason=_REASON)
    # This node kills and never cancels: a process that does so by itself lost its way.
    hows: Mapping[str, _How] = {"finished": "finished", "paused": "paused", "cancelled": "killed"}
    outcome = members.choice("outcome", tuple(hows))
    members.integer("step")
    chain = members.hexes("chain", 32)
    epsilon = None if members.null("epsilon") else members.number("epsilon")
    members.end()
    return Ended(hows[outcome], chain, epsilon)


def read_failed(value: JsonValue) -> Ended:
    """Read the payload of a FAILED frame. Raises `FormatError`."""
    members = Members(value, what="failure of a training", reason=_REASON)
    ended = Ended(
        "failed",
        code=members.text("code", max_chars=64),
        message=members.text("message"),
        resumable=members.boolean("resumable"),
    )
    members.end()
    return ended
