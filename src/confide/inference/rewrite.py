"""Giving answers the public model name, and finding the reported usage. Pure.

Both work on bytes, without parsing an answer: docs/protocols/inference.md §3.2, §4.5. In JSON text
an unescaped `"model"` followed by a colon can only be a member name: inside a string its quotes
would be escaped. So a match is never text that the model wrote.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from confide.errors import FormatError, Reason
from confide.inference.digest import read_usage
from confide.wire.json import JsonLimits, parse_json

if TYPE_CHECKING:
    from confide.inference.digest import Usage
    from confide.inference.models import ServedModel

__all__ = ["ModelRenamer", "UsageTail", "rename_model"]

# From: docs/protocols/inference.md §4.5. A usage member is flat but for its `_details`. The look
# behind comes after the name, so that the search can jump to the name.
_USAGE = re.compile(rb'"usage"(?<!\\"usage")\s*+:\s*+(\{(?:[^{}]++|\{[^{}]*+\})*+\})')
_USAGE_LIMITS = JsonLimits(max_bytes=4096, max_depth=3)
# What is kept of a stream to find its usage; a last chat chunk is below 1 KiB.
_TAIL_BYTES = 16 * 1024
# A line of an event stream, held back until it is whole.
_MAX_LINE_BYTES = 4 * 1024 * 1024
# It may come byte by byte: so many pieces are joined, which is a copy of 4 MiB every 8192 bytes.
_MAX_PIECES = 8192


@lru_cache(maxsize=16)
def _rule(upstream_name: str, name: str) -> tuple[re.Pattern[bytes], bytes]:
    """Return what to look for and what to put there; a node serves one model, so this is kept."""
    # The spellings of one string that JSON writers use: ASCII or UTF-8, slash escaped or not.
    spellings = {json.dumps(upstream_name), json.dumps(upstream_name, ensure_ascii=False)}
    alternatives = b"|".join(
        re.escape(spelling[1:-1].encode()).replace(b"/", rb"\\?/") for spelling in sorted(spellings)
    )
    pattern = re.compile(
        rb'("model"(?<!\\"model")\s*+:\s*+")(?:' + alternatives + rb')(?:@[^"\\]{0,64}+)?+"'
    )
    # The replacement is a template, in which a backslash is written twice.
    public = json.dumps(name)[1:].encode().replace(b"\\", rb"\\")
    return pattern, rb"\g<1>" + public


def rename_model(whole: bytes, served: ServedModel) -> bytes:
    """Return `whole` with the public name in every `model` member that holds the engine's."""
    pattern, replacement = _rule(served.upstream_name, served.name)
    return pattern.sub(replacement, whole)


class ModelRenamer:
    """
    `rename_model` for a stream: chunks in, chunks out, cut at line ends.

    A line is held back until it is whole. Raises `FormatError` (`stream-format`) for a line above
    4 MiB.
    """

    __slots__ = ("_held", "_held_bytes", "_served")

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._held: list[bytes] = []
        self._held_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        """Return the lines that `chunk` completes, renamed."""
        cut = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
        if not cut:
            self._held.append(chunk)
            self._held_bytes += len(chunk)
            if len(self._held) > _MAX_PIECES:
                self._held = [b"".join(self._held)]
            if self._held_bytes > _MAX_LINE_BYTES:
                raise FormatError(
                    f"event stream: a line above {_MAX_LINE_BYTES} bytes",
                    reason=Reason.STREAM_FORMAT,
                    clause="docs/protocols/inference.md §3.2",
                )
            return b""
        lines = b"".join((*self._held, chunk[:cut]))
        self._held = [chunk[cut:]] if cut < len(chunk) else []
        self._held_bytes = len(chunk) - cut
        return rename_model(lines, self._served)

    def close(self) -> bytes:
        """Return what was held back."""
        lines, self._held = b"".join(self._held), []
        return rename_model(lines, self._served)


class UsageTail:
    """Keeps the end of an answer, to read the usage that the engine reports there."""

    __slots__ = ("_chunks", "_size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Take a chunk in; amortised constant work per byte."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > 4 * _TAIL_BYTES or len(self._chunks) > 4096:
            self._chunks = [b"".join(self._chunks)[-_TAIL_BYTES:]]
            self._size = len(self._chunks[0])

    def usage(self) -> Usage | None:
        """Return the last usage in the tail; None where none was reported or it is odd."""
        tail = b"".join(self._chunks)[-_TAIL_BYTES:]
        found = None
        for found in _USAGE.finditer(tail):  # noqa: B007 - the last match is wanted
            pass
        if found is None:
            return None
        try:
            value = parse_json(
                found[1],
                what="usage",
                reason=Reason.UPSTREAM_FORMAT,
                limits=_USAGE_LIMITS,
            )
        except FormatError:
            return None
        return read_usage(value)
