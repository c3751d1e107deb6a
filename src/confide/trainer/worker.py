"""A training process from inside: a job in through a pipe, what happens out through another.

docs/protocols/training.md §10. The pipes are the only way in and out of rows, salts, keys and
results in plain; the disk sees sealed checkpoints alone.
"""

from __future__ import annotations

import select
import time
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from confide.errors import ConfideError, RemoteProtocolError, Unavailable
from confide.trainer.checkpoint_files import CheckpointFiles
from confide.trainer.failures import failure_code, is_resumable
from confide.trainer.frames import (
    Frame,
    read_frame,
    read_json,
    write_data,
    write_json,
)
from confide.trainer.loop import TorchTrainer, out_of_memory
from confide.trainer.order_form import DataName, OrderForm, read_order_form
from confide.trainer.privacy import spent
from confide.trainer.reports import evaluation_value, step_value
from confide.trainer.ring import DistributedRing, SocketRing
from confide.trainer.session import Command, Session, run_session
from confide.trainer.stretches import Stretches, read_stretch
from confide.training.chain import chain_start
from confide.training.job import TrainingData, TrainingJob

if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import socket

    from confide.ports import Trainer
    from confide.trainer.reports import Progress
    from confide.trainer.ring import Ring
    from confide.trainer.session import Outcome
    from confide.training.batches import Batch
    from confide.training.chain import StepRecord
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.job import Evaluation
    from confide.wire.json import JsonValue

__all__ = ["serve"]

_SECRET_BYTES = 32
_COMMANDS: dict[Frame, Command] = {Frame.PAUSE: "pause", Frame.CANCEL: "cancel"}


def serve(given: BinaryIO, told: BinaryIO, links: Sequence[socket] = ()) -> bool:
    """
    Take one job from `given`, an unbuffered pipe, and tell `told` of it to its end.

    `links` are those of one rank of several, to the one before and to the next. Returns whether it
    ended as it was asked to. What fails is told in words of ours.
    """
    try:
        _run(given, told, links)
    except MemoryError:
        _tell_failure(told, out_of_memory("between steps"))
        return False
    except ConfideError as error:
        _tell_failure(told, error)
        return False
    return True


def _tell_failure(told: BinaryIO, error: ConfideError) -> None:
    failed: JsonValue = {
        "code": failure_code(error),
        "message": str(error),
        "resumable": is_resumable(error),
    }
    write_json(told, Frame.FAILED, failed)


def _run(given: BinaryIO, told: BinaryIO, links: Sequence[socket]) -> None:
    form, job, key, session = _receive(given)
    trainer = TorchTrainer(
        form.folder, threads=form.threads, device=form.device, ring=_ring(form, links)
    )
    prepared = trainer.prepare(job)
    if form.place is not None and form.place.rank:
        trainer.follow()
        write_json(told, Frame.ENDED, {"outcome": "followed"})
        return
    write_json(
        told,
        Frame.PREPARED,
        {
            "plan": prepared.plan.value(),
            "steps": prepared.steps,
            "held_out": len(prepared.held_out),
            "environment": dict(prepared.environment),
        },
    )
    plan = prepared.plan.digest
    outcome: Outcome = "cancelled"
    link = chain_start(plan)
    files = CheckpointFiles(form.checkpoints, plan=plan, key=key, session=session)
    reporter = _PipeReporter(told)
    order = read_frame(given)
    if order is not None and order[0] is Frame.STRETCH:
        stretches = Stretches(trainer, files, reporter, steps=prepared.steps)
        order = _replay(stretches, given, order)
    if _may_go(order):
        outcome, link = run_session(
            trainer,
            Session(
                plan=plan,
                recipe=form.recipe,
                steps=prepared.steps,
                files=files,
                reporter=reporter,
                command=lambda: _command(given),
                clock=time.monotonic,
            ),
            resume=form.resume,
        )
    # What was done stands, also where another rank is gone by now.
    with suppress(Unavailable):
        trainer.leave()
    if outcome == "finished":
        _tell_result(trainer, form, told)
    ended: JsonValue = {
        "outcome": outcome,
        "step": trainer.step,
        "chain": link.hex(),
        "epsilon": spent(
            form.recipe, rows=len(job.data.rows) - len(prepared.held_out), steps=trainer.step
        ),
    }
    write_json(told, Frame.ENDED, ended)


