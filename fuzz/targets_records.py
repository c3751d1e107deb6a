"""Targets: training records, owners' logs, handovers. training-record.md, training-node.md §7."""

from __future__ import annotations

from arithmetic import ComputedJob
from handovers import HANDED, asked_of, handed, told
from handovers import verify as verify_handed
from image_trainings import train_image
from trainings import train, verify

from confide.errors import TrainingRejected
from confide.training.handover import parse_handover, parse_handover_file
from confide.training.image_parse import parse_image_record
from confide.training.image_recipe_file import parse_image_recipe, parse_train_toml
from confide.training.owner_log import parse_owner_log
from confide.training.record_file import parse_record_file
from confide.training.record_parse import parse_training_record
from fuzz.driver import Target

_JOB = ComputedJob("computed")
_TOML = (
    b'base_model = "tiny"\nimage = "oci:images/x@sha256:' + b"ab" * 32 + b'"\n'
    b'command = ["python3", "t.py"]\ngpu = false\nnetwork = "none"\n[environment]\nSEED = "7"\n'
    b'[paths]\nrows = "/data/rows.jsonl"\n[limits]\nmemory_bytes = 33554432\n'
)


def _payload(raw: bytes) -> None:
    # One form of each record: what is read is what would be written.
    assert parse_training_record(raw).payload() == raw


def _image_payload(raw: bytes) -> None:
    assert parse_image_record(raw).payload() == raw


def _train_toml(raw: bytes) -> None:
    recipe, reference = parse_train_toml(raw.decode("utf-8", "replace"))
    assert recipe.image == reference.digest
    assert parse_image_recipe(recipe.canonical()) == recipe


def _file(raw: bytes) -> None:
    file = parse_record_file(raw)
    try:
        verified = verify(file)
    except TrainingRejected:
        return
    # Whatever was changed and is still accepted says what the node signed.
    assert verified.record == train(_JOB).record


def _log(raw: bytes) -> None:
    log = parse_owner_log(raw)
    assert parse_owner_log(log.encode()) == log


def _handover(raw: bytes) -> None:
    assert parse_handover(raw).payload() == raw


def _handover_file(raw: bytes) -> None:
    file = parse_handover_file(raw)
    try:
        verified = verify_handed(file, asked_of())
    except TrainingRejected:
        return
    assert verified.handover == told(HANDED)


RECORD_TARGETS = (
    Target(
        "training-record",
        _payload,
        lambda: (train(_JOB).file.record.payload,),
        json_values=True,
    ),
    Target(
        "image-record",
        _image_payload,
        lambda: (train_image().file.record.payload,),
        json_values=True,
    ),
    Target("train-toml", _train_toml, lambda: (_TOML,)),
    Target("verify-training-record", _file, lambda: (train(_JOB).file.encode(),), json_values=True),
    Target("training-handover", _handover, lambda: (handed().envelope.payload,), json_values=True),
    Target(
        "verify-training-handover",
        _handover_file,
        lambda: (handed().encode(),),
        json_values=True,
    ),
    Target("training-log", _log, lambda: (_JOB.log.encode(),), json_values=True),
)
