"""Rows of every kind, as text of a file, for tests of data sets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from confide.training.dataset import DatasetTree, RowSalts
from confide.training.inclusion import DatasetProof, Opening, PathRecorder
from confide.training.rows import RowReader, require_rows

if TYPE_CHECKING:
    from confide.training.dataset import Commitment
    from confide.training.rows import Row

SALT: Final = bytes(range(32))

USER: Final = {"role": "user", "content": "Where is the key?"}
ASSISTANT: Final = {"role": "assistant", "content": "In the enclave."}
CALL: Final = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

CHAT: Final[dict[str, Any]] = {"messages": [USER, ASSISTANT]}
COMPLETION: Final[dict[str, Any]] = {"prompt": "One, two,", "completion": " three"}
OPENAI_PREFERENCE: Final[dict[str, Any]] = {
    "input": {"messages": [USER]},
    "preferred_output": [ASSISTANT],
    "non_preferred_output": [{"role": "assistant", "content": "No."}],
}
TRL_PREFERENCE: Final[dict[str, Any]] = {"prompt": "Say", "chosen": "yes", "rejected": "no"}


def lines(*rows: Any) -> bytes:
    """Return the file of these rows."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def numbered(count: int) -> bytes:
    """Return the file of `count` completion rows, all different."""
    return lines(*({"prompt": f"{number}?", "completion": f"{number}!"} for number in range(count)))


def rows_of(raw: bytes) -> list[Row]:
    """Return the rows of a file, which has to be good."""
    return list(require_rows(RowReader().read([raw])))


def commit(raw: bytes, salt: bytes = SALT) -> Commitment:
    """Return the commitment to the file."""
    tree = DatasetTree(RowSalts(salt))
    for row in rows_of(raw):
        tree.add(row)
    return tree.commitment()


def prove(raw: bytes, index: int, salt: bytes = SALT) -> DatasetProof:
    """Return the opened proof of one row of the file."""
    path, salts, rows = PathRecorder(index), RowSalts(salt), rows_of(raw)
    tree = DatasetTree(salts, path=path)
    for row in rows:
        tree.add(row)
    commitment = tree.commitment()
    opening = Opening(salts.at(index), rows[index].value)
    return DatasetProof(commitment, index, path.leaf, path.path(), opening)
