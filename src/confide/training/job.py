"""What goes into a training and what comes out of it, as values between the loop and its caller.

docs/protocols/training.md §2 and §9. Rows and salts are the owner's secrets: they are kept out of
every `repr`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confide.training.plan import TrainingPlan
    from confide.training.recipe import Recipe
    from confide.training.row_shapes import Kind
    from confide.wire.json import JsonValue

__all__ = [
    "EvaluatedStep",
    "Evaluation",
    "OutputKind",
    "PreparedTraining",
    "TrainingData",
    "TrainingJob",
]

OutputKind: TypeAlias = Literal["adapter", "merged"]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """
    Rows that were validated and committed to: `digest` names the data set, `root` its tree.

    Each of `rows` is the RFC 8785 bytes of one row. Whoever makes this value has recomputed `root`
    from `rows` and `salt`; the loop takes its word.
    """

    kind: Kind
    digest: bytes
    root: bytes
    salt: bytes = field(repr=False)
    rows: Sequence[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """
    A recipe, the rows, and the digest of the base weights (weights.md 1.7) as measured.

    `world` is the number of ranks that carry it out: a member of the plan, and of no arithmetic.
    """

    recipe: Recipe
    data: TrainingData
    validation: TrainingData | None
    base: bytes
    world: int = 1


@dataclass(frozen=True, slots=True)
class PreparedTraining:
    """
    A job whose rows were read by the tokenizer of its model, before its first step.

    `held_out` are the rows of the data set that are only evaluated on. `environment` is what the
    bits of the result depend on beside the plan (§9.4): libraries, instruction set, threads.
    """

    plan: TrainingPlan
    steps: int
    held_out: tuple[int, ...]
    environment: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """
    How well a model does on held-out rows (§9.3).

    `loss` is the mean over `count` answer tokens, or over pairs with method dpo; `accuracy` the
    share of them whose most likely token is the right one, or whose chosen answer is preferred.
    """

    rows: int
    count: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class EvaluatedStep:
    """How well the model does on held-out rows after `step`: an `Evaluation` on the way (§9.3)."""

    step: int
    loss: float
    accuracy: float
