"""The head of a GGUF file: which element types its tensors have. Pure.

From: ggml docs/gguf.md, versions 2 and 3, little-endian. The file is the operator's, but a parser
of the node's reads it: everything is bounded, nothing is believed but the types. Values of
metadata are stepped over.
"""

from __future__ import annotations

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader

__all__ = ["gguf_types"]

_CLAUSE = "ggml docs/gguf.md"
_MAGIC = b"GGUF"
_MAX_ITEMS = 1_000_000
_MAX_DIMENSIONS = 4
_ARRAY, _STRING = 9, 8
_MAX_NESTING = 2
# Sizes of the fixed metadata types: u8 i8 u16 i16 u32 i32 f32 bool, then u64 i64 f64.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# From: ggml.h, enum ggml_type; the numbers that are gone are left out.
_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def gguf_types(head: bytes) -> frozenset[str]:
    """
    Return the element types of the tensors that the beginning of a file names.

    A type without a name of ours is `ggml-<number>`. Raises `FormatError` for what is no GGUF, and
    for a `head` that ends before its tensors are named.
    """
    reader = Reader(head, what="GGUF", clause=_CLAUSE, truncated=Reason.UPSTREAM_FORMAT)
    if reader.take(4) != _MAGIC or reader.uint(4, "little") not in (2, 3):
        raise _bad("no magic, or another version")
    tensors, pairs = (_count(reader) for _ in range(2))
    for _ in range(pairs):
        _skip_text(reader)
        _skip_value(reader, reader.uint(4, "little"), _MAX_NESTING)
    found = set()
    for _ in range(tensors):
        _skip_text(reader)
        dimensions = reader.uint(4, "little")
        if dimensions > _MAX_DIMENSIONS:
            raise _bad("a tensor of too many dimensions")
        reader.take(8 * dimensions)
        number = reader.uint(4, "little")
        found.add(_TYPES.get(number, f"ggml-{number}"))
        reader.take(8)
    return frozenset(found)


def _bad(why: str) -> FormatError:
    return FormatError(f"GGUF: {why}", reason=Reason.UPSTREAM_FORMAT, clause=_CLAUSE)


def _count(reader: Reader) -> int:
    count = reader.uint(8, "little")
    if count > _MAX_ITEMS:
        raise _bad("too many items")
    return count


def _skip_text(reader: Reader) -> None:
    reader.take(reader.uint(8, "little"))


def _skip_value(reader: Reader, kind: int, nesting: int) -> None:
    if kind in _SIZES:
        reader.take(_SIZES[kind])
    elif kind == _STRING:
        _skip_text(reader)
    elif kind == _ARRAY and nesting:
        inner, count = reader.uint(4, "little"), reader.uint(8, "little")
        if inner in _SIZES:
            reader.take(_SIZES[inner] * count)
            return
        if count > _MAX_ITEMS:
            raise _bad("a long array")
        for _ in range(count):
            _skip_value(reader, inner, nesting - 1)
    else:
        raise _bad("a value of an unknown type")
