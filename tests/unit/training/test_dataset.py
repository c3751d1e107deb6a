"""Commitments and proofs: what changes the root, what does not, and what no proof survives."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from dataset_rows import CHAT, COMPLETION, SALT, commit, lines, numbered, prove, rows_of

from confide.errors import DatasetRejected, FormatError, Reason
from confide.rats import Status
from confide.training.dataset import (
    DatasetTree,
    RowSalts,
    commit_rows,
    parse_commitment,
    parse_salt,
    require_commitment,
)
from confide.training.inclusion import Opening, PathRecorder, parse_dataset_proof, verify_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.training.inclusion import DatasetProof

FILE = numbered(7)
DIGEST = commit(FILE).digest


def _lines(raw: bytes) -> list[bytes]:
    return raw.splitlines(keepends=True)


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a row changed": lambda rows: [*rows[:3], rows[3].replace(b"3!", b"4!"), *rows[4:]],
    "a row dropped": lambda rows: [*rows[:3], *rows[4:]],
    "a row duplicated": lambda rows: [*rows[:3], rows[3], *rows[3:]],
    "the last row duplicated": lambda rows: [*rows, rows[-1]],
    "two rows swapped": lambda rows: [rows[1], rows[0], *rows[2:]],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_file_has_another_commitment(change: Callable[..., list[bytes]]) -> None:
    changed = commit(b"".join(change(_lines(FILE))))
    with pytest.raises(DatasetRejected) as caught:
        require_commitment(changed, DIGEST)
    assert caught.value.reason is Reason.DATASET_MISMATCH
    assert changed.root != commit(FILE).root


def test_another_spelling_has_the_same_commitment() -> None:
    respelt = b"".join(
        json.dumps(dict(reversed(json.loads(line).items())), indent=None).encode()
        .replace(b"?", b"\\u003f") + b" \r\n"
        for line in _lines(FILE)
    )  # fmt: skip
    assert respelt != FILE
    assert commit(respelt) == commit(FILE)


def test_what_is_learnt_from_does_not_depend_on_the_spelling() -> None:
    tool = '{"type":"function","function":{"name":"f","parameters":{"b":1.0,"a":2e0,"c":0.5}}}'
    other = '{"function":{"parameters":{"c":5e-1,"a":2,"b":1},"name":"f"},"type":"function"}'
    chat = '{"messages":[{"role":"assistant","content":"x","weight":1.0}],"tools":[%s]}\n'
    first, second = (rows_of((chat % each).encode())[0] for each in (tool, other))
    assert first.record == second.record
    # As texts: dictionaries are equal in any order, and 1 is equal to 1.0.
    assert repr(first.value) == repr(second.value)
    assert json.dumps(first.value, separators=(",", ":")).encode() == first.record


def test_another_salt_has_another_commitment_and_equal_rows_have_unequal_leaves() -> None:
    assert commit(FILE, bytes(32)).root != commit(FILE).root
    tree = DatasetTree(RowSalts(SALT))
    first, second = (tree.add(row) for row in rows_of(lines(CHAT, CHAT)))
    assert first != second


def test_a_commitment_is_read_as_it_is_written() -> None:
    found = commit(FILE)
    assert parse_commitment(found.encode()) == found
    assert (found.rows, found.kind) == (7, "completion")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"rows":7', b'"rows":0'),
        (b'"rows":7', b'"rows":16777217'),
        (b"completion", b"reinforcement"),
        (b"dataset/v1", b"dataset/v2"),
        (b'"rows":7', b'"rows":7,"x":1'),
        (b'"root":"', b'"root":"A'),
    ],
)
def test_a_commitment_of_another_form_is_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_commitment(commit(FILE).encode().replace(old, new))
    assert caught.value.reason is Reason.DATASET_FORMAT


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 64, 65])
def test_every_row_of_every_size_is_proven(count: int) -> None:
    raw = numbered(count)
    digest = commit(raw).digest
    for index in range(count):
        proof = parse_dataset_proof(prove(raw, index).encode())
        findings = verify_row(proof, commitment=digest)
        assert [finding.status for finding in findings] == [Status.PASS] * 3


def test_a_closed_proof_says_that_the_row_is_not_shown() -> None:
    closed = replace(prove(FILE, 2), opening=None)
    findings = verify_row(parse_dataset_proof(closed.encode()), commitment=DIGEST)
    assert [finding.status for finding in findings] == [
        Status.PASS,
        Status.NOT_PROVEN,
        Status.PASS,
    ]


def _opened(proof: DatasetProof, row: object = None, salt: bytes | None = None) -> DatasetProof:
    opening = proof.opening
    assert opening is not None
    changed = Opening(salt or opening.salt, row or opening.row)  # type: ignore[arg-type]
    return replace(proof, opening=changed)


PROOF = prove(FILE, 2)
FALSE: dict[str, tuple[DatasetProof, Reason]] = {
    "of another data set": (
        replace(PROOF, commitment=commit(numbered(8))),
        Reason.DATASET_MISMATCH,
    ),
    "another row": (
        _opened(PROOF, {"prompt": "2?", "completion": "3!"}),
        Reason.DATASET_OPENING,
    ),
    "a row of another kind": (_opened(PROOF, CHAT), Reason.DATASET_OPENING),
    "another salt": (_opened(PROOF, salt=bytes(32)), Reason.DATASET_OPENING),
    "another leaf": (
        replace(PROOF, leaf=bytes(32), opening=None),
        Reason.DATASET_INCLUSION,
    ),
    "another place": (replace(PROOF, index=3), Reason.DATASET_INCLUSION),
    "a shorter path": (replace(PROOF, path=PROOF.path[:-1]), Reason.DATASET_INCLUSION),
    "a longer path": (replace(PROOF, path=(*PROOF.path, bytes(32))), Reason.DATASET_INCLUSION),
    "a path in another order": (replace(PROOF, path=PROOF.path[::-1]), Reason.DATASET_INCLUSION),
}  # fmt: skip


@pytest.mark.parametrize(("proof", "reason"), FALSE.values(), ids=FALSE)
def test_a_false_proof_is_refused(proof: DatasetProof, reason: Reason) -> None:
    with pytest.raises(DatasetRejected) as caught:
        verify_row(parse_dataset_proof(proof.encode()), commitment=DIGEST)
    assert caught.value.reason is reason


def test_an_opened_row_that_is_none_is_malformed_and_not_repeated() -> None:
    proof = _opened(PROOF, {"prompt": "x", "canary": "y"})
    with pytest.raises(FormatError) as caught:
        verify_row(proof, commitment=DIGEST)
    assert caught.value.reason is Reason.ROW_FORMAT
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"index":2', b'"index":7'),
        (b'"path":["', b'"path":["A'),
        (b'"path":["', b'"path":["' + b'00","' * 30),
        (b"dataset-proof/v1", b"dataset-proof/v2"),
        (b'"salt"', b'"pepper"'),
        (b'"index":2', b'"index":2,"x":1'),
    ],
)
def test_a_proof_of_another_form_is_refused(old: bytes, new: bytes) -> None:
    raw = PROOF.encode()
    assert old in raw
    with pytest.raises(FormatError) as caught:
        parse_dataset_proof(raw.replace(old, new))
    assert caught.value.reason is Reason.DATASET_FORMAT


def test_the_file_of_a_salt_has_one_form() -> None:
    text = SALT.hex().encode()
    assert parse_salt(text) == parse_salt(text + b"\n") == SALT
    for raw in (b"", text[:-2], text + b"00", text.upper(), b" " + text, text + b"\n\n", b"\xff"):
        with pytest.raises(FormatError) as caught:
            parse_salt(raw)
        assert caught.value.reason is Reason.DATASET_FORMAT


def test_misuse_is_an_error_of_the_caller() -> None:
    rows = rows_of(lines(COMPLETION, COMPLETION))
    with pytest.raises(ValueError, match="in order"):
        commit_rows(rows[::-1], SALT)
    mixed = [rows_of(lines(CHAT))[0], rows[1]]
    with pytest.raises(ValueError, match="of one kind"):
        commit_rows(mixed, SALT)
    with pytest.raises(ValueError, match="at least one row"):
        commit_rows([], SALT)
    with pytest.raises(ValueError, match="32 bytes"):
        RowSalts(b"short")
    recorder = PathRecorder(2)
    tree = DatasetTree(RowSalts(SALT), path=recorder)
    for row in rows:
        tree.add(row)
    tree.commitment()
    with pytest.raises(ValueError, match="no such row"):
        recorder.path()


def test_secrets_stay_out_of_what_is_printed() -> None:
    assert repr(PROOF).endswith("opening=Opening())")
    row = rows_of(lines({"prompt": "canary", "completion": "canary"}))[0]
    assert "canary" not in repr(row)
