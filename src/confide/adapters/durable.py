"""Files that are on the disk when a function returns: write, sync, rename, sync the directory.

docs/protocols/log.md §8.1. `Disk` is the seam at which tests cut the power: everything that changes
a file system goes through one of its methods.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from confide.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Disk", "SystemDisk", "take_lock", "write_durably"]

_TEMPORARY = ".new-"
# Files that are open at once; a process may usually have 1024.
_AT_ONCE = 128


class Disk(Protocol):
    """What a durable store asks of a file system. Methods raise `OSError`."""

    def lock(self, path: Path) -> int:
        """Take the lock file at `path` or raise `BlockingIOError`; return what `unlock` takes."""
        ...

    def unlock(self, handle: int) -> None:
        """Let go of a lock."""
        ...

    def read(self, path: Path) -> bytes | None:
        """Return the bytes of a file, None where there is none."""
        ...

    def make_directory(self, path: Path) -> bool:
        """Make one directory; return whether it was not there."""
        ...

    def write(self, path: Path, data: bytes) -> int:
        """Make a new file at `path`, whatever was there, with `data`; return what `sync` takes."""
        ...

    def sync(self, handle: int) -> None:
        """Return when what was written is durable; closes the handle, whatever happens."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Put `old` in the place of `new`."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Return when the names in a directory are durable."""
        ...

    def remove_directory(self, path: Path) -> None:
        """Remove a directory with its files, if it is there."""
        ...


class SystemDisk:
    """The file system of this machine."""

    def lock(self, path: Path) -> int:
        """Take the lock file at `path` (flock, so that it dies with the process)."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise
        return handle

    def unlock(self, handle: int) -> None:
        """Let go of a lock."""
        os.close(handle)

    def read(self, path: Path) -> bytes | None:
        """Return the bytes of a file, None where there is none."""
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def make_directory(self, path: Path) -> bool:
        """Make one directory; return whether it was not there."""
        try:
            path.mkdir(mode=0o755)
        except FileExistsError:
            return False
        return True

    def write(self, path: Path, data: bytes) -> int:
        """Make a new file at `path`, whatever was there, with `data`."""
        # Never the file that a rename cut in two may have left under two names.
        path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        handle = os.open(path, flags, 0o644)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
        except OSError:
            os.close(handle)
            raise
        return handle

    def sync(self, handle: int) -> None:
        """Return when what was written is durable."""
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Put `old` in the place of `new`."""
        old.replace(new)

    def sync_directory(self, path: Path) -> None:
        """Return when the names in a directory are durable."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def remove_directory(self, path: Path) -> None:
        """Remove a directory with its files, if it is there."""
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def write_durably(
    disk: Disk, root: Path, files: Sequence[tuple[str, bytes]], *, known: set[Path]
) -> None:
    """
    Write `files`, relative names below `root`, so that all are durable when this returns.

    A reader, and whoever comes after a cut, sees each whole or not at all (or its older self).
    `known` are directories that are durable already; it grows. Raises `Unavailable`.
    """
    touched: dict[Path, None] = {}
    try:
        for start in range(0, len(files), _AT_ONCE):
            _write_some(disk, root, files[start : start + _AT_ONCE], known, touched)
        for folder in touched:
            disk.sync_directory(folder)
    except OSError as error:
        raise Unavailable(f"the log cannot be written: {error.strerror}") from error
    known.update(touched)


def _write_some(
    disk: Disk,
    root: Path,
    files: Sequence[tuple[str, bytes]],
    known: set[Path],
    touched: dict[Path, None],
) -> None:
    written: list[tuple[Path, Path, int]] = []
    try:
        for number, (name, data) in enumerate(files):
            path = root / name
            _make_parents(disk, root, path.parent, known, touched)
            temporary = path.parent / f"{_TEMPORARY}{number}"
            written.append((temporary, path, disk.write(temporary, data)))
            touched[path.parent] = None
    finally:
        # All are handed to the disk before any is waited for: it takes them in one go.
        for _, _, handle in written:
            disk.sync(handle)
    for temporary, path, _ in written:
        disk.rename(temporary, path)


def _make_parents(
    disk: Disk, root: Path, folder: Path, known: set[Path], touched: dict[Path, None]
) -> None:
    """Make `folder` below `root`; a new name in a directory makes that one to be synced."""
    if folder == root or folder in known:
        return
    _make_parents(disk, root, folder.parent, known, touched)
    disk.make_directory(folder)
    # Even where it is there already: a cut may have come before its name was durable.
    touched[folder.parent] = None


def take_lock(disk: Disk, path: Path, what: str) -> int:
    """Take the lock of `what`. Raises `ConfigurationError` where another process has it."""
    try:
        return disk.lock(path)
    except BlockingIOError as error:
        raise ConfigurationError(
            f"{what} is in use by another process; stop that one first"
        ) from error
    except OSError as error:
        raise Unavailable(f"{what} cannot be locked: {error.strerror}") from error
