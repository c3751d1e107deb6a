"""Outputs of a run on the client's disk: staged first, published only when verified.

Names come from a node and are hostile until the receipt verified; even then they never leave the
destination: no absolute path, no `..`, no link is followed.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from confide.agents.names import parse_member_name
from confide.errors import ConfigurationError, RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    import io
    from types import TracebackType

__all__ = ["StagedOutputs"]


class StagedOutputs:
    """
    Files being received for `destination`.

    Use as a context manager: what was neither published nor kept is removed at the end.
    """

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise ConfigurationError(
                f"{destination} exists and is not an empty directory; name another --output"
            )
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            self._stage = Path(tempfile.mkdtemp(prefix=".receiving-", dir=destination.parent))
        except OSError as error:
            raise Unavailable(f"no room for outputs: {error.strerror}") from error
        self._file: io.BufferedWriter | None = None
        self._left = 0
        self._plain = True
        self._current = hashlib.sha256()
        self._digests: list[bytes] = []
        self._names: list[str] = []

    def begin(self, name: str, size: int, *, plain: bool) -> None:
        """Begin the file `name` of exactly `size` bytes; only `plain` ones enter `digests`."""
        self._require_complete()
        path = self._stage / parse_member_name(name)
        if name in self._names:
            raise RemoteProtocolError("an output is sent twice")
        self._names.append(name)
        self._left, self._current, self._plain = size, hashlib.sha256(), plain
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb")
        except OSError as error:
            raise Unavailable(f"an output cannot be written: {error.strerror}") from error
        self._end_if_complete()

    def write(self, data: bytes) -> None:
        """Append to the file that was begun."""
        if self._file is None or len(data) > self._left:
            raise RemoteProtocolError("output bytes outside a file")
        try:
            self._file.write(data)
        except OSError as error:
            raise Unavailable(f"an output cannot be written: {error.strerror}") from error
        self._current.update(data)
        self._left -= len(data)
        self._end_if_complete()

    def _end_if_complete(self) -> None:
        if self._left == 0 and self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                raise Unavailable(f"an output cannot be written: {error.strerror}") from error
            self._file = None
            if self._plain:
                self._digests.append(self._current.digest())

    def _require_complete(self) -> None:
        if self._file is not None:
            raise RemoteProtocolError("an output ends before its size")

    @property
    def names(self) -> tuple[str, ...]:
        """The names received, in order."""
        return tuple(self._names)

    @property
    def digests(self) -> tuple[bytes, ...]:
        """SHA-256 of every complete file that is not sealed for somebody else, in order."""
        self._require_complete()
        return tuple(self._digests)

    def publish(self) -> None:
        """Move everything to the destination: these bytes were verified."""
        self._move(self._destination)

    def keep_unverified(self) -> None:
        """Keep what came beside the destination, under a name that says it is not verified."""
        if not self._names:
            return
        base = self._destination.name + ".unverified"
        names = (base, *(f"{base}-{number}" for number in range(2, 1000)))
        targets = (self._destination.with_name(name) for name in names)
        # An earlier one is evidence too: it is neither overwritten nor a reason to lose this one.
        self._move(next(target for target in targets if not target.exists()))

    def _move(self, target: Path) -> None:
        try:
            if target.exists():
                target.rmdir()
            self._stage.replace(target)
            target.chmod(0o755)
        except OSError as error:
            raise Unavailable(f"outputs cannot be moved: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        shutil.rmtree(self._stage, ignore_errors=True)
