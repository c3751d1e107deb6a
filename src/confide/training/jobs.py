"""A fine-tuning job as its owner sees it: states, events, checkpoints, in OpenAI's shape. Pure.

Clauses: docs/protocols/training-node.md §4, §5. Time and ids are arguments. Nothing here is proof:
what was computed stands in the training record (training-record.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from confide.errors import LocalProtocolError
from confide.training.image_record import GRANULARITY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confide.training.job import EvaluatedStep
    from confide.training.job_request import JobRequest
    from confide.training.recipe import Method
    from confide.wire.json import JsonValue

__all__ = [
    "ENDS",
    "Job",
    "JobCheckpoint",
    "JobError",
    "JobEvent",
    "JobStatus",
    "Level",
    "held_out_metrics",
    "page",
]

JobStatus: TypeAlias = Literal[
    "validating_files",
    "queued",
    "running",
    "pausing",
    "paused",
    "succeeded",
    "failed",
    "cancelled",
]
Level: TypeAlias = Literal["info", "warn", "error"]
T = TypeVar("T", "Job", "JobEvent", "JobCheckpoint")

# From: docs/protocols/training-node.md §4.1. What may follow what.
_NEXT: Final[Mapping[JobStatus, frozenset[JobStatus]]] = {
    "validating_files": frozenset({"queued", "failed", "cancelled"}),
    "queued": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"pausing", "queued", "succeeded", "failed", "cancelled"}),
    "pausing": frozenset({"paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"queued", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset({"queued", "cancelled"}),
    "cancelled": frozenset(),
}
# States that nothing follows by itself; a failed job can be resumed where the node says so.
ENDS: Final = frozenset({"succeeded", "failed", "cancelled"})
_MAX_EVENTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed, in words of ours; `resumable` where its last checkpoint is whole."""

    code: str
    message: str
    param: str | None = None
    resumable: bool = False

    def value(self) -> dict[str, JsonValue]:
        """Return OpenAI's shape."""
        return {"code": self.code, "message": self.message, "param": self.param}


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing that happened; `data` holds numbers, never text of a row."""

    id: str
    at: int
    level: Level
    message: str
    data: Mapping[str, JsonValue] | None = None

    def value(self) -> dict[str, JsonValue]:
        """Return OpenAI's shape."""
        return {
            "object": "fine_tuning.job.event",
            "id": self.id,
            "created_at": self.at,
            "level": self.level,
            "message": self.message,
            "type": "message" if self.data is None else "metrics",
            "data": dict(self.data or {}),
        }


@dataclass(frozen=True, slots=True)
class JobCheckpoint:
    """
    A sealed state that the job can go on from; `chain` and `sealed` as in training.md 7.2.

    `held_out` are `held_out_metrics`, where the model was evaluated there.
    """

    id: str
    at: int
    job: str
    step: int
    name: str
    train_loss: float
    chain: bytes
    sealed: bytes
    held_out: Mapping[str, float] = field(default_factory=dict)

    def value(self) -> dict[str, JsonValue]:
        """Return OpenAI's shape, with `confide` beside it."""
        return {
            "object": "fine_tuning.job.checkpoint",
            "id": self.id,
            "created_at": self.at,
            "fine_tuning_job_id": self.job,
            "fine_tuned_model_checkpoint": self.name,
            "step_number": self.step,
            "metrics": {"step": self.step, "train_loss": self.train_loss, **self.held_out},
            "confide": {"chain": self.chain.hex(), "sealed": self.sealed.hex()},
        }


def held_out_metrics(found: EvaluatedStep, method: Method) -> dict[str, float]:
    """
    Return what OpenAI calls the metrics of an evaluation on the way (training-node.md 4.3).

    All held-out rows are judged each time: `valid` and `full_valid` are the same. The accuracy of
    preferences is one of pairs, not of tokens.
    """
    metrics = {
        "valid_loss": found.loss,
        "valid_accuracy": found.accuracy,
        "full_valid_loss": found.loss,
    }
    if method == "sft":
        metrics |= {
            "valid_mean_token_accuracy": found.accuracy,
            "full_valid_mean_token_accuracy": found.accuracy,
        }
    return metrics


