"""The ranks of one machine, as one run: start them, link them, hear of the first.

docs/protocols/training-ranks.md §2 and §3. Imports no torch, like `TrainingProcess`. Where one rank
ends all do; what the run is told of then is the reason, not the echo.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from confide.errors import Unavailable
from confide.trainer.frames import Frame, read_json
from confide.trainer.order_form import Place
from confide.trainer.process import TrainingProcess
from confide.trainer.reports import LINK_ENDED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from confide.trainer.order_form import OrderForm, Via
    from confide.training.job import TrainingJob

__all__ = ["TrainingGroup", "start_ranks", "start_seat"]

_NO_KEY = bytes(32)


class TrainingGroup:
    """
    The processes of `ranks` for one run, with the face of a `TrainingProcess`.

    Either all ranks of the job, or those of one seat: then `outer` are its links, from the rank
    before the first and to the one after the last; they are closed here. A context manager:
    leaving it kills all.
    """

    def __init__(
        self,
        form: OrderForm,
        *,
        ranks: range,
        via: Via = "sockets",
        outer: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:
        """Start them. The thread that does so has to live as long as the run."""
        if form.world < 2 or not ranks or (outer is None) != (ranks == range(form.world)):
            raise ValueError("either all ranks of several, or some of them with links outwards")
        if outer is not None and via != "sockets":
            raise ValueError("between machines, ranks are linked by sockets")
        self._stack = ExitStack()
        self._processes: list[TrainingProcess] = []
        try:
            self._start(form, ranks, via, outer)
        except BaseException:
            self._stack.close()
            raise

    def _start(
        self,
        form: OrderForm,
        ranks: range,
        via: Via,
        outer: tuple[socket.socket, socket.socket] | None,
    ) -> None:
        meeting = None
        if via != "sockets":
            meeting = Path(tempfile.mkdtemp(prefix="confide-ranks-"))
            self._stack.callback(shutil.rmtree, meeting, ignore_errors=True)
        # In front of each rank, and behind the last one.
        links = [socket.socketpair() for _ in range(len(ranks) - (outer is not None))]
        if outer is None:
            links = [*links, links[0]]
        else:
            links = [(outer[0], outer[0]), *links, (outer[1], outer[1])]
        with ExitStack() as ours:
            for end in {end for pair in links for end in pair}:
                ours.enter_context(end)
            for number, rank in enumerate(ranks):
                placed = replace(form, place=Place(rank, via, number, meeting))
                process = TrainingProcess(placed, (links[number][1], links[number + 1][0]))
                self._processes.append(self._stack.enter_context(process))

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids, in the order of the ranks."""
        return tuple(process.pid for process in self._processes)

    def begin(self, job: TrainingJob, *, key: bytes, session: bytes) -> None:
        """
        Hand over the job as `TrainingProcess.begin` does.

        Rank 0 alone is given `key`, `session` and the salt of the rows (1.1). Raises `Unavailable`
        where a process is gone.
        """
        without = replace(job, data=replace(job.data, salt=_NO_KEY))
        for process in self._processes:
            if process.rank:
                process.begin(without, key=_NO_KEY, session=_NO_KEY)
            else:
                process.begin(job, key=key, session=session)

    def go(self) -> None:
        """Let the first step begin: rank 0 waits for it after PREPARED."""
        self._processes[0].go()

    def pause(self) -> None:
        """Ask for a checkpoint and an end after the present step."""
        self._processes[0].pause()

    def cancel(self) -> None:
        """Ask for an end after the present step."""
        self._processes[0].cancel()

    def frames(self) -> Iterator[tuple[Frame, bytes]]:
        """
        Yield what the first rank here tells, ENDED or FAILED last.

        Raises `Unavailable` where it ends without, and where another rank was killed.
        """
        for kind, payload in self._processes[0].frames():
            yield kind, (self._cause(payload) if kind is Frame.FAILED else payload)

    def _cause(self, failed: bytes) -> bytes:
        """Return why a rank failed: the first that says more than that another one is gone."""
        if not _is_echo(failed):
            return failed
        for process in self._processes[1:]:
            told = self._last(process)
            if told is not None and not _is_echo(told):
                return told
        # Nobody here knows why: a rank ended without a last word, as a single process would.
        raise Unavailable(LINK_ENDED)

    @staticmethod
    def _last(process: TrainingProcess) -> bytes | None:
        """Return what `process` says that it failed of; it lost its links, so it has ended."""
        try:
            for kind, payload in process.frames():
                if kind is Frame.FAILED:
                    return payload
        except Unavailable:
            return None
        return None

    def kill(self) -> None:
        """End all at once, whatever they do."""
        for process in self._processes:
            process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


def start_ranks(form: OrderForm) -> TrainingGroup:
    """Start all ranks of a job on this machine."""
    return TrainingGroup(form, ranks=range(form.world))


def start_seat(
    form: OrderForm, ranks: range, outer: tuple[socket.socket, socket.socket]
) -> TrainingGroup:
    """Start the ranks of one seat, which `outer` links to those of the seats around it."""
    return TrainingGroup(form, ranks=ranks, outer=outer)


def _is_echo(told: bytes) -> bool:
    value = read_json(told)
    return isinstance(value, dict) and value.get("message") == LINK_ENDED
