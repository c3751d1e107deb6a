"""The `LogStore` port on local files: a directory that any web server can serve.

docs/protocols/log.md §8. `DIR/public/` holds `checkpoint` and `tile/…` as they are served;
`DIR/head` is the newest head, which nobody sees before it is durable; `DIR/lock` excludes a second
writer.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from confide.adapters.durable import Disk, SystemDisk, take_lock, write_durably
from confide.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["PRIVATE_NAMES", "FileLog"]

# Every other name is public.
PRIVATE_NAMES: Final = frozenset({"head"})
_PUBLIC: Final = "public"


class FileLog:
    """A log in one directory. Opening it takes the lock; `close` gives it back."""

    def __init__(self, folder: Path, *, disk: Disk | None = None) -> None:
        """
        Open or make the log in `folder`.

        Raises `ConfigurationError` where another process has it, `Unavailable` where it cannot be.
        """
        self._folder = folder
        self._disk = SystemDisk() if disk is None else disk
        self._known: set[Path] = set()
        self._turn = threading.Lock()
        try:
            if self._disk.make_directory(folder):
                self._disk.sync_directory(folder.parent)
        except OSError as error:
            raise Unavailable(f"the log cannot be made: {error.strerror}") from error
        self._lock = take_lock(self._disk, folder / "lock", "the log's directory")

    def read(self, name: str) -> bytes | None:
        """Return a file, or None where there is none."""
        try:
            return self._disk.read(self._folder / _place(name))
        except OSError as error:
            raise Unavailable(f"the log cannot be read: {error.strerror}") from error

    def add(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write new files; durable, each whole, when this returns."""
        placed = [(_place(name), data) for name, data in files]
        # A head is published while the next batch is written, each from a thread of its own.
        with self._turn:
            write_durably(self._disk, self._folder, placed, known=self._known)

    def replace(self, name: str, data: bytes) -> None:
        """Put `data` in the place of a file; durable when this returns."""
        self.add(((name, data),))

    def discard_partial(self, names: Sequence[str]) -> None:
        """Remove the partial tiles of these full ones."""
        for name in names:
            path = self._folder / _place(f"{name}.p")
            with self._turn:
                try:
                    self._disk.remove_directory(path)
                except OSError as error:
                    raise Unavailable(f"the log cannot be tidied: {error.strerror}") from error
                self._known.discard(path)

    def close(self) -> None:
        """Let another writer in."""
        self._disk.unlock(self._lock)


def _place(name: str) -> str:
    return name if name in PRIVATE_NAMES else f"{_PUBLIC}/{name}"