def _ring(form: OrderForm, links: Sequence[socket]) -> Ring | None:
    place = form.place
    if place is None:
        return None
    if place.via == "sockets":
        if len(links) != 2:
            raise RemoteProtocolError("a rank has two links")
        return SocketRing(place.rank, form.world, before=links[0], after=links[1])
    if place.meeting is None:
        raise RemoteProtocolError("the ranks have no folder to meet in")
    return DistributedRing(place.rank, form.world, folder=place.meeting, backend=place.via)


def _may_go(frame: tuple[Frame, bytes] | None) -> bool:
    """Whether the first step may begin (10.3). Who cancels, or is gone, wants none."""
    if frame is not None and frame[0] not in {Frame.GO, Frame.CANCEL}:
        raise RemoteProtocolError("a frame of kind GO was expected")
    return frame is not None and frame[0] is Frame.GO


def _replay(
    stretches: Stretches, given: BinaryIO, order: tuple[Frame, bytes] | None
) -> tuple[Frame, bytes] | None:
    """Execute one stretch after the other; return what is asked for after them (10.4)."""
    while order is not None and order[0] is Frame.STRETCH:
        stretches.execute(read_stretch(read_json(order[1])))
        order = read_frame(given)
    # Whoever trains next begins where the form says: nothing of the stretches is left.
    stretches.rewind()
    return order


def _receive(given: BinaryIO) -> tuple[OrderForm, TrainingJob, bytes, bytes]:
    form = read_order_form(read_json(_expect(given, Frame.JOB)))
    secrets = _expect(given, Frame.SECRETS)
    if len(secrets) != 3 * _SECRET_BYTES:
        raise RemoteProtocolError("the secrets are three of 32 bytes")
    salt, key, session = (secrets[at : at + _SECRET_BYTES] for at in (0, 32, 64))
    rows: dict[Frame, list[bytes]] = {Frame.ROW: [], Frame.VALIDATION: []}
    while (frame := read_frame(given)) is not None and frame[0] in rows:
        rows[frame[0]].append(frame[1])
    if frame is None or frame[0] is not Frame.START:
        raise RemoteProtocolError("the rows do not end with a start")
    job = TrainingJob(
        recipe=form.recipe,
        data=_data(form.data, salt, rows[Frame.ROW]),
        # Nothing is committed to under a salt here: validation rows are in no batch.
        validation=None
        if form.validation is None
        else _data(form.validation, salt, rows[Frame.VALIDATION]),
        base=form.base,
        world=form.world,
    )
    return form, job, key, session


def _expect(given: BinaryIO, kind: Frame) -> bytes:
    frame = read_frame(given)
    if frame is None or frame[0] is not kind:
        raise RemoteProtocolError(f"a frame of kind {kind.name} was expected")
    return frame[1]


def _data(name: DataName, salt: bytes, rows: list[bytes]) -> TrainingData:
    return TrainingData(name.kind, name.digest, name.root, salt, rows)


def _command(given: BinaryIO) -> Command | None:
    """Return what was asked for since the last step. Who is gone wants nothing more: cancel."""
    readable, _, _ = select.select([given], [], [], 0)
    if not readable:
        return None
    frame = read_frame(given)
    if frame is not None and frame[0] not in _COMMANDS:
        raise RemoteProtocolError("a command was expected")
    return "cancel" if frame is None else _COMMANDS[frame[0]]


class _PipeReporter:
    """Tells each step, evaluation and checkpoint through the pipe."""

    def __init__(self, told: BinaryIO) -> None:
        self._told = told

    def step(self, record: StepRecord, batch: Batch, progress: Progress) -> None:
        write_json(self._told, Frame.STEP, step_value(record, batch, progress))

    def evaluation(self, step: int, found: Evaluation) -> None:
        value: JsonValue = evaluation_value(found, model="tuned", step=step)
        write_json(self._told, Frame.EVALUATION, value)

    def checkpoint(self, entry: CheckpointEntry) -> None:
        write_json(self._told, Frame.CHECKPOINT, entry.value())


def _tell_result(trainer: Trainer, form: OrderForm, told: BinaryIO) -> None:
    for model in ("base", "tuned"):
        found = trainer.evaluate(base=model == "base")
        if found is not None:
            judged: JsonValue = evaluation_value(found, model=model)
            write_json(told, Frame.EVALUATION, judged)
    for kind in form.outputs:
        for name, data in trainer.output(kind):
            write_json(told, Frame.FILE, {"output": kind, "name": name, "bytes": len(data)})
            write_data(told, data)
