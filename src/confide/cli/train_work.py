"""One training on the command line, from the first row read to the last screen.

The order is that of `client.train`. What an interruption leaves is said each time: before the job
was asked for nothing but sealed rows left this machine; afterwards it goes on without us.
"""

from __future__ import annotations

import asyncio
import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.text import Text

from confide.adapters.endorsement_http import SystemSleeper
from confide.adapters.http_client import make_node_client
from confide.cli.exits import ACCEPTED
from confide.cli.screen import Screen, command_line, fields, heading, printable
from confide.cli.train_live import PLAN, LiveTraining
from confide.cli.train_move import elsewhere, move
from confide.cli.train_result import Made, show_result
from confide.cli.train_target import remember
from confide.cli.tree import Tree
from confide.client.held import HeldNode, TrustPolicy
from confide.client.train import Training
from confide.client.train_folder import OwnerFolder
from confide.client.train_job import failure_of
from confide.client.train_node import NodeRefused, TrainingNode
from confide.errors import (
    ConfideError,
    ConfigurationError,
    Unavailable,
)
from confide.training.image_recipe import ImageRecipe
from confide.training.order import held_out_count
from confide.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from confide.cli.places import Places
    from confide.cli.train_target import Target
    from confide.client.train_job import JobView
    from confide.training.any_recipe import AnyRecipe
    from confide.training.shares import Engine

