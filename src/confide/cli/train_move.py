"""`confide train resume DIR --node URL`: going on at another node. training-node.md §7."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from confide.adapters.http_client import require_node_url
from confide.client.train_folder import OwnerFolder
from confide.client.train_handover import kept_state
from confide.client.train_node import NodeRefused
from confide.errors import ConfigurationError, Rejected, RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    from confide.cli.train_work import Work
    from confide.client.train_job import JobView

__all__ = ["elsewhere", "move"]

_GOING = ("queued", "running", "pausing", "validating_files")


def move(work: Work, url: str) -> OwnerFolder:
    """
    Let the training of `work` go on at `url`; return the folder, in which it has no job there yet.

    The node before is asked first: a job that still runs there would become two. Raises
    `ConfigurationError` where there is nothing to take along, `Unavailable`.
    """
    require_node_url(url)
    folder, place = work.folder, url.rstrip("/").removesuffix("/v1")
    if folder.state.job is None:
        return folder.moved(place)
    job = _standing(work)
    if job is not None and job.status in _GOING:
        raise ConfigurationError(
            f"the job is {job.status} at {folder.state.node}: let it rest there first, or it would "
            "go on twice"
        )
    if job is not None and (job.ended and not job.resumable):
        raise ConfigurationError(f"the job is {job.status} at {folder.state.node}")
    _require_kept(folder)
    return folder.moved(place)


def _standing(work: Work) -> JobView | None:
    """Return how the job stands where it was, with its newest state kept; None where it is gone."""
    training = work.training
    try:
        job = work.runner.run(training.jobs.retrieve(training.job))
        work.runner.run(training.keep(job))
    except (Unavailable, RemoteProtocolError, Rejected, NodeRefused):
        return None
    return job


def elsewhere(folder: OwnerFolder) -> bool:
    """Whether enough of a job is kept in `folder` for another node to go on."""
    with suppress(ConfigurationError):
        kept = kept_state(folder)
        return kept is not None and kept.checkpoint.is_file()
    return False


def _require_kept(folder: OwnerFolder) -> None:
    if not elsewhere(folder):
        raise ConfigurationError(
            f"nothing whole of the job was kept in {folder.path / 'handover'}: there is nothing to "
            "go on from; begin the training again with confide train"
        )
