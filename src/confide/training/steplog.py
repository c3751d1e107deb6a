"""The owner's log of steps against the recipe: nothing else was done, and nothing was left out.

docs/protocols/training.md §6.5. Pure. What this cannot show is that the arithmetic of a step was
done: loss, gradient norm and state stand in the chain as the node wrote them, and replay computes
them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import Reason, ReceiptRejected
from confide.rats import Finding, Status
from confide.training.batches import batch_tokens, plan_batches
from confide.training.chain import chain_start, chain_step, f64, state_is_due
from confide.training.schedule import learning_rate
from confide.training.seeds import batch_commitment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.training.batches import Batch
    from confide.training.chain import StepRecord
    from confide.training.plan import TrainingPlan
    from confide.training.recipe import Recipe

__all__ = ["LoggedStep", "verify_step_log"]


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """One line of the owner's log: the record of a step and the rows that its batch names."""

    record: StepRecord
    batch: Batch


def verify_step_log(
    log: Sequence[LoggedStep],
    *,
    recipe: Recipe,
    plan: TrainingPlan,
    root: bytes,
    rows: int,
    dataset_salt: bytes,
    head: bytes,
) -> None:
    """
    Establish that `log` is the whole job that `recipe` asks for, and that `head` is its end.

    1. Each step is there, once, in order. 2. Its batch is the one that seed and root give. 3. The
    commitment opens to it. 4. The learning rate is that of the schedule, to the bit. 5. Tokens and
    state digest are where they belong. 6. The chain ends in `head`.

    The caller has compared recipe and data set of `plan`. The number of tokens of a row is the
    log's word. Raises `ReceiptRejected` with TRAINING_CHAIN.
    """
    lengths = _lengths(log, rows, recipe.sequence_len)
    try:
        batches = plan_batches(
            recipe, seeding=plan.seeding, root=root, lengths=lengths, dataset_salt=dataset_salt
        )
    except ValueError as error:
        raise _rejected(2, "3.1", str(error)) from error
    link = chain_start(plan.digest)
    for number, logged in enumerate(log, start=1):
        record = logged.record
        if record.step != number or number > batches.steps:
            raise _rejected(1, "6.1", f"step {record.step} stands where step {number} belongs")
        if logged.batch != batches.batch(number):
            raise _rejected(2, "3.4", f"the batch of step {number} is not that of seed and root")
        if record.batch != batch_commitment(dataset_salt, number, logged.batch):
            raise _rejected(3, "4.2", f"the batch of step {number} is not what was committed to")
        rate = learning_rate(recipe, number, batches.steps)
        if f64(record.learning_rate) != f64(rate):
            raise _rejected(4, "5.1", f"the learning rate of step {number} is not the schedule's")
        due = state_is_due(recipe, number, batches.steps)
        if record.tokens != batch_tokens(logged.batch) or due != (record.state is not None):
            raise _rejected(5, "6.3", f"tokens or state digest of step {number}")
        link = chain_step(link, record)
    if len(log) != batches.steps:
        raise _rejected(1, "6.1", f"{len(log)} steps of {batches.steps}")
    if link != head:
        raise _rejected(6, "6.2", "the steps are not those of the head")


def _lengths(log: Sequence[LoggedStep], rows: int, unseen: int) -> list[int]:
    """Return the tokens of each row; a row that no step took cannot have fitted anywhere."""
    lengths: dict[int, int] = {}
    for logged in log:
        for packed in (packed for micro in logged.batch for packed in micro):
            for row, tokens in packed:
                if not 0 <= row < rows or lengths.setdefault(row, tokens) != tokens:
                    raise _rejected(2, "3.4", f"row {row} is not there, or has two lengths")
    return [lengths.get(row, unseen) for row in range(rows)]


def _rejected(step: int, clause: str, detail: str) -> ReceiptRejected:
    finding = Finding(
        Status.FAIL,
        f"training/steps/{step}",
        f"training.md {clause}",
        "step log",
        detail,
        Reason.TRAINING_CHAIN,
    )
    return ReceiptRejected((finding,))
