"""One job of an owner's image at work, from `queued` to its end. docs/protocols/training-image.md.

It is one attempt, and nothing of it is kept but what was sealed to the owner. Belongs to the event
loop; the image is in the sandbox.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from confide.adapters.crash import say_crash
from confide.errors import ConfideError, Unavailable
from confide.node.train_entry import error_of, seconds_of
from confide.node.train_image import (
    CommittedRows,
    ImageFailed,
    ImageJob,
    require_runnable,
    run_image_job,
)
from confide.node.train_results import Results
from confide.node.train_store import rows_name
from confide.training.job_request import JobRefused
from confide.training.jobs import JobError

if TYPE_CHECKING:
    from confide.node.train_entry import JobEntry, TrainPorts
    from confide.node.train_image import ImagePorts
    from confide.node.train_store import StoredFile
    from confide.training.job_request import JobRequest

__all__ = ["ImageWorker", "require_image"]


async def require_image(request: JobRequest, ports: ImagePorts | None) -> None:
    """
    Require that this node can run the image of `request`, where it names one.

    Raises `JobRefused` saying what to do.
    """
    if request.image is None:
        return
    if ports is None:
        raise JobRefused(
            "image: this node runs no images; ask one that does (confide node train --images)",
            param="confide.image",
            code="no_images",
        )
    await require_runnable(request.image, ports)


@dataclass(slots=True)
class _Working:
    """The task of a job, to be ended from elsewhere in the event loop."""

    task: asyncio.Task[None]
    stopped: bool = False

    def pause(self) -> None:
        """Do nothing: an image has no checkpoints, and is never asked."""

    def stop(self) -> None:
        """End the image."""
        self.stopped = True
        self.task.cancel()


class ImageWorker:
    """Takes one job of an image from `queued` to its end."""

    def __init__(self, ports: TrainPorts, entry: JobEntry) -> None:
        self._ports = ports
        self._entry = entry

    async def run(self) -> None:
        """Work until the job ends; whatever breaks, it does."""
        entry, ports = self._entry, self._ports
        entry.become(ports, "running", "The job is running.")
        results = Results(
            ports.files.store,
            recipient=entry.recipient,
            job=entry.job.id,
            owner=entry.owner,
            entropy=ports.entropy,
        )
        working = _Working(asyncio.ensure_future(self._work(results)))
        entry.attempt = working
        if entry.wanted == "cancel":
            working.stop()
        try:
            await working.task
        except asyncio.CancelledError:
            await asyncio.to_thread(results.abort)
            if not working.stopped:
                raise
        except Exception as error:  # noqa: BLE001 - somebody's job, whatever broke
            await self._failed(error, results)
        finally:
            entry.attempt = None
        if entry.wanted == "cancel" and entry.job.status != "succeeded":
            await self.discard()
        entry.wanted = ""

    async def discard(self) -> None:
        """End the job as cancelled; nothing of it is left."""
        self._entry.become(self._ports, "cancelled", "The job was cancelled.")

    async def _work(self, results: Results) -> None:
        entry, ports = self._entry, self._ports
        if ports.images is None:  # pragma: no cover - such a job is not taken
            raise Unavailable("this node runs no images")
        file = await run_image_job(
            ports.images, self._job(), results, tell=lambda words: entry.tell(ports, words)
        )
        await asyncio.to_thread(results.public, "record.json", file.encode())
        self._hand_over(results)
        entry.record = results.files[-1].id
        entry.job = replace(entry.job, fine_tuned_model=entry.job.name)
        entry.become(ports, "succeeded", "The job has successfully completed.")

    def _hand_over(self, results: Results) -> None:
        ports, entry = self._ports, self._entry
        now = seconds_of(ports.clock)
        for each in results.files:
            ports.files.table.add(replace(each, created_at=now))
        entry.job = replace(entry.job, result_files=tuple(each.id for each in results.files))

    async def _failed(self, error: Exception, results: Results) -> None:
        entry = self._entry
        if not isinstance(error, ConfideError):
            say_crash(error)
        if isinstance(error, ImageFailed) and entry.wanted != "cancel":
            # 3.2: what it printed is the owner's, who has to know why.
            self._hand_over(results)
            why = JobError(error.code, f"{error}.")
        else:
            await asyncio.to_thread(results.abort)
            # 2.7: such a job begins anew, as another one.
            why = replace(error_of(error), resumable=False)
        if entry.wanted != "cancel":
            entry.become(self._ports, "failed", f"The job failed: {why.code}.", error=why)

    def _job(self) -> ImageJob:
        entry, request = self._entry, self._entry.job.request
        if request.image is None:  # pragma: no cover - that is what this worker is for
            raise Unavailable("a job without an image")
        table, apart = self._ports.files.table, request.validation_file
        data = table.find_data(entry.owner, request.training_file, param="training_file")
        validation = None
        if apart is not None:
            validation = self._rows(table.find_data(entry.owner, apart, param="validation_file"))
        return ImageJob(
            training_id=entry.job.training_id,
            nonce=request.nonce,
            expectation=entry.proof.expectation,
            recipe=request.image,
            data=self._rows(data),
            validation=validation,
        )

    def _rows(self, file: StoredFile) -> CommittedRows:
        store = self._ports.files.store
        return CommittedRows(
            file.commitment, file.claim.salt, lambda: store.read(rows_name(file.id))
        )
