"""A second implementation of data sets, from the clauses alone, agrees on every file.

Written from docs/protocols/dataset.md §2 and §3 and RFC 6962 §2.1 as they stand: recursive, over
whole lists, with the standard library and the `rfc8785` package.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import rfc8785
from dataset_rows import commit, prove
from hypothesis import given
from hypothesis import strategies as st

from confide.training.inclusion import parse_dataset_proof, verify_row
from confide.training.lines import LineSplitter
from confide.training.rows import RowReader


def _leaf(salt: bytes, index: int, row: Any) -> bytes:
    row_salt = hmac.digest(salt, b"confide/row-salt/v1\x00" + index.to_bytes(8, "big"), "sha256")
    return hashlib.sha256(b"\x00" + row_salt + rfc8785.dumps(row)).digest()


def _split(leaves: list[bytes]) -> int:
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return k


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    k = _split(leaves)
    return hashlib.sha256(b"\x01" + _root(leaves[:k]) + _root(leaves[k:])).digest()


def _path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = _split(leaves)
    if index < k:
        return [*_path(index, leaves[:k]), _root(leaves[k:])]
    return [*_path(index - k, leaves[k:]), _root(leaves[:k])]


def second(raw: bytes, salt: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return the commitment value and the leaves, of completion rows."""
    rows = [json.loads(line) for line in raw.decode().splitlines()]
    leaves = [_leaf(salt, index, row) for index, row in enumerate(rows)]
    return {
        "type": "confide/dataset/v1",
        "kind": "completion",
        "rows": len(rows),
        "root": _root(leaves).hex(),
    }, leaves


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_ROW = st.fixed_dictionaries({"prompt": _TEXT, "completion": _TEXT})
_SALT = st.binary(min_size=32, max_size=32)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A file of completion rows, spelt in one way or another."""
    rows = draw(st.lists(_ROW, min_size=1, max_size=40))
    escape, indent = draw(st.booleans()), draw(st.sampled_from([(", ", ": "), (",", ":")]))
    texts = (json.dumps(row, ensure_ascii=escape, separators=indent) for row in rows)
    # splitlines() of the second implementation knows more line ends than the format has.
    kept = (text for text in texts if len(text.splitlines()) == 1)
    return "".join(f"{text}\n" for text in kept).encode() or b'{"prompt":"","completion":"x"}\n'


@given(files(), _SALT)
def test_the_commitment_is_the_same(raw: bytes, salt: bytes) -> None:
    value, _ = second(raw, salt)
    found = commit(raw, salt)
    assert found.value() == value
    assert found.digest == hashlib.sha256(rfc8785.dumps(value)).digest()


@given(files(), _SALT, st.integers(min_value=0))
def test_each_proof_is_the_same_and_holds(raw: bytes, salt: bytes, at: int) -> None:
    value, leaves = second(raw, salt)
    index = at % len(leaves)
    proof = prove(raw, index, salt)
    assert proof.leaf == leaves[index]
    assert list(proof.path) == _path(index, leaves)
    digest = hashlib.sha256(rfc8785.dumps(value)).digest()
    assert len(verify_row(parse_dataset_proof(proof.encode()), commitment=digest)) == 3


@given(files(), st.lists(st.integers(min_value=1, max_value=50), min_size=1))
def test_how_a_file_is_cut_makes_no_difference(raw: bytes, sizes: list[int]) -> None:
    pieces: list[bytes] = []
    at = 0
    while at < len(raw):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(raw[at : at + size])
        at += size
    assert list(RowReader().read(pieces)) == list(RowReader().read([raw]))


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(min_value=1, max_value=20))
def test_lines_are_those_of_the_whole(pieces: list[bytes], most: int) -> None:
    splitter = LineSplitter(max_bytes=most)
    found = [line for piece in pieces for line in splitter.feed(piece)]
    found += splitter.end()
    wanted = b"".join(pieces).split(b"\n")
    if not wanted[-1]:
        wanted.pop()
    assert [line.raw for line in found] == [raw if len(raw) <= most else None for raw in wanted]
    assert [line.number for line in found] == list(range(1, len(wanted) + 1))
