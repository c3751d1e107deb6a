"""Merkle trees as RFC 6962 §2.1 has them, with SHA-256: growing, proving, verifying.

docs/protocols/log.md §2, §5.4. Proofs are verified by the algorithms of RFC 9162 §2.1.3.2 and
§2.1.4.2, which use none of the code that makes them. A node is named by (height, index): it is the
hash of the leaves [index·2^height, (index+1)·2^height).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from confide.crypto.errors import BadProof

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "EMPTY_ROOT",
    "Frontier",
    "TileTree",
    "consistency_nodes",
    "consistency_proof",
    "fold",
    "hash_leaf",
    "hash_node",
    "inclusion_nodes",
    "inclusion_proof",
    "range_nodes",
    "root_from_inclusion",
    "verify_consistency",
    "verify_inclusion",
]

# From: RFC 6962 §2.1, the hash of an empty list.
EMPTY_ROOT: Final = bytes.fromhex(
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)
_HASH_BYTES: Final = 32
_sha256 = hashlib.sha256

_NodeName = tuple[int, int]


def hash_leaf(entry: bytes) -> bytes:
    """Return the leaf hash of `entry`."""
    return _sha256(b"\x00" + entry).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """Return the hash above `left` and `right`."""
    return _sha256(b"\x01" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """Return the root over perfect subtrees of falling size, left to right."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = hash_node(left, root)
    return root


class Frontier:
    """
    The right edge of a growing tree: one hash for each bit of its size that is set.

    `append` returns the nodes that a leaf completes, so that whoever keeps tiles never hashes
    twice. Memory is O(log n).
    """

    __slots__ = ("_nodes", "_size")

    def __init__(self, size: int = 0, nodes: Sequence[bytes] = ()) -> None:
        if len(nodes) != size.bit_count():
            raise ValueError("one node for each bit of the size")
        self._size = size
        self._nodes = list(nodes)

    @property
    def size(self) -> int:
        """How many leaves the tree has."""
        return self._size

    @property
    def nodes(self) -> tuple[bytes, ...]:
        """The perfect subtrees, largest first."""
        return tuple(self._nodes)

    def append(self, leaf: bytes) -> list[bytes]:
        """Append a leaf hash; return the completed nodes by height, from the leaf itself up."""
        completed = [leaf]
        below = self._size
        while below & 1:
            leaf = hash_node(self._nodes.pop(), leaf)
            completed.append(leaf)
            below >>= 1
        self._nodes.append(leaf)
        self._size += 1
        return completed


class TileTree:
    """The nodes above up to 256 hashes, computed once: what one tile says about its subtree."""

    __slots__ = ("_levels",)

    def __init__(self, hashes: bytes) -> None:
        """Take the hashes as a tile has them, one after the other."""
        sha256 = _sha256
        self._levels = [hashes]
        while len(hashes) > _HASH_BYTES:
            # Without a call for each pair: this is most of what a proof costs.
            pairs = range(0, len(hashes) - _HASH_BYTES, 2 * _HASH_BYTES)
            hashes = b"".join(
                [sha256(b"\x01" + hashes[at : at + 2 * _HASH_BYTES]).digest() for at in pairs]
            )
            self._levels.append(hashes)

    def node(self, height: int, index: int) -> bytes:
        """Return a perfect node by its place inside the tile; `IndexError` where it has none."""
        found = self._levels[height][index * _HASH_BYTES : (index + 1) * _HASH_BYTES]
        if not found:
            raise IndexError("no such node in this tile")
        return found

    def root(self) -> bytes:
        """Return the root over the hashes."""
        width = len(self._levels[0]) // _HASH_BYTES
        return fold([self.node(*name) for name in range_nodes(0, width)])


def range_nodes(start: int, end: int) -> tuple[_NodeName, ...]:
    """
    Return the perfect nodes that make up the leaves [start, end), left to right.

    `start` has to be where a subtree of RFC 6962 starts: a multiple of a power of two that is not
    below the length.
    """
    found: list[_NodeName] = []
    while start < end:
        height = (end - start).bit_length() - 1
        found.append((height, start >> height))
        start += 1 << height
    return tuple(found)


