"""What a witness remembers, on disk: the last head it cosigned of each log. log.md §4.3, §4.4."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from confide.adapters.durable import Disk, SystemDisk, take_lock, write_durably
from confide.errors import Unavailable
from confide.wire.checkpoint import parse_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from confide.wire.checkpoint import SignedCheckpoint

__all__ = ["WitnessFiles"]


class WitnessFiles:
    """The state of one witness. Opening it takes the lock; `close` gives it back. Blocking."""

    def __init__(self, folder: Path, *, disk: Disk | None = None) -> None:
        """Open or make it. Raises `ConfigurationError` where another process has it."""
        self._folder = folder
        self._disk = SystemDisk() if disk is None else disk
        self._known: set[Path] = set()
        try:
            if self._disk.make_directory(folder):
                self._disk.sync_directory(folder.parent)
        except OSError as error:
            raise Unavailable(f"the witness cannot be made: {error.strerror}") from error
        self._lock = take_lock(self._disk, folder / "lock", "the witness's directory")

    def last(self, origin: str) -> SignedCheckpoint | None:
        """
        Return the head that was cosigned last, None where there was none.

        A file that is no checkpoint raises `FormatError`: forgetting would allow a rollback.
        """
        try:
            raw = self._disk.read(self._folder / f"{_name(origin)}.checkpoint")
        except OSError as error:
            raise Unavailable(f"the witness cannot be read: {error.strerror}") from error
        return None if raw is None else parse_checkpoint(raw)

    def remember(self, checkpoint: SignedCheckpoint) -> None:
        """Make `checkpoint` the last one of its origin; durable when this returns."""
        name = f"{_name(checkpoint.head.origin)}.checkpoint"
        write_durably(self._disk, self._folder, ((name, checkpoint.encode()),), known=self._known)

    def keep_evidence(self, checkpoint: SignedCheckpoint) -> None:
        """Keep a head that contradicts the last one; the latest of each origin."""
        name = f"{_name(checkpoint.head.origin)}.contradiction"
        write_durably(self._disk, self._folder, ((name, checkpoint.encode()),), known=self._known)

    def close(self) -> None:
        """Let another process in."""
        self._disk.unlock(self._lock)


def _name(origin: str) -> str:
    return hashlib.sha256(origin.encode()).hexdigest()
