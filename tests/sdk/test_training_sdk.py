"""A private training with the unmodified `openai` SDK: over proven transport, and by the proxy."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
from arithmetic import RECIPE
from dataset_rows import lines
from in_path import InPath, Meddler
from local_proxy import running_proxy
from nodes import roots
from train_world import MODEL, OUTPUTS, ROWS, Gate, nothing
from training_owners import TrainingOwners, running_training_node

import confide
from confide.adapters.receipt_db import UnsafeKeepNone
from confide.channel.carriage import CHANNEL_PATH, PROBLEM_MEDIA_TYPE, problem_type
from confide.errors import (
    ConfigurationError,
    FormatError,
    Reason,
    SealedFileRejected,
    TrainingRejected,
)
from confide.training.rows import RowError
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.client.train_sdk import TrainingRequest

TOKEN = "token-of-the-local-proxy"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingOwners]:
    with running_training_node(tmp_path_factory.mktemp("training") / "node") as owners:
        yield owners


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    return path


def requested(node: TrainingOwners, rows: Path, **more: Any) -> TrainingRequest:
    return confide.training_request(
        rows,
        policy=node.world.expectation,
        output=rows.parent / "training",
        roots=roots(),
        **{"recipe": RECIPE.value(), **more},
    )


def proven(node: TrainingOwners, token: str) -> openai.OpenAI:
    return confide.openai_client(
        node.url,
        policy=node.world.expectation,
        roots=roots(),
        receipts=UnsafeKeepNone(),
        clock=node.clock,
        api_key=token,
    )


def succeeded(client: openai.OpenAI, training: TrainingRequest, rows: Path, **more: Any) -> str:
    """Send the rows, ask for the job and wait for its end; return its id."""
    with rows.open("rb") as file:
        sent = client.files.create(file=file, purpose="fine-tune", extra_body=training.rows)
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=sent.id, extra_body=training.job, **more
    )
    while job.status not in ("succeeded", "failed"):
        time.sleep(0.02)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    return job.id


def test_a_training_over_proven_transport(node: TrainingOwners, rows: Path) -> None:
    training = requested(node, rows)
    with proven(node, training.token) as client:
        job = succeeded(client, training, rows)
        opened = confide.open_results(client, job, training.folder, checkpoints=True)
    assert opened.folder == training.folder / "tuned"
    there = {path.name: path.read_bytes() for path in opened.merged.iterdir()}
    assert OUTPUTS["merged"].items() < there.items()
    assert opened.record.record.plan.recipe == RECIPE.digest
    assert len(list((opened.folder / "checkpoints").iterdir())) == 8


def test_a_training_through_the_local_proxy(node: TrainingOwners, rows: Path) -> None:
    training = requested(node, rows)
    with (
        running_proxy(node, [node.url], token=TOKEN, key=training.token) as proxy,
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=TOKEN, max_retries=0) as client,
    ):
        job = succeeded(client, training, rows)
        events = client.fine_tuning.jobs.list_events(job)
        assert "successfully completed" in events.data[0].message
        assert confide.open_results(client, job, training.folder).merged.is_dir()
    assert {served.problem for served in proxy.served} == {None}


def test_openais_own_hyperparameters_are_enough(node: TrainingOwners, rows: Path) -> None:
    training = requested(node, rows, recipe=None)
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    with proven(node, training.token) as client:
        job = succeeded(client, training, rows, method=method)
        opened = confide.open_results(client, job, training.folder)
    assert opened.audited is not None
    assert opened.audited.log.recipe.num_epochs == 2


def test_files_pass_the_proxy_that_it_would_not_hold(node: TrainingOwners, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = lines({"prompt": "p" * 4_000_000, "completion": "c"})
    path.write_bytes(row * 17)
    with (
        running_proxy(node, [node.url], token=TOKEN, key="owner-of-many-rows") as proxy,
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=TOKEN, max_retries=0) as client,
    ):
        with path.open("rb") as file:
            sent = client.files.create(file=file, purpose="fine-tune")
        assert sent.bytes == len(row) * 17 > 64 * 1024 * 1024
        with client.files.with_streaming_response.content(sent.id) as answer:
            assert sum(len(piece) for piece in answer.iter_bytes()) == sent.bytes
        upload = client.uploads.create(
            bytes=len(ROWS), filename="r.jsonl", mime_type="text/plain", purpose="fine-tune"
        )
        part = client.uploads.parts.create(upload.id, data=ROWS)
        done = client.uploads.complete(upload.id, part_ids=[part.id])
        assert done.file is not None
        assert done.file.bytes == len(ROWS)


class _Unknown(Meddler):
    """Says once for the node that it does not know the key."""

    def __init__(self) -> None:
        self.left = 0

    def refuse(self, path: str) -> tuple[int, str, bytes] | None:
        if path != CHANNEL_PATH or not self.left:
            return None
        self.left -= 1
        return 422, PROBLEM_MEDIA_TYPE, jcs({"type": problem_type(Reason.KEYSET_MISMATCH)})


def test_a_file_that_is_read_as_it_is_sent_is_never_sent_twice_by_us(
    node: TrainingOwners, rows: Path
) -> None:
    meddler = _Unknown()
    with (
        InPath(node.url, meddler) as path,
        running_proxy(node, [path.url], token=TOKEN, key="owner-of-a-single-file") as proxy,
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=TOKEN, max_retries=0) as client,
    ):
        meddler.left = 1
        with pytest.raises(openai.APIStatusError) as refused:
            client.files.create(file=rows, purpose="fine-tune")
        # The keys that it was proven with again are those that it was said not to know.
        assert refused.value.status_code == 502
        assert client.files.create(file=rows, purpose="fine-tune").bytes == len(ROWS)
        assert len(client.files.list().data) == 1


def test_what_a_lying_carrier_brings_is_refused(node: TrainingOwners, rows: Path) -> None:
    training = requested(node, rows)

    def lie(path: str, body: bytes) -> bytes:
        return body[:-1] + bytes([body[-1] ^ 1]) if path.endswith("/content") else body

    with proven(node, training.token) as client:
        job = succeeded(client, training, rows)
        node.liar.answer = lie
        try:
            with pytest.raises((FormatError, TrainingRejected, SealedFileRejected)):
                confide.open_results(client, job, training.folder)
        finally:
            node.liar.answer = None
        assert not (training.folder / "tuned").exists()
        assert not list(training.folder.glob(".receiving-*"))
        assert confide.open_results(client, job, training.folder).merged.is_dir()
        with pytest.raises(ConfigurationError, match="is done"):
            confide.open_results(client, job, training.folder)


def test_there_is_nothing_to_open_of_a_job_that_has_not_succeeded(
    node: TrainingOwners, rows: Path
) -> None:
    training, gate = requested(node, rows), Gate(step=2)
    node.world.fate.after = gate
    try:
        with proven(node, training.token) as client, rows.open("rb") as file:
            sent = client.files.create(file=file, purpose="fine-tune", extra_body=training.rows)
            job = client.fine_tuning.jobs.create(
                model=MODEL, training_file=sent.id, extra_body=training.job
            )
            gate.reached.wait()
            with pytest.raises(ConfigurationError, match=r"is running: there are no results yet\Z"):
                confide.open_results(client, job.id, training.folder)
            client.fine_tuning.jobs.cancel(job.id)
            with pytest.raises(ConfigurationError, match=r"is cancelled: there are no results\Z"):
                confide.open_results(client, job.id, training.folder)
    finally:
        node.world.fate.after = nothing
        gate.opened.set()
    assert not (training.folder / "tuned").exists()


def test_the_keys_of_one_training_open_no_other(node: TrainingOwners, rows: Path) -> None:
    training = requested(node, rows)
    with proven(node, training.token) as client:
        job = succeeded(client, training, rows)
        other = confide.training_request(
            rows,
            policy=node.world.expectation,
            output=rows.parent / "other",
            roots=roots(),
            recipe=RECIPE.value(),
        )
        with pytest.raises(TrainingRejected) as refused:
            confide.open_results(client, job, other.folder)
        assert Reason.NONCE_MISMATCH in {each.reason for each in refused.value.failures}


def test_rows_and_recipes_that_are_none_leave_no_keys(node: TrainingOwners, rows: Path) -> None:
    rows.write_bytes(ROWS + b"{}\n")
    with pytest.raises(RowError, match="line 21"):
        requested(node, rows)
    with pytest.raises(FormatError, match="learning_rate"):
        requested(node, rows, recipe={"base_model": MODEL, "learn_rate": 1})
    assert not (rows.parent / "training").exists()


def test_what_is_sent_names_no_private_key(node: TrainingOwners, rows: Path) -> None:
    training = requested(node, rows)
    said = json.dumps([training.rows, training.job])
    for name in ("recipient.key", "validation.salt"):
        assert (training.folder / name).read_text().strip() not in said
