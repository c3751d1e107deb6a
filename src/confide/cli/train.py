"""`confide train`: what was trained, shown, audited and executed again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from confide.adapters.files import write_atomically
from confide.cli import exits
from confide.cli.data_files import read_salt
from confide.cli.places import read_bounded
from confide.cli.screen import Screen, fields, heading, simulated_line
from confide.cli.train_replay import replaying
from confide.cli.train_run import training
from confide.cli.training_case import judge, read_case
from confide.errors import Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.training.audit import AuditedLog, audit_log
from confide.training.owner_log import OwnerLog, parse_owner_log

if TYPE_CHECKING:
    from confide.cli.training_case import Judged, RecordCase
    from confide.training.record_verify import VerifiedRecord

__all__ = ["app"]

_RUN = "run"
_ORDER = (_RUN, "resume", "jobs", "pause", "cancel", "open", "report", "audit", "replay")


class _RunByDefault(TyperGroup):
    """`confide train RECIPE.toml` means `confide train run RECIPE.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb in where the first word is none."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [_RUN, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the verbs in the order of a training."""
        del ctx
        return [*_ORDER, *(name for name in self.commands if name not in _ORDER)]


app = typer.Typer(
    cls=_RunByDefault,
    help="Train a model privately, and prove how it was made.\n\n"
    "`confide train RECIPE.toml --data ROWS.jsonl` is short for `confide train run`.",
    no_args_is_help=True,
    add_completion=False,
)
app.add_typer(training)
app.add_typer(replaying)

Record = Annotated[Path, typer.Argument(metavar="RECORD", help="The training record.")]
Log = Annotated[
    Path | None,
    typer.Option("--owner-log", metavar="FILE", help="The owner's log, opened."),
]
Salt = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The salt of the data set: audits order and rates."),
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="The rows: they must be those.")
]
Roots = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|sha256:HEX", help="Accept SIMULATED evidence under these roots, for testing."
    ),
]
At = Annotated[
    str,
    typer.Option(metavar="TIME", help="When to check validity; as with `confide verify`."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command()
def report(
    ctx: typer.Context,
    record: Record,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")],
    owner_log: Log = None,
    salt: Salt = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="FILE", help="As with `confide verify`."),
    ] = None,
    simulated_roots: Roots = None,
    at: At = "",
    as_json: Json = False,
) -> None:
    """Write one HTML page about a record: curves, lineage, what is proven and what is not.

    It needs no network to read. A record that is refused gives a page that says so, and exit 10.
    """
    from confide.cli.training_report import render_report  # noqa: PLC0415 - a page is not always made

    screen = Screen.of(ctx, as_json=as_json)
    case = _case(record, simulated_roots=simulated_roots, at=at, beside=beside or [])
    judged = judge(case)
    log = audited = None
    if judged.record is not None and owner_log is not None:
        log, audited = _open_log(judged.record, owner_log, salt)
    page = render_report(case, judged, log=log, audited=audited)
    write_atomically(output, page.encode(), mode=0o644)
    code = _verdict(screen, case, judged, str(output))
    if code:
        raise typer.Exit(code)


@app.command()
def audit(
    ctx: typer.Context,
    record: Record,
    owner_log: Annotated[
        Path,
        typer.Option("--owner-log", metavar="FILE", help="The owner's log, opened."),
    ],
    salt: Annotated[Path, typer.Option(metavar="FILE", help="The salt of the data set.")],
    data: Data = None,
    simulated_roots: Roots = None,
    at: At = "",
    as_json: Json = False,
) -> None:
    """Hold the owner's log to its record: rows, order, learning rates, checkpoints, metrics.

    Needs no GPU and trains nothing.
    """
    from confide.cli.training_materials import believed, read_log, read_rows  # noqa: PLC0415

    screen = Screen.of(ctx, as_json=as_json)
    case = _case(record, simulated_roots=simulated_roots, at=at, beside=[])
    audited = audit_log(
        believed(judge(case)),
        read_log(owner_log),
        dataset_salt=read_salt(salt),
        rows=None if data is None else read_rows(data, read_salt(salt)).commitment,
    )
    screen.show(
        Text.assemble(("ACCEPTED", "bold green"), "  the owner's log is that of the record"),
        *([simulated_line()] if case.simulated else []),
        heading("Audited"),
        fields([(each.step, each.detail) for each in audited.findings]),
    )
    screen.event(
        "result",
        {
            "verdict": "accepted",
            "simulated": case.simulated,
            "record": audited.record.digest.hex(),
            "steps": [[each.step, each.detail] for each in audited.findings],
        },
    )


def _case(record: Path, *, simulated_roots: str | None, at: str, beside: list[Path]) -> RecordCase:
    return read_case(
        read_bounded(record, "training record"),
        expectation=None,
        outputs=None,
        simulated_roots=simulated_roots,
        at=at,
        log=None,
        beside=beside,
    )


def _open_log(
    record: VerifiedRecord, path: Path, salt: Path | None
) -> tuple[OwnerLog, AuditedLog | None]:
    from confide.cli.training_materials import read_log  # noqa: PLC0415 - with a log alone

    raw = read_log(path)
    if salt is not None:
        audited = audit_log(record, raw, dataset_salt=read_salt(salt), rows=None)
        return audited.log, audited
    if hashlib.sha256(raw).digest() != record.record.owner_log:
        clause, detail = "docs/protocols/training-record.md#4.3", "the record names another log"
        raise TrainingRejected(
            (Finding(Status.FAIL, "audit/1", clause, "log", detail, Reason.TRAINING_LOG),)
        )
    return parse_owner_log(raw), None


def _verdict(screen: Screen, case: RecordCase, judged: Judged, page: str) -> int:
    word = "accepted" if judged.record is not None else "rejected"
    screen.show(
        Text(f"{word.upper()}{' (SIMULATED)' if case.simulated else ''}  {page}"),
        *([simulated_line()] if case.simulated else []),
    )
    screen.event("result", {"verdict": word, "simulated": case.simulated, "page": page})
    if judged.failure is None:
        return exits.ACCEPTED
    problem = exits.problem_of(judged.failure)
    screen.complain(*exits.finding_lines(problem.findings))
    return problem.code
