"""The step chain, and beside it the chain of what happened between steps. Pure.

docs/protocols/training.md §6. The step chain of a job is one value, whether the job ran through or
was killed and resumed; what disturbed it stands in the event chain, which names links of the first.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from confide.training.seeds import u64
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from confide.training.recipe import Recipe
    from confide.wire.json import JsonValue

__all__ = [
    "EventKind",
    "StepRecord",
    "TrainingEvent",
    "chain_start",
    "chain_step",
    "event_link",
    "event_start",
    "f64",
    "links",
    "state_is_due",
]

EventKind: TypeAlias = Literal["checkpoint", "paused", "resumed", "restarted", "machine"]

_START = b"confide/chain-start/v1\0"
_STEP = b"confide/chain-step/v1\0"
_EVENT_START = b"confide/event-start/v1\0"
_EVENT = b"confide/chain-event/v1\0"
_DIGEST_BYTES = 32


def f64(number: float) -> bytes:
    """Return the bits of a double, big-endian."""
    return struct.pack(">d", number)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """
    What one step did (6.2): `batch` is the commitment to its rows, `tokens` counts no padding.

    `state` is the state digest after the step, where one is due. The numbers are finite: a step
    whose loss is not ends the job and is no step.
    """

    step: int
    batch: bytes
    learning_rate: float
    loss: float
    grad_norm: float
    tokens: int
    state: bytes | None

    def __post_init__(self) -> None:
        digests = (self.batch,) if self.state is None else (self.batch, self.state)
        if any(len(digest) != _DIGEST_BYTES for digest in digests):
            raise ValueError("a digest has 32 bytes")
        if not all(map(math.isfinite, (self.learning_rate, self.loss, self.grad_norm))):
            raise ValueError("a step record holds finite numbers")


def state_is_due(recipe: Recipe, step: int, steps: int) -> bool:
    """Whether the record of `step` holds a state digest (6.3): decided by the recipe alone."""
    return step == steps or not step % recipe.state_every or not step % recipe.checkpoint_every


def chain_start(plan: bytes) -> bytes:
    """Return the link before the first step (6.1)."""
    return hashlib.sha256(_START + plan).digest()


def chain_step(link: bytes, record: StepRecord) -> bytes:
    """Return the link after `record` (6.2); the caller sees to it that it is the next step."""
    state = b"\0" if record.state is None else b"\1" + record.state
    return hashlib.sha256(
        _STEP
        + link
        + u64(record.step)
        + record.batch
        + f64(record.learning_rate)
        + f64(record.loss)
        + f64(record.grad_norm)
        + u64(record.tokens)
        + state
    ).digest()


def links(plan: bytes, records: Iterable[StepRecord]) -> Iterator[bytes]:
    """
    Yield the link before the first step and after each of `records`.

    `ValueError` for a step that is skipped, repeated or out of order: no link stands for it.
    """
    link = chain_start(plan)
    yield link
    for number, record in enumerate(records, start=1):
        if record.step != number:
            raise ValueError(f"step {record.step} stands where step {number} belongs")
        link = chain_step(link, record)
        yield link


@dataclass(frozen=True, slots=True)
class TrainingEvent:
    """
    Something between steps (6.4), after `step` whose link is `chain`.

    `facts` are JSON members of its own: the state and sealed digest of a checkpoint, the evidence
    of another machine.
    """

    kind: EventKind
    step: int
    chain: bytes
    facts: Mapping[str, JsonValue]

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value; `facts` cannot take the place of the other members."""
        return {
            "kind": self.kind,
            "step": self.step,
            "chain": self.chain.hex(),
            "facts": dict(self.facts),
        }


def event_start(plan: bytes) -> bytes:
    """Return the link before the first event (6.4)."""
    return hashlib.sha256(_EVENT_START + plan).digest()


def event_link(link: bytes, event: TrainingEvent) -> bytes:
    """Return the link after `event` (6.4)."""
    return hashlib.sha256(_EVENT + link + jcs(event.value())).digest()
