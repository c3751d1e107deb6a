"""Merkle laws against a naive tree, tiles that prove everything, and no bit that may change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import log_world as world
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_world import tree_root

from confide.crypto.errors import BadProof
from confide.crypto.merkle import (
    Frontier,
    TileTree,
    consistency_proof,
    hash_leaf,
    inclusion_proof,
    verify_consistency,
    verify_inclusion,
)
from confide.errors import LogRejected
from confide.tlog.log import EMPTY_EDGE, edge_paths, grow, restore_edge
from confide.tlog.prove import (
    prove_consistency,
    prove_inclusion,
    tiles_for_consistency,
    tiles_for_inclusion,
    verify_tiles,
)
from confide.wire.tiles import ENTRIES, TilePath, parse_tile_path

if TYPE_CHECKING:
    from confide.wire.checkpoint import Checkpoint

SIZES = st.integers(1, 300)


LEAVES = [hash_leaf(world.entry(n)) for n in range(300)]


def node(height: int, index: int) -> bytes:
    return tree_root(LEAVES[index << height : (index + 1) << height])


@given(SIZES)
def test_roots_are_those_of_the_naive_tree(size: int) -> None:
    root = tree_root(LEAVES[:size])
    assert grow(EMPTY_EDGE, [world.entry(n) for n in range(size)]).edge.head("o").root == root
    assert size > 256 or TileTree(b"".join(LEAVES[:size])).root() == root


@given(SIZES, st.data())
def test_inclusion_holds_for_the_leaf_and_for_nothing_else(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    root = tree_root(LEAVES[:size])
    proof = inclusion_proof(index, size, node)
    verify_inclusion(LEAVES[index], index, size, proof, root=root)
    other = data.draw(st.integers(0, size).filter(lambda n: n != index))
    for leaf, at, of in (
        (LEAVES[index], other, size),
        (hash_leaf(b"x"), index, size),
        (LEAVES[index], index, index),
    ):
        with pytest.raises(BadProof):
            verify_inclusion(leaf, at, of, proof, root=root)
    for wrong in _changed(proof, data):
        with pytest.raises(BadProof):
            verify_inclusion(LEAVES[index], index, size, wrong, root=root)


def _changed(proof: tuple[bytes, ...], data: st.DataObject) -> list[tuple[bytes, ...]]:
    found = [(*proof, LEAVES[0])]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        flipped = (int.from_bytes(proof[at], "big") ^ (1 << bit)).to_bytes(32, "big")
        found += [(*proof[:at], flipped, *proof[at + 1 :]), (*proof[:at], *proof[at + 1 :])]
    return found


@given(SIZES, st.data())
def test_consistency_holds_for_the_past_and_for_no_other(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(0, size))
    before, root = tree_root(LEAVES[:old]), tree_root(LEAVES[:size])
    proof = consistency_proof(old, size, node)
    verify_consistency(old, size, proof, old_root=before, new_root=root)
    for a, b in ((hash_leaf(b"x"), root), (before, hash_leaf(b"x"))):
        if old or a != before:
            with pytest.raises(BadProof):
                verify_consistency(old, size, proof, old_root=a, new_root=b)
    for wrong in _changed(proof, data):
        with pytest.raises(BadProof):
            verify_consistency(old, size, wrong, old_root=before, new_root=root)
    if old < size:
        with pytest.raises(BadProof):
            verify_consistency(size, old, proof, old_root=root, new_root=before)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=6))
@settings(max_examples=40)
def test_any_batching_gives_the_same_tree_and_writes_nothing_twice(batches: list[int]) -> None:
    edge, files, total = EMPTY_EDGE, dict[TilePath, bytes](), sum(batches)
    at = 0
    for size in batches:
        growth = grow(edge, [world.entry(at + n) for n in range(size)])
        assert growth.first == at
        assert not files.keys() & {path for path, _ in growth.files}
        files |= dict(growth.files)
        edge, at = growth.edge, at + size
        assert restore_edge(edge.head("o"), {p: files[p] for p in edge_paths(at)}) == edge
    once = grow(EMPTY_EDGE, [world.entry(n) for n in range(total)])
    assert once.edge == edge
    # Full tiles and the last partial ones are those of one batch; the rest is older partial ones.
    assert dict(once.files).items() <= files.items()
    assert all(path.width < 256 for path in files.keys() - dict(once.files).keys())


def _large(size: int) -> tuple[dict[TilePath, bytes], list[bytes], Checkpoint]:
    entries = [world.entry(n) for n in range(size)]
    growth = grow(EMPTY_EDGE, entries)
    return dict(growth.files), [hash_leaf(each) for each in entries], growth.edge.head("o")


BIG = 66_000  # three levels of tiles
FILES, BIG_LEAVES, HEAD = _large(BIG)


@given(st.integers(0, BIG - 1))
@settings(max_examples=60)
def test_tiles_prove_every_leaf(index: int) -> None:
    raw = {path: FILES[path] for path in tiles_for_inclusion(index, BIG)}
    assert len(raw) <= 6
    proof = prove_inclusion(index, BIG, verify_tiles(HEAD, raw, known={}))
    verify_inclusion(BIG_LEAVES[index], index, BIG, proof, root=HEAD.root)


@given(st.integers(0, BIG))
@settings(max_examples=40)
def test_tiles_prove_every_past(old: int) -> None:
    raw = {path: FILES[path] for path in tiles_for_consistency(old, BIG)}
    proof = prove_consistency(old, BIG, verify_tiles(HEAD, raw, known={}))
    root = tree_root(BIG_LEAVES[:old])
    verify_consistency(old, BIG, proof, old_root=root, new_root=HEAD.root)


@given(st.integers(0, BIG - 1), st.data())
@settings(max_examples=60)
def test_every_changed_bit_of_a_tile_is_found_and_full_tiles_are_named(
    index: int, data: st.DataObject
) -> None:
    raw = {path: FILES[path] for path in tiles_for_inclusion(index, BIG)}
    path = data.draw(st.sampled_from(sorted(raw)))
    bit = data.draw(st.integers(0, 8 * len(raw[path]) - 1))
    at, mask = bit // 8, 1 << (bit % 8)
    raw[path] = raw[path][:at] + bytes([raw[path][at] ^ mask]) + raw[path][at + 1 :]
    with pytest.raises(LogRejected) as caught:
        verify_tiles(HEAD, raw, known={})
    if path.width == 256:
        assert caught.value.failures[0].subject == str(path)
    else:
        assert str(path) in caught.value.failures[0].subject


@given(st.integers(0, 2**40))
def test_a_path_reads_back(index: int) -> None:
    for level in (ENTRIES, 0, 7):
        path = TilePath(level, index, 1 + index % 256)
        assert parse_tile_path(str(path)) == path


@given(st.integers(0, 2**62))
def test_the_edge_is_one_tile_a_level(size: int) -> None:
    paths = edge_paths(size)
    assert len({path.level for path in paths}) == len(paths)
    assert sum(p.width << (8 * p.level) for p in paths if p.level != ENTRIES) == size
    assert len(Frontier(size, [b""] * size.bit_count()).nodes) == size.bit_count()
