"""The end of a run: keep the receipt, say the verdict, say where everything is."""

from __future__ import annotations

import hashlib
import shlex
from typing import TYPE_CHECKING

from rich.text import Text

from confide.adapters.files import write_atomically
from confide.cli.exits import ACCEPTED, problem_of
from confide.cli.finality import (
    finality_document,
    finality_row,
    show_finality,
    unfinished_parts,
)
from confide.cli.report import (
    account_of,
    claim_lists,
    counted,
    proof_document,
    rejected_screen,
    verdict,
)
from confide.cli.screen import command_line, fields, heading, printable
from confide.errors import FormatError
from confide.receipts.statement import parse_run_statement
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from confide.cli.finality import Finality
    from confide.cli.job import Job
    from confide.cli.report import Account
    from confide.cli.screen import Screen
    from confide.cli.tree import Tree
    from confide.client.agent import Progress, RunOutcome
    from confide.wire.json import JsonValue

__all__ = [
    "conclude",
    "follow",
    "log_words",
    "roots_digest",
    "save_receipt",
    "summarise",
    "verify_command",
]

_TAIL_LINES = 12


def follow(tree: Tree, progress: Progress) -> None:
    """Put what the node reports into the tree. The node's word: shown, not believed."""
    match progress.step:
        case "inputs":
            tree.done("send", progress.detail)
            tree.begin("model", "the agent node asks it for evidence")
        case "model-proven":
            tree.done("model", progress.detail)
            if tree.has("secrets"):
                tree.begin("secrets", "the agent node asks the broker")
            else:
                tree.begin("agent", "starting")
        case "secrets":
            tree.done("secrets", progress.detail)
            tree.begin("agent", "starting")
        case "started" | "running":
            tree.note("agent", progress.detail)
        case "exited":
            end = tree.done if progress.detail == "exited 0" else tree.fail
            end("agent", progress.detail)
            tree.begin("receipt", "fresh evidence of both nodes")
        case "proven":
            tree.done("receipt", progress.detail)
            tree.begin("verify")
        case "node-failed":
            tree.fail("agent", "the node failed")
        case _:
            pass


def conclude(job: Job, outcome: RunOutcome, tree: Tree) -> Finality:
    """Save the receipt and have it logged, whatever it says, and close the tree."""
    save_receipt(job, outcome)
    if outcome.verified is not None:
        tree.done("verify", f"{len(outcome.verified.findings)} steps passed")
    else:
        tree.fail("verify", "refused")
    return show_finality(tree, job, outcome)


def save_receipt(job: Job, outcome: RunOutcome) -> None:
    """Write the receipt where it belongs."""
    write_atomically(job.receipt_path, outcome.receipt.encode(), mode=0o644)


def summarise(screen: Screen, job: Job, outcome: RunOutcome, final: Finality) -> int:
    """Show the verdict and the places; return the exit code."""
    account = _account(outcome)
    failure = outcome.failure or final.failure
    parts: list[RenderableType] = [Text()]
    parts += verdict(
        accepted=outcome.verified is not None and final.failure is None,
        simulated=job.simulated,
        what=f"{job.name}: {_what_holds(outcome, final)}",
        banner=False,
    )
    code = ACCEPTED
    if failure is not None:
        problem = problem_of(failure)
        code = problem.code
        parts += [*rejected_screen(problem, account), *_console_tail(outcome)]
        parts.append(heading("Kept"))
    parts.append(fields(_rows(job, outcome, final, account)))
    parts += unfinished_parts(job, final)
    parts += [heading("Verify it anywhere, offline"), command_line(verify_command(job))]
    screen.show(*parts)
    screen.event("result", _document(job, outcome, final, account))
    return code


def _what_holds(outcome: RunOutcome, final: Finality) -> str:
    if outcome.verified is None:
        return "before, during and after do not all hold"
    if final.failure is not None:
        return "before, during and after hold; what the log says of the receipt does not"
    return "before, during and after hold"


def _account(outcome: RunOutcome) -> Account | None:
    if outcome.verified is not None:
        return account_of(outcome.verified.statement, None)
    try:
        return account_of(parse_run_statement(outcome.receipt.run.payload), None)
    except FormatError:
        return None


def _outputs_place(job: Job, outcome: RunOutcome) -> Path:
    place = job.destination
    if outcome.verified is None:
        place = place.with_name(place.name + ".unverified")
    return place


def _short(job: Job, path: Path) -> str:
    """Return `path` relative to the run's folder where it lies in it: shown once, above."""
    if path.is_relative_to(job.folder.path):
        return str(path.relative_to(job.folder.path))
    return str(path)


def _rows(
    job: Job, outcome: RunOutcome, final: Finality, account: Account | None
) -> list[tuple[str, str]]:
    names = [printable(name) for name in outcome.outputs]
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    rows: list[tuple[str, str]] = []
    if outcome.verified is not None and account is not None:
        happened = (
            f"{counted(account.calls, 'model call')}, {account.egress_allowed} network attempts "
            f"allowed, {account.egress_refused} refused"
        )
        missing = dict.fromkeys(claim.name for _, claim in claim_lists(outcome.verified)[1])
        rows += [("happened", happened), ("not proven", ", ".join(missing) or "nothing named")]
    return [
        *rows,
        ("kept in", str(job.folder.path)),
        ("outputs", f"{_short(job, _outputs_place(job, outcome))}: {shown}" if names else "none"),
        ("receipt", _short(job, job.receipt_path)),
        ("log", finality_row(final)),
        ("expectation", _short(job, job.folder.expectation)),
        ("", job.expectation.digest.hex()),
    ]


def _document(
    job: Job, outcome: RunOutcome, final: Finality, account: Account | None
) -> dict[str, JsonValue]:
    return {
        **proof_document(
            outcome.verified if final.failure is None else None,
            outcome.failure or final.failure,
            account=account,
            expectation=job.expectation,
            receipt=outcome.receipt.run.digest,
            simulated=job.simulated,
        ),
        "agent": job.name,
        "paths": {
            "outputs": str(_outputs_place(job, outcome)) if outcome.outputs else None,
            "receipt": str(job.receipt_path),
            "expectation": str(job.folder.expectation),
        },
        "outputs": list(outcome.outputs),
        "log": finality_document(job, final),
        "verify": verify_command(job),
    }


def _console_tail(outcome: RunOutcome) -> list[RenderableType]:
    for name, raw in (("stderr", outcome.stderr), ("stdout", outcome.stdout)):
        lines = raw.decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]
        if lines:
            return [
                heading(f"The agent's {name}", "its own words"),
                *(Text(f"  {printable(line)}", style="dim") for line in lines),
            ]
    return []


def roots_digest(job: Job) -> str:
    """Return the SHA-256 (hex) of the simulated roots file of `job`."""
    return hashlib.sha256(encode_roots_file(job.roots)).hexdigest()


def verify_command(job: Job) -> str:
    """Return the command with which a stranger verifies this receipt."""
    command = ["confide", "verify", str(job.receipt_path)]
    if job.simulated:
        command += ["--simulated-roots", f"sha256:{roots_digest(job)}"]
    return shlex.join([*command, *log_words(job)])


def log_words(job: Job) -> list[str]:
    """Return the words that hold the receipt to the log it was put into."""
    return [] if job.log is None else ["--log-policy", str(job.log.policy_file)]
