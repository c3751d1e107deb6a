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

from rich.table import Table
from rich.text import Text

from confide.adapters.endorsement_http import SystemSleeper
from confide.adapters.http_client import make_node_client
from confide.cli.exits import ACCEPTED, problem_of
from confide.cli.screen import Screen, command_line, fields, heading, printable, simulated_line
from confide.cli.train_live import PLAN, LiveTraining, in_words
from confide.cli.train_result import show_result
from confide.cli.tree import Tree
from confide.client.held import HeldNode, TrustPolicy
from confide.client.train import Training
from confide.client.train_folder import OwnerFolder
from confide.client.train_job import failure_of
from confide.client.train_node import NodeRefused, TrainingNode
from confide.errors import ConfideError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from confide.cli.places import Places
    from confide.cli.train_target import Target
    from confide.client.train_job import JobView
    from confide.training.recipe import Recipe
    from confide.wire.json import JsonValue

__all__ = ["Wishes", "begin", "change", "go_on", "list_jobs", "open_results"]


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
        self.live = LiveTraining(screen)
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
        tree.begin("train", "queued")
        job = self.runner.run(self.training.follow())
        if job.status == "paused":
            tree.leave("train", f"paused after step {job.step:,} of {job.steps or 0:,}")
            raise ConfigurationError("the job is paused: it goes on when it is resumed")
        if job.status != "succeeded":
            tree.fail("train", job.status)
            raise failure_of(job)
        tree.done("train", f"{self.live.steps or job.steps or 0:,} steps; {job.fine_tuned_model}")

    def collect(self, tree: Tree, *, checkpoints: bool) -> int:
        """Open and verify the results; show what was made."""
        tree.begin("open", "the record first")
        opened = self.runner.run(self.training.collect(checkpoints=checkpoints))
        tree.done("open", str(opened.folder))
        tree.begin("verify")
        passed = len(opened.record.findings) + len(opened.audited.findings)
        tree.done("verify", f"record, log, weights and what was asked for; {passed} steps")
        job = self.runner.run(self.training.jobs.retrieve(self.training.job))
        tree.__exit__(None, None, None)
        show_result(self.screen, self.folder, opened, name=job.fine_tuned_model or "")
        return ACCEPTED
