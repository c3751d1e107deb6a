"""What training processes tell, frame by frame, over one run or several."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from training_jobs import KEY, SESSION

from confide.trainer.frames import Frame, read_json
from confide.trainer.group import TrainingGroup
from confide.trainer.process import TrainingProcess
from confide.trainer.reports import read_step
from confide.training.chain import chain_start, chain_step
from confide.training.checkpoints import CheckpointEntry, parse_checkpoint_entry
from confide.training.plan import parse_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.trainer.order_form import OrderForm, Via
    from confide.training.job import TrainingJob
    from confide.training.steplog import LoggedStep


@dataclass
class Story:
    """What a process told, over one run or several."""

    plan: bytes = b""
    steps: dict[int, LoggedStep] = field(default_factory=dict)
    checkpoints: list[CheckpointEntry] = field(default_factory=list)
    # By model at the end, by step on the way.
    evaluations: dict[str | int, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    last: tuple[Frame, Any] | None = None
    disk: bytes = b""

    def hear(self, kind: Frame, payload: bytes) -> None:
        """Take one frame."""
        value: Any = None if kind is Frame.DATA else read_json(payload)
        if kind is Frame.PREPARED:
            self.plan = parse_plan(value["plan"]).digest
        elif kind is Frame.STEP:
            logged, _ = read_step(value)
            known = self.steps.setdefault(logged.record.step, logged)
            assert known == logged, "a step that was done again is another"
        elif kind is Frame.CHECKPOINT:
            self.checkpoints.append(parse_checkpoint_entry(value))
        elif kind is Frame.EVALUATION:
            self.evaluations[value["step"] or value["model"]] = value
        elif kind is Frame.FILE:
            self.files[f"{value['output']}/{value['name']}"] = b""
        elif kind is Frame.DATA:
            self.files[list(self.files)[-1]] += payload
        else:
            self.last = (kind, value)

    @property
    def newest(self) -> CheckpointEntry | None:
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def head(self) -> bytes:
        link = chain_start(self.plan)
        for number in range(1, len(self.steps) + 1):
            link = chain_step(link, self.steps[number].record)
        return link

    @property
    def result(self) -> tuple[bytes, bytes, dict[str | int, Any], dict[str, bytes]]:
        """Everything that must not depend on what happened on the way."""
        assert self.newest is not None
        return self.head, self.newest.state, self.evaluations, self.files


def follow(
    form: OrderForm,
    job: TrainingJob,
    story: Story,
    *,
    at_step: Callable[[int, Any], None] | None = None,
    session: bytes = SESSION,
    via: Via | None = None,
) -> Story:
    """
    Run one process to its end, however that comes; `at_step` may do something to it.

    With `via`, the ranks of the job, linked so.
    """
    asked = replace(form, resume=story.newest)
    with (
        TrainingProcess(asked)
        if via is None
        else TrainingGroup(asked, ranks=range(asked.world), via=via)
    ) as process:
        process.begin(job, key=KEY, session=session)
        for kind, payload in process.frames():
            story.hear(kind, payload)
            if kind is Frame.PREPARED:
                process.go()
            if kind is Frame.STEP and at_step is not None:
                at_step(max(story.steps), process)
    return story
