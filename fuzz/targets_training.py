"""Targets: rows of a data set, commitments and proofs. docs/protocols/dataset.md."""

from __future__ import annotations

from functools import cache

from dataset_rows import (
    CHAT,
    OPENAI_PREFERENCE,
    SALT,
    TRL_PREFERENCE,
    commit,
    lines,
    numbered,
    prove,
)

from confide.crypto.sealed_file import open_file_under, seal_file_under
from confide.errors import DatasetRejected, SealedFileRejected
from confide.inference.form_stream import FormReader
from confide.training.dataset import commit_rows, parse_commitment, parse_salt
from confide.training.inclusion import parse_dataset_proof, verify_row
from confide.training.rows import Row, RowReader
from fuzz.driver import Target
from fuzz.pieces import cuts, fixed

_PIECES = (
    b"\n",
    b"\r",
    b"{}",
    b'"messages"',
    b'"role"',
    b"[",
    b"null",
    b"\xef\xbb\xbf",
    b"\\ud800",
)


def _read(raw: bytes) -> None:
    # Cut anywhere, the rows are the same; what is a row can be committed to.
    found = list(RowReader().read([raw]))
    cut = list(RowReader().read([raw[:7], raw[7:]]))
    assert [str(each) for each in found] == [str(each) for each in cut]
    rows = [each for each in found if isinstance(each, Row)]
    if rows and len(rows) == len(found):
        assert commit_rows(rows, SALT).rows == len(rows)


def _commitment(raw: bytes) -> None:
    found = parse_commitment(raw)
    assert parse_commitment(found.encode()) == found


@cache
def _digest() -> bytes:
    return commit(numbered(5)).digest


def _proof(raw: bytes) -> None:
    proof = parse_dataset_proof(raw)
    try:
        verify_row(proof, commitment=_digest())
    except DatasetRejected:
        return
    genuine = prove(numbered(5), proof.index)
    assert (proof.leaf, proof.path) == (genuine.leaf, genuine.path)


def _sealed(raw: bytes) -> None:
    opener = open_file_under(SALT, name="rows")
    try:
        plain = b"".join(opener.write(piece) for piece in cuts(raw)) + opener.end()
    except SealedFileRejected:
        return
    assert plain == b"rows"


def _sealed_seed() -> bytes:
    sealer = seal_file_under(SALT, name="rows", salt=bytes(32))
    return b"".join(sealer.write(b"rows") + sealer.finish())


def _form(raw: bytes) -> None:
    reader = FormReader("multipart/form-data; boundary=b0")
    for piece in cuts(raw):
        reader.feed(piece)
    reader.end()


_FORM = (
    b'--b0\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--b0\r\nContent-Disposition: form-data; name="file"; filename="r"\r\n\r\n{}\r\n--b0--\r\n'
)

TRAINING_TARGETS = (
    Target("sealed-file", _sealed, fixed(_sealed_seed())),
    Target("form-stream", _form, fixed(_FORM), tokens=(b"--b0", b"\r\n", b"--", b"\r\n\r\n")),
    Target(
        "dataset-rows",
        _read,
        fixed(lines(CHAT), lines(OPENAI_PREFERENCE, TRL_PREFERENCE), numbered(3)),
        tokens=_PIECES,
    ),
    Target(
        "dataset-commitment", _commitment, fixed(commit(numbered(5)).encode()), json_values=True
    ),
    Target("dataset-proof", _proof, fixed(prove(numbered(5), 4).encode()), json_values=True),
    Target("dataset-salt", parse_salt, fixed(SALT.hex().encode() + b"\n")),
)
