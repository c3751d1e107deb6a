"""Stage `dataset`: a verifier that leaves one check of a proof out fails its vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conformance.runner import read_index

from confide.crypto.errors import BadProof
from confide.crypto.merkle import verify_inclusion
from confide.errors import FormatError, Reason, Rejected
from confide.training.dataset import leaf_hash, require_commitment
from confide.training.inclusion import parse_dataset_proof, verify_row
from confide.wire.json import jcs

if TYPE_CHECKING:
    from confide.training.inclusion import DatasetProof

INDEX = read_index(Path(__file__).resolve().parents[2] / "conformance" / "vectors" / "dataset")
PROOFS = [case for case in INDEX.cases if case["kind"] == "proof"]


def _accepts(proof: DatasetProof, commitment: bytes, left_out: str) -> bool:
    """The steps of dataset.md 3.2, written anew, without one."""
    public, opening = proof.commitment, proof.opening
    try:
        if left_out != "commitment":
            require_commitment(public, commitment)
        if left_out != "path":
            verify_inclusion(proof.leaf, proof.index, public.rows, proof.path, root=public.root)
    except (Rejected, BadProof):
        return False
    if left_out == "opening" or opening is None:
        return True
    row: Any = opening.row
    return leaf_hash(opening.salt, jcs(row)) == proof.leaf


def _wrong(left_out: str) -> set[str]:
    """The reasons of the vectors that such a verifier judges wrongly."""
    found: set[str] = set()
    for case in PROOFS:
        raw = (INDEX.folder / case["files"]["proof"]).read_bytes()
        try:
            proof = parse_dataset_proof(raw)
        except FormatError:
            continue
        accepted = _accepts(proof, bytes.fromhex(case["commitment"]), left_out)
        if accepted != (case["outcome"] == "accept"):
            found |= set(case.get("reason", ["accepted"]))
    return found


def test_all_checks_together_judge_every_vector_rightly() -> None:
    assert _wrong("nothing") == set()


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [
        ("commitment", Reason.DATASET_MISMATCH),
        ("opening", Reason.DATASET_OPENING),
        ("path", Reason.DATASET_INCLUSION),
    ],
)
def test_a_check_that_is_left_out_is_missed(left_out: str, reason: Reason) -> None:
    assert _wrong(left_out) == {reason.value}


def test_the_verifier_reports_each_check_of_an_accepted_proof() -> None:
    case = next(case for case in PROOFS if case["outcome"] == "accept")
    raw = (INDEX.folder / case["files"]["proof"]).read_bytes()
    findings = verify_row(parse_dataset_proof(raw), commitment=bytes.fromhex(case["commitment"]))
    assert [finding.step for finding in findings] == ["dataset/1", "dataset/2", "dataset/3"]
    assert json.loads(raw)["type"] == "confide/dataset-proof/v1"
