"""What a training process tells of each step, as JSON and back. docs/protocols/training.md §10.

The numbers that are hashed travel as the hex of their bits: as JSON numbers they would not all come
back (-0, and whole numbers above 2^53).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import Reason
from confide.training.chain import StepRecord, f64
from confide.training.job import EvaluatedStep, Evaluation
from confide.training.steplog import LoggedStep
from confide.wire.json import JsonValue, Members

if TYPE_CHECKING:
    from confide.training.batches import Batch

__all__ = [
    "LINK_ENDED",
    "Progress",
    "evaluation_value",
    "read_evaluation",
    "read_step",
    "step_value",
]

# What a rank fails of that another one let down: never the first cause (training-ranks.md 2.6).
LINK_ENDED = (
    "the link to another rank ended: one of the ranks is gone; "
    "the job can be resumed from its newest checkpoint, with as many ranks"
)

_REASON = Reason.TRAINING_FORMAT
_MAX_ROWS = 1 << 24


@dataclass(frozen=True, slots=True)
class Progress:
    """For people: speed since this run began, and the seconds that are left at that speed."""

    steps: int
    tokens_per_second: float
    seconds_left: float


def step_value(record: StepRecord, batch: Batch, progress: Progress) -> dict[str, JsonValue]:
    """Return a step as JSON."""
    return {
        "step": record.step,
        "commitment": record.batch.hex(),
        "learning_rate": f64(record.learning_rate).hex(),
        "loss": f64(record.loss).hex(),
        "grad_norm": f64(record.grad_norm).hex(),
        "tokens": record.tokens,
        "state": None if record.state is None else record.state.hex(),
        "batch": [
            [[[row, tokens] for row, tokens in packed] for packed in micro] for micro in batch
        ],
        "steps": progress.steps,
        "tokens_per_second": progress.tokens_per_second,
        "seconds_left": progress.seconds_left,
    }


def read_step(value: JsonValue) -> tuple[LoggedStep, Progress]:
    """Read what `step_value` gave. Raises `FormatError`."""
    members = Members(value, what="training step", reason=_REASON)
    try:
        record = StepRecord(
            step=members.integer("step", low=1),
            batch=members.hexes("commitment", 32),
            learning_rate=_double(members, "learning_rate"),
            loss=_double(members, "loss"),
            grad_norm=_double(members, "grad_norm"),
            tokens=members.integer("tokens"),
            state=None if members.null("state") else members.hexes("state", 32),
        )
    except ValueError:
        members.refuse("a number is not finite")
    batch = tuple(
        tuple(tuple(_pair(members, pair) for pair in _items(members, packed)) for packed in micro)
        for micro in (_items(members, each) for each in members.items("batch", max_items=_MAX_ROWS))
    )
    progress = Progress(
        steps=members.integer("steps", low=1),
        tokens_per_second=members.number("tokens_per_second"),
        seconds_left=members.number("seconds_left"),
    )
    members.end()
    return LoggedStep(record, batch), progress


def evaluation_value(
    found: Evaluation, *, model: str, step: int | None = None
) -> dict[str, JsonValue]:
    """Return an evaluation as JSON: of `model` at the end, or of the tuned one after `step`."""
    return {
        "model": model,
        "step": step,
        "rows": found.rows,
        "count": found.count,
        "loss": found.loss,
        "accuracy": found.accuracy,
    }


def read_evaluation(value: JsonValue) -> tuple[str, Evaluation] | EvaluatedStep:
    """Read what `evaluation_value` gave: at the end with the model's name. Raises `FormatError`."""
    members = Members(value, what="evaluation", reason=_REASON)
    name = members.choice("model", ("base", "tuned"))
    step = None if members.null("step") else members.integer("step", low=1)
    found = Evaluation(
        members.integer("rows", low=1),
        members.integer("count", low=1),
        members.number("loss"),
        members.number("accuracy"),
    )
    members.end()
    if step is None:
        return name, found
    if name != "tuned":
        members.refuse("the base is not judged on the way")
    return EvaluatedStep(step, found.loss, found.accuracy)


def _double(members: Members, name: str) -> float:
    [number] = struct.unpack(">d", members.hexes(name, 8))
    return float(number)


def _items(members: Members, value: JsonValue) -> list[JsonValue]:
    if not isinstance(value, list):
        members.refuse("batch is not lists of lists")
    return value


def _pair(members: Members, value: JsonValue) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2):
        members.refuse("batch holds something that is no row")
    row, tokens = value
    if type(row) is not int or type(tokens) is not int:
        members.refuse("batch holds something that is no row")
    return row, tokens
