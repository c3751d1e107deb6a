"""What has happened in one job so far: steps, events between them, turns. Pure.

Kept while a job runs; its record and its owner's log are made of it. It takes what a training
process tells in the one order that training.md §6, §7.4 and training-record.md 1.4 allow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from confide.errors import RemoteProtocolError
from confide.training.boots import Turn
from confide.training.chain import (
    TrainingEvent,
    chain_start,
    chain_step,
    event_link,
    event_start,
)
from confide.training.checkpoints import checkpoint_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from confide.training.boots import TurnKind
    from confide.training.chain import EventKind
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.job import EvaluatedStep, Evaluation
    from confide.training.plan import TrainingPlan
    from confide.training.steplog import LoggedStep
    from confide.wire.json import JsonValue

__all__ = ["MAX_BOOTS", "MAX_TURNS", "Account", "SoFar"]

# From: docs/protocols/training-record.md 2.4.
MAX_BOOTS: Final = 16
MAX_TURNS: Final = 128


class SoFar(NamedTuple):
    """What was told of a job up to its newest checkpoint, and every event."""

    steps: tuple[LoggedStep, ...]
    events: tuple[TrainingEvent, ...]
    evaluated: tuple[EvaluatedStep, ...]


@dataclass(slots=True)
class Account:
    """
    One job: `plan` and `root` of its rows, how many steps are `planned`, in which `environment`.

    `evaluations` are those of `base` and `tuned`, by name; `evaluated` those on the way.
    """

    plan: TrainingPlan
    root: bytes
    planned: int
    environment: Mapping[str, str]
    steps: list[LoggedStep] = field(default_factory=list, repr=False)
    events: list[TrainingEvent] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    checkpoints: list[CheckpointEntry] = field(default_factory=list)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    evaluated: list[EvaluatedStep] = field(default_factory=list)
    events_head: bytes = field(init=False)
    _links: list[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._links = [chain_start(self.plan.digest)]
        self.events_head = event_start(self.plan.digest)

    @property
    def head(self) -> bytes:
        """The step chain after the last step."""
        return self._links[-1]

    @property
    def start(self) -> bytes:
        """The step chain before the first step."""
        return self._links[0]

    @property
    def newest(self) -> CheckpointEntry | None:
        """What the job goes on from; None is the beginning."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def tokens(self) -> int:
        """How many tokens were trained on."""
        return sum(each.record.tokens for each in self.steps)

    def take_up(
        self,
        *,
        steps: Sequence[LoggedStep],
        events: Sequence[TrainingEvent],
        turns: Sequence[Turn],
        evaluated: Sequence[EvaluatedStep] = (),
    ) -> None:
        """
        Take what was told of the job elsewhere, as it was told there; for an empty account.

        Raises `RemoteProtocolError` where no process could have told this, `FormatError`.
        """
        for event in events:
            if event.kind == "checkpoint":
                for logged in steps[len(self.steps) : event.step]:
                    self.step(logged)
                self.checkpoint(checkpoint_of(event))
            elif (event.step, event.chain) != self.standing:
                raise RemoteProtocolError("an event that does not stand at the newest checkpoint")
            else:
                self.happened(event.kind, event.facts)
        if len(self.steps) != len(steps):
            raise RemoteProtocolError("steps after the newest checkpoint")
        self.evaluated.extend(evaluated)
        self.turns.extend(turns)

    def so_far(self) -> SoFar:
        """
        Return every event, and what was told up to the newest checkpoint among them.

        Right at any moment, also while another thread is told more: a step and its evaluation are
        there before the event of its checkpoint, and none before a checkpoint is ever taken back.
        """
        events = tuple(self.events)
        newest = max((each.step for each in events if each.kind == "checkpoint"), default=0)
        evaluated = (each for each in self.evaluated if each.step <= newest)
        return SoFar(tuple(self.steps[:newest]), events, tuple(evaluated))

    def require_same(self, plan: TrainingPlan, planned: int, environment: object) -> None:
        """Require that a process that goes on has the same plan, in the same environment."""
        if (plan, planned, environment) != (self.plan, self.planned, self.environment):
            raise RemoteProtocolError("the job would go on under another plan or environment")

    def go_back(self) -> None:
        """Forget the steps after the newest checkpoint: a process that goes on does them again."""
        step = 0 if self.newest is None else self.newest.step
        del self.steps[step:]
        del self._links[step + 1 :]
        self.evaluations.clear()
        self.evaluated[:] = [each for each in self.evaluated if each.step <= step]

    def step(self, logged: LoggedStep) -> None:
        """Take the next step."""
        if logged.record.step != len(self.steps) + 1 or len(self.steps) >= self.planned:
            raise RemoteProtocolError("a step that is not the next one")
        self.steps.append(logged)
        self._links.append(chain_step(self.head, logged.record))

    def judged(self, found: EvaluatedStep) -> None:
        """Take an evaluation on the way: after the last step, and before its checkpoint."""
        step = len(self.steps)
        last = max(0 if self.newest is None else self.newest.step, self._judged)
        if not last < found.step == step:
            raise RemoteProtocolError("an evaluation that does not stand after the last step")
        self.evaluated.append(found)

    @property
    def _judged(self) -> int:
        return self.evaluated[-1].step if self.evaluated else 0

    def checkpoint(self, entry: CheckpointEntry) -> None:
        """Take a checkpoint; it stands after the last step, in the state that the step recorded."""
        step = len(self.steps)
        if not step or (entry.step, entry.chain) != (step, self.head):
            raise RemoteProtocolError("a checkpoint that does not stand after the last step")
        if self.steps[-1].record.state not in {None, entry.state}:
            raise RemoteProtocolError("a checkpoint in another state than its step recorded")
        if self.newest is not None and entry.step <= self.newest.step:
            raise RemoteProtocolError("a checkpoint that stands where one is")
        self.checkpoints.append(entry)
        facts: dict[str, JsonValue] = {"state": entry.state.hex(), "sealed": entry.sealed.hex()}
        self._event("checkpoint", entry.step, entry.chain, facts)

    def happened(self, kind: EventKind, facts: Mapping[str, JsonValue] | None = None) -> None:
        """Note an event at the newest checkpoint: `paused`, `resumed`, `restarted`, `machine`."""
        step, chain = self.standing
        self._event(kind, step, chain, facts or {})

    def turn(self, kind: TurnKind, *, boot: int, at: datetime) -> Turn:
        """Return a turn at the newest checkpoint; it counts once it is among `turns`."""
        step, chain = self.standing
        return Turn(kind, boot, step, chain, at)

    def require_end(self, chain: bytes) -> None:
        """Require that every step was done, that the last checkpoint stands there, at `chain`."""
        newest = self.newest
        if len(self.steps) != self.planned or chain != self.head:
            raise RemoteProtocolError("the process ended elsewhere than its steps")
        if newest is None or (newest.step, newest.chain) != (self.planned, self.head):
            raise RemoteProtocolError("the process left no checkpoint of the end")

    @property
    def standing(self) -> tuple[int, bytes]:
        """Where the job goes on from: the step and link of its newest checkpoint."""
        newest = self.newest
        return (0, self.start) if newest is None else (newest.step, newest.chain)

    def _event(
        self, kind: EventKind, step: int, chain: bytes, facts: Mapping[str, JsonValue]
    ) -> None:
        event = TrainingEvent(kind, step, chain, facts)
        self.events.append(event)
        self.events_head = event_link(self.events_head, event)
