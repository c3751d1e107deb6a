"""A training process from outside: start it, hand it a job, hear of it. training.md §10.

Imports no torch. Everything blocks; an asynchronous caller gives it a thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from confide.errors import RemoteProtocolError, Unavailable
from confide.trainer.frames import Frame, read_frame, write_frame, write_json
from confide.trainer.stretches import stretch_value
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from socket import socket
    from types import TracebackType

    from confide.trainer.order_form import OrderForm
    from confide.training.job import TrainingJob
    from confide.training.replay import Stretch

__all__ = ["TrainingProcess", "worker_environment"]

_LAST = frozenset({Frame.ENDED, Frame.FAILED})


def worker_environment(threads: int) -> dict[str, str]:
    """Return the environment of a training process: made from nothing, offline."""
    return {
        # Where a GPU is: the one setting of cuBLAS under which sums have one order.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        # Ranks that meet by torch.distributed do so inside this machine (training-ranks.md 3.2).
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "MKL_NUM_THREADS": str(threads),
        "NCCL_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(threads),
        "PATH": os.defpath,
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_OFFLINE": "1",
    }


class TrainingProcess:
    """One process for one run. A context manager: leaving it kills what still runs."""

    def __init__(self, form: OrderForm, links: Sequence[socket] = ()) -> None:
        """
        Start the process. The thread that does so has to live as long as the run.

        `links` are handed down to one rank of several; the caller closes its own copies.
        """
        self._form = form
        environment = worker_environment(form.threads)
        if form.place is not None and form.device == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = str(form.place.gpu)
        numbers = [link.fileno() for link in links]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-I", "-m", "confide.trainer", *map(str, (os.getpid(), *numbers))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            pass_fds=numbers,
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def rank(self) -> int:
        """Which rank of its job it is."""
        return 0 if self._form.place is None else self._form.place.rank

    def begin(self, job: TrainingJob, *, key: bytes, session: bytes) -> None:
        """
        Hand over the job: `key` seals checkpoints, `session` is 32 fresh random bytes.

        Raises `Unavailable` where the process is gone.
        """
        form, pipe = self._form, self._process.stdin
        if (job.recipe, job.base, job.world) != (form.recipe, form.base, form.world):
            raise ValueError("the job is not that of the form")
        if pipe is None:
            raise ValueError("the process has no input")
        try:
            write_json(pipe, Frame.JOB, form.value())
            write_frame(pipe, Frame.SECRETS, job.data.salt + key + session)
            for record in job.data.rows:
                write_frame(pipe, Frame.ROW, record)
            for record in job.validation.rows if job.validation is not None else ():
                write_frame(pipe, Frame.VALIDATION, record)
            write_frame(pipe, Frame.START)
        except OSError as error:
            raise Unavailable("the training process ended before it had its job") from error

    def go(self) -> None:
        """Let the first step begin: the process waits for it after PREPARED."""
        self._ask(Frame.GO)

    def replay(self, stretch: Stretch) -> None:
        """Have one stretch executed, in place of `go`, and again once its last step was told."""
        self._ask(Frame.STRETCH, jcs(stretch_value(stretch)))

    def pause(self) -> None:
        """Ask for a checkpoint and an end after the present step."""
        self._ask(Frame.PAUSE)

    def cancel(self) -> None:
        """Ask for an end after the present step."""
        self._ask(Frame.CANCEL)

    def _ask(self, command: Frame, payload: bytes = b"") -> None:
        # Who has ended needs no command.
        with suppress(OSError):
            if self._process.stdin is not None:
                write_frame(self._process.stdin, command, payload)

    def frames(self) -> Iterator[tuple[Frame, bytes]]:
        """
        Yield what the process tells, ENDED or FAILED last.

        Raises `Unavailable` where it ends without: killed, or out of memory. What the newest
        CHECKPOINT frame named can be resumed from.
        """
        pipe = self._process.stdout
        while pipe is not None:
            try:
                frame = read_frame(pipe)
            except RemoteProtocolError:
                frame = None  # cut inside a frame: the same as an end
            if frame is None:
                raise Unavailable(
                    f"the training process ended by itself (status {self._process.wait()}); "
                    "the job can be resumed from its newest checkpoint"
                )
            yield frame
            if frame[0] in _LAST:
                return

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
