"""Backups of a broker's store as files: written whole, restored whole. Blocking, memory flat.

Clause: docs/protocols/broker.md §7.4. A backup is a copy of one moment, whatever is written while
it is made.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from confide.broker.backup import BackupReader, write_backup
from confide.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from confide.ports import KeyStore

__all__ = ["back_up", "read_header", "restore"]


def back_up(store: KeyStore, master: bytes, path: Path) -> int:
    """
    Write a backup of `store` to the new file `path`, mode 0600; return how many bytes it has.

    On disk when this returns; where it raises there is no file. `ConfigurationError` where there
    is one already, `FormatError` for a store with a damaged record, `Unavailable`.
    """
    header = store.header()
    if header is None:
        raise ConfigurationError("there is nothing in the store to back up")
    partial = path.with_name(f".new-{path.name}")
    with _translating(path, "written"):
        # The name is taken at once, so that nothing is overwritten; what is whole takes its place.
        os.close(_create(path, os.O_EXCL))
    try:
        size = _write(partial, write_backup(master, header, store.records()))
        with _translating(path, "written"):
            partial.replace(path)
            _sync_folder(path)
    except BaseException:
        for leftover in (partial, path):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)
        raise
    return size


def read_header(path: Path) -> bytes:
    """Return the header of the backup `path`: which lock to bring the key of. `FormatError`."""
    with _opened(path) as reader:
        return reader.header


def restore(path: Path, store: KeyStore, master: bytes) -> int:
    """
    Begin the empty `store` with the backup `path`; return how many records it has.

    All of it is verified before anything is written, and again as it is written: what changes
    between the two leaves the store empty. `FormatError` for a backup that is not to be believed,
    `ConfigurationError` for a store that is not empty, `Unavailable`.
    """
    if store.header() is not None:
        raise ConfigurationError("the store is not empty; a backup is restored into a new one")
    with _opened(path) as reader:
        count = sum(1 for _ in reader.records(master))
    with _opened(path) as reader:
        store.begin(reader.header, reader.records(master))
    return count


class _Source:
    """A file whose failures are told in our words, wherever it is read."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def read(self, size: int, /) -> bytes:
        with _translating(self._path, "read"):
            return self._file.read(size)


@contextmanager
def _opened(path: Path) -> Iterator[BackupReader]:
    with _translating(path, "read"):
        file = path.open("rb")
    with file:
        with _translating(path, "read"):
            size = os.fstat(file.fileno()).st_size
        yield BackupReader(_Source(file, path), size)


def _write(path: Path, pieces: Iterable[bytes]) -> int:
    with _translating(path, "written"):
        file = os.fdopen(_create(path, os.O_TRUNC), "wb")
    with file:
        for piece in pieces:
            with _translating(path, "written"):
                file.write(piece)
        with _translating(path, "written"):
            file.flush()
            os.fsync(file.fileno())
            return file.tell()


def _create(path: Path, how: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | how, 0o600)


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _translating(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise ConfigurationError(f"{path} exists; a backup is never overwritten") from error
    except OSError as error:
        raise Unavailable(f"backup {path} cannot be {what}: {error.strerror}") from error
