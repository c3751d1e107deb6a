"""Candidates of stage `dataset`: files of each kind, one fault at a time, and proofs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from confide.crypto.sealed_file import CHUNK_BYTES, seal_file_under
from confide.errors import Reason
from confide.training.dataset import DatasetTree, RowSalts
from confide.training.inclusion import DatasetProof, Opening, PathRecorder
from confide.training.rows import RowReader, require_rows
from confide.wire.json import jcs
from conformance.own.candidate import Candidate, drawn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["candidates", "document"]

_SALT: Final = drawn("salt of a data set")
_USER: Final = {"role": "user", "content": "Where is the key?"}
_ASSISTANT: Final = {"role": "assistant", "content": "In the enclave."}
_CALL: Final = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_CHAT: Final = {
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        _USER,
        {"role": "assistant", "content": None, "tool_calls": [_CALL], "weight": 0},
        {"role": "tool", "content": "drawer", "tool_call_id": "c1"},
        _ASSISTANT,
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"minimum": 0.5}}}],
}
_OPENAI: Final = {
    "input": {"messages": [_USER]},
    "preferred_output": [_ASSISTANT],
    "non_preferred_output": [{"role": "assistant", "content": "No."}],
}
_TRL: Final = {"prompt": [_USER], "chosen": [_ASSISTANT], "rejected": [_ASSISTANT]}


def document() -> dict[str, Any]:
    """Return the top of the index."""
    return {}


def _lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _numbered(count: int) -> bytes:
    return _lines(*({"prompt": f"{n}?", "completion": f"{n}!"} for n in range(count)))


def _rows(slug: str, raw: bytes, reason: Reason | None = None, **claims: object) -> Candidate:
    case = {"kind": "rows", "files": {"rows": "rows.jsonl"}, "salt": _SALT.hex()}
    if claims:
        case["claims"] = claims
    return Candidate(slug, case, {"rows.jsonl": raw}, reason, kept=True)


def _files() -> Iterator[Candidate]:
    tree, _ = _tree(_numbered(5), 0)
    digest = tree.commitment().digest.hex()
    yield _rows("completions", _numbered(5), commitment=digest, kind="completion", rows=5)
    respelt = _numbered(5).replace(b": ", b":").replace(b"?", b"\\u003f")
    respelt = respelt.replace(b"\n", b"\r\n").removesuffix(b"\n")
    yield _rows("the-same-spelt-otherwise", respelt, commitment=digest)
    yield _rows("chats", _lines(_CHAT, {"messages": [_USER, _ASSISTANT]}), kind="chat", rows=2)
    yield _rows("preferences-of-both-shapes", _lines(_OPENAI, _TRL), kind="preference", rows=2)
    sorting = {"prompt": "\u20ac\U0001f600\u0000", "completion": "1e30 \u007f\u2028"}
    yield _rows("text-that-canonical-forms-differ-about", _lines(sorting), rows=1)
    for slug, raw in _faulty():
        yield _rows(slug, raw, Reason.ROW_FORMAT)


def _faulty() -> Iterator[tuple[str, bytes]]:
    good = _numbered(1)
    yield "empty", b""
    yield "an-empty-line", good + b"\n" + good
    yield "a-byte-order-mark", b"\xef\xbb\xbf" + good
    yield "utf-16", good.decode().encode("utf-16-le")
    yield "not-utf-8", b'{"prompt":"\xff","completion":"x"}\n'
    yield "a-list", b"[" + good.strip() + b"]\n"
    yield "cut", good[:-4]
    yield "a-name-twice", b'{"prompt":"a","prompt":"a","completion":"b"}\n'
    yield "nan", b'{"prompt":"a","completion":"b","weight":NaN}\n'
    yield "a-number-that-is-a-great-integer", b'{"prompt":1e20,"completion":"b"}\n'
    yield "half-a-pair", b'{"prompt":"\\udc00","completion":"b"}\n'
    yield "two-kinds", good + _lines(_OPENAI)
    yield "a-member-more", _lines({"prompt": "a", "completion": "b", "id": 7})
    yield "the-user-last", _lines({"messages": [_ASSISTANT, _USER]})
    yield "a-role-unknown", _lines({"messages": [{**_ASSISTANT, "role": "bot"}]})
    yield "an-image", _lines({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]})
    yield "nothing-learnt", _lines({"messages": [{**_ASSISTANT, "weight": 0}]})
    yield "nothing-rejected", _lines({"prompt": "a", "chosen": "b"})
    yield "two-preferred", _lines({**_OPENAI, "preferred_output": [_ASSISTANT, _ASSISTANT]})
    yield "an-empty-completion", _lines({"prompt": "a", "completion": ""})


def _tree(raw: bytes, index: int) -> tuple[DatasetTree, PathRecorder]:
    path = PathRecorder(index)
    tree = DatasetTree(RowSalts(_SALT), path=path)
    for row in require_rows(RowReader().read([raw])):
        tree.add(row)
    return tree, path


def _proven(raw: bytes, index: int) -> DatasetProof:
    tree, path = _tree(raw, index)
    commitment = tree.commitment()
    row = json.loads(raw.splitlines()[index])
    opening = Opening(RowSalts(_SALT).at(index), row)
    return DatasetProof(commitment, index, path.leaf, path.path(), opening)


def _proof(
    slug: str, raw: bytes, digest: bytes, reason: Reason | None = None, **claims: object
) -> Candidate:
    case = {"kind": "proof", "files": {"proof": "proof.json"}, "commitment": digest.hex()}
    if claims:
        case["claims"] = claims
    return Candidate(slug, case, {"proof.json": raw}, reason, kept=True)


def _proofs() -> Iterator[Candidate]:
    proof = _proven(_numbered(5), 4)
    digest, raw = proof.commitment.digest, proof.encode()
    opening = proof.opening
    if opening is None:  # pragma: no cover - made above
        raise ValueError("the proof is open")
    record = hashlib.sha256(jcs(opening.row)).hexdigest()
    yield _proof("opened", raw, digest, index=4, record=record)
    yield _proof("closed", replace(proof, opening=None).encode(), digest, index=4, record=None)
    alone = _proven(_numbered(1), 0)
    yield _proof("the-only-row", alone.encode(), alone.commitment.digest, index=0)
    yield _proof("another-data-set", raw, bytes(32), Reason.DATASET_MISMATCH)
    changed = replace(proof, opening=Opening(opening.salt, {"prompt": "4?", "completion": "5!"}))
    yield _proof("another-row", changed.encode(), digest, Reason.DATASET_OPENING)
    salted = replace(proof, opening=Opening(bytes(32), opening.row))
    yield _proof("another-salt", salted.encode(), digest, Reason.DATASET_OPENING)
    moved = replace(proof, index=3)
    yield _proof("another-place", moved.encode(), digest, Reason.DATASET_INCLUSION)
    longer = replace(proof, path=(*proof.path, bytes(32)))
    yield _proof("a-longer-path", longer.encode(), digest, Reason.DATASET_INCLUSION)
    cut = raw.replace(b'"type"', b'"tipe"')
    yield _proof("no-type", cut, digest, Reason.DATASET_FORMAT)
    beyond = raw.replace(b'"index":4', b'"index":5')
    yield _proof("beyond-the-last-row", beyond, digest, Reason.DATASET_FORMAT)


def _sealed(slug: str, raw: bytes, reason: Reason | None = None, **claims: str) -> Candidate:
    case = {"kind": "sealed-file", "files": {"sealed": "rows.sealed"}, "name": "rows"}
    case |= {"key": drawn("key of a sealed file").hex()}
    if claims:
        case["claims"] = claims
    return Candidate(slug, case, {"rows.sealed": raw}, reason, kept=True)


def _sealed_files() -> Iterator[Candidate]:
    plain = drawn("plaintext", CHUNK_BYTES + 100)
    for slug, text in (("sealed", plain), ("sealed-nothing", b"")):
        yield _sealed(slug, _sealed_as("rows", text), plaintext=hashlib.sha256(text).hexdigest())
    raw = _sealed_as("rows", plain)
    head, end, body = raw.partition(b"\n")
    at = CHUNK_BYTES + 16
    yield _sealed("sealed-as-another", _sealed_as("other", plain), Reason.SEALED_KEY)
    yield _sealed("sealed-and-changed", raw[:-1] + bytes([raw[-1] ^ 1]), Reason.SEALED_OPEN)
    swapped = head + end + body[at:] + body[:at]
    yield _sealed("sealed-and-reordered", swapped, Reason.SEALED_OPEN)
    yield _sealed("sealed-and-cut", head + end + body[:at], Reason.SEALED_CUT)
    yield _sealed("sealed-without-a-header", end + body, Reason.SEALED_FORMAT)
    spaced = head.replace(b":", b": ", 1) + end + body
    yield _sealed("sealed-header-spelt-otherwise", spaced, Reason.SEALED_FORMAT)


def _sealed_as(name: str, plain: bytes) -> bytes:
    sealer = seal_file_under(
        drawn("key of a sealed file"), name=name, salt=drawn("salt of a sealed file")
    )
    return b"".join(sealer.write(plain) + sealer.finish())


def candidates() -> Iterator[Candidate]:
    """Yield the files, the proofs and the sealed files."""
    yield from _files()
    yield from _proofs()
    yield from _sealed_files()
