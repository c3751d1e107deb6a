"""What an owner sends for a replay, held together before anything is executed.

docs/protocols/training-record.md 7.9. Everything is hostile: the record is verified, the log
audited, and the steps are drawn here, from head and challenge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.errors import TrainingRejected
from confide.inference.plan import refuse
from confide.node.train_replay_work import ReplayCase
from confide.node.train_store import read_file
from confide.training.audit import audit_log
from confide.training.draw import Sample, draw_steps, replay_beacon
from confide.training.job_request import JobRefused
from confide.training.record_file import parse_record_file
from confide.training.record_verify import verify_record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.node.train_entry import TrainPorts
    from confide.node.train_store import FileTable, ResultFile, StoredFile
    from confide.training.audit import AuditedLog
    from confide.training.record_verify import VerifiedRecord
    from confide.training.replay_request import ReplayRequest

__all__ = ["SentFiles", "find_files", "hold_case"]

# From: docs/protocols/training-record.md 7.9.
_MAX_RECORD_BYTES: Final = 16 * 1024 * 1024
_MAX_LOG_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SentFiles:
    """The files that a request names, as they are here."""

    record: ResultFile
    log: ResultFile
    data: StoredFile
    validation: StoredFile | None
    checkpoints: Mapping[int, ResultFile]


def find_files(table: FileTable, owner: str, request: ReplayRequest) -> SentFiles:
    """Return the files of a request. Raises `RequestRefused` for one that is not there."""
    files = SentFiles(
        record=table.find_state(owner, request.record, param="record"),
        log=table.find_state(owner, request.owner_log, param="owner_log"),
        data=table.find_data(owner, request.training_file, param="training_file"),
        validation=None
        if request.validation_file is None
        else table.find_data(owner, request.validation_file, param="validation_file"),
        checkpoints={
            step: table.find_state(owner, file, param="checkpoints")
            for step, file in request.checkpoints.items()
        },
    )
    for param, file, most in (
        ("record", files.record, _MAX_RECORD_BYTES),
        ("owner_log", files.log, _MAX_LOG_BYTES),
    ):
        if file.size > most:
            refuse("file_too_large", f"A file for {param} has at most {most} bytes.", param=param)
    return files


def hold_case(
    ports: TrainPorts, request: ReplayRequest, files: SentFiles, machine: bytes
) -> ReplayCase:
    """
    Verify the record, audit the log with the rows, and draw the steps (7.9). Blocks.

    `machine` is the digest of this one. Raises `JobRefused`, `FormatError`, and `Unavailable` where
    the store fails.
    """
    record = _verified(ports, files)
    said = record.record
    if said.plan.base != ports.node.weights:
        raise JobRefused(
            f"record: its base is {said.plan.base.hex()}, that of this node "
            f"{ports.node.weights.hex()}; ask a node that has it",
            param="record",
            code="model_mismatch",
        )
    seated = {seat.machine for boot in record.seats for seat in boot}
    if request.elsewhere and machine in {*record.machines, *seated}:
        what = "another_machine: this is a machine of the record; ask another node"
        raise JobRefused(what, param="another_machine", code="same_machine")
    audited = _audited(ports, record, files)
    if request.count > said.steps:
        what = f"steps: the training has {said.steps}"
        raise JobRefused(what, param="steps")
    beacon = replay_beacon(said.head, challenge=request.challenge, checkpoint=request.note)
    drawn = draw_steps(beacon, said.steps, request.count)
    case = ReplayCase(
        audited=audited,
        sample=Sample(beacon, said.steps, drawn, request.fraction),
        tolerance=request.tolerance,
        data=files.data,
        validation=files.validation,
        checkpoints=files.checkpoints,
        key=request.checkpoint_key,
    )
    wanted = {each.start.step for each in case.begin().windows if each.start is not None}
    missing = sorted(wanted - files.checkpoints.keys())
    if missing:
        what = f"checkpoints: the drawn steps need those of steps {missing[:8]}"
        raise JobRefused(what, param="checkpoints", code="missing_checkpoint")
    return case


def _verified(ports: TrainPorts, files: SentFiles) -> VerifiedRecord:
    raw = b"".join(read_file(ports.files.store, files.record))
    try:
        return verify_record(
            parse_record_file(raw),
            roots=ports.node.roots,
            now=None,
            expectation=None,
            nonce=None,
            outputs={},
        )
    except TrainingRejected as error:
        raise _refused("record", error) from error


def _audited(ports: TrainPorts, record: VerifiedRecord, files: SentFiles) -> AuditedLog:
    raw = b"".join(read_file(ports.files.store, files.log))
    data = files.data
    try:
        audited = audit_log(record, raw, dataset_salt=data.claim.salt, rows=data.commitment)
    except TrainingRejected as error:
        raise _refused("owner_log", error) from error
    apart = None if files.validation is None else files.validation.commitment
    if apart != audited.log.validation:
        what = "validation_file: the plan names other validation rows, or none"
        raise JobRefused(what, param="validation_file", code="dataset_mismatch")
    return audited


def _refused(param: str, error: TrainingRejected) -> JobRefused:
    first = error.failures[0]
    code = first.reason.replace("-", "_") if first.reason else "invalid_value"
    return JobRefused(f"{param}: {first.step}: {first.detail}", param=param, code=code)
