"""Walking what an agent left: no link is followed, and only plain files and directories count.

docs/protocols/sandbox.md §4. Only after the agent is gone: nothing may change below us.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from confide.agents.names import parse_member_name
from confide.agents.sandbox import LeftOut
from confide.errors import FormatError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

__all__ = ["TreeKind", "left_out", "open_plain", "walk_tree"]

_MAX_DEPTH: Final = 32
TreeKind: TypeAlias = "Literal['file', 'directory'] | LeftOut"
_Why: TypeAlias = Literal["not a regular file", "name", "too deep"]


def walk_tree(root: Path) -> Iterator[tuple[str, TreeKind]]:
    """
    Yield the path below `root` of everything, each directory before what is in it.

    Names of files were looked at, those of directories not: a bad one is in its files' paths.
    """
    for folder, folders, files, handle in os.fwalk(root, follow_symlinks=False):
        inner = os.path.relpath(folder, root)
        prefix = "" if inner == "." else f"{inner}/"
        if prefix.count("/") >= _MAX_DEPTH:
            yield prefix, left_out(prefix, "too deep")
            folders.clear()
        folders.sort()
        for name in (*files, *folders):
            info = os.stat(name, dir_fd=handle, follow_symlinks=False)
            path = f"{prefix}{name}"
            yield path, _kind(path, info)


def left_out(path: str, why: _Why) -> LeftOut:
    """Return the record of something that does not come out, its path fit to be shown."""
    return LeftOut(path.encode("unicode_escape").decode()[:1024], why)


def open_plain(path: Path) -> IO[bytes]:
    """Open the file at `path`, no link, for reading. Raises `Unavailable`."""
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise Unavailable(f"run directory: an output is gone ({error.strerror})") from error


def _kind(path: str, info: os.stat_result) -> TreeKind:
    if stat.S_ISDIR(info.st_mode):
        return "directory"
    if not stat.S_ISREG(info.st_mode):
        return left_out(path, "not a regular file")
    try:
        parse_member_name(path)
    except FormatError:
        return left_out(path, "name")
    return "file"
