"""A `Trainer` that is arithmetic on one number, and whole jobs done with it, logs and all.

Every loss depends on every step before it, as in a real training, and on the rows that came.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nodes import WEIGHTS
from trainings import Job, sha

from confide.training.batches import plan_batches
from confide.training.chain import (
    StepRecord,
    TrainingEvent,
    chain_start,
    event_link,
    event_start,
    links,
    state_is_due,
)
from confide.training.dataset import Commitment, commit_rows
from confide.training.job import EvaluatedStep, Evaluation, PreparedTraining
from confide.training.lines import Line
from confide.training.owner_log import OwnerLog, SaltedEvaluation
from confide.training.plan import TrainingPlan
from confide.training.recipe_file import parse_recipe_toml
from confide.training.rows import Row, parse_row
from confide.training.schedule import learning_rate
from confide.training.seeds import batch_commitment
from confide.training.steplog import LoggedStep
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from confide.training.batches import Batch, Batches
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.job import OutputKind, TrainingJob
    from confide.training.recipe import Recipe

SALT = hashlib.sha256(b"the owner's dataset salt").digest()
RECIPE = parse_recipe_toml(
    "base_model = 'support-notes'\nlearning_rate = 0.1\nlr_scheduler = 'linear'\n"
    "micro_batch_size = 2\nnum_epochs = 4\nval_set_size = 4\n"
    "checkpoint_every = 4\nstate_every = 2\nseed = 7\n"
)
_STATE = struct.Struct(">Qd")


def rows(count: int = 20) -> tuple[Row, ...]:
    """Rows of completions."""
    values = ({"prompt": f"note {n}", "completion": f"label {n}"} for n in range(count))
    return tuple(parse_row(Line(number, jcs(value))) for number, value in enumerate(values, 1))


@dataclass
class Arithmetic:
    """
    The `Trainer` port over one number. `wrong` changes the number at the end of some steps.

    `drift` is added to every loss: another machine, whose arithmetic rounds differently.
    """

    recipe: Recipe
    plan: bytes
    records: tuple[bytes, ...]
    batches: Batches
    wrong: dict[int, float] = field(default_factory=dict)
    drift: float = 0.0
    salt: bytes = SALT
    step: int = 0
    value: float = 3.0
    executed: list[int] = field(default_factory=list)

    def prepare(self, job: TrainingJob) -> PreparedTraining:
        raise NotImplementedError("made prepared")

    def batch(self, step: int) -> Batch:
        return self.batches.batch(step)

    def run_step(self) -> StepRecord:
        self.step += 1
        step, batch = self.step, self.batches.batch(self.step)
        self.executed.append(step)
        picked = [row for micro in batch for packed in micro for row, _ in packed]
        target = sum(sum(self.records[row]) % 7 for row in picked) / max(1, len(picked))
        rate = learning_rate(self.recipe, step, self.batches.steps)
        gradient = 2 * (self.value - target)
        loss = (self.value - target) ** 2 + self.drift
        self.value += self.wrong.get(step, 0.0) - rate * gradient
        due = state_is_due(self.recipe, step, self.batches.steps)
        return StepRecord(
            step,
            batch_commitment(self.salt, step, batch),
            rate,
            loss,
            abs(gradient),
            sum(tokens for micro in batch for packed in micro for _, tokens in packed),
            self.state_digest() if due else None,
        )

    def state_digest(self) -> bytes:
        return hashlib.sha256(struct.pack(">d", self.value + self.drift)).digest()

    def save(self) -> Iterator[bytes]:
        yield _STATE.pack(self.step, self.value)

    def load(self, state: bytes) -> None:
        self.step, self.value = _STATE.unpack(state)

    def evaluate(self, *, base: bool) -> Evaluation:
        # It gets better with every step, and ends at a half.
        left = self.batches.steps - self.step
        return Evaluation(4, 40, 2.5 if base else 0.5 + left / 100, 0.2 if base else 0.9)

    def output(self, kind: OutputKind) -> Iterator[tuple[str, bytes]]:
        raise NotImplementedError(kind)


@dataclass(frozen=True)
class ComputedJob(Job):
    """A job that was really computed. `wrong` as in `Arithmetic`, `alter` edits the owner's log."""

    steps: int = 32
    planned: int = 32
    recipe: Recipe = RECIPE
    wrong: tuple[tuple[int, float], ...] = ()
    alter: Callable[[OwnerLog], OwnerLog] = lambda log: log

    @property
    def commitment(self) -> Commitment:
        """The commitment to its rows."""
        return commit_rows(rows(), SALT)

    @property
    def plan(self) -> TrainingPlan:
        dataset = self.commitment.digest
        tokenizer = sha(self.name, "tokenizer")
        return TrainingPlan(self.recipe.digest, dataset, None, WEIGHTS, tokenizer, None)

    def trainer(self, **changed: Any) -> Arithmetic:
        """A fresh trainer of this job, at step 0."""
        plan = self.plan.digest
        batches = plan_batches(
            self.recipe,
            seeding=self.plan.seeding,
            root=self.commitment.root,
            lengths=[5] * 20,
            dataset_salt=SALT,
        )
        records = tuple(row.record for row in rows())
        return Arithmetic(self.recipe, plan, records, batches, **changed)

    @cached_property
    def told(self) -> tuple[OwnerLog, dict[int, bytes]]:
        """Its owner's log, and the states at its checkpoints in plain."""
        trainer = self.trainer(wrong=dict(self.wrong))
        logged: list[LoggedStep] = []
        judged: list[EvaluatedStep] = []
        states = {0: b"".join(trainer.save())}
        for step in range(1, trainer.batches.steps + 1):
            logged.append(LoggedStep(trainer.run_step(), trainer.batch(step)))
            if self.recipe.evaluation_is_due(step, planned=trainer.batches.steps):
                found = trainer.evaluate(base=False)
                judged.append(EvaluatedStep(step, found.loss, found.accuracy))
            if not step % self.recipe.checkpoint_every or step == trainer.batches.steps:
                states[step] = b"".join(trainer.save())
        evaluations = tuple(
            SaltedEvaluation(sha("salt", str(base)), trainer.evaluate(base=base))
            for base in (True, False)
        )
        log = OwnerLog(
            salt=sha(self.name, "log salt"),
            recipe=self.recipe,
            dataset=self.commitment,
            validation=None,
            steps=tuple(logged),
            events=(),
            evaluations=(evaluations[0], evaluations[1]),
            evaluated=tuple(judged),
        )
        return self._with_events(self.alter(log), states), states

    def _with_events(self, log: OwnerLog, states: dict[int, bytes]) -> OwnerLog:
        if log.events:
            return log
        chain = tuple(links(self.plan.digest, (each.record for each in log.steps)))
        events = []
        for step, state in states.items():
            if not step or step > len(log.steps):
                continue
            recorded = log.steps[step - 1].record.state or bytes(32)
            facts = {"state": recorded.hex(), "sealed": hashlib.sha256(state).hexdigest()}
            events.append(TrainingEvent("checkpoint", step, chain[step], facts))
        return replace(log, events=tuple(events))

    @property
    def log(self) -> OwnerLog:
        """What the owner opens."""
        return self.told[0]

    def chain(self, step: int) -> bytes:
        if not step:
            return chain_start(self.plan.digest)
        records = (each.record for each in self.log.steps[:step])
        return tuple(links(self.plan.digest, records))[-1]

    @property
    def checkpoints(self) -> tuple[CheckpointEntry, ...]:
        return self.log.checkpoints

    @property
    def digests(self) -> dict[str, bytes]:
        log, head = self.log, event_start(self.plan.digest)
        for event in log.events:
            head = event_link(head, event)
        metrics = [each.commitment for each in log.evaluations or ()] or [bytes(32)] * 2
        return {
            "dataset-root": log.dataset.root,
            "event chain": head,
            "owner-log": hashlib.sha256(log.encode()).digest(),
            "base metrics": metrics[0],
            "tuned metrics": metrics[1],
        }


__all__ = ["RECIPE", "SALT", "Arithmetic", "ComputedJob", "rows"]
