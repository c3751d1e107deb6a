"""Exit codes, and the one place where an error becomes one. No traceback reaches a user.

| code | meaning |
|---|---|
| 0 | accepted, or done |
| 2 | usage or configuration: the command line, a file or this machine must be changed |
| 10 | rejected: well-formed, and not believed |
| 20 | unavailable: an edge failed, or a kind not judged here; says nothing about trust |
| 30 | malformed: not what the specification says |
| 70 | an error in Confide itself |
| 130 | interrupted |
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.text import Text

from confide.appraisal.ear import finding_document
from confide.cli.advice import advice_for
from confide.cli.screen import hanging, printable, shortened
from confide.errors import (
    ConfigurationError,
    FormatError,
    Reason,
    Rejected,
    RemoteProtocolError,
    Unavailable,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from confide.cli.screen import Screen
    from confide.rats import Finding
    from confide.wire.json import JsonValue

__all__ = [
    "ACCEPTED",
    "INTERNAL",
    "INTERRUPTED",
    "MALFORMED",
    "REJECTED",
    "UNAVAILABLE",
    "USAGE",
    "Problem",
    "advice_lines",
    "finding_lines",
    "problem_of",
    "report",
]

ACCEPTED = 0
USAGE = 2
REJECTED = 10
UNAVAILABLE = 20
MALFORMED = 30
INTERNAL = 70
INTERRUPTED = 130

_MAX_MESSAGE_CHARS = 8000
_REPORT = (
    "This is an error in Confide. Please report it with the version (confide --version) and what "
    "you did; CONFIDE_DEBUG=1 shows where it happened."
)
_UNJUDGED = (
    "This says nothing about trust, in either direction. Ask for evidence of a kind that is judged "
    "here (docs/protocols/services.md), or look for a newer version of Confide."
)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as a person reads it: what, which steps failed, what to do, what is known."""

    code: int
    kind: str
    message: str
    findings: tuple[Finding, ...] = ()
    advice: tuple[str, ...] = ()
    known: tuple[str, ...] = ()

    def document(self) -> dict[str, JsonValue]:
        """Return the members of the JSON object."""
        return {
            "kind": self.kind,
            "exit": self.code,
            "message": self.message,
            "findings": [finding_document(finding) for finding in self.findings],
            "advice": list(self.advice),
            "known": list(self.known),
        }


def problem_of(error: BaseException) -> Problem:
    """Return what `error` means to a user. Its notes (PEP 678) say what is and is not known."""
    problem = _kind_of(error)
    return replace(problem, known=tuple(getattr(error, "__notes__", ())))


def _kind_of(error: BaseException) -> Problem:
    if isinstance(error, Rejected):
        return _rejected(error)
    if isinstance(error, FormatError):
        advice = advice_for(error.reason, malformed=True)
        if error.reason is Reason.EXPECTATION_MISMATCH:
            advice = (
                "Mend the Expectation; confide expect AGENT makes a complete one to start from."
            )
        return Problem(MALFORMED, "malformed", str(error), (), (advice,))
    if isinstance(error, ConfigurationError):
        return Problem(USAGE, "configuration", str(error))
    if isinstance(error, KeyboardInterrupt):
        return Problem(INTERRUPTED, "interrupted", "stopped by Ctrl-C")
    return _unavailable(error) or Problem(INTERNAL, "internal", _internal(error), (), (_REPORT,))


def _rejected(error: Rejected) -> Problem:
    failures = error.failures
    reasons = dict.fromkeys(f.reason for f in failures if f.reason is not None)
    advice = tuple(dict.fromkeys(advice_for(reason) for reason in reasons))
    message = f"refused at step {failures[0].step}: {failures[0].reason}"
    return Problem(REJECTED, "rejected", message, failures, advice)


def _unavailable(error: BaseException) -> Problem | None:
    if isinstance(error, RemoteProtocolError):
        advice = () if error.reason is None else (advice_for(error.reason),)
        message = f"the node broke the protocol: {error}"
        return Problem(UNAVAILABLE, "unavailable", message, (), advice)
    if isinstance(error, Unavailable):
        return Problem(UNAVAILABLE, "unavailable", str(error))
    if isinstance(error, Unsupported):
        return Problem(UNAVAILABLE, "unsupported", str(error), (), (_UNJUDGED,))
    if isinstance(error, OSError):
        at = f": {error.filename}" if error.filename else ""
        why = printable(f"{error.strerror or type(error).__name__}{at}")
        return Problem(UNAVAILABLE, "unavailable", why)
    return None


def _internal(error: BaseException) -> str:
    # The text of an unforeseen exception may hold anything; its place in our code does not.
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{at}"


def report(screen: Screen, problem: Problem) -> None:
    """Write `problem`: to stderr for people, as the event `error` for programs."""
    screen.event("error", problem.document())
    message = printable(problem.message, max_chars=_MAX_MESSAGE_CHARS)
    parts: list[RenderableType] = [Text.assemble((f"{problem.kind}: ", "bold red"), message)]
    parts += finding_lines(problem.findings)
    parts += advice_lines(problem.advice)
    parts += [hanging("  known  ", note, mark_style="bold") for note in problem.known]
    screen.complain(*parts)


def advice_lines(advice: Iterable[str]) -> list[RenderableType]:
    """Return one line for each thing to do."""
    return [hanging("  to do  ", each, mark_style="bold") for each in advice]


def finding_lines(findings: tuple[Finding, ...]) -> list[Text]:
    """Return one line for each finding: step, reason, subject, detail, clause."""
    told = {str(finding) for finding in findings}
    return [_finding_line(finding, told) for finding in findings]


def _finding_line(finding: Finding, told: set[str]) -> Text:
    detail = shortened(printable(finding.detail))
    if finding.detail in told:
        # The refusal of a nested appraisal, which stands in a line of its own.
        detail = "the evidence was refused, as said below"
    return Text.assemble(
        ("  ✗ ", "red"),
        (f"{finding.step} ", "bold"),
        f"{finding.reason or finding.status}",
        (f"  {finding.subject}", "dim"),
        f": {detail}" if detail else "",
        (f"  [{finding.clause}]", "dim"),
    )
