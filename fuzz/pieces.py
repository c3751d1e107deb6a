"""What several targets share: cuts of a stream, JSON first, text out of bytes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from confide.errors import Reason
from confide.wire.json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from confide.wire.json import JsonValue


def cuts(raw: bytes) -> Iterator[bytes]:
    """Cut `raw` as a network might: deterministic, from single bytes to everything at once."""
    widths = hashlib.sha256(raw).digest()
    # A small input in single bytes; a large one in at most some thousand pieces.
    least = 1 + len(raw) // 1024
    at = turn = 0
    while at < len(raw):
        width = least * (1 << (widths[turn % 32] % 12))
        yield raw[at : at + width]
        at, turn = at + width, turn + 1


def text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """Make a target of a parser of text."""
    return lambda raw: parse(raw.decode("utf-8", "replace"))


def document(parse: Callable[[JsonValue], object]) -> Callable[[bytes], object]:
    """Make a target of a parser of JSON values, behind the strict reader."""
    return lambda raw: parse(parse_json(raw, what="input", reason=Reason.RECEIPT_FORMAT))


def fixed(*seeds: bytes) -> Callable[[], tuple[bytes, ...]]:
    """Return seeds that are written down."""
    return lambda: seeds
