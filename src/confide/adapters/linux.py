"""The few system calls that Python 3.11 does not offer: namespaces, mounts, `prctl`, `inotify`."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

__all__ = [
    "CLONE_NEWNET",
    "IN_MODIFY",
    "allow_open_files",
    "forbid_core_dumps",
    "mount_tmpfs",
    "setns",
    "unmount",
    "unshare",
    "watch_changes",
]

# From: linux/sched.h, linux/mount.h
CLONE_NEWNET: Final = 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
# From: linux/inotify.h, inotify(7)
IN_MODIFY: Final = 0x00000002
# From: linux/prctl.h, the interface of prctl(2)
_PR_SET_DUMPABLE = 4
_MAX_OPEN_FILES: Final = 65_536


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


def watch_changes(path: str) -> int:
    """
    Return a non-blocking inotify handle that becomes readable when the file `path` changes.

    Reading gives inotify(7) events; closing ends the watch. Raises `OSError`.
    """
    library = ctypes.CDLL(None, use_errno=True)
    handle = int(library.inotify_init1(ctypes.c_int(os.O_CLOEXEC | os.O_NONBLOCK)))
    if handle < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if library.inotify_add_watch(handle, os.fsencode(path), ctypes.c_uint32(IN_MODIFY)) < 0:
        code = ctypes.get_errno()
        os.close(handle)
        raise OSError(code, os.strerror(code))
    return handle


def mount_tmpfs(target: str, options: str) -> None:
    """Mount a tmpfs (nosuid, nodev, noexec) on `target`. Raises `OSError`."""
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _call("mount", b"tmpfs", os.fsencode(target), b"tmpfs", flags, options.encode("ascii"))


def unmount(target: str) -> None:
    """Detach the mount on `target` now, and for good when nobody uses it. Raises `OSError`."""
    _call("umount2", os.fsencode(target), ctypes.c_int(_MNT_DETACH | _UMOUNT_NOFOLLOW))


def allow_open_files() -> None:
    """
    Raise this process's own limit of open files as far as it may, at most to 65,536.

    Every connection is one, and many systems begin with 1,024. Raises `OSError`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def forbid_core_dumps() -> None:
    """
    Keep the memory of this process, and of what it starts, out of core files. Raises `OSError`.

    Both are needed (core(5)): the limit does not hold for a core that is piped to a program.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _call("prctl", ctypes.c_int(_PR_SET_DUMPABLE), *(ctypes.c_ulong(0) for _ in range(4)))
