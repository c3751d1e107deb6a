"""One job as its node holds it in memory, and what the node has for jobs. training-node.md §4.

An entry belongs to the event loop; its account to the thread of an attempt while one runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from confide.errors import DatasetRejected, Rejected, Unavailable
from confide.inference.faults import RequestRefused
from confide.node.seat_messages import SeatFault
from confide.trainer.failures import DiskFull
from confide.training.jobs import JobError, JobEvent
from confide.training.rows import RowError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from socket import socket

    from confide.crypto.kem import PublicKey
    from confide.node.seat_party import PartyPorts
    from confide.node.train_attempt import TrainingRun
    from confide.node.train_files import TrainFiles
    from confide.node.train_image import ImagePorts
    from confide.node.train_proof import JobProof, ProvenBase
    from confide.node.train_replay_work import ReplayingRun
    from confide.ports import Clock, Entropy
    from confide.trainer.order_form import Device, OrderForm
    from confide.training.account import Account
    from confide.training.jobs import Job, JobStatus, Level
    from confide.wire.json import JsonValue

__all__ = ["JobEntry", "Stoppable", "TrainPorts", "error_of", "seconds_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPorts:
    """
    What jobs need of the node: what proves it, its files, the way to start a process, time.

    `folder` is the copy of the base that processes read, `checkpoints` where sealed ones lie;
    `ranks` is how many processes a job may have. `start` begins one process, which does the work of
    all ranks of its form, and `start_ranks` one for each of several; `start_seat` those of one
    seat, with links to the ranks around them. `images` runs images of owners, `party` invites other
    nodes to jobs; None where this node does not.
    """

    node: ProvenBase
    files: TrainFiles
    start: Callable[[OrderForm], ReplayingRun]
    start_ranks: Callable[[OrderForm], TrainingRun]
    start_seat: Callable[[OrderForm, range, tuple[socket, socket]], TrainingRun]
    folder: Path
    checkpoints: Path
    threads: int
    device: Device
    clock: Clock
    entropy: Entropy
    ranks: int = 1
    images: ImagePorts | None = None
    party: PartyPorts | None = None


class Stoppable(Protocol):
    """What works at a job, from outside."""

    def pause(self) -> None:
        """Ask for a checkpoint and an end."""
        ...

    def stop(self) -> None:
        """End it at once."""
        ...


@dataclass(slots=True)
class JobEntry:
    """One job, whose it is, and what it holds in memory until its end."""

    owner: str
    job: Job
    proof: JobProof
    recipient: PublicKey
    account: Account | None = None
    attempt: Stoppable | None = None
    wanted: Literal["", "pause", "cancel"] = ""
    # What goes into the event chain when the job goes on.
    going_on: Literal["", "resumed", "restarted"] = ""
    record: str = ""
    # The step at which the job was taken up here; 0 where it began here.
    taken_up: int = 0

    def tell(
        self,
        ports: TrainPorts,
        message: str,
        *,
        level: Level = "info",
        data: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Add an event."""
        event_id = f"ftevent-{ports.entropy.token(12).hex()}"
        self.job = self.job.told(JobEvent(event_id, seconds_of(ports.clock), level, message, data))

    def become(
        self, ports: TrainPorts, status: JobStatus, message: str, *, error: JobError | None = None
    ) -> None:
        """Go to `status`, and say so."""
        self.job = self.job.next(status, now=seconds_of(ports.clock), error=error)
        self.tell(ports, message, level="info" if error is None else "error")
        if self.job.ended and not (error is not None and error.resumable):
            # 2.2: the node holds the owner's key no longer than it may need it.
            self.job = replace(self.job, request=replace(self.job.request, checkpoint_key=b""))
            self.account = None


def seconds_of(clock: Clock) -> int:
    """Return the time in whole seconds."""
    return int(clock.now().timestamp())


def error_of(error: Exception) -> JobError:
    """Say what broke, in words of ours; what is the machine's can be tried again."""
    match error:
        case RequestRefused():
            return JobError(error.fault.code, error.fault.message, error.fault.param)
        case RowError():
            return JobError("invalid_training_file", f"{error}.", "training_file")
        case DatasetRejected():
            detail = error.failures[0].detail
            return JobError("dataset_mismatch", f"Not what was committed to: {detail}.")
        case Rejected():
            first = error.failures[0]
            words = f"This node does not prove itself now: {first.step}: {first.detail}."
            return JobError("evidence_rejected", words, resumable=True)
        case Unavailable():
            return JobError(_edge(error), f"{error}.", resumable=True)
        case _:
            return JobError("server_error", "Something broke in this node.")


def _edge(error: Unavailable) -> str:
    """Return the code of what did not answer."""
    if isinstance(error, SeatFault):
        return error.code
    cause = error.__cause__
    full = isinstance(cause, OSError) and DiskFull.means(cause)
    return "disk_full" if full or isinstance(error, DiskFull) else "unavailable"
