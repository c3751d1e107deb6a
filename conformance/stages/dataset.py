"""Stage `dataset`: rows, commitments and proofs, to a verdict. docs/protocols/dataset.md.

By `kind`: `rows` reads `files.rows` and, with a `salt` (hex), commits to them; claims are `kind`,
`rows` and the `commitment` (its digest). `proof` verifies `files.proof` against the data set that
`commitment` (hex) names; claims are the `index` and the SHA-256 of the `record` that was opened.
`sealed-file` opens `files.sealed` under `key` (hex) as `name`: docs/protocols/sealed-file.md; the
claim is the SHA-256 of the `plaintext`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from confide.crypto.sealed_file import open_file_under
from confide.errors import DatasetRejected, FormatError, SealedFileRejected
from confide.training.dataset import commit_rows
from confide.training.inclusion import parse_dataset_proof, verify_row
from confide.training.rows import RowReader, require_rows
from confide.wire.json import jcs
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["judge"]


def judge(case: dict[str, Any], folder: Path) -> Verdict:
    """Judge one case whose files are relative to `folder`."""
    files = {role: (folder / name).read_bytes() for role, name in case["files"].items()}
    try:
        match case.get("kind"):
            case "rows":
                claims = _rows(files["rows"], case.get("salt"))
            case "proof":
                claims = _proof(files["proof"], bytes.fromhex(case["commitment"]))
            case "sealed-file":
                claims = _opened(files["sealed"], bytes.fromhex(case["key"]), case["name"])
            case kind:
                raise Unclear(f"no such kind: {kind}")
    except (DatasetRejected, SealedFileRejected) as refusal:
        reasons = tuple(str(finding.reason) for finding in refusal.failures)
        return Verdict("reject", reasons[0], reasons, str(refusal))
    except FormatError as error:
        return Verdict("malformed", error.reason, (error.reason,), error.what)
    stated = case.get("claims", {})
    differences = tuple(
        f"{name} is {claims.get(name)}, not {value}"
        for name, value in stated.items()
        if claims.get(name) != value
    )
    return Verdict("accept", differences=differences, claims=claims)


def _rows(raw: bytes, salt: str | None) -> dict[str, Any]:
    rows = list(require_rows(RowReader().read([raw])))
    claims: dict[str, Any] = {"kind": rows[0].kind, "rows": len(rows)}
    if salt is not None:
        claims["commitment"] = commit_rows(rows, bytes.fromhex(salt)).digest.hex()
    return claims


def _opened(raw: bytes, key: bytes, name: str) -> dict[str, Any]:
    opener = open_file_under(key, name=name)
    plain = opener.write(raw) + opener.end()
    return {"plaintext": hashlib.sha256(plain).hexdigest()}


def _proof(raw: bytes, commitment: bytes) -> dict[str, Any]:
    proof = parse_dataset_proof(raw)
    verify_row(proof, commitment=commitment)
    opening = proof.opening
    if opening is None:
        return {"index": proof.index, "record": None}
    record = jcs(opening.row)
    return {"index": proof.index, "record": hashlib.sha256(record).hexdigest()}
