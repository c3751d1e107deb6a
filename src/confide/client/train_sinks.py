"""Where the bytes of a training's results go: opened, unpacked, or as they are stored.

docs/protocols/training-node.md 3.1 and 6.5. The bytes and the names in them are hostile; what is
written is readable by the owner alone, and is no result before `train_results` says so.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from confide.agents.names import parse_member_name
from confide.errors import FormatError, Reason, Unavailable
from confide.wire.ustar import TarBegin, TarData, UstarReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from confide.crypto.sealed_file import FileOpener

__all__ = ["Hashed", "Opened", "ResultSink", "Stored", "Unpacked", "no_room", "refuse_form"]

_MAX_LOG_BYTES: Final = 512 * 1024 * 1024
_CLAUSE: Final = "docs/protocols/training-node.md#6.5"


class ResultSink(Protocol):
    """Where the bytes of one result go, as they are stored on the node. Blocks."""

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        ...

    def finish(self) -> None:
        """There are no more: refuse what is cut."""
        ...


@dataclass(slots=True)
class Hashed:
    """Tells at the end the SHA-256 of what came."""

    inner: ResultSink
    tell: Callable[[bytes], object]
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._digest.update(data)
        self.inner.write(data)

    def finish(self) -> None:
        """There are no more."""
        self.inner.finish()
        self.tell(self._digest.digest())


class Stored:
    """A file as it is stored on the node."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        _write(self._file, data)

    def finish(self) -> None:
        """There are no more: refuse what is cut."""
        _close(self._file)


class Opened:
    """One file that was sealed to the owner."""

    def __init__(self, opener: FileOpener, file: BinaryIO) -> None:
        self._opener = opener
        self._file = file
        self._size = 0

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._put(self._opener.write(data))

    def finish(self) -> None:
        """There are no more: refuse what is cut."""
        self._put(self._opener.end())
        _close(self._file)

    def _put(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > _MAX_LOG_BYTES:
            refuse_form(f"the owner's log is above {_MAX_LOG_BYTES} bytes", None)
        _write(self._file, data)


class Unpacked:
    """A directory of plain files out of a sealed archive."""

    def __init__(
        self, opener: FileOpener, folder: Path, create: Callable[[Path], BinaryIO]
    ) -> None:
        self._opener = opener
        self._folder = folder
        self._create = create
        self._reader = UstarReader()
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._unpack(self._opener.write(data))

    def finish(self) -> None:
        """There are no more: refuse what is cut."""
        self._unpack(self._opener.end())
        self._reader.end()

    def _unpack(self, data: bytes) -> None:
        for event in self._reader.feed(data):
            if isinstance(event, TarBegin):
                self._file = self._create(self._folder / parse_member_name(event.name))
            elif self._file is not None and isinstance(event, TarData):
                _write(self._file, event.data)
            elif self._file is not None:
                _close(self._file)
                self._file = None


def _write(file: BinaryIO, data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise no_room(error) from error


def _close(file: BinaryIO) -> None:
    try:
        file.flush()
        os.fsync(file.fileno())
        file.close()
    except OSError as error:
        raise no_room(error) from error


def no_room(error: OSError) -> Unavailable:
    """Return what a disk that does not take results means."""
    return Unavailable(f"results cannot be written: {error.strerror}")


def refuse_form(why: str, cause: OSError | None) -> NoReturn:
    """Refuse results that are of another form."""
    raise FormatError(f"results: {why}", reason=Reason.TRAINING_FORMAT, clause=_CLAUSE) from cause
