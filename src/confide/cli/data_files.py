"""The files of `confide data`: rows in pieces, the salt beside them. dataset.md §4."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from confide.adapters.entropy import SystemEntropy
from confide.adapters.files import write_atomically
from confide.cli.places import read_bounded
from confide.errors import ConfigurationError
from confide.training.dataset import SALT_BYTES, parse_salt

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "beside",
    "draw_salt",
    "pieces_of",
    "read_salt",
    "require_new",
    "require_rows_file",
    "write_salt",
]

_PIECE_BYTES: Final = 1024 * 1024


def pieces_of(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file of rows. Raises `ConfigurationError`."""
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def require_rows_file(path: Path) -> None:
    """Require a file that can be read more than once. Raises `ConfigurationError`."""
    if not path.exists():
        raise ConfigurationError(f"{path} cannot be read: No such file or directory")
    if not path.is_file():
        raise ConfigurationError(f"{path} is no file: rows are read again when they are sent")


def beside(path: Path, ending: str) -> Path:
    """Return the place of a file that belongs to the rows at `path`."""
    return path.with_name(f"{path.name}.{ending}")


def require_new(path: Path) -> None:
    """Refuse to write where something is. Raises `ConfigurationError`."""
    if path.exists():
        raise ConfigurationError(f"{path} exists; name another --output")


def read_salt(path: Path) -> bytes:
    """Read a salt that the owner alone can read. Raises `ConfigurationError`, `FormatError`."""
    raw = read_bounded(path, "salt")
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(f"{path} may be read by others; chmod 600 {path}")
    return parse_salt(raw)


def draw_salt() -> bytes:
    """Draw the salt of one data set."""
    return SystemEntropy().token(SALT_BYTES)


def write_salt(path: Path, salt: bytes) -> None:
    """Write a new salt, for the owner alone."""
    write_atomically(path, salt.hex().encode() + b"\n", mode=0o600)
