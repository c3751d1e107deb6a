"""The owner's log: what only the owner opens of a training. Value and bytes. Pure.

Clause: docs/protocols/training-record.md §4. It holds the recipe, every step with its rows by
number, every checkpoint, the metrics; no row. `raw` is believed as far as the record names it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.errors import Reason
from confide.training.chain import StepRecord, TrainingEvent, f64
from confide.training.checkpoints import CheckpointEntry, checkpoint_of
from confide.training.dataset import Commitment, read_commitment
from confide.training.job import EvaluatedStep, Evaluation
from confide.training.predicates import metrics_commitment
from confide.training.recipe_file import parse_recipe
from confide.training.steplog import LoggedStep
from confide.wire.json import JsonLimits, JsonValue, Members, jcs, parse_json

if TYPE_CHECKING:
    from confide.training.batches import Batch
    from confide.training.recipe import Recipe

__all__ = ["OwnerLog", "SaltedEvaluation", "parse_owner_log"]

_TYPE: Final = "confide/training-log/v1"
_REASON = Reason.TRAINING_LOG
_KINDS: Final = ("checkpoint", "paused", "resumed", "restarted", "machine")
# A million steps of eight rows each.
_LIMITS: Final = JsonLimits(max_bytes=512 * 1024 * 1024)
_MAX_STEPS: Final = 10_000_000
_MAX_ROWS_OF_STEP: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SaltedEvaluation:
    """The metrics of one model, with what makes the public commitment to them say nothing."""

    salt: bytes = field(repr=False)
    metrics: Evaluation

    @property
    def commitment(self) -> bytes:
        """What the Test Result names."""
        return metrics_commitment(self.salt, self.value())

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value of the metrics."""
        found = self.metrics
        return {
            "rows": found.rows,
            "count": found.count,
            "loss": found.loss,
            "accuracy": found.accuracy,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerLog:
    """
    Recipe, data by commitment, every step and event, and the metrics of base and tuned model.

    `evaluated` are evaluations on the way, where the recipe asks for them.
    """

    salt: bytes = field(repr=False)
    recipe: Recipe
    dataset: Commitment
    validation: Commitment | None
    steps: tuple[LoggedStep, ...]
    events: tuple[TrainingEvent, ...]
    evaluations: tuple[SaltedEvaluation, SaltedEvaluation] | None
    evaluated: tuple[EvaluatedStep, ...] = ()

    @property
    def checkpoints(self) -> tuple[CheckpointEntry, ...]:
        """Every checkpoint that an event tells of. Raises `FormatError`."""
        return tuple(checkpoint_of(event) for event in self.events if event.kind == "checkpoint")

    def encode(self) -> bytes:
        """Return the canonical document: its SHA-256 is in the record."""
        evaluations: JsonValue = None
        if self.evaluations is not None:
            evaluations = {
                name: {"salt": each.salt.hex(), "metrics": each.value()}
                for name, each in zip(("base", "tuned"), self.evaluations, strict=True)
            }
        return jcs(
            {
                "type": _TYPE,
                "salt": self.salt.hex(),
                "recipe": self.recipe.value(),
                "dataset": self.dataset.value(),
                "validation": None if self.validation is None else self.validation.value(),
                "steps": [_step_value(each.record) for each in self.steps],
                "batches": [each.batch for each in self.steps],
                "events": [event.value() for event in self.events],
                "evaluations": evaluations,
                "evaluated": [
                    [each.step, f64(each.loss).hex(), f64(each.accuracy).hex()]
                    for each in self.evaluated
                ],
            }
        )


def _step_value(record: StepRecord) -> list[JsonValue]:
    numbers = (record.learning_rate, record.loss, record.grad_norm)
    state = None if record.state is None else record.state.hex()
    return [record.batch.hex(), *(f64(number).hex() for number in numbers), record.tokens, state]


def parse_owner_log(raw: bytes) -> OwnerLog:
    """Parse an owner's log; believes nothing. Raises `FormatError` with TRAINING_LOG."""
    value = parse_json(raw, what="owner's log", reason=_REASON, limits=_LIMITS)
    top = Members(value, what="owner's log", reason=_REASON)
    top.choice("type", (_TYPE,))
    salt = top.hexes("salt", 32)
    recipe = parse_recipe(jcs(_object(top, "recipe")))
    dataset = read_commitment(top.value("dataset"))
    validation = None if top.null("validation") else read_commitment(top.value("validation"))
    steps = top.items("steps", max_items=_MAX_STEPS)
    batches = top.items("batches", max_items=_MAX_STEPS)
    events = tuple(_read_event(item) for item in top.items("events", max_items=_MAX_STEPS))
    evaluations = None
    if not top.null("evaluations"):
        both = top.members("evaluations")
        evaluations = (_read_evaluation(both, "base"), _read_evaluation(both, "tuned"))
        both.end()
    evaluated = top.items("evaluated", max_items=_MAX_STEPS)
    top.end()
    if len(steps) != len(batches):
        top.refuse("there is not one batch for each step")
    logged = tuple(
        LoggedStep(_read_step(top, number, step), _read_batch(top, batch))
        for number, (step, batch) in enumerate(zip(steps, batches, strict=True), start=1)
    )
    return OwnerLog(
        salt=salt,
        recipe=recipe,
        dataset=dataset,
        validation=validation,
        steps=logged,
        events=events,
        evaluations=evaluations,
        evaluated=tuple(_read_evaluated(top, each) for each in evaluated),
    )


def _read_evaluated(top: Members, value: JsonValue) -> EvaluatedStep:
    members = _named(top, ("step", "loss", "accuracy"), value, what="an evaluation on the way")
    loss, accuracy = (_double(members, name) for name in ("loss", "accuracy"))
    if not (math.isfinite(loss) and math.isfinite(accuracy)):
        members.refuse("a number is not finite")
    return EvaluatedStep(members.integer("step", low=1), loss, accuracy)


def _named(top: Members, names: tuple[str, ...], value: JsonValue, *, what: str) -> Members:
    if not isinstance(value, list) or len(value) != len(names):
        top.refuse(f"{what} has not {len(names)} members")
    return Members(
        dict(zip(names, value, strict=True)), what=f"owner's log: {what}", reason=_REASON
    )


def _double(members: Members, name: str) -> float:
    [number] = struct.unpack(">d", members.hexes(name, 8))
    return float(number)


def _read_step(top: Members, number: int, value: JsonValue) -> StepRecord:
    names = ("batch", "rate", "loss", "norm", "tokens", "state")
    members = _named(top, names, value, what=f"step {number}")
    rate, loss, norm = (_double(members, name) for name in ("rate", "loss", "norm"))
    try:
        return StepRecord(
            number,
            members.hexes("batch", 32),
            rate,
            loss,
            norm,
            members.integer("tokens"),
            None if members.null("state") else members.hexes("state", 32),
        )
    except ValueError:
        members.refuse("a number is not finite")


def _read_batch(top: Members, value: JsonValue) -> Batch:
    """Read `[[[[row, tokens], …], …], …]`: micro batches of sequences of rows."""
    return tuple(
        tuple(
            tuple(_read_row(top, row) for row in _list(top, sequence))
            for sequence in _list(top, micro)
        )
        for micro in _list(top, value)
    )


def _list(top: Members, value: JsonValue) -> list[JsonValue]:
    if not isinstance(value, list) or len(value) > _MAX_ROWS_OF_STEP:
        top.refuse("a batch is not made of lists")
    return value


def _read_row(top: Members, value: JsonValue) -> tuple[int, int]:
    pair = _list(top, value)
    if len(pair) != 2 or not all(type(number) is int and number >= 0 for number in pair):
        top.refuse("a row of a batch is not [row, tokens]")
    row, tokens = (number for number in pair if isinstance(number, int))
    return row, tokens


def _object(members: Members, name: str) -> dict[str, JsonValue]:
    value = members.value(name)
    if not isinstance(value, dict):
        members.refuse(f"{name} is not an object")
    return value


def _read_event(value: JsonValue) -> TrainingEvent:
    members = Members(value, what="owner's log: event", reason=_REASON)
    event = TrainingEvent(
        members.choice("kind", _KINDS),
        members.integer("step"),
        members.hexes("chain", 32),
        _object(members, "facts"),
    )
    members.end()
    return event


def _read_evaluation(both: Members, name: str) -> SaltedEvaluation:
    members = both.members(name)
    metrics = members.members("metrics")
    evaluation = Evaluation(
        metrics.integer("rows", low=1),
        metrics.integer("count", low=1),
        metrics.number("loss"),
        metrics.number("accuracy"),
    )
    metrics.end()
    found = SaltedEvaluation(members.hexes("salt", 32), evaluation)
    members.end()
    return found
