"""Files that are on the disk only sealed, under a key that lives in this process alone.

docs/protocols/training-files.md §4. After a restart nothing opens: what is left is removed at the
next start. Every method blocks. Not for two processes at once.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final

from confide.crypto.sealed_file import (
    CHUNK_BYTES,
    KEY_BYTES,
    MAX_HEADER_BYTES,
    SALT_BYTES,
    SEALED_CHUNK_BYTES,
    open_file_under,
    seal_file_under,
)
from confide.errors import ConfideError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from confide.crypto.sealed_file import FileSealer
    from confide.ports import Entropy

__all__ = ["SealedStore", "SealedWriter", "create_private"]

_NAME: Final = re.compile(r"[a-z0-9-]{1,80}\Z")
_ENDING: Final = ".sealed"
_PART: Final = ".part"
_PIECE_BYTES: Final = 1024 * 1024


def create_private(path: Path) -> BinaryIO:
    """Create a file that only this user can read; it must not be there."""
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
    )


class SealedWriter:
    """One file that is being written: there for readers after `commit`, or gone after `abort`."""

    def __init__(self, place: Path, file: BinaryIO, sealer: FileSealer) -> None:
        self._place = place
        self._file = file
        self._sealer = sealer
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`. Raises `Unavailable`, after which the file is gone."""
        try:
            self._file.writelines(self._sealer.write(data))
        except OSError as error:
            self.abort()
            raise _failed(error) from error
        self.size += len(data)

    def commit(self) -> None:
        """Make the file whole and durable. Raises `Unavailable`, after which it is gone."""
        try:
            self._file.writelines(self._sealer.finish())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._place.with_suffix(_PART).replace(self._place)
        except OSError as error:
            self.abort()
            raise _failed(error) from error

    def abort(self) -> None:
        """Leave nothing behind; without effect after `commit`."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._place.with_suffix(_PART).unlink(missing_ok=True)


class SealedStore:
    """Sealed files in one folder. Names are ours: `[a-z0-9-]`, never what a caller says."""

    def __init__(
        self,
        folder: Path,
        entropy: Entropy,
        *,
        create: Callable[[Path], BinaryIO] = create_private,
    ) -> None:
        """Take `folder`, which is made where it is missing, and remove what an earlier key left."""
        self._folder = folder
        self._entropy = entropy
        self._create = create
        self._key = entropy.token(KEY_BYTES)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (*folder.glob(f"*{_ENDING}"), *folder.glob(f"*{_PART}")):
                path.unlink()
        except OSError as error:
            raise _failed(error) from error

    def begin(self, name: str) -> SealedWriter:
        """Begin the file `name`. Raises `Unavailable`."""
        place = self._place(name)
        sealer = seal_file_under(self._key, name=name, salt=self._entropy.token(SALT_BYTES))
        try:
            return SealedWriter(place, self._create(place.with_suffix(_PART)), sealer)
        except OSError as error:
            raise _failed(error) from error

    def read(self, name: str, *, start: int = 0) -> Iterator[bytes]:
        """
        Yield the plaintext of `name` from the byte `start` on.

        Each piece is genuine at its place; that the file is whole is known at the end. Raises
        `Unavailable`: gone, or changed on the disk.
        """
        chunk, inside = divmod(start, CHUNK_BYTES)
        for piece in self._read_chunks(name, chunk):
            if wanted := piece[inside:]:
                yield wanted
            inside = max(0, inside - len(piece))

    def _read_chunks(self, name: str, first: int) -> Iterator[bytes]:
        opener = open_file_under(self._key, name=name)
        try:
            with self._place(name).open("rb") as file:
                if first:
                    opener.write(file.readline(MAX_HEADER_BYTES))
                    opener.skip(first)
                    file.seek(first * SEALED_CHUNK_BYTES, os.SEEK_CUR)
                while piece := file.read(_PIECE_BYTES):
                    if opened := opener.write(piece):
                        yield opened
            yield opener.end()
        except OSError as error:
            raise _failed(error) from error
        except ConfideError as error:
            raise Unavailable("a stored file was changed on the disk") from error

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Raises `Unavailable`."""
        try:
            self._place(name).unlink(missing_ok=True)
        except OSError as error:
            raise _failed(error) from error

    def _place(self, name: str) -> Path:
        if not _NAME.match(name):
            raise ValueError("not a name of this store")
        return self._folder / f"{name}{_ENDING}"


def _failed(error: OSError) -> Unavailable:
    return Unavailable(f"the store of files fails: {error.strerror}")
