"""The few system calls that Python 3.11 does not offer: `unshare`, `mount`, `umount2`, `prctl`."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

__all__ = [
    "CLONE_NEWNET",
    "forbid_core_dumps",
    "mount_tmpfs",
    "setns",
    "unmount",
    "unshare",
]

# From: linux/sched.h, linux/mount.h
CLONE_NEWNET: Final = 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
# From: linux/prctl.h, the interface of prctl(2)
_PR_SET_DUMPABLE = 4


def _call(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces. Raises `OSError`."""
    _call("unshare", ctypes.c_int(flags))


def setns(namespace: int, kind: int) -> None:
    """Move the calling thread into the namespace open as `namespace`. Raises `OSError`."""
    _call("setns", ctypes.c_int(namespace), ctypes.c_int(kind))


def mount_tmpfs(target: str, options: str) -> None:
    """Mount a tmpfs (nosuid, nodev, noexec) on `target`. Raises `OSError`."""
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _call("mount", b"tmpfs", os.fsencode(target), b"tmpfs", flags, options.encode("ascii"))


def unmount(target: str) -> None:
    """Detach the mount on `target` now, and for good when nobody uses it. Raises `OSError`."""
    _call("umount2", os.fsencode(target), ctypes.c_int(_MNT_DETACH | _UMOUNT_NOFOLLOW))


def forbid_core_dumps() -> None:
    """
    Keep the memory of this process, and of what it starts, out of core files. Raises `OSError`.

    Both are needed (core(5)): the limit does not hold for a core that is piped to a program.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _call("prctl", ctypes.c_int(_PR_SET_DUMPABLE), *(ctypes.c_ulong(0) for _ in range(4)))
