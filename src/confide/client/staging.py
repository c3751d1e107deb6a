"""Outputs of a run on the client's disk: staged first, published only when verified.

Names come from a node and are hostile until the receipt verified; even then they never leave the
destination: no absolute path, no `..`, no link is followed.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import suppress
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
    Files being received for `destination`; files sealed for somebody else go beside it.

    Use as a context manager: what was neither published nor kept is removed at the end, except
    where publishing failed: verified outputs are then left where the error says.
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
            for place in (self._plain_stage, self._sealed_stage):
                place.mkdir()
        except OSError as error:
            raise Unavailable(f"no room for outputs: {error.strerror}") from error
        self._file: io.BufferedWriter | None = None
        self._left = 0
        self._plain = True
        self._current = hashlib.sha256()
        self._digests: list[bytes] = []
        self._names: list[str] = []
        self._sealed_names: list[str] = []
        self._keep_stage = False

    @property
    def _plain_stage(self) -> Path:
        return self._stage / "plain"

    @property
    def _sealed_stage(self) -> Path:
        return self._stage / "sealed"

    def begin(self, name: str, size: int, *, plain: bool) -> None:
        """
        Begin the file `name` of exactly `size` bytes.

        Only `plain` ones enter `digests` and the destination: nobody here can check the others.
        """
        self._require_complete()
        path = (self._plain_stage if plain else self._sealed_stage) / parse_member_name(name)
        names = self._names if plain else self._sealed_names
        if name in names:
            raise RemoteProtocolError("an output is sent twice")
        names.append(name)
        self._left, self._current, self._plain = size, hashlib.sha256(), plain
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb")
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise RemoteProtocolError("one output is a directory of another") from error
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
        """The names received in plaintext, in order."""
        return tuple(self._names)

    @property
    def sealed_names(self) -> tuple[str, ...]:
        """The names of files sealed for somebody else, in order."""
        return tuple(self._sealed_names)

    @property
    def digests(self) -> tuple[bytes, ...]:
        """SHA-256 of every complete file that is not sealed for somebody else, in order."""
        self._require_complete()
        return tuple(self._digests)

    def publish(self) -> None:
        """
        Move plaintext to the destination, these bytes were verified; sealed files to `….sealed`.

        Raises `Unavailable` when they cannot be moved; they then stay where it says.
        """
        self._keep_stage = True
        self._move(self._plain_stage, self._destination)
        if self._sealed_names:
            self._move(self._sealed_stage, self._beside(".sealed"))
        self._keep_stage = False

    def keep_unverified(self) -> None:
        """Keep what came beside the destination, under a name that says it is not verified."""
        if self._names:
            self._move(self._plain_stage, self._beside(".unverified"))
        if self._sealed_names:
            self._move(self._sealed_stage, self._beside(".unverified.sealed"))

    def _beside(self, suffix: str) -> Path:
        base = self._destination.name + suffix
        names = (base, *(f"{base}-{number}" for number in range(2, 1000)))
        targets = (self._destination.with_name(name) for name in names)
        # An earlier one is evidence too: it is neither overwritten nor a reason to lose this one.
        return next(target for target in targets if not target.exists())

    def _move(self, source: Path, target: Path) -> None:
        try:
            if target.exists():
                target.rmdir()
            source.replace(target)
            target.chmod(0o755)
        except OSError as error:
            raise Unavailable(
                f"outputs cannot be moved: {error.strerror}; they are in {source}"
            ) from error

    def discard(self) -> None:
        """Remove what was neither published nor kept."""
        if self._file is not None:
            # What could not be written to it is why it is being thrown away.
            with suppress(OSError):
                self._file.close()
        if not self._keep_stage:
            shutil.rmtree(self._stage, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()
