"""Input files of a run, looked at before anything starts: names, sizes, readable or not.

Rules: docs/protocols/sandbox.md §4 for names, `limits.input_bytes` for the sum. The node checks
the same again; here a person learns of it before a node is started or a byte is sent.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from confide.agents.names import parse_member_name
from confide.client.agent import InputFile
from confide.errors import ConfigurationError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["gather_inputs"]


def gather_inputs(paths: Sequence[Path], *, max_bytes: int) -> tuple[InputFile, ...]:
    """
    Return the files behind `paths` under the names that the agent will see below /input.

    A file goes by its own name, a directory by the relative names of what is in it. Raises
    `ConfigurationError` for what is missing, unreadable, not a plain file, named so that no agent
    could read it, named twice, or together above `max_bytes`.
    """
    found: dict[str, InputFile] = {}
    for path in paths:
        for name, file in _walk(path):
            item = InputFile(_usable(name, file), file, _size(file))
            if name in found:
                raise ConfigurationError(
                    f"two inputs would be /input/{name}: rename one, or pass their directory"
                )
            found[name] = item
    total = sum(item.size for item in found.values())
    if total > max_bytes:
        raise ConfigurationError(
            f"the inputs hold {total} bytes, and limits.input_bytes allows {max_bytes}: "
            "send less, or raise it under [limits] in agent.toml"
        )
    return tuple(found.values())


def _walk(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.exists():
        raise ConfigurationError(f"input {_shown(path)} does not exist: check the path")
    if not path.is_dir():
        yield path.name, path
        return
    empty = True
    for file in sorted(path.rglob("*")):
        if file.is_symlink():
            raise ConfigurationError(
                f"input {_shown(file)} is a link: pass what it points to by itself"
            )
        if not file.is_dir():
            empty = False
            yield file.relative_to(path).as_posix(), file
    if empty:
        raise ConfigurationError(f"input {_shown(path)} is a directory without files")


def _usable(name: str, path: Path) -> str:
    try:
        return parse_member_name(name)
    except FormatError as error:
        raise ConfigurationError(
            f"input {_shown(path)} has a name that no agent is given "
            f"({error.what.removeprefix('file name: ')}): rename it"
        ) from error


def _size(path: Path) -> int:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ConfigurationError(f"input {_shown(path)} is not a plain file")
        with path.open("rb"):
            return info.st_size
    except OSError as error:
        raise ConfigurationError(
            f"input {_shown(path)} cannot be read ({error.strerror}): check its permissions"
        ) from error


def _shown(path: Path) -> str:
    # One line whatever the name holds.
    text = os.fsdecode(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