def _split(count: int) -> int:
    # RFC 6962 §2.1: the largest power of two below `count`.
    return 1 << ((count - 1).bit_length() - 1)


def _inclusion_ranges(index: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the siblings' ranges from the root down."""
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            yield middle, end
            end = middle
        else:
            yield start, middle
            start = middle


def _consistency_ranges(old: int, new: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of RFC 6962 §2.1.2, SUBPROOF, from the root down."""
    start, end, whole = 0, new, True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            yield middle, end
            end = middle
        else:
            yield start, middle
            start, whole = middle, False
    if not whole:
        yield start, end


def inclusion_nodes(index: int, size: int) -> tuple[tuple[_NodeName, ...], ...]:
    """Return, for each hash of an inclusion proof, the perfect nodes that it is folded from."""
    if not 0 <= index < size:
        raise ValueError("no such leaf")
    return tuple(range_nodes(*each) for each in reversed(tuple(_inclusion_ranges(index, size))))


def consistency_nodes(old: int, new: int) -> tuple[tuple[_NodeName, ...], ...]:
    """Return, for each hash of a consistency proof, the perfect nodes that it is folded from."""
    if not 0 <= old <= new:
        raise ValueError("the old tree is not larger than the new one")
    if old in (0, new):
        return ()
    return tuple(range_nodes(*each) for each in reversed(tuple(_consistency_ranges(old, new))))


def inclusion_proof(index: int, size: int, node: Callable[[int, int], bytes]) -> tuple[bytes, ...]:
    """Return the proof of RFC 6962 §2.1.1; `node` gives the hash at a height and index."""
    return tuple(fold([node(*n) for n in names]) for names in inclusion_nodes(index, size))


def consistency_proof(old: int, new: int, node: Callable[[int, int], bytes]) -> tuple[bytes, ...]:
    """Return the proof of RFC 6962 §2.1.2; empty from size 0 and between equal sizes."""
    return tuple(fold([node(*n) for n in names]) for names in consistency_nodes(old, new))


def _climb(place: int, last: int, proof: Sequence[bytes]) -> Iterator[tuple[bool, bytes]]:
    """Yield, from leaf to root, each sibling and whether it is the left one; `BadProof` by length.

    RFC 9162 §2.1.3.2: `place` and `last` are the indexes of this node and of the last one in a row.
    """
    for sibling in proof:
        if last == 0:
            raise BadProof("the proof is too long")
        is_left = bool(place & 1) or place == last
        yield is_left, sibling
        if is_left:
            while place and not place & 1:
                place >>= 1
                last >>= 1
        place >>= 1
        last >>= 1
    if last:
        raise BadProof("the proof is too short")


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Return the root that `proof` leads to (RFC 9162 §2.1.3.2); `BadProof` for a wrong length."""
    if not 0 <= index < size:
        raise BadProof("the index is not below the size")
    root = leaf
    for is_left, sibling in _climb(index, size - 1, proof):
        root = hash_node(sibling, root) if is_left else hash_node(root, sibling)
    return root


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], *, root: bytes
) -> None:
    """Raise `BadProof` unless the leaf hash `leaf` stands at `index` in the tree of `root`."""
    if root_from_inclusion(leaf, index, size, proof) != root:
        raise BadProof("the proof does not lead to the root")


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], *, old_root: bytes, new_root: bytes
) -> None:
    """Raise `BadProof` unless the tree of `new_root` only appends to that of `old_root`."""
    if not 0 <= old <= new:
        raise BadProof("the old size is above the new one")
    if old in (0, new):
        if proof:
            raise BadProof("a proof where there is nothing to prove")
        if old_root != (EMPTY_ROOT if old == 0 else new_root):
            raise BadProof("two roots for one size")
        return
    # RFC 9162 §2.1.4.2: the subtree that both trees have, then climb in both at once.
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        raise BadProof("the proof is too short")
    place, last = old - 1, new - 1
    while place & 1:
        place >>= 1
        last >>= 1
    before = after = path[0]
    for is_left, sibling in _climb(place, last, path[1:]):
        if is_left:
            before, after = hash_node(sibling, before), hash_node(sibling, after)
        else:
            after = hash_node(after, sibling)
    if before != old_root or after != new_root:
        raise BadProof("the proof does not lead to both roots")
