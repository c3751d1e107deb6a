"""Bodies of `multipart/form-data`, read in one way only or refused. Pure.

docs/protocols/inference.md §7.1 and §7.2. The body is hostile, and an engine behind the node reads
it again with a parser of its own: whatever two parsers could see differently is refused here, so
that the `model` this node has read is the one that the engine reads. RFC 7578, RFC 2046 §5.1.1.

Nothing is copied: a part says where its value lies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from confide.inference.plan import refuse

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_PARTS",
    "Part",
    "parse_boundary",
    "parse_multipart",
    "parse_part_head",
]

# From: RFC 2046 §5.1.1; no space: it may not end a boundary, and nobody uses one.
_TYPE = re.compile(
    r"multipart/form-data[ \t]*;[ \t]*boundary="
    r"(?:\"([0-9A-Za-z'()+_,\-./:=?]{1,70})\"|([0-9A-Za-z'+_\-.]{1,70}))\Z",
    re.IGNORECASE,
)
_DISPOSITION = re.compile(
    r"form-data; ?name=\"([^\"\\\r\n\0]{1,128})\"(?:; ?filename=\"([^\"\\\r\n\0]{0,1024})\")?\Z",
    re.IGNORECASE,
)
_MEDIA_TYPE = re.compile(r"[!-~][ -~]{0,255}\Z")
MAX_PARTS = 64
MAX_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its value is `body[start:end]`; `is_file` says that it has a file name."""

    name: str
    start: int
    end: int
    is_file: bool


def _bad(why: str) -> NoReturn:
    refuse("invalid_multipart", f"The multipart body is refused: {why}.")


def parse_multipart(body: bytes, content_type: str) -> tuple[Part, ...]:
    """
    Return the parts of `body` in order.

    Raises `RequestRefused` (`invalid_multipart`) for a body that is not of the one form of §7.2.
    Linear in the size of the body.
    """
    mark = parse_boundary(content_type)
    if not body.startswith(mark + b"\r\n"):
        _bad("it does not begin with its boundary")
    parts: list[Part] = []
    at = len(mark) + 2
    while True:
        # Wherever the boundary stands it must separate, or a lenient reader would see more parts.
        stop = body.find(mark, at)
        if stop < 0 or body[stop - 2 : stop] != b"\r\n":
            _bad("a part does not end with the boundary on a line of its own")
        if len(parts) == MAX_PARTS:
            _bad(f"it has more than {MAX_PARTS} parts")
        parts.append(_part(body, at, stop - 2))
        at = stop + len(mark) + 2
        after = body[stop + len(mark) : at]
        if after == b"--":
            break
        if after != b"\r\n":
            _bad("a boundary is followed by something else than a line end")
    if body[at:] not in (b"\r\n", b""):
        _bad("something follows the last boundary")
    return tuple(parts)


def _part(body: bytes, start: int, end: int) -> Part:
    cut = body.find(b"\r\n\r\n", start, min(end, start + MAX_HEAD_BYTES))
    if cut < 0:
        _bad("a part has no header, or a long one")
    name, filename = parse_part_head(body[start:cut])
    if cut + 4 > end:
        _bad("a part has no value")
    return Part(name, cut + 4, end, filename is not None)


def parse_boundary(content_type: str) -> bytes:
    """Return what stands between parts: two dashes and the boundary. Raises `RequestRefused`."""
    found = _TYPE.match(content_type)
    if found is None:
        _bad("its type is not multipart/form-data with one boundary")
    return b"--" + (found[1] or found[2]).encode("ascii")


def parse_part_head(raw: bytes) -> tuple[str, str | None]:
    """Return the name of a part, and its file name if it is a file. Raises `RequestRefused`."""
    try:
        lines = raw.decode("utf-8").split("\r\n")
    except UnicodeDecodeError:
        _bad("the header of a part is not UTF-8")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name.lower() in fields or "\n" in line or "\r" in line:
            _bad("the header of a part is malformed")
        fields[name.lower()] = value.strip(" \t")
    found = _DISPOSITION.match(fields.pop("content-disposition", ""))
    media_type = fields.pop("content-type", "text/plain")
    if found is None or fields or not _MEDIA_TYPE.match(media_type):
        _bad("the header of a part is not a name, a file name and a type")
    if media_type.lower().startswith("multipart/"):
        _bad("a part is multipart itself")
    return found[1], found[2]
