"""One training record and what its verifier brings: read, judged, and walked. Contacts nobody."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.adapters.clock import SystemClock
from confide.cli.expectation_files import read_expectation
from confide.cli.lineage_case import Beside, read_beside, verify_beside
from confide.cli.places import read_moment
from confide.cli.verify_receipt import receipt_roots
from confide.errors import (
    ConfigurationError,
    DatasetRejected,
    EvidenceRejected,
    FormatError,
    LogRejected,
    PolicyRejected,
    ReceiptRejected,
    TrainingRejected,
)
from confide.expectation import parse_expectation
from confide.training.lineage import walk_lineage
from confide.training.logged import verify_logged_record
from confide.training.record_file import RecordFile, parse_record_file
from confide.training.record_parse import parse_training_record
from confide.training.record_verify import VerifiedRecord, verify_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from confide.cli.receipt_log import LogDemand
    from confide.errors import Rejected
    from confide.expectation import Expectation
    from confide.rats import Finding
    from confide.tlog.verify import VerifiedInclusion
    from confide.training.lineage import Link
    from confide.training.record import TrainingRecord
    from confide.trust.roots import Roots

__all__ = ["REFUSALS", "Judged", "RecordCase", "judge", "read_case"]

_OUTPUTS = ("merged", "adapter")
# Whatever refuses a record, or a document held to it.
REFUSALS = (
    TrainingRejected,
    DatasetRejected,
    LogRejected,
    ReceiptRejected,
    EvidenceRejected,
    PolicyRejected,
    FormatError,
)


@dataclass(frozen=True, slots=True)
class RecordCase:
    """One record, and what the verifier brings. `beside` are other documents, raw."""

    file: RecordFile
    said: TrainingRecord
    roots: Roots
    now: datetime | None
    clock: str
    wanted: Expectation | None
    outputs: Mapping[str, bytes]
    log: LogDemand | None
    beside: tuple[bytes, ...]

    @property
    def moment(self) -> datetime:
        """The time by which the record was judged."""
        return self.said.finished if self.now is None else self.now

    @property
    def simulated(self) -> bool:
        """Whether anything about this record says SIMULATED; its own word counts against it."""
        try:
            claimed = parse_expectation(self.file.expectation)
        except FormatError:
            return self.roots.simulated
        return claimed.hardware.roots.startswith("simulated:") or self.roots.simulated


@dataclass(slots=True)
class Judged:
    """The verdict: `record` is None where anything was refused, `failure` says why."""

    record: VerifiedRecord | None = None
    failure: Rejected | FormatError | None = None
    logged: VerifiedInclusion | None = None
    links: tuple[Link, ...] = ()
    beside: Beside = field(default_factory=Beside)
    findings: tuple[Finding, ...] = field(default=())


def read_case(
    raw: bytes,
    *,
    expectation: Path | None,
    outputs: Path | None,
    simulated_roots: str | None,
    at: str,
    log: LogDemand | None,
    beside: Sequence[Path],
) -> RecordCase:
    """Read the record and what the options name. Raises `FormatError`, `ConfigurationError`."""
    file = parse_record_file(raw)
    said = parse_training_record(file.record.payload)
    clock = {"": "record", "now": "now"}.get(at, "given")
    now = None
    if clock != "record":
        now = SystemClock().now() if at == "now" else read_moment(at)
    return RecordCase(
        file=file,
        said=said,
        roots=receipt_roots(simulated_roots, file.roots),
        now=now,
        clock=clock,
        wanted=None if expectation is None else read_expectation(expectation),
        outputs={} if outputs is None else _measured(outputs),
        log=log,
        beside=read_beside(beside),
    )


def _measured(folder: Path) -> dict[str, bytes]:
    # Reads the whole of the weights: loaded only where a directory is given.
    from confide.adapters.weights_dir import measure_weights  # noqa: PLC0415

    if not folder.is_dir():
        raise ConfigurationError(f"--outputs {folder} is not a directory")
    found = {name: folder / name for name in _OUTPUTS if (folder / name).is_dir()}
    return {
        name: measure_weights(path).digest for name, path in (found or {"merged": folder}).items()
    }


def judge(case: RecordCase) -> Judged:
    """Verify the record, its place in a log, and everything that was given beside it."""
    judged = Judged()
    try:
        record = verify_record(
            case.file,
            roots=case.roots,
            now=case.now,
            expectation=case.wanted,
            nonce=None,
            outputs=case.outputs,
        )
        judged.findings = record.findings
        judged.logged = _logged(case, record)
        if judged.logged is not None:
            judged.findings += judged.logged.findings
        judged.beside = verify_beside(case.beside, case.roots)
        judged.links, walked = walk_lineage(
            record,
            served=judged.beside.served,
            earlier=judged.beside.records,
            rows=judged.beside.rows,
        )
        judged.findings += walked
        judged.record = record
    except REFUSALS as error:
        judged.failure = error
        judged.findings += getattr(error, "findings", ())
    return judged


def _logged(case: RecordCase, record: VerifiedRecord) -> VerifiedInclusion | None:
    demand = case.log
    if demand is None or demand.policy is None:
        return None
    proof = demand.proof or case.file.log
    if proof is None and not demand.required:
        return None
    now = SystemClock().now()
    return verify_logged_record(record, proof=proof, policy=demand.policy, now=now)
