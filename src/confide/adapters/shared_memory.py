"""Memory that a process shares with the processes it forks, and the lock beside it. Linux.

The memory has no name and no file behind it that anybody could open; it is there for whoever
inherited it. The lock is of the kernel (fcntl(2), record locks), which takes it from a process
that dies: what the dead one left half written is for the reader of the memory to survive.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time

from confide.errors import Unavailable

__all__ = ["SharedMemory"]

# A holder needs microseconds; one that was stopped in the middle must not stop the others.
_PATIENCE_SECONDS = 0.5
_PAUSE_SECONDS = 0.0002


class SharedMemory:
    """
    `sizes` bytes for each area of `areas`, zeros at first. Made before a fork, used on both sides.

    One thread of each process uses it: the lock holds processes apart, not threads.
    """

    def __init__(self, *sizes: int, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        memory = memoryview(mmap.mmap(-1, sum(sizes)))
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        self.areas = tuple(memory[end - size : end] for end, size in zip(ends, sizes, strict=True))
        self._patience = patience_seconds
        self.lock_handle = os.memfd_create("confide-lock", os.MFD_CLOEXEC)

    def guard(self) -> _Guard:
        """Return a context that holds the lock; entering raises `Unavailable` when it is held."""
        return _Guard(self.lock_handle, self._patience)

    def close(self) -> None:
        """Close the lock in this process. The memory goes with its last user."""
        os.close(self.lock_handle)


class _Guard:
    def __init__(self, handle: int, patience: float) -> None:
        self._handle = handle
        self._patience = patience

    def __enter__(self) -> None:
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._wait()
        except OSError as error:
            raise Unavailable("the shared memory cannot be locked") from error

    def __exit__(self, *_exception: object) -> None:
        fcntl.lockf(self._handle, fcntl.LOCK_UN)

    def _wait(self) -> None:
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
            try:
                fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError as error:
                raise Unavailable("the shared memory cannot be locked") from error
            return
        raise Unavailable("the shared memory is held by another process")
