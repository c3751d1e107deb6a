"""What an owner brings to a replay: rows, salt, log, base, checkpoints. Read, and held together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.cli.data_files import pieces_of, read_salt
from confide.cli.places import read_bounded
from confide.cli.receipt_log import read_demand
from confide.cli.replay_trainer import Materials
from confide.cli.training_case import judge, read_case
from confide.errors import ConfigurationError, Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.training.audit import AuditedLog, audit_log
from confide.training.dataset import DatasetTree, RowSalts
from confide.training.record_verify import VerifiedRecord
from confide.training.replay_end import last_checkpoint
from confide.training.rows import RowReader, require_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.cli.training_case import Judged, RecordCase
    from confide.training.dataset import Commitment
    from confide.training.rows import Row, RowError

__all__ = [
    "Given",
    "Rows",
    "believed",
    "has_end",
    "materials_of",
    "read_audited",
    "read_log",
    "read_rows",
]


@dataclass(frozen=True, slots=True)
class Given:
    """The files that the command line names."""

    record: Path
    owner_log: Path
    salt: Path
    data: Path
    validation: Path | None
    validation_salt: Path | None
    simulated_roots: str | None
    at: str
    log_policy: Path | None


@dataclass(frozen=True, slots=True)
class Rows:
    """RFC 8785 bytes of rows, and the commitment to them."""

    commitment: Commitment
    records: tuple[bytes, ...]


def believed(judged: Judged) -> VerifiedRecord:
    """
    Return the record of steps; raise what refused it.

    An artefact-level record that was accepted is refused here: it has nothing to hold a log to.
    """
    record = judged.record
    if record is None:
        raise judged.failure or RuntimeError("a verdict without a reason")
    if isinstance(record, VerifiedRecord):
        return record
    detail = "this record is artefact-level: it has no steps to audit or to execute again"
    clause, reason = "docs/protocols/training-image.md#5.1", Reason.TRAINING_GRANULARITY
    raise TrainingRejected((Finding(Status.FAIL, "audit/0", clause, "record", detail, reason),))


def read_log(path: Path) -> bytes:
    """Read an owner's log, which may be large. Raises `ConfigurationError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def read_rows(path: Path, salt: bytes) -> Rows:
    """Read rows and commit to them. Raises `RowError`, `ConfigurationError`."""
    reader, records = RowReader(), list[bytes]()
    tree = DatasetTree(RowSalts(salt))

    def found() -> Iterator[Row | RowError]:
        for piece in pieces_of(path):
            yield from reader.feed(piece)
        yield from reader.end()

    for row in require_rows(found()):
        tree.add(row)
        records.append(row.record)
    return Rows(tree.commitment(), tuple(records))


def read_audited(given: Given) -> tuple[RecordCase, Judged, AuditedLog, tuple[Rows, Rows | None]]:
    """Verify the record and audit the log with the rows at hand. Raises what refuses them."""
    log = read_demand(proof=None, policy=given.log_policy, key=None, required=False)
    case = read_case(
        read_bounded(given.record, "training record"),
        expectation=None,
        outputs=None,
        simulated_roots=given.simulated_roots,
        at=given.at,
        log=log,
        beside=(),
    )
    judged = judge(case)
    record, salt = believed(judged), read_salt(given.salt)
    rows = read_rows(given.data, salt)
    apart = None
    if given.validation is not None:
        apart = read_rows(given.validation, read_salt(given.validation_salt or given.salt))
    audited = audit_log(record, read_log(given.owner_log), dataset_salt=salt, rows=rows.commitment)
    wanted = audited.log.validation
    if (None if apart is None else apart.commitment) != wanted:
        raise ConfigurationError(f"--validation: {_other_rows(wanted, apart)}")
    return case, judged, audited, (rows, apart)


def has_end(checkpoints: Path, audited: AuditedLog) -> bool:
    """Whether the last checkpoint is at hand, of which the end is made again (7.14)."""
    return (checkpoints / f"checkpoint-{last_checkpoint(audited).step:09}.sealed").exists()


def _other_rows(wanted: Commitment | None, given: Rows | None) -> str:
    if given is None:
        return "the plan names validation rows; give them, and their salt (--validation-salt)"
    if wanted is None:
        return "the plan names no validation rows; leave them out"
    return "the plan names other rows than these with this salt (--validation-salt)"


def materials_of(
    given: Given,
    rows: tuple[Rows, Rows | None],
    base: Path | None,
    checkpoints: Path,
    key: Path,
    threads: int,
    device: str,
) -> Materials:
    """Return what a trainer is made of. Raises `ConfigurationError`."""
    if device not in ("cpu", "cuda"):
        raise ConfigurationError("--device is cpu or cuda")
    if base is None:
        raise ConfigurationError("--base is needed, or --node")
    apart = rows[1]
    return Materials(
        base=base,
        checkpoints=checkpoints,
        key=read_salt(key),
        salt=read_salt(given.salt),
        rows=rows[0].records,
        validation=() if apart is None else apart.records,
        threads=threads,
        device=device,
    )
