"""`confide verify` of the result of a replay: who executed, what was drawn, what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from confide.adapters.clock import SystemClock
from confide.appraisal.ear import finding_document
from confide.cli import exits
from confide.cli.expectation_files import read_expectation
from confide.cli.places import read_bounded, read_moment
from confide.cli.replay_screen import WITHIN, executor_rows, listed, made_again, not_made
from confide.cli.report import verdict
from confide.cli.screen import fields, heading, printable
from confide.cli.training_case import REFUSALS, judge, read_case
from confide.cli.training_materials import believed
from confide.cli.verify_receipt import receipt_roots
from confide.errors import ConfigurationError, FormatError, Rejected
from confide.rats import Status
from confide.training.replay_result import ReplayResult, parse_replay_file, parse_replay_result
from confide.training.replay_verify import VerifiedResult, verify_replay

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from rich.console import RenderableType

    from confide.cli.screen import Screen
    from confide.rats import Finding
    from confide.training.record_verify import VerifiedRecord
    from confide.wire.json import JsonValue

__all__ = ["verify_replay_file"]


def verify_replay_file(
    screen: Screen,
    raw: bytes,
    *,
    expectation: Path | None,
    simulated_roots: str | None,
    at: str,
    explain: bool,
    beside: Sequence[Path],
) -> int:
    """
    Verify the result in `raw`, held to the record `beside` if there is one; return the exit code.

    Raises `FormatError`, `ConfigurationError`, and what refuses the record.
    """
    if len(beside) > 1:
        raise ConfigurationError("--with: the result of a replay is about one record")
    file = parse_replay_file(raw)
    said = parse_replay_result(file.result.payload)
    roots = receipt_roots(simulated_roots, file.roots)
    record = _record(beside[0], simulated_roots) if beside else None
    signed: VerifiedResult | None = None
    failure: Rejected | FormatError | None = None
    findings: tuple[Finding, ...] = ()
    try:
        signed = verify_replay(
            file,
            roots=roots,
            now=_moment(at),
            expectation=None if expectation is None else read_expectation(expectation),
            record=record,
            asked=None,
        )
        findings = signed.findings
        signed.require_agreement()
    except REFUSALS as error:
        failure = error
        findings += getattr(error, "findings", ())
    simulated = roots.simulated or (signed is not None and signed.simulated)
    parts = verdict(
        accepted=failure is None,
        simulated=simulated,
        what=f"replay of the training record {said.record.hex()[:16]}…",
    )
    screen.show(*parts, *_body(said, signed, failure, record), *_steps(findings, explain=explain))
    screen.event(
        "result",
        _document(said, failure, findings if explain else None, simulated=simulated),
    )
    return exits.ACCEPTED if failure is None else exits.problem_of(failure).code


def _record(path: Path, simulated_roots: str | None) -> VerifiedRecord:
    case = read_case(
        read_bounded(path, "training record"),
        expectation=None,
        outputs=None,
        simulated_roots=simulated_roots,
        at="",
        log=None,
        beside=(),
    )
    return believed(judge(case))


def _moment(at: str) -> datetime | None:
    if not at:
        return None
    return SystemClock().now() if at == "now" else read_moment(at)


def _body(
    said: ReplayResult,
    signed: VerifiedResult | None,
    failure: Rejected | FormatError | None,
    record: VerifiedRecord | None,
) -> list[RenderableType]:
    sample = said.sample
    parts: list[RenderableType] = []
    if failure is not None:
        problem = exits.problem_of(failure)
        parts += [heading("Failed steps"), *exits.finding_lines(problem.findings)]
        parts += [heading("What to do"), *(Text(f"  {text}") for text in problem.advice)]
    near = "exact: bit for bit" if said.tolerance is None else f"within {said.tolerance.rel:g}"
    rows = [
        ("drawn", f"{len(sample.drawn)} of {sample.steps}: {listed(sample.drawn)}"),
        ("executed", f"{said.executed} steps, {said.states} states compared"),
        ("mode", near),
        ("made again", made_again(said.made)),
        ("beacon", sample.beacon.hex()),
        ("challenge", said.challenge.hex()),
    ]
    title = ("Replay",) if signed is not None else ("What the result says", "not believed")
    parts += [heading(*title), fields([*rows, *(executor_rows(signed) if signed else [])])]
    held = "the record that was given"
    if record is None:
        held = "no record: give it with --with RECORD"
    parts += [heading("Checked"), fields([("held to", held)])]
    if signed is not None:
        parts += [heading("Not proven"), *_limits(said)]
    return parts


def _limits(said: ReplayResult) -> list[Text]:
    share, missed = float(said.sample.fraction), float(said.sample.missed)
    return [
        Text(
            f"  - If {share:.2%} of the steps were false, this replay would have missed them with "
            f"probability {missed:.2%} at most."
        ),
        *([] if said.tolerance is None else [Text(f"  - {WITHIN}")]),
        *(Text(f"  - {text}") for text in not_made(said.made)),
        Text("  - That nobody chose the challenge to suit: a replay of your own draws another."),
    ]


def _steps(findings: Sequence[Finding], *, explain: bool) -> list[RenderableType]:
    if not explain:
        return []
    marks = {Status.PASS: "✓", Status.FAIL: "✗", Status.NOT_PROVEN: "-"}
    lines = [
        Text(f"  {marks[each.status]} {each.step}  {printable(each.detail)}  [{each.clause}]")
        for each in findings
    ]
    return [heading("Every step"), *lines]


def _document(
    said: ReplayResult,
    failure: Rejected | FormatError | None,
    findings: Sequence[Finding] | None,
    *,
    simulated: bool,
) -> dict[str, JsonValue]:
    problem = None if failure is None else exits.problem_of(failure)
    found = said.divergence
    return {
        "verdict": "accepted" if problem is None else "rejected",
        "exit": 0 if problem is None else problem.code,
        "simulated": simulated,
        "record": said.record.hex(),
        "expectation": said.expectation.hex(),
        "agrees": said.agrees,
        "made": None if said.made is None else dict(said.made),
        "divergence": None
        if found is None
        else {"step": found.step, "members": list(found.members), "first": said.located},
        "beacon": said.sample.beacon.hex(),
        "challenge": said.challenge.hex(),
        "steps": said.sample.steps,
        "drawn": list(said.sample.drawn),
        "executed": said.executed,
        "states": said.states,
        "fraction": float(said.sample.fraction),
        "missed": float(said.sample.missed),
        "machine": said.machine.hex(),
        "same_machine": said.same_machine,
        "failures": [] if problem is None else [finding_document(f) for f in problem.findings],
        "steps_run": None if findings is None else [finding_document(f) for f in findings],
    }
