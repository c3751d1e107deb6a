"""Targets: data sets, recipes, requests for jobs, frames of the training process.

docs/protocols/dataset.md, training.md §1 and §10, training-node.md §2.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

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
from confide.errors import DatasetRejected, RemoteProtocolError, SealedFileRejected
from confide.inference.form_stream import FormReader
from confide.trainer.frames import Frame, read_frame, write_frame
from confide.trainer.order_form import DataName, OrderForm, read_order_form
from confide.trainer.reports import Progress, read_step, step_value
from confide.training.chain import StepRecord
from confide.training.dataset import commit_rows, parse_commitment, parse_salt
from confide.training.inclusion import parse_dataset_proof, verify_row
from confide.training.job_request import parse_job_request
from confide.training.recipe_file import parse_recipe, parse_recipe_toml
from confide.training.rows import Row, RowReader
from confide.wire.json import JsonValue, b64encode, jcs
from confide.wire.ohttp import Kem
from fuzz.driver import Target
from fuzz.pieces import cuts, document, fixed, text

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

_TOML = """base_model = "tiny"
learning_rate = 2e-4
method = "dpo"
lora_target_modules = ["q_proj"]
val_set_size = 0.25
"""
_RECIPE = parse_recipe_toml(_TOML)


def _recipe_toml(raw: str) -> None:
    recipe = parse_recipe_toml(raw)
    assert parse_recipe(recipe.canonical()) == recipe


def _recipe(raw: bytes) -> None:
    # One form: what is read is what is hashed.
    assert parse_recipe(raw).canonical() == raw


def _asked() -> bytes:
    confide = {
        "nonce": "11" * 32,
        "checkpoint_key": "22" * 32,
        "expectation": {},
        "recipient": b64encode(bytes(Kem.X_WING.public_bytes)),
    }
    hyper = {"n_epochs": "auto", "learning_rate_multiplier": 0.5}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyper}}
    asked = {"model": "tiny", "training_file": "file-1", "method": method, "confide": confide}
    return jcs({**asked, "metadata": {"a": "b"}, "suffix": "mine", "seed": 7})


def _request(raw: bytes) -> None:
    request = parse_job_request(raw, model="tiny")
    assert request.recipe.base_model == "tiny"
    assert len(request.nonce) == len(request.checkpoint_key) == 32


_FORM_OF_ORDER = OrderForm(
    recipe=_RECIPE,
    data=DataName("preference", bytes(32), bytes(32)),
    validation=None,
    base=bytes(32),
    folder=Path("/base"),
    checkpoints=Path("/checkpoints"),
    resume=None,
    outputs=("adapter",),
    threads=1,
    device="cpu",
)
_BATCH = ((((0, 7),),),)
_STEP = step_value(
    StepRecord(1, bytes(32), 1e-3, 2.5, 0.5, 7, bytes(32)), _BATCH, Progress(3, 10.0, 2.0)
)


def _order(value: JsonValue) -> None:
    form = read_order_form(value)
    assert read_order_form(form.value()) == form


def _step(value: JsonValue) -> None:
    logged, progress = read_step(value)
    assert read_step(step_value(logged.record, logged.batch, progress)) == (logged, progress)


def _frames(raw: bytes) -> None:
    source, again = io.BytesIO(raw), io.BytesIO()
    try:
        while (frame := read_frame(source)) is not None:
            write_frame(again, *frame)
    except RemoteProtocolError:
        assert raw.startswith(again.getvalue())
        return
    assert again.getvalue() == raw


def _frames_seed() -> bytes:
    pipe = io.BytesIO()
    write_frame(pipe, Frame.ROW, b"{}")
    write_frame(pipe, Frame.START)
    return pipe.getvalue()


TRAINING_TARGETS = (
    Target("training-recipe-toml", text(_recipe_toml), fixed(_TOML.encode())),
    Target("training-recipe", _recipe, fixed(_RECIPE.canonical()), json_values=True),
    Target("training-request", _request, fixed(_asked()), json_values=True),
    Target(
        "training-order", document(_order), fixed(jcs(_FORM_OF_ORDER.value())), json_values=True
    ),
    Target("training-step", document(_step), fixed(jcs(_STEP)), json_values=True),
    Target("training-frames", _frames, fixed(_frames_seed())),
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
