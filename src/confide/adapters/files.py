"""Files that must survive a crash or stay private."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from confide.errors import Unavailable

__all__ = ["write_atomically"]


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """
    Write `data` to `path` so that a reader sees the old file or the new one, on disk, never half.

    Raises `Unavailable` (disk full, permission) and leaves no temporary file behind.
    """
    handle = -1
    temporary = ""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise Unavailable(f"{path.name} cannot be written: {error.strerror}") from error