__all__ = ["Wishes", "Work", "again", "begin", "go_on", "open_results", "step_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a training is to be watched, and what is to be fetched at its end."""

    checkpoints: bool = False
    detach: bool = False
    cancel_on_interrupt: bool = False
    suffix: str = ""


class Work:
    """A training, its node and its event loop. Use as a context manager."""

    def __init__(self, screen: Screen, places: Places, folder: OwnerFolder) -> None:
        self.screen = screen
        recipe = folder.state.recipe
        every = recipe.checkpoint_every if isinstance(recipe, Recipe) else 0
        self.live = LiveTraining(screen, checkpoint_every=every)
        self.runner = asyncio.Runner()
        self._http = make_node_client()
        trust = TrustPolicy(folder.expectation, folder.roots)
        self._held = HeldNode(folder.state.node, trust, self._http, places.clock, places.entropy)
        self.training = Training(
            folder,
            TrainingNode(self._held, token=folder.token),
            clock=places.clock,
            entropy=places.entropy,
            sleeper=SystemSleeper(),
            watcher=self.live.watcher(),
        )

    @property
    def folder(self) -> OwnerFolder:
        """The folder as it stands."""
        return self.training.folder

    @property
    def simulated(self) -> bool:
        """Whether this works under SIMULATED roots."""
        return self.folder.roots.simulated

    def __enter__(self) -> Self:
        self.runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.runner.run(self._close())
        self.runner.__exit__(kind, error, trace)

    async def _close(self) -> None:
        await self._held.close()
        await self._http.aclose()

    def tree(self, title: str) -> Tree:
        """Return the view of this training."""
        made = Tree(self.screen, title, PLAN, simulated=self.simulated, below=self.live.render)
        self.live.tree = made
        return made

    def prove(self, tree: Tree) -> None:
        """Prove the node, and say what was proven."""
        tree.begin("prove", "asking for evidence")
        proven = self.runner.run(self.training.prove()).sealed.node
        passed = sum(not finding.failed for finding in proven.result.findings)
        hardware = proven.result.claim("hardware").value.partition(", FMSPC")[0]
        tree.done("prove", f"{hardware}; {passed} steps; base {self.folder.expectation.model.name}")

    def send(self, tree: Tree) -> None:
        """Send what the node does not have."""
        tree.begin("send")
        self.runner.run(self.training.send())
        state = self.folder.state
        names = [each.file or "" for each in (state.data, state.validation) if each is not None]
        tree.done("send", ", ".join(names))

    def ask(self, tree: Tree, suffix: str) -> JobView:
        """Ask for the job, or find it."""
        tree.begin("job")
        job = self.runner.run(self.training.start(suffix=suffix))
        tree.done("job", job.id)
        return job

    def follow(self, tree: Tree) -> None:
        """Watch until there are results. Raises why there are none."""
        tree.begin("train", "waiting for the node")
        job = self.runner.run(self.training.follow())
        image = isinstance(self.folder.state.recipe, ImageRecipe)
        if job.status == "paused":
            tree.leave("train", f"paused after step {step_of(job)}")
            raise ConfigurationError("the job is paused: it goes on when it is resumed")
        if job.status != "succeeded":
            tree.fail("train", job.status)
            error = failure_of(job)
            if image and job.status == "failed":
                printed = self.runner.run(self.training.printed())
                error.add_note(
                    f"what the image printed, by the node's word: {printed or 'nothing'}"
                )
            raise error
        steps = "by an image" if image else f"{self.live.steps or job.steps or 0:,} steps"
        tree.done("train", f"{steps}; {job.fine_tuned_model}")

    def collect(self, tree: Tree, *, checkpoints: bool) -> Made:
        """Open the results and hold everything together."""
        tree.begin("open", "the record first")
        opened = self.runner.run(self.training.collect(checkpoints=checkpoints))
        tree.done("open", str(opened.folder))
        tree.begin("verify")
        audited = () if opened.audited is None else opened.audited.findings
        passed = len(opened.record.findings) + len(audited)
        held = "record, log, weights" if audited else "artefact-level record, weights"
        tree.done("verify", f"{held} and what was asked for; {passed} steps")
        job = self.runner.run(self.training.jobs.retrieve(self.training.job))
        return Made(self.folder, opened, job.fine_tuned_model or "")

    def interrupted(self, wishes: Wishes) -> None:
        """Cancel the job, where that was wished for."""
        if wishes.cancel_on_interrupt and self.folder.state.job is not None:
            self.runner.run(self.training.jobs.change(self.training.job, "cancel"))


def begin(
    screen: Screen,
    places: Places,
    target: Target,
    recipe: AnyRecipe,
    path: Path,
    rows: tuple[Path, Path | None],
    wishes: Wishes,
    *,
    engine: Engine = "ring",
) -> int:
    """Begin a training in the folder `path`, and stay with it to its end; return the exit code."""
    if engine != "ring" and isinstance(recipe, ImageRecipe):
        raise ConfigurationError("--engine: an image of yours has one node, and nothing to link")
    places.paths.make_private()
    folder = OwnerFolder.create(
        path,
        node=target.url,
        expectation=target.expectation,
        roots=target.roots,
        recipe=recipe,
        entropy=places.entropy,
        engine=engine,
    )
    with Work(screen, places, folder) as work:
        with work.tree(f"confide train · {printable(recipe.base_model)}") as tree:
            with _nothing_sent(folder):
                _read(work, tree, rows)
                work.prove(tree)
                remember(places, path)
            made = _to_the_end(work, tree, wishes)
        return _last(screen, work, made)


def _read(work: Work, tree: Tree, rows: tuple[Path, Path | None]) -> None:
    tree.begin("rows")
    work.training.commit(*rows)
    data = work.folder.state.data
    if data is None:
        raise RuntimeError("rows that were read are kept")
    commitment = data.commitment
    preference = commitment.kind == "preference"
    recipe = work.folder.state.recipe
    if isinstance(recipe, Recipe) and preference != (recipe.method == "dpo"):
        wanted = "preference" if recipe.method == "dpo" else "chat or completion"
        raise ConfigurationError(
            f"method {recipe.method} trains on {wanted} rows; {data.path} holds {commitment.kind} "
            "rows"
        )
    if isinstance(recipe, Recipe):
        try:
            held_out_count(recipe.val_set_size, commitment.rows)
        except ValueError as error:
            raise ConfigurationError(f"recipe: {error}") from error
        if recipe.eval_steps and not recipe.val_set_size and not rows[1]:
            raise ConfigurationError(
                "eval_steps: nothing is held out; set val_set_size, or give --validation"
            )
    tree.done("rows", f"{commitment.rows:,}, {commitment.kind}; {commitment.digest.hex()[:16]}…")


def go_on(
    screen: Screen, places: Places, path: Path, wishes: Wishes, *, node: str | None = None
) -> int:
    """Take up the training in `path` where it stands, or at another `node`; return the code."""
    folder = OwnerFolder.open(path)
    _require_open(folder)
    if node is not None:
        with Work(screen, places, folder) as work:
            folder = move(work, node)
    state = folder.state
    if state.data is None:
        raise ConfigurationError(f"{path}: its rows were not read yet; begin it again")
    name = state.recipe.base_model if state.recipe is not None else folder.expectation.model.name
    with Work(screen, places, folder) as work:
        with work.tree(f"confide train resume · {printable(name)}") as tree:
            if state.job is None:
                apart = None if state.validation is None else state.validation.path
                _read(work, tree, (state.data.path, apart))
            else:
                tree.done("rows", f"{state.data.commitment.rows:,}, committed to")
            work.prove(tree)
            made = _to_the_end(work, tree, wishes, resume=True)
        return _last(screen, work, made)


def _to_the_end(work: Work, tree: Tree, wishes: Wishes, *, resume: bool = False) -> Made | None:
    """Send, ask, watch, open. None where nobody waits for the end."""
    with _goes_on(work, tree, wishes):
        work.send(tree)
        job = work.ask(tree, wishes.suffix)
        if resume and (job.status == "paused" or (job.status == "failed" and job.resumable)):
            work.runner.run(work.training.jobs.change(job.id, "resume"))
        if wishes.detach:
            tree.leave("train", "goes on in the node")
            return None
        work.follow(tree)
        return work.collect(tree, checkpoints=wishes.checkpoints)


def _last(screen: Screen, work: Work, made: Made | None) -> int:
    if made is not None:
        show_result(screen, made)
        return ACCEPTED
    folder = work.folder
    words = [("job", folder.state.job or ""), ("keys in", str(folder.path))]
    screen.show(Text(), fields(words), heading("Take it up"), command_line(again(folder)))
    screen.event(
        "result",
        {
            "verdict": None,
            "job": folder.state.job,
            "folder": str(folder.path),
            "simulated": work.simulated,
        },
    )
    return ACCEPTED


def again(folder: OwnerFolder, verb: str = "resume") -> str:
    """Return the command that does `verb` with this training."""
    return shlex.join(["confide", "train", verb, str(folder.path)])


def _require_open(folder: OwnerFolder) -> None:
    if folder.done:
        raise ConfigurationError(f"{folder.path} is done: its results are in {folder.result}")


@contextmanager
def _nothing_sent(folder: OwnerFolder) -> Iterator[None]:
    """Leave nothing behind on a failure inside, and say that nothing was sent."""
    try:
        yield
    except (ConfideError, KeyboardInterrupt) as error:
        folder.remove()
        error.add_note("nothing left this machine, and nothing was kept")
        raise


@contextmanager
def _goes_on(work: Work, tree: Tree, wishes: Wishes) -> Iterator[None]:
    """Say on any failure inside what goes on without us, and how to take it up."""
    try:
        yield
    except (ConfideError, KeyboardInterrupt) as error:
        folder = work.folder
        if isinstance(error, KeyboardInterrupt):
            work.interrupted(wishes)
        if folder.state.job is None:
            error.add_note(
                "rows that were sent went sealed to the proven node; no job was asked for"
            )
            error.add_note(f"take it up: {again(folder)}")
        elif isinstance(error, KeyboardInterrupt) and wishes.cancel_on_interrupt:
            error.add_note(f"the job {folder.state.job} was cancelled in the node")
        elif isinstance(error, KeyboardInterrupt | Unavailable):
            tree.leave_active("goes on in the node")
            error.add_note(f"the job {folder.state.job} does not need this program to go on")
            error.add_note(f"take it up: {again(folder)}")
            error.add_note(f"end it for good: {again(folder, 'cancel')}")
        else:
            error.add_note(f"no results are in {folder.path}; its keys and what was asked for are")
        if isinstance(error, Unavailable | NodeRefused) and elsewhere(folder):
            error.add_note(f"where that node is gone: {again(folder)} --node URL")
        raise


def open_results(screen: Screen, places: Places, path: Path, *, checkpoints: bool) -> int:
    """Open the results of the job in `path`, which has ended; return the exit code."""
    folder = OwnerFolder.open(path)
    _require_open(folder)
    with Work(screen, places, folder) as work:
        with work.tree("confide train open") as tree:
            work.prove(tree)
            made = work.collect(tree, checkpoints=checkpoints)
        return _last(screen, work, made)


def step_of(job: JobView) -> str:
    """Return how far a job is: `12 of 300`."""
    return f"{job.step:,} of {job.steps:,}" if job.steps else "-"
