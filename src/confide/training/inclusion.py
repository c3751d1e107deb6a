"""Proofs that one row is in a data set: made in one pass, verified alone. dataset.md §3.

A proof is hostile. With an opening it holds a private row: who gets it reads that row, and can
guess no other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.crypto.errors import BadProof
from confide.crypto.merkle import inclusion_proof, range_nodes, verify_inclusion
from confide.errors import DatasetRejected, FormatError, Reason
from confide.rats import Finding, Status
from confide.training.dataset import (
    SALT_BYTES,
    leaf_hash,
    read_commitment,
    require_commitment,
)
from confide.training.lines import MAX_ROW_BYTES
from confide.training.row_shapes import Flaw, require_shape
from confide.wire.json import JsonLimits, Members, is_hex, jcs, parse_json

if TYPE_CHECKING:
    from confide.crypto.merkle import Frontier
    from confide.training.dataset import Commitment
    from confide.wire.json import JsonValue

__all__ = [
    "MAX_PROOF_BYTES",
    "DatasetProof",
    "Opening",
    "PathRecorder",
    "parse_dataset_proof",
    "verify_row",
]

_TYPE: Final = "confide/dataset-proof/v1"
_CLAUSE: Final = "docs/protocols/dataset.md#3"
_REASON: Final = Reason.DATASET_FORMAT
# The row, escaped in the worst way (six bytes for one), and the rest.
MAX_PROOF_BYTES: Final = 6 * MAX_ROW_BYTES + 64 * 1024
_LIMITS: Final = JsonLimits(max_bytes=MAX_PROOF_BYTES, max_depth=34)
# A tree of at most 2^24 leaves is at most this high. From: docs/protocols/dataset.md 1.1.
_MAX_PATH: Final = 24


class PathRecorder:
    """
    The inclusion proof of the row at `index`, gathered while a tree grows. O(log n) memory.

    Give it to `DatasetTree`; `path` is there once the commitment was asked for.
    """

    __slots__ = ("_frontier", "_nodes", "index", "leaf")

    def __init__(self, index: int) -> None:
        self.index = index
        self.leaf = b""
        self._nodes: dict[tuple[int, int], bytes] = {}
        self._frontier: Frontier | None = None

    def take(self, at: int, completed: list[bytes]) -> None:
        """Take the nodes that the leaf at `at` completed, from the leaf itself up."""
        if at == self.index:
            self.leaf = completed[0]
        for height, node in enumerate(completed):
            name = at >> height
            if name == (self.index >> height) ^ 1:
                self._nodes[height, name] = node

    def end(self, frontier: Frontier) -> None:
        """Take the right edge of the finished tree."""
        self._frontier = frontier
        names = range_nodes(0, frontier.size)
        self._nodes.update(zip(names, frontier.nodes, strict=True))

    def path(self) -> tuple[bytes, ...]:
        """Return the proof, leaf first; `ValueError` where the tree has no such row."""
        if self._frontier is None or not self.leaf:
            raise ValueError("the tree has no such row")
        return inclusion_proof(
            self.index, self._frontier.size, lambda height, at: self._nodes[height, at]
        )


@dataclass(frozen=True, slots=True)
class Opening:
    """What opens one leaf: the row's own salt, and the row."""

    salt: bytes = field(repr=False)
    row: JsonValue = field(repr=False)


@dataclass(frozen=True, slots=True)
class DatasetProof:
    """Where a leaf is said to stand, and what is said to prove it. Nothing is verified."""

    commitment: Commitment
    index: int
    leaf: bytes
    path: tuple[bytes, ...]
    opening: Opening | None

    def encode(self) -> bytes:
        """Return the file."""
        opening = self.opening
        opened = {"salt": opening.salt.hex(), "row": opening.row} if opening is not None else None
        return jcs(
            {
                "type": _TYPE,
                "commitment": self.commitment.value(),
                "index": self.index,
                "leaf": self.leaf.hex(),
                "path": [node.hex() for node in self.path],
                "opening": opened,
            }
        )


def parse_dataset_proof(raw: bytes) -> DatasetProof:
    """Parse a proof file (3.1). Raises `FormatError`."""
    what = "proof of a row"
    value = parse_json(raw, what=what, reason=_REASON, limits=_LIMITS)
    members = Members(value, what=what, reason=_REASON)
    members.choice("type", (_TYPE,))
    commitment = read_commitment(members.value("commitment"))
    index = members.integer("index", high=commitment.rows - 1)
    leaf = members.hexes("leaf", 32)
    path = members.texts("path", max_items=_MAX_PATH)
    if not all(is_hex(node, 32) for node in path):
        members.refuse("path holds something that is not 32 bytes of hex")
    opening = None
    if not members.null("opening"):
        inner = members.members("opening")
        opening = Opening(inner.hexes("salt", SALT_BYTES), inner.value("row"))
        inner.end()
    members.end()
    nodes = tuple(bytes.fromhex(node) for node in path)
    return DatasetProof(commitment, index, leaf, nodes, opening)


def verify_row(proof: DatasetProof, *, commitment: bytes) -> tuple[Finding, ...]:
    """
    Establish what stands at one place of the data set that the digest `commitment` names.

    (1) The proof is about that data set. (2) With an opening: the row is of its kind, and its leaf
    is the one stated. (3) The path leads from the leaf to the root. Without an opening it is only
    known that this leaf stands there. **Does not check** that the row was ever learnt from.

    Raises `DatasetRejected`, and `FormatError` for an opened row that is none.
    """
    return (
        require_commitment(proof.commitment, commitment),  # (1)
        _require_opening(proof),  # (2)
        _require_path(proof),  # (3)
    )


def _require_opening(proof: DatasetProof) -> Finding:
    step = ("dataset/2", _CLAUSE, f"row {proof.index + 1}")
    opening = proof.opening
    if opening is None:
        return Finding(Status.NOT_PROVEN, *step, "not opened: what is in the row is not shown")
    try:
        kind = require_shape(opening.row)
    except Flaw as flaw:
        what = f"opened row, {flaw.path or 'as a whole'}: {flaw.what}"
        raise FormatError(what, reason=Reason.ROW_FORMAT, clause=_CLAUSE) from None
    if kind == proof.commitment.kind and leaf_hash(opening.salt, jcs(opening.row)) == proof.leaf:
        return Finding(Status.PASS, *step, "the row is the one committed to")
    detail = "the row is not the one committed to"
    raise DatasetRejected((Finding(Status.FAIL, *step, detail, Reason.DATASET_OPENING),))


def _require_path(proof: DatasetProof) -> Finding:
    step = ("dataset/3", _CLAUSE, f"row {proof.index + 1}")
    rows, root = proof.commitment.rows, proof.commitment.root
    try:
        verify_inclusion(proof.leaf, proof.index, rows, proof.path, root=root)
    except BadProof as error:
        detail = str(error)
        refused = Finding(Status.FAIL, *step, detail, Reason.DATASET_INCLUSION)
        raise DatasetRejected((refused,)) from error
    return Finding(Status.PASS, *step, f"row {proof.index + 1} of {rows}")
