"""Jobs of a training node as their owner sees them: asked for, listed, paused, resumed, cancelled.

docs/protocols/training-node.md §2, §4 and §5. What a job says of itself is the node's word, for
people to watch. What was made is said by the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from confide.client.train_node import words_of_the_node
from confide.errors import (
    ConfideError,
    ConfigurationError,
    FormatError,
    Reason,
    RemoteProtocolError,
    Unavailable,
)
from confide.training.image_recipe import ImageRecipe
from confide.wire.json import JsonValue, Members, b64encode, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.client.train_folder import OwnerFolder
    from confide.client.train_node import TrainingNode

__all__ = [
    "JobNews",
    "JobView",
    "TrainingJobs",
    "confide_member",
    "failure_of",
    "job_request",
]

_JOBS: Final = "/v1/fine_tuning/jobs"
_RUN: Final = "confide_run"
_PAGE: Final = 100
_MAX_PAGES: Final = 200
_MAX_WORD: Final = 512
_ENDS: Final = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class JobView:
    """What a job says of itself. `error` is (code, message) where it failed."""

    id: str
    status: str
    model: str
    created: int
    step: int
    steps: int | None
    error: tuple[str, str] | None
    resumable: bool
    fine_tuned_model: str | None
    result_files: tuple[str, ...]
    # The step of the newest checkpoint.
    checkpoint: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it by itself any more."""
        return self.status in _ENDS


@dataclass(frozen=True, slots=True)
class JobNews:
    """One event of a job; `numbers` are those of a step or of an evaluation."""

    id: str
    at: int
    level: str
    message: str
    numbers: Mapping[str, float]


def failure_of(job: JobView) -> ConfideError:
    """Return why `job`, which has ended, has no results: what to mend, or that it can go on."""
    code, message = job.error or ("", "")
    what = message.removesuffix(".")
    if job.status == "cancelled":
        return ConfigurationError("the job was cancelled: nothing of it is left")
    if code == "invalid_training_file":
        clause = "docs/protocols/training-node.md#4.3"
        return FormatError(f"training file: {what}", reason=Reason.ROW_FORMAT, clause=clause)
    if job.resumable:
        return Unavailable(f"the job failed and can go on: {what} ({code})")
    return ConfigurationError(f"the job failed: {what} ({code})")


def job_request(
    folder: OwnerFolder, *, suffix: str = "", brought: dict[str, JsonValue] | None = None
) -> dict[str, JsonValue]:
    """
    Return the body that asks for the job of `folder`, whose rows the node has.

    `brought` is what it goes on from (training-node.md 7.5), None for a job that begins.
    """
    state = folder.state
    goes_on: dict[str, JsonValue] = {} if brought is None else {"continue": brought}
    asked: dict[str, JsonValue] = {
        "model": folder.expectation.model.name,
        "training_file": None if state.data is None else state.data.file,
        "metadata": {_RUN: state.run.hex()},
        "confide": confide_member(folder) | goes_on,
    }
    if state.validation is not None:
        asked["validation_file"] = state.validation.file
    if suffix:
        asked["suffix"] = suffix
    return asked


def confide_member(folder: OwnerFolder) -> dict[str, JsonValue]:
    """Return what OpenAI's members cannot say (training-node.md 2.2)."""
    raw = folder.expectation.canonical()
    member: dict[str, JsonValue] = {
        "nonce": folder.nonce.hex(),
        "expectation": parse_json(raw, what="Expectation", reason=Reason.EXPECTATION_MISMATCH),
        "recipient": b64encode(folder.recipient.public_key.raw),
    }
    recipe = folder.state.recipe
    if isinstance(recipe, ImageRecipe):
        # It has no checkpoints (training-image.md 2.7).
        return {**member, "image": recipe.value()}
    member["checkpoint_key"] = folder.checkpoint_key.hex()
    if folder.state.engine != "ring":
        member["engine"] = folder.state.engine
    if recipe is not None:
        member["recipe"] = recipe.value()
    return member


class TrainingJobs:
    """The jobs of one owner on `node`. Raises as `TrainingNode.ask`."""

    def __init__(self, node: TrainingNode) -> None:
        self._node = node

    async def create(self, asked: dict[str, JsonValue]) -> JobView:
        """Ask for a job."""
        return _job(await self._node.ask("POST", _JOBS, asked))

    async def find(self, run: bytes) -> JobView | None:
        """Return the job that was asked for under this name, where the answer was lost."""
        query = urlencode({f"metadata[{_RUN}]": run.hex(), "limit": "1"})
        page = await self._node.ask("GET", f"{_JOBS}?{query}")
        with words_of_the_node():
            values = page.items("data", max_items=1)
            found = [Members(each, what="job", reason=Reason.REQUEST_FORMAT) for each in values]
        return _job(found[0]) if found else None

    async def retrieve(self, job: str) -> JobView:
        """Return how a job stands."""
        return _job(await self._node.ask("GET", f"{_JOBS}/{job}"))

    async def change(self, job: str, what: str) -> JobView:
        """Do what OpenAI's API has: `pause`, `resume`, `cancel`."""
        return _job(await self._node.ask("POST", f"{_JOBS}/{job}/{what}"))

    async def news(self, job: str, *, since: str | None) -> tuple[JobNews, ...]:
        """Return the events after the one named, oldest first; of very many the newest."""
        found: list[JobNews] = []
        query = {"limit": str(_PAGE)}
        for _ in range(_MAX_PAGES):
            path = f"{_JOBS}/{job}/events?{urlencode(query)}"
            page = await self._node.ask("GET", path)
            with words_of_the_node():
                items = [_news(item) for item in page.items("data", max_items=_PAGE)]
                more = page.boolean("has_more")
            for event in items:
                if event.id == since:
                    return tuple(reversed(found))
                found.append(event)
            if not more or not items:
                break
            query["after"] = items[-1].id
        return tuple(reversed(found))


def _job(members: Members) -> JobView:
    with words_of_the_node():
        ours = members.members("confide")
        error = None
        if not members.null("error"):
            said = members.members("error")
            code = "" if said.null("code") else _word(said, "code")
            error = (code, said.text("message", max_chars=4096))
        tuned = members.null("fine_tuned_model")
        return JobView(
            id=_word(members, "id"),
            status=_word(members, "status"),
            model=_word(members, "model"),
            created=members.integer("created_at"),
            step=ours.integer("step"),
            steps=None if ours.null("steps") else ours.integer("steps"),
            error=error,
            resumable=ours.boolean("resumable"),
            fine_tuned_model=None if tuned else _word(members, "fine_tuned_model"),
            result_files=members.texts("result_files", max_items=4096),
            checkpoint=None if ours.null("checkpoint") else ours.integer("checkpoint"),
        )


def _word(members: Members, name: str) -> str:
    """Return a word of the node that ends up in commands, on screens and in addresses."""
    word = members.text(name, max_chars=_MAX_WORD)
    if not word.isprintable() or " " in word:
        members.refuse(f"{name} is no plain word")
    return word


def _news(value: JsonValue) -> JobNews:
    members = Members(value, what="event of a job", reason=Reason.REQUEST_FORMAT)
    data = members.value("data")
    if data is not None and not isinstance(data, dict):
        raise RemoteProtocolError("an event of a job has data of another form")
    numbers = {
        name: float(number)
        for name, number in (data or {}).items()
        if isinstance(number, int | float) and not isinstance(number, bool)
    }
    return JobNews(
        _word(members, "id"),
        members.integer("created_at"),
        members.text("level", max_chars=16),
        members.text("message", max_chars=4096),
        numbers,
    )
