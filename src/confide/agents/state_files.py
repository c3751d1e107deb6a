"""What an agent keeps between runs, as one archive that depends on nothing but its files. Pure.

Clause: docs/protocols/state.md 3.1. POSIX.1-1988 ustar, regular files and directories only, sorted,
no owners, times zero, so that equal files give equal bytes. Reading is strict: only what writing
gives is taken. `raw` is hostile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from confide.agents.names import parse_member_name
from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from confide.agents.sandbox import LeftOut

__all__ = [
    "MAX_STATE_ENTRIES",
    "StateEntry",
    "StateTree",
    "fits_state",
    "pack_state",
    "packed_bytes",
    "unpack_state",
]

# Files and directories of one state.
MAX_STATE_ENTRIES: Final = 10_000
# From: POSIX.1-2017 pax "ustar Interchange Format".
_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_NAME_BYTES: Final = 100
_PREFIX_BYTES: Final = 155
_MAX_FILE_BYTES: Final = 8**11 - 1
_CLAUSE: Final = "docs/protocols/state.md#3.1"


@dataclass(frozen=True, slots=True)
class StateEntry:
    """A file below /state with its bytes, or a directory (`data` None)."""

    path: str
    data: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class StateTree:
    """What an agent left in /state. With `over` it is above its limits, and nothing is kept."""

    entries: tuple[StateEntry, ...]
    left_out: tuple[LeftOut, ...]
    over: bool


def fits_state(path: str, *, folder: bool) -> bool:
    """Whether the format can say `path`, a name of sandbox.md §4."""
    return _split(path.encode() + b"/" * folder) is not None


def packed_bytes(entries: Iterable[StateEntry]) -> int:
    """Return the size of the archive of `entries`."""
    sizes = (0 if entry.data is None else len(entry.data) for entry in entries)
    return len(_END) + sum(_BLOCK + size + -size % _BLOCK for size in sizes)


def pack_state(entries: Sequence[StateEntry]) -> bytes:
    """
    Return the archive of `entries`, which hold every parent directory, in any order.

    Raises `ValueError` for a name or a size that the format cannot say.
    """
    pieces: list[bytes] = []
    for entry in sorted(entries, key=lambda entry: entry.path.encode()):
        pieces.append(_header(entry))
        if entry.data is not None:
            pieces += (entry.data, bytes(-len(entry.data) % _BLOCK))
    return b"".join((*pieces, _END))


def unpack_state(raw: bytes, *, max_bytes: int) -> tuple[StateEntry, ...]:
    """
    Return what `pack_state` put into `raw`, in order, each directory before what is in it.

    Raises `FormatError` (BROKER_FORMAT) for anything that `pack_state` does not write, and above
    `max_bytes` or `MAX_STATE_ENTRIES`.
    """
    if len(raw) > max_bytes:
        _refuse(f"{len(raw)} bytes, at most {max_bytes}")
    entries: list[StateEntry] = []
    folders = {""}
    at, last = 0, b""
    while raw[at : at + len(_END)] != _END:
        if len(entries) >= MAX_STATE_ENTRIES:
            _refuse(f"more than {MAX_STATE_ENTRIES} entries")
        entry, following = _read(raw, at)
        name = entry.path.encode()
        if name <= last:
            _refuse("entries out of order, or one of them twice", at)
        if entry.path.rpartition("/")[0] not in folders:
            _refuse("an entry without its directory", at)
        if entry.data is None:
            folders.add(entry.path)
        entries.append(entry)
        at, last = following, name
    if at + len(_END) != len(raw):
        _refuse("something follows the end", at)
    return tuple(entries)


def _read(raw: bytes, at: int) -> tuple[StateEntry, int]:
    header = raw[at : at + _BLOCK]
    if len(header) != _BLOCK:
        _refuse("it ends inside an entry", at)
    name, prefix = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
    try:
        path = (prefix + b"/" + name if prefix else name).decode("utf-8")
        folder = path.endswith("/")
        path = parse_member_name(path.removesuffix("/"))
    except (UnicodeDecodeError, FormatError) as error:
        raise _refusal("a name that no file here has", at) from error
    size = _octal(header[124:135], at)
    start = at + _BLOCK
    end = start + size
    following = end + -size % _BLOCK
    entry = StateEntry(path, None if folder else raw[start:end])
    # What was written is known from what was read: links, devices, owners, times, another checksum
    # or another spelling of a name make another header.
    if following > len(raw) or any(raw[end:following]) or (folder and size):
        _refuse("contents that are not whole", at)
    if not fits_state(path, folder=folder) or header != _header(entry):
        _refuse("a header that is not of a plain file or directory", at)
    return entry, following


def _octal(field: bytes, at: int) -> int:
    if field.strip(b"01234567"):
        _refuse("a size that is no octal number", at)
    return int(field, 8)


def _split(path: bytes) -> tuple[bytes, bytes] | None:
    """Return prefix and name of `path`: the shortest prefix that leaves a name short enough."""
    if len(path) <= _NAME_BYTES:
        return b"", path
    cut = path.find(b"/", len(path) - _NAME_BYTES - 1, len(path) - 1)
    return (path[:cut], path[cut + 1 :]) if 0 < cut <= _PREFIX_BYTES else None


def _header(entry: StateEntry) -> bytes:
    folder = entry.data is None
    split = _split(entry.path.encode() + b"/" * folder)
    size = 0 if entry.data is None else len(entry.data)
    if split is None or size > _MAX_FILE_BYTES:
        raise ValueError("the format cannot say this name or this size")
    prefix, name = split
    head = b"".join(
        (
            name.ljust(_NAME_BYTES, b"\0"),
            b"0000755\0" if folder else b"0000644\0",
            b"0000000\0" * 2,
            b"%011o\0" % size,
            b"00000000000\0",
        )
    )
    tail = b"".join(
        (
            b"5" if folder else b"0",
            bytes(100),
            b"ustar\0" + b"00",
            bytes(64),
            b"0000000\0" * 2,
            prefix.ljust(_PREFIX_BYTES, b"\0"),
            bytes(12),
        )
    )
    # The checksum counts its own field as spaces.
    return head + b"%06o\0 " % (sum(head) + sum(tail) + 8 * ord(" ")) + tail


def _refusal(why: str, at: int = -1) -> FormatError:
    return FormatError(f"state: {why}", reason=Reason.BROKER_FORMAT, clause=_CLAUSE, offset=at)


def _refuse(why: str, at: int = -1) -> NoReturn:
    raise _refusal(why, at)
