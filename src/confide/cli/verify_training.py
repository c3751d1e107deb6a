"""`confide verify` of a training record: one screen, and the walk from an agent run to the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from confide.appraisal.ear import claim_document, finding_document
from confide.cli import exits
from confide.cli.image_words import limits_of, record_document
from confide.cli.lineage_case import lineage_document, lineage_screen
from confide.cli.receipt_log import log_document, log_line
from confide.cli.report import verdict
from confide.cli.screen import fields, hanging, heading, printable, shortened, whose_roots
from confide.cli.training_case import judge, read_case
from confide.cli.training_screen import claims_table, coarser, made_rows
from confide.rats import Status
from confide.training.record_verify import VerifiedRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import RenderableType
    from rich.table import Table

    from confide.cli.receipt_log import LogDemand
    from confide.cli.screen import Screen
    from confide.cli.training_case import Judged, RecordCase
    from confide.training.any_record import AnyVerified
    from confide.training.inclusion import DatasetProof
    from confide.training.lineage import Link
    from confide.wire.json import JsonValue

__all__ = ["verify_record_file"]


def verify_record_file(
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
    Verify the training record in `raw` and show what was found; return the exit code.

    Options are those of `confide verify`. Raises `FormatError`, `ConfigurationError`.
    """
    case = read_case(
        raw,
        expectation=expectation,
        outputs=outputs,
        simulated_roots=simulated_roots,
        at=at,
        log=log,
        beside=beside,
    )
    judged = judge(case)
    screen.show(*_screen(case, judged, explain=explain))
    screen.event("result", _document(case, judged, explain=explain))
    return exits.ACCEPTED if judged.failure is None else exits.problem_of(judged.failure).code


def _screen(case: RecordCase, judged: Judged, *, explain: bool) -> list[RenderableType]:
    digest = case.file.record.digest.hex()
    parts = verdict(
        accepted=judged.record is not None,
        simulated=case.simulated,
        what=f"training record {digest[:16]}…",
    )
    parts += coarser(case.said)
    if judged.record is not None:
        parts += _accepted(judged.record, judged.links, judged.beside.rows)
    elif judged.failure is not None:
        problem = exits.problem_of(judged.failure)
        if case.simulated and not case.roots.simulated:
            parts.append(Text(_HOW_TO_ACCEPT, style="yellow"))
        parts += [heading("Failed steps"), *exits.finding_lines(problem.findings)]
        parts += [heading("What to do"), *(Text(f"  {text}") for text in problem.advice)]
        parts += [heading("What the record says", "not believed"), fields(made_rows(case.said))]
    parts += [heading("Checked"), _checked(case, judged)]
    if explain:
        parts += [heading("Every step"), *_steps(judged)]
    return parts


_HOW_TO_ACCEPT = (
    "  This record is SIMULATED, and vendor roots were asked for. To accept it for testing, pass "
    "the simulated roots you trust: --simulated-roots FILE, or --simulated-roots sha256:HEX with "
    "the digest from whoever trained."
)


def _accepted(
    record: AnyVerified, links: Sequence[Link], rows: Sequence[DatasetProof]
) -> list[RenderableType]:
    parts: list[RenderableType] = [heading("Proven"), claims_table(record)]
    parts += [heading("What was made"), fields(made_rows(record.record, record))]
    parts += lineage_screen(links, rows)
    missing = {
        claim.name: shortened(printable(claim.value))
        for claim in record.node.result.claims
        if claim.status is not Status.PASS
    }
    told = [*(f"{name}: {value}" for name, value in missing.items()), *limits_of(record.record)]
    parts += [heading("Not proven", "the Expectation accepts these, or no record can")]
    return [*parts, *(hanging("  - ", text, mark_style="yellow") for text in told)]


def _checked(case: RecordCase, judged: Judged) -> Table:
    moment = case.moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    when = {
        "record": f"{moment}: the end of the training by the node's own clock; --at now checks "
        "against today's",
        "now": f"{moment}: this machine's clock",
        "given": f"{moment}: as given",
    }[case.clock]
    roots = whose_roots(case.roots)
    held = (
        "the Expectation you hold"
        if case.wanted is not None
        else f"the Expectation inside, {case.said.expectation.hex()}"
    )
    files = (
        f"{', '.join(sorted(case.outputs))}: measured and compared"
        if case.outputs
        else "not compared: no directory given (--outputs DIR)"
    )
    log = _unproven(case) if judged.logged is None else log_line(judged.logged)
    rows = [("time", when), ("roots", roots), ("held to", held), ("outputs", files), ("log", log)]
    return fields(rows)


def _unproven(case: RecordCase) -> str:
    if case.file.log is not None:
        return "not checked: a proof is inside; say with --log-policy whose word counts"
    return "no proof: a record that only its holder has can be denied (confide log add)"


def _steps(judged: Judged) -> list[RenderableType]:
    marks = {Status.PASS: "✓", Status.FAIL: "✗", Status.NOT_PROVEN: "-"}
    return [
        Text.assemble(
            f"  {marks[item.status]} {item.step}",
            (f"  {item.subject}  ", "dim"),
            printable(f"{item.reason or ''} {item.detail}".strip()),
            (f"  [{item.clause}]", "dim"),
        )
        for item in judged.findings
    ]


def _document(case: RecordCase, judged: Judged, *, explain: bool) -> dict[str, JsonValue]:
    said, record = case.said, judged.record
    problem = None if judged.failure is None else exits.problem_of(judged.failure)
    return {
        "verdict": "rejected" if record is None else "accepted",
        "exit": 0 if problem is None else problem.code,
        "simulated": case.simulated,
        "record": case.file.record.digest.hex(),
        "expectation": said.expectation.hex(),
        "plan": said.plan.digest.hex(),
        "base": said.plan.base.hex(),
        "dataset": {"digest": said.plan.dataset.hex(), "root": said.dataset_root.hex()},
        "outputs": {name: digest.hex() for name, digest in said.outputs.items()},
        **record_document(said),
        "better": record.evaluation[1].better
        if isinstance(record, VerifiedRecord) and record.evaluation is not None
        else None,
        "lineage": lineage_document(judged.links),
        "claims": []
        if record is None
        else [claim_document(claim) for claim in record.node.result.claims],
        "not_proven": [] if record is None else list(limits_of(said)),
        "failures": [] if problem is None else [finding_document(f) for f in problem.findings],
        "advice": [] if problem is None else list(problem.advice),
        "roots": case.roots.name,
        "at": case.moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "clock": case.clock,
        "log": None if judged.logged is None else log_document(judged.logged),
        "steps_run": [finding_document(item) for item in judged.findings] if explain else None,
    }
