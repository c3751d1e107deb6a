"""The trainings of this user: how each stands, and what is changed about one in its node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from confide.cli.screen import Screen, command_line, fields, heading, printable, simulated_line
from confide.cli.train_work import Work, again, step_of
from confide.client.train_folder import OwnerFolder
from confide.client.train_node import NodeRefused
from confide.errors import (
    ConfigurationError,
    FormatError,
    Rejected,
    RemoteProtocolError,
    Unavailable,
)

if TYPE_CHECKING:
    from pathlib import Path

    from confide.cli.places import Places
    from confide.client.train_job import JobView
    from confide.wire.json import JsonValue

__all__ = ["change", "list_jobs"]


def change(screen: Screen, places: Places, path: Path, what: str) -> None:
    """Pause or cancel the job in `path`, and say how it stands then."""
    folder = OwnerFolder.open(path)
    with Work(screen, places, folder) as work:
        job = work.runner.run(work.training.jobs.change(work.training.job, what))
    screen.show(
        *([simulated_line()] if folder.roots.simulated else []),
        fields([("job", job.id), ("status", job.status), ("step", step_of(job))]),
    )
    if what == "pause":
        screen.show(heading("Let it go on"), command_line(again(folder)))
    screen.event("result", {**_document(job), "simulated": folder.roots.simulated})


def list_jobs(screen: Screen, places: Places) -> None:
    """List the trainings of this user; each node is asked for those that are not done."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column(no_wrap=True)
    found: list[JsonValue] = []
    base = places.paths.trainings
    for path in sorted(base.iterdir(), reverse=True) if base.is_dir() else ():
        if not (path / "job.json").is_file():
            continue
        named, status, step = _row(screen, places, path)
        row = (path.name, named or "-", status, step)
        table.add_row(*(Text(printable(cell)) for cell in row))
        folder = str(path.resolve())
        found.append({"folder": folder, "job": named, "status": status, "step": step})
    screen.show(table if found else Text("no trainings yet: confide train RECIPE.toml --data FILE"))
    screen.event("result", {"trainings": found})


def _row(screen: Screen, places: Places, path: Path) -> tuple[str | None, str, str]:
    """Return the job of the training in `path`, how it stands, and at which step."""
    try:
        folder = OwnerFolder.open(path)
    except (ConfigurationError, FormatError):
        # One broken folder hides no other.
        return None, "cannot be read", ""
    status, job = _standing(screen, places, folder)
    return folder.state.job, status, "" if job is None else step_of(job)


def _standing(screen: Screen, places: Places, folder: OwnerFolder) -> tuple[str, JobView | None]:
    """Return how a training stands, in one word, and its job where the node tells."""
    if folder.done:
        return "done", None
    if folder.state.job is None:
        return "not asked for", None
    try:
        with Work(screen, places, folder) as work:
            job = work.runner.run(work.training.jobs.retrieve(work.training.job))
    except NodeRefused:
        return "forgotten by the node", None
    except Rejected:
        return "node refused", None
    except (Unavailable, RemoteProtocolError, FormatError):
        return "node does not answer", None
    return job.status, job


def _document(job: JobView) -> dict[str, JsonValue]:
    return {
        "job": job.id,
        "status": job.status,
        "step": job.step,
        "steps": job.steps,
        "model": job.fine_tuned_model,
    }
