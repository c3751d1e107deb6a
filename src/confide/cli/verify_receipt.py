"""`confide verify` of a receipt: walk it, offline. Contacts nobody, starts nothing."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from confide.adapters.clock import SystemClock
from confide.adapters.paths import Paths
from confide.appraisal.ear import finding_document
from confide.cli import exits
from confide.cli.expectation_files import read_expectation
from confide.cli.places import read_moment, read_roots
from confide.cli.receipt_log import log_document, log_line, unproven_line
from confide.cli.report import account_of, proof_document, proof_screen, rejected_screen, verdict
from confide.cli.screen import fields, heading, printable, whose_roots
from confide.errors import (
    ConfigurationError,
    DatasetRejected,
    EvidenceRejected,
    FormatError,
    LogRejected,
    PolicyRejected,
    Reason,
    ReceiptRejected,
    TrainingRejected,
)
from confide.expectation import parse_expectation
from confide.rats import Finding, Status
from confide.receipts.file import parse_receipt_file
from confide.receipts.statement import parse_run_statement
from confide.receipts.verify import verify_receipt
from confide.trust.roots import VENDOR_ROOTS, parse_roots_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from rich.console import RenderableType
    from rich.table import Table

    from confide.cli.receipt_log import LogDemand
    from confide.cli.report import Account
    from confide.cli.screen import Screen
    from confide.cli.tuned_model import TunedModel
    from confide.errors import Rejected
    from confide.expectation import Expectation
    from confide.receipts.file import ReceiptFile
    from confide.receipts.statement import RunStatement
    from confide.receipts.verify import VerifiedRun
    from confide.tlog.verify import VerifiedInclusion
    from confide.trust.roots import Roots
    from confide.wire.json import JsonValue

__all__ = ["receipt_roots", "verify_receipt_file"]

_PREFIX = "sha256:"
_CLAUSE = "docs/protocols/receipt.md#6"
_ALONE = "  The receipt holds by itself; what is beside it does not, or is about another model."
_REFUSALS = (
    DatasetRejected,
    EvidenceRejected,
    FormatError,
    LogRejected,
    PolicyRejected,
    ReceiptRejected,
    TrainingRejected,
)


@dataclass(frozen=True, slots=True)
class _Case:
    """One receipt, and what the verifier brings."""

    file: ReceiptFile
    statement: RunStatement
    roots: Roots
    now: datetime
    clock: str
    files: Mapping[str, bytes] | None
    wanted: Expectation | None
    log: LogDemand
    beside: tuple[bytes, ...]

    @property
    def claimed(self) -> Expectation | None:
        """The Expectation inside the file; None where it is not one."""
        try:
            return parse_expectation(self.file.expectation)
        except FormatError:
            return None

    @property
    def simulated(self) -> bool:
        """Whether anything about this receipt says SIMULATED; its own word counts against it."""
        claimed = self.claimed
        own = claimed is not None and claimed.hardware.roots.startswith("simulated:")
        return own or self.roots.simulated

    @property
    def account(self) -> Account:
        """What happened, as the receipt says it."""
        return account_of(self.statement, self.files)


def verify_receipt_file(
    screen: Screen,
    raw: bytes,
    *,
    expectation: Path | None,
    outputs: Path | None,
    log: LogDemand,
    simulated_roots: str | None,
    at: str,
    explain: bool,
    beside: Sequence[Path],
) -> int:
    """
    Verify the receipt in `raw` and show what was found; return the exit code.

    `beside` are documents about its model. Options are those of `confide verify`. Raises
    `FormatError`, `ConfigurationError`.
    """
    file = parse_receipt_file(raw)
    statement = parse_run_statement(file.run.payload)
    now, clock = _time(at, statement)
    case = _Case(
        file=file,
        statement=statement,
        roots=receipt_roots(simulated_roots, file.roots),
        now=now,
        clock=clock,
        files=None if outputs is None else _hash_outputs(outputs),
        wanted=None if expectation is None else read_expectation(expectation),
        log=log,
        beside=_read_beside(beside),
    )
    run, failure = _judge(case)
    logged = model = None
    alone = False
    if run is not None:
        try:
            logged = log.verify(file, run)
            alone = True
            model = _model_of(case, run)
        except _REFUSALS as error:
            run, failure = None, error
    _show(screen, case, run, failure, logged, model, alone=alone, explain=explain)
    return exits.ACCEPTED if failure is None else exits.problem_of(failure).code


def _read_beside(paths: Sequence[Path]) -> tuple[bytes, ...]:
    if not paths:
        return ()
    from confide.cli.lineage_case import read_beside  # noqa: PLC0415 - with documents alone

    return read_beside(paths)


def _model_of(case: _Case, run: VerifiedRun) -> TunedModel | None:
    if not case.beside:
        return None
    from confide.cli.tuned_model import walk_model  # noqa: PLC0415 - with documents alone

    return walk_model(run, case.beside, roots=case.roots, log=case.log)


def _judge(case: _Case) -> tuple[VerifiedRun | None, Rejected | FormatError | None]:
    try:
        run = verify_receipt(
            case.file,
            roots=case.roots,
            now=case.now,
            expectation=case.wanted,
            nonce=None,
            outputs=None if case.files is None else tuple(case.files.values()),
        )
    except (ReceiptRejected, FormatError) as error:
        return None, error
    return run, None


def _time(at: str, statement: RunStatement) -> tuple[datetime, str]:
    if not at:
        return statement.finished, "receipt"
    if at == "now":
        return SystemClock().now(), "now"
    return read_moment(at), "given"


def receipt_roots(text: str | None, inside: bytes) -> Roots:
    """Return the roots that `--simulated-roots` names: vendor roots without it; `inside` a file."""
    if text is None:
        return VENDOR_ROOTS
    if not text.startswith(_PREFIX):
        roots = read_roots(text)
        if not roots.simulated:
            raise ConfigurationError("--simulated-roots wants a roots file or sha256:HEX")
        return roots
    digest = text.removeprefix(_PREFIX)
    if len(digest) != 64 or digest.strip("0123456789abcdef"):
        raise ConfigurationError("--simulated-roots sha256:HEX wants 64 lower-case hex digits")
    # The file offers roots; they count only because the caller named exactly these.
    if hashlib.sha256(inside).hexdigest() != digest:
        raise ReceiptRejected(
            (
                Finding(
                    Status.FAIL,
                    "receipt/roots",
                    _CLAUSE,
                    "receipt",
                    "the roots inside the receipt do not have the digest you named",
                    Reason.ROOT_MISMATCH,
                ),
            )
        )
    return parse_roots_file(inside)


def _hash_outputs(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        raise ConfigurationError(f"--outputs {folder} is not a directory")
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ConfigurationError(
                f"--outputs holds a link or a special file: {printable(os.fsdecode(path))}"
            )
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(
                file, "sha256"
            ).digest()
    return found


def _show(
    screen: Screen,
    case: _Case,
    run: VerifiedRun | None,
    failure: Rejected | FormatError | None,
    logged: VerifiedInclusion | None,
    model: TunedModel | None,
    *,
    alone: bool,
    explain: bool,
) -> None:
    digest = case.file.run.digest
    what = f"receipt {digest.hex()[:16]}…"
    if model is not None:
        what += f" of a model with training record {model.record.digest.hex()[:16]}…"
    parts = verdict(accepted=run is not None, simulated=case.simulated, what=what)
    findings = run.findings if run is not None else getattr(failure, "findings", ())
    findings += () if logged is None else logged.findings
    findings += () if model is None else model.findings
    if run is not None:
        parts += proof_screen(run, case.account, model=model)
    elif failure is not None:
        parts += _how_to_accept(case)
        if alone:
            parts.append(Text(_ALONE, style="yellow"))
        parts += rejected_screen(exits.problem_of(failure), case.account)
    parts += [heading("Checked"), _checked(case, logged, model)]
    if explain:
        parts += [heading("Every step"), *_steps(findings)]
    screen.show(*parts)
    screen.event(
        "result",
        {
            **proof_document(
                run,
                failure,
                account=case.account,
                expectation=case.claimed,
                receipt=digest,
                simulated=case.simulated,
            ),
            "roots": case.roots.name,
            "at": case.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "clock": case.clock,
            "log": _log_document(case, logged, failure),
            **({} if model is None else model.document()),
            "steps": [finding_document(item) for item in findings] if explain else None,
        },
    )


def _how_to_accept(case: _Case) -> list[RenderableType]:
    if case.roots.simulated or not case.simulated:
        return []
    hint = (
        "  This receipt is SIMULATED, and vendor roots were asked for. To accept it for testing, "
        "pass the simulated roots you trust: --simulated-roots FILE, or --simulated-roots "
        "sha256:HEX with the digest from whoever ran it."
    )
    parts: list[RenderableType] = [Text(hint, style="yellow")]
    own = Paths.from_environment(os.environ).simulated_roots  # noqa: TID251 - read in cli only
    if own.is_file():
        parts.append(Text(f"  Runs of this machine: --simulated-roots {own}"))
    return parts


def _checked(case: _Case, logged: VerifiedInclusion | None, model: TunedModel | None) -> Table:
    moment = case.now.strftime("%Y-%m-%d %H:%M:%S UTC")
    when = {
        "receipt": f"{moment}: the end of the run by the node's own clock, {_bound(logged)}; "
        "--at now checks against today's clock",
        "now": f"{moment}: this machine's clock",
        "given": f"{moment}: as given",
    }[case.clock]
    roots = whose_roots(case.roots)
    held = (
        "the Expectation you hold"
        if case.wanted is not None
        else "the Expectation inside; compare its digest with the one you want"
    )
    files = (
        "compared with the files given"
        if case.files is not None
        else "not compared: no files given (--outputs DIR)"
    )
    return fields(
        [
            ("time", when),
            ("roots", roots),
            ("held to", held),
            ("outputs", files),
            ("log", unproven_line(case.file, case.log) if logged is None else log_line(logged)),
            *([] if model is None else model.checked()),
        ]
    )


def _bound(logged: VerifiedInclusion | None) -> str:
    """Say what is known about the node's clock besides its own word."""
    if logged is None or logged.time is None:
        return "which no log proves"
    return f"and it existed by {logged.time:%F %T} UTC, say the witnesses"


def _log_document(
    case: _Case, logged: VerifiedInclusion | None, failure: Rejected | FormatError | None
) -> JsonValue:
    if logged is not None:
        return log_document(logged)
    if isinstance(failure, LogRejected):
        return {"state": "rejected"}
    absent = case.file.log is None and case.log.proof is None
    return None if absent else {"state": "not-checked"}


def _steps(findings: tuple[Finding, ...]) -> list[RenderableType]:
    marks = {Status.PASS: "✓", Status.FAIL: "✗", Status.NOT_PROVEN: "-"}
    return [
        Text.assemble(
            f"  {marks[item.status]} {item.step}",
            (f"  {item.subject}  ", "dim"),
            printable(f"{item.reason or ''} {item.detail}".strip()),
            (f"  [{item.clause}]", "dim"),
        )
        for item in findings
    ]