@dataclass(frozen=True, slots=True)
class Job:
    """
    One job. Every change returns another value; `next` allows only what §4.1 does.

    `training_id` is the secret 32 bytes that the record names, `steps` how many are planned, None
    until the files were read.
    """

    id: str
    training_id: bytes = field(repr=False)
    request: JobRequest
    created: int
    status: JobStatus = "validating_files"
    error: JobError | None = None
    finished: int | None = None
    steps: int | None = None
    step: int = 0
    trained_tokens: int = 0
    estimated_finish: int | None = None
    fine_tuned_model: str | None = None
    result_files: tuple[str, ...] = ()
    events: tuple[JobEvent, ...] = field(default=(), repr=False)
    checkpoints: tuple[JobCheckpoint, ...] = field(default=(), repr=False)

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it by itself any more."""
        return self.status in ENDS

    @property
    def name(self) -> str:
        """What the result will be called."""
        middle = f"{self.request.suffix}:" if self.request.suffix else ":"
        return f"ft:{self.request.model}:confide:{middle}{self.id.removeprefix('ftjob-')[:8]}"

    def may(self, status: JobStatus) -> bool:
        """Whether `status` may be next."""
        if self.status == "failed" and status == "queued":
            return self.error is not None and self.error.resumable
        return status in _NEXT[self.status]

    def next(self, status: JobStatus, *, now: int, error: JobError | None = None) -> Job:
        """Return the job in `status`. Raises `LocalProtocolError` where that may not be next."""
        if not self.may(status):
            raise LocalProtocolError(f"a job that is {self.status} does not become {status}")
        if (status == "failed") != (error is not None):
            raise LocalProtocolError("a job has an error exactly when it failed")
        return replace(
            self,
            status=status,
            error=error,
            finished=now if status in ENDS else None,
            estimated_finish=self.estimated_finish if status == "running" else None,
        )

    def told(self, event: JobEvent) -> Job:
        """Return the job with one event more; of very many the oldest go."""
        return replace(self, events=(*self.events[-(_MAX_EVENTS - 1) :], event))

    def value(self, *, organization: str) -> dict[str, JsonValue]:
        """Return OpenAI's shape, with `confide` beside it."""
        request = self.request
        return {
            "object": "fine_tuning.job",
            "id": self.id,
            "created_at": self.created,
            "error": None if self.error is None else self.error.value(),
            "fine_tuned_model": self.fine_tuned_model,
            "finished_at": self.finished,
            "hyperparameters": request.hyperparameters(),
            "method": request.method(),
            "model": request.model,
            "organization_id": organization,
            "result_files": list(self.result_files),
            "seed": request.seed,
            "status": self.status,
            "trained_tokens": self.trained_tokens if self.status == "succeeded" else None,
            "training_file": request.training_file,
            "validation_file": request.validation_file,
            "estimated_finish": self.estimated_finish,
            "integrations": [],
            "metadata": dict(request.metadata),
            "confide": {
                "recipe": request.recipe.digest.hex(),
                "granularity": "step" if request.image is None else GRANULARITY,
                "step": self.step,
                "steps": self.steps,
                "resumable": self.error is not None and self.error.resumable,
                "checkpoint": self.checkpoints[-1].step if self.checkpoints else None,
            },
        }


def page(items: Sequence[T], *, after: str | None, limit: int) -> tuple[tuple[T, ...], bool] | None:
    """
    Return at most `limit` of `items` after the one named, and whether there are more.

    `items` are newest first. None where `after` names none of them.
    """
    start = 0
    if after is not None:
        found = [at for at, item in enumerate(items) if item.id == after]
        if not found:
            return None
        start = found[0] + 1
    return tuple(items[start : start + limit]), len(items) > start + limit
