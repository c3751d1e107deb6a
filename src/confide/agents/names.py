"""Names of files that cross the sandbox wall. Pure.

Rule: docs/protocols/sandbox.md §4. An input name comes from a client, an output name from the
agent; both are hostile. What passes can be joined to a directory, printed and put in JSON.
"""

from __future__ import annotations

from confide.errors import FormatError, Reason

__all__ = ["parse_member_name"]

_CLAUSE = "sandbox.md §4"
# From: POSIX <limits.h> NAME_MAX, in bytes.
_MAX_COMPONENT_BYTES = 255
_MAX_NAME_BYTES = 1024


def parse_member_name(name: str) -> str:
    """
    Return `name` when it is a plain relative path: `notes.csv`, `tables/may.csv`.

    Refused: empty, absolute, `.` or `..` components, control characters (a newline above all),
    backslashes, text that is not UTF-8, a component above 255 bytes. Raises `FormatError`.
    """
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _refusal("not UTF-8") from error
    if not 0 < len(encoded) <= _MAX_NAME_BYTES:
        raise _refusal(f"{len(encoded)} bytes, from 1 to {_MAX_NAME_BYTES} are allowed")
    if not name.isprintable() or "\\" in name:
        raise _refusal("a control character or a backslash")
    for part in name.split("/"):
        if part in {"", ".", ".."}:
            raise _refusal("absolute, or an empty, '.' or '..' component")
        if len(part.encode()) > _MAX_COMPONENT_BYTES:
            raise _refusal(f"a component above {_MAX_COMPONENT_BYTES} bytes")
    return name


def _refusal(why: str) -> FormatError:
    return FormatError(f"file name: {why}", reason=Reason.FILE_NAME, clause=_CLAUSE)
