"""What the kernel says about a container's limits: refused forks, memory kills.

Both versions of control groups. From: cgroups(7); kernel cgroup-v2.rst ("pids.events",
"memory.events"); cgroup-v1/memory.rst §10 ("OOM control"). With version 1 a memory kill can take
the first process and then the whole group within milliseconds, so the kernel is asked to tell (an
eventfd) instead of being polled. A refused fork can end the first process as fast: the file that
counts them is watched (inotify), which is told even when the group is gone a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Self

from confide.adapters.linux import IN_MODIFY, watch_changes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ContainerGroup"]

_ROOT = Path("/sys/fs/cgroup")


class ContainerGroup:
    """The control groups of process `pid`; use as a context. A group that is gone says nothing."""

    def __init__(self, pid: int) -> None:
        self._pids = _find(pid, "pids", "pids.events")
        self._memory_v2 = _find(pid, "", "memory.events")
        self._memory_v1 = _find(pid, "memory", "memory.oom_control")
        self._event = -1
        self._control = -1
        self._forks = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for handle in (self._event, self._forks):
            if handle >= 0:
                asyncio.get_running_loop().remove_reader(handle)
        for handle in (self._event, self._control, self._forks):
            if handle >= 0:
                os.close(handle)

    def refused_forks(self) -> bool:
        """Whether the limit on processes refused one."""
        return _counter(_read(self._pids), "max") > 0

    def out_of_memory(self) -> bool:
        """Whether a process was killed because the limit on memory was reached."""
        if self._control >= 0:
            with contextlib.suppress(OSError):
                return _counter(os.pread(self._control, 4096, 0).decode("ascii"), "oom_kill") > 0
            return False
        return _counter(_read(self._memory_v2), "oom_kill") > 0

    def when_fork_refused(self, act: Callable[[], None]) -> None:
        """Call `act` in the event loop when the limit on processes refuses one."""
        if self._pids is None:
            return
        with contextlib.suppress(OSError):
            self._forks = watch_changes(str(self._pids))
        if self._forks < 0:
            return  # The group is gone: polling says nothing either.

        def told() -> None:
            with contextlib.suppress(OSError):
                raw = os.read(self._forks, 4096)
                # From: inotify(7): wd, mask, cookie, len; watching a file, there is no name.
                masks = [mask for _wd, mask, _cookie, _len in struct.iter_unpack("iIII", raw)]
                # The removal of the group is told as well, and is no refusal.
                if any(mask & IN_MODIFY for mask in masks):
                    act()

        asyncio.get_running_loop().add_reader(self._forks, told)

    def when_out_of_memory(self, act: Callable[[], None]) -> None:
        """Call `act` in the event loop at a memory kill, where version 1 can tell."""
        if self._memory_v1 is None:
            return
        try:
            self._control = os.open(self._memory_v1, os.O_RDONLY | os.O_CLOEXEC)
            self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            register = self._memory_v1.with_name("cgroup.event_control")
            register.write_text(f"{self._event} {self._control}", encoding="ascii")
        except OSError:
            return  # The group is gone or the kernel has no notification: polling stays.
        loop = asyncio.get_running_loop()

        def told() -> None:
            with contextlib.suppress(OSError):
                os.eventfd_read(self._event)
            # The removal of the group is told as well; then the file cannot be read any more.
            with contextlib.suppress(OSError):
                os.pread(self._control, 4096, 0)
                act()

        loop.add_reader(self._event, told)


def _find(pid: int, controller: str, name: str) -> Path | None:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _ident, controllers, path = line.split(":", 2)
        folder = _ROOT / controller if controllers else _ROOT
        if (controller in controllers.split(",") if controllers else True) and (
            file := folder / path.lstrip("/") / name
        ).exists():
            return file
    return None


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def _counter(text: str, name: str) -> int:
    words = text.split()
    value = dict(zip(words[::2], words[1::2], strict=False)).get(name, "0")
    return int(value) if value.isdecimal() else 0
