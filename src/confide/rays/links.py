"""The two links of one seat, carried by a Ray cluster: started, handed over, ended with all of it.

docs/protocols/training-ranks.md §6. Imports no Ray: that is in a process of its own, and in those
which it starts. They are given the seat's certificate and key, the token of the boot and the ends
of its ranks' links, and nothing else.

What it does not do: keep the cluster's other seats from running code there (6.6).
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from confide.adapters.memory_file import memory_descriptor
from confide.errors import Unavailable
from confide.rays.order import LINKS_NAME, ClusterOrder
from confide.rays.session import end_session

if TYPE_CHECKING:
    from types import TracebackType

    from confide.adapters.rank_tls import SeatIdentity

__all__ = ["RayLinks", "RaySeat"]

# Memory that has names, for sockets and what Ray writes; nothing of it is on a disk.
_MEMORY: Final = "/dev/shm"  # noqa: S108
_TICK_SECONDS: Final = 0.2
_LEAVE_SECONDS: Final = 5.0
_CREDENTIALS: Final = struct.Struct("3i")
_MAX_WORDS: Final = 200


@dataclass(frozen=True, slots=True)
class RaySeat:
    """
    Which seat of how many, its address, and where the cluster is found: at seat 0.

    `port` is the first of those that this seat opens, 0 for any; `token` is the secret of the boot.
    """

    seat: int
    seats: int
    host: str
    port: int
    head: tuple[str, int]
    token: bytes = field(repr=False)


class RayLinks:
    """
    Carries what the ranks of a seat send and receive, as `SeatLinks` does. A context manager.

    `outer` are the links to hand to ranks; those that were started earlier have theirs: then the
    other ends are `inner`, and there is no `outer`. Leaving it ends every process of the cluster
    that runs here.
    """

    def __init__(
        self,
        identity: SeatIdentity,
        place: RaySeat,
        *,
        inner: tuple[socket.socket, socket.socket] | None = None,
        patience_seconds: float,
    ) -> None:
        """
        Start this seat's part of the cluster; the thread that does so has to live as long.

        `inner` is closed here. Raises `Unavailable` where it cannot be started.
        """
        self._outer: tuple[socket.socket, socket.socket] | None = None
        if inner is None:
            before, after = socket.socketpair(), socket.socketpair()
            inner, self._outer = (before[0], after[0]), (before[1], after[1])
        self.failure: str | None = None
        self.refused = 0
        self._inner = inner
        self._deadline = time.monotonic() + patience_seconds
        self._stopping = threading.Event()
        self._ending = threading.Lock()
        with ExitStack() as stack:
            for end in (*inner, *(self._outer or ())):
                stack.enter_context(end)
            try:
                self._folder = Path(tempfile.mkdtemp(prefix="confide-ray-", dir=_MEMORY))
                stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
                self._listener = socket.socket(socket.AF_UNIX)
                stack.enter_context(self._listener)
                self._listener.bind(str(self._folder / LINKS_NAME))
                self._listener.listen()
                self._listener.settimeout(_TICK_SECONDS)
                self._process = _start(identity, place, self._folder, patience_seconds)
            except OSError as error:
                raise Unavailable("this seat's part of the cluster cannot be started") from error
            stack.pop_all()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    @property
    def pid(self) -> int:
        """The process that holds the seat; all that it started is in its session."""
        return self._process.pid

    @property
    def outer(self) -> tuple[socket.socket, socket.socket]:
        """The links to hand to ranks; `LookupError` where they had theirs before."""
        if self._outer is None:
            raise LookupError("these ranks were linked before")
        return self._outer

    @property
    def failures(self) -> tuple[str, ...]:
        """What ended the links, as far as something did."""
        return () if self.failure is None else (self.failure,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._end()
        self._watching.join()
        for end in self._outer or ():
            end.close()

    # --- within -----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Hand the links over, wait for the end of the process, and leave nothing of it."""
        with self._listener, self._inner[0], self._inner[1]:
            while self._waits():
                if self._hand_over():
                    break
        told = b""
        if self._process.stdout is not None:
            with self._process.stdout as pipe:
                told = pipe.readline(_MAX_WORDS)
        if not self._stopping.is_set() or told:
            self.failure = told.decode("ascii", "replace").strip() or "Ray ended"
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _waits(self) -> bool:
        if self._stopping.is_set() or _has_ended(self._process.pid):
            return False
        if time.monotonic() > self._deadline:
            self._end()
            return False
        return True

    def _hand_over(self) -> bool:
        """Give the actor of this seat the links, once; say whether it came."""
        try:
            came, _ = self._listener.accept()
        except TimeoutError:
            return False
        with came:
            packed = came.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, user, _ = _CREDENTIALS.unpack(packed)
            # Another user of this machine cannot enter the folder; another program of ours is none
            # that Ray started here.
            if user != os.getuid() or not _in_session(pid, self._process.pid):
                self.refused += 1
                return False
            try:
                socket.send_fds(came, [b"\0"], [end.fileno() for end in self._inner])
            except OSError:
                return False
        return True

    def _end(self) -> None:
        """End the process and all that it started. From any thread, more than once."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with self._ending:
            if self._process.returncode is not None:
                return
            deadline = time.monotonic() + _LEAVE_SECONDS
            while not _has_ended(self._process.pid) and time.monotonic() < deadline:
                time.sleep(_TICK_SECONDS / 10)
            # Its number is nobody else's until it is waited for.
            end_session(self._process.pid)
            self._process.wait()


def _start(
    identity: SeatIdentity, place: RaySeat, folder: Path, patience_seconds: float
) -> subprocess.Popen[bytes]:
    order = ClusterOrder(
        seat=place.seat,
        seats=place.seats,
        host=place.host,
        port=place.port,
        head=place.head,
        folder=str(folder),
        patience_seconds=max(1, int(patience_seconds)),
    )
    with ExitStack() as stack:
        numbers = [
            stack.enter_context(memory_descriptor(name, data))
            for name, data in (
                ("certificate", identity.certificate.encode()),
                ("key", identity.key),
                ("authority", identity.authority.encode()),
                ("token", place.token.hex().encode()),
            )
        ]
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-I", "-m", "confide.rays", *map(str, (os.getpid(), *numbers))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},
            pass_fds=numbers,
            start_new_session=True,
        )
    if process.stdin is not None:
        process.stdin.write(order.encode() + b"\n")
        process.stdin.flush()
    return process


def _has_ended(pid: int) -> bool:
    """Return whether our child `pid` has ended, and leave it to be waited for."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return found is not None


def _in_session(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:
        return False
