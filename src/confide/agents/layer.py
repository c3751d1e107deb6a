"""One image layer as a tar archive that depends on nothing but its entries. Pure.

docs/protocols/agent-image.md §3: sorted by path, modification time 0, owner 0:0 without names,
mode 0644 or 0755, directories spelled out, no compression. The sink is given; nothing is opened.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ByteSink", "LayerEntry", "layer_bytes", "with_directories", "write_layer"]


class ByteSink(Protocol):
    """Where the archive goes; told each block in order."""

    def write(self, data: bytes, /) -> object:
        """Take `data`."""
        ...


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """
    One member: `path` relative to the root, without a leading slash.

    `data` is the content of a file or the target of a link; `executable` picks 0755 over 0644.
    """

    path: str
    data: bytes = b""
    kind: Literal["file", "directory", "link"] = "file"
    executable: bool = False


def with_directories(entries: Iterable[LayerEntry]) -> tuple[LayerEntry, ...]:
    """Return `entries` with every parent directory, each path once, sorted by its bytes."""
    found: dict[str, LayerEntry] = {}
    for entry in entries:
        if entry.path in found and found[entry.path] != entry:
            raise ValueError("two different entries for one path")
        found[entry.path] = entry
        parent = entry.path.rpartition("/")[0]
        while parent:
            found.setdefault(parent, LayerEntry(parent, kind="directory"))
            parent = parent.rpartition("/")[0]
    return tuple(sorted(found.values(), key=lambda entry: entry.path.encode()))


def write_layer(entries: Iterable[LayerEntry], sink: ByteSink) -> None:
    """Write the archive of `entries` to `sink`; equal entries in any order give equal bytes."""
    for entry in with_directories(entries):
        sink.write(_header(entry))
        if entry.kind == "file":
            sink.write(entry.data)
            # From: POSIX.1-2017 pax "ustar Interchange Format": 512-byte blocks.
            sink.write(bytes(-len(entry.data) % 512))
    sink.write(bytes(1024))


def _header(entry: LayerEntry) -> bytes:
    info = tarfile.TarInfo(entry.path)
    info.mode = 0o755 if entry.executable or entry.kind == "directory" else 0o644
    if entry.kind == "directory":
        info.type = tarfile.DIRTYPE
    elif entry.kind == "link":
        info.type = tarfile.SYMTYPE
        info.linkname = entry.data.decode()
        info.mode = 0o777
    else:
        info.size = len(entry.data)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def layer_bytes(entries: Iterable[LayerEntry]) -> bytes:
    """Return the archive as bytes, for layers that are small."""
    sink = io.BytesIO()
    write_layer(entries, sink)
    return sink.getvalue()
