"""The directory of a relay: which keysets are behind it. Bytes to value and back; verifies nothing.

Format: docs/protocols/relay.md §2 and §4. `raw` is hostile, also when somebody signed it: a
directory says where to ask, never what is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from confide.errors import FormatError, Reason
from confide.wire.json import JsonLimits, JsonValue, Members, is_hex, jcs, parse_json
from confide.wire.keyset import format_time, parse_time
from confide.wire.note import Note, parse_note

__all__ = [
    "DIRECTORY_PATH",
    "MAX_LIFETIME",
    "MAX_NODES",
    "Directory",
    "DirectoryAnswer",
    "Listed",
    "NodeHint",
    "NoteWithDirectory",
    "Role",
    "parse_directory",
    "parse_directory_answer",
    "parse_listed",
    "parse_node_path",
    "path_of_node",
]

# From: relay.md 2.1.
DIRECTORY_PATH: Final = "/confide/v1/directory"
_NODES: Final = "/confide/v1/nodes/"
# From: relay.md 4.1.
MAX_NODES: Final = 1024
MAX_LIFETIME: Final = timedelta(days=7)
_TYPE: Final = "confide/directory/v1"
_REASON: Final = Reason.DIRECTORY_FORMAT
_CLAUSE: Final = "docs/protocols/relay.md#4.1"
_MAX_BYTES: Final = 1024 * 1024
_MAX_NAME: Final = 256

Role = Literal["agent", "model"]
NodeHint = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry: the digest of a keyset, and what its node is said to be."""

    keyset: bytes
    role: Role
    model: str
    roots: str

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document."""
        return {
            "keyset": self.keyset.hex(),
            "role": self.role,
            "model": self.model,
            "roots": self.roots,
        }


def parse_listed(members: Members) -> Listed:
    """Take the members of one entry; the caller ends the object. Raises `FormatError`."""
    keyset = members.hexes("keyset", 32)
    role: Role = members.choice("role", ("agent", "model"))
    model = members.text("model", max_chars=_MAX_NAME)
    roots = members.text("roots", max_chars=_MAX_NAME)
    if bool(model) is not (role == "model") or not roots:
        members.refuse("a model node has a model, an agent node none, and both have roots")
    if not (model + roots).isprintable():
        members.refuse("a name that cannot be printed")
    return Listed(keyset, role, model, roots)


@dataclass(frozen=True, slots=True)
class Directory:
    """What a relay has, between two instants (UTC). `sequence` grows from one to the next."""

    sequence: int
    not_before: datetime
    not_after: datetime
    nodes: tuple[Listed, ...]

    def text(self) -> str:
        """Return the text that is signed: one line."""
        document: dict[str, JsonValue] = {
            "type": _TYPE,
            "sequence": self.sequence,
            "not_before": format_time(self.not_before),
            "not_after": format_time(self.not_after),
            "nodes": [node.document() for node in self.nodes],
        }
        return jcs(document).decode() + "\n"


@dataclass(frozen=True, slots=True)
class NoteWithDirectory:
    """A directory and the note that it came in, with unverified signatures."""

    directory: Directory
    note: Note


def parse_directory(raw: bytes) -> NoteWithDirectory:
    """
    Parse a signed directory. Raises `FormatError` with DIRECTORY_FORMAT.

    Refused: another spelling than the canonical one, a keyset that stands twice, a validity that
    ends before it begins or is longer than a week.
    """
    try:
        note = parse_note(raw)
    except FormatError as error:
        raise FormatError(error.what, reason=_REASON, clause=_CLAUSE) from error
    value = parse_json(
        note.text.encode(),
        what="directory",
        reason=_REASON,
        limits=JsonLimits(max_bytes=_MAX_BYTES, max_depth=8),
    )
    top = Members(value, what="directory", reason=_REASON)
    top.choice("type", (_TYPE,))
    sequence = top.integer("sequence", low=1)
    begin, end = (
        parse_time(top.text(name), what=f"directory {name}", reason=_REASON)
        for name in ("not_before", "not_after")
    )
    nodes = tuple(_listed(item) for item in top.items("nodes", max_items=MAX_NODES))
    top.end()
    if not begin < end <= begin + MAX_LIFETIME:
        top.refuse("in force for less than a second or more than a week")
    if len({node.keyset for node in nodes}) != len(nodes):
        top.refuse("a keyset stands twice")
    found = Directory(sequence, begin, end, nodes)
    if found.text() != note.text:
        top.refuse("not in canonical form")
    return NoteWithDirectory(found, note)


def _listed(item: JsonValue) -> Listed:
    members = Members(item, what="directory entry", reason=_REASON)
    found = parse_listed(members)
    members.end()
    return found


@dataclass(frozen=True, slots=True)
class DirectoryAnswer:
    """What a relay answers: the note's bytes, and its own unsigned opinion of its nodes."""

    note: bytes
    hints: tuple[tuple[bytes, NodeHint], ...]

    def encode(self) -> bytes:
        """Return the RFC 8785 bytes."""
        health: list[JsonValue] = [
            {"keyset": keyset.hex(), "state": state} for keyset, state in self.hints
        ]
        return jcs({"directory": self.note.decode(), "health": health})


def parse_directory_answer(raw: bytes) -> DirectoryAnswer:
    """Parse the answer of a relay. Raises `FormatError` with DIRECTORY_FORMAT."""
    value = parse_json(
        raw,
        what="directory answer",
        reason=_REASON,
        limits=JsonLimits(max_bytes=2 * _MAX_BYTES, max_depth=8),
    )
    top = Members(value, what="directory answer", reason=_REASON)
    note = top.text("directory", max_chars=_MAX_BYTES)
    hints: list[tuple[bytes, NodeHint]] = []
    for item in top.items("health", max_items=MAX_NODES):
        members = Members(item, what="directory answer: health", reason=_REASON)
        state: NodeHint = members.choice("state", ("up", "down"))
        hints.append((members.hexes("keyset", 32), state))
        members.end()
    top.end()
    return DirectoryAnswer(note.encode(), tuple(hints))


def path_of_node(keyset: bytes) -> str:
    """Return the path that stands before the routes of the node with `keyset`."""
    return _NODES + keyset.hex()


def parse_node_path(path: str) -> tuple[bytes, str] | None:
    """Split `path` into a keyset and the route behind it; None where it is of no node."""
    digest, rest = path.removeprefix(_NODES)[:64], path.removeprefix(_NODES)[64:]
    if not path.startswith(_NODES) or not is_hex(digest, 32):
        return None
    return bytes.fromhex(digest), rest
