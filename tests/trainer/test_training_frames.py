"""What goes through the pipes: as it was sent, or refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_jobs import order_form, text_rows, training_data

from confide.errors import FormatError, Reason, RemoteProtocolError
from confide.trainer.frames import (
    MAX_FRAME_BYTES,
    Frame,
    read_frame,
    read_json,
    write_data,
    write_frame,
    write_json,
)
from confide.trainer.order_form import read_order_form
from confide.trainer.process import worker_environment
from confide.trainer.reports import Progress, read_step, step_value
from confide.training.chain import StepRecord
from confide.training.checkpoints import CheckpointEntry
from confide.training.job import TrainingJob
from confide.training.recipe_file import parse_recipe_toml
from confide.wire.json import jcs, parse_json

JOB = TrainingJob(
    recipe=parse_recipe_toml('base_model = "tiny"\nlearning_rate = 1e-3\n'),
    data=training_data(text_rows(2)),
    validation=training_data(text_rows(3)),
    base=bytes(32),
)
finite = st.floats(allow_nan=False, allow_infinity=False)


def test_frames_come_out_as_they_went_in() -> None:
    pipe = io.BytesIO()
    write_json(pipe, Frame.JOB, {"a": 1})
    write_frame(pipe, Frame.START)
    write_data(pipe, bytes(range(256)) * 8200)
    pipe.seek(0)
    assert read_frame(pipe) == (Frame.JOB, b'{"a":1}')
    assert read_frame(pipe) == (Frame.START, b"")
    pieces = []
    while (frame := read_frame(pipe)) is not None:
        assert frame[0] is Frame.DATA
        pieces.append(frame[1])
    assert len(pieces) == 3
    assert b"".join(pieces) == bytes(range(256)) * 8200


@pytest.mark.parametrize(
    "raw",
    [
        b"\1",
        b"\1\0\0\0",
        b"\0\0\0\0\0",
        b"\xff\0\0\0\0",
        b"\1\0\0\0\2x",
        b"\1" + (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
    ],
)
def test_what_is_no_frame_is_refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_frame(io.BytesIO(raw))


def test_no_frame_is_the_end() -> None:
    assert read_frame(io.BytesIO()) is None


@given(
    numbers=st.tuples(finite, finite, finite),
    state=st.none() | st.binary(min_size=32, max_size=32),
    rows=st.lists(st.lists(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99))))),
)
def test_a_step_keeps_every_bit(
    numbers: tuple[float, float, float],
    state: bytes | None,
    rows: list[list[list[tuple[int, int]]]],
) -> None:
    record = StepRecord(3, bytes(32), *numbers, 7, state)
    batch = tuple(tuple(map(tuple, micro)) for micro in rows)
    progress = Progress(steps=9, tokens_per_second=1.5, seconds_left=0.1)
    raw = jcs(step_value(record, batch, progress))
    logged, told = read_step(read_json(raw))
    assert told == progress
    assert logged.batch == batch
    assert logged.record == record


@pytest.mark.parametrize(
    "change",
    [
        {"loss": 1.0},
        {"loss": "7ff8000000000000"},
        {"grad_norm": "00"},
        {"seconds_left": True},
        {"step": 0},
        {"commitment": "00"},
        {"state": "zz"},
        {"batch": [[1]]},
        {"batch": [[[[1, 2, 3]]]]},
        {"batch": [[[[1, 1.5]]]]},
        {"more": 1},
    ],
)
def test_a_step_that_says_something_else_is_refused(change: dict[str, object]) -> None:
    record = StepRecord(1, bytes(32), 0.1, 0.2, 0.3, 4, None)
    progress = Progress(steps=2, tokens_per_second=1.0, seconds_left=1.0)
    value = step_value(record, ((((0, 4),),),), progress)
    parsed = parse_json(jcs({**value, **change}), what="step", reason=Reason.TRAINING_FORMAT)
    with pytest.raises(FormatError):
        read_step(parsed)


def test_an_order_travels_as_it_is() -> None:
    entry = CheckpointEntry(5, bytes(32), bytes(32), bytes(32))
    plain = order_form(Path("model"), Path("checkpoints"), JOB)
    full = replace(plain, resume=entry, outputs=("adapter", "merged"), device="cuda", threads=4)
    for form in (plain, full, replace(plain, validation=None)):
        assert read_order_form(form.value()) == form
        for name in form.value():
            partial = {key: value for key, value in form.value().items() if key != name}
            with pytest.raises(FormatError):
                read_order_form(partial)
    with pytest.raises(FormatError, match="outputs holds something that is none"):
        read_order_form({**plain.value(), "outputs": ["adapter", "weights"]})


def test_the_environment_of_a_process_is_made_from_nothing() -> None:
    made = worker_environment(2)
    assert made["HF_HUB_OFFLINE"] == "1"
    assert made["OMP_NUM_THREADS"] == "2"
    assert not {"PYTHONPATH", "LD_PRELOAD", "HF_TOKEN"} & made.keys()
