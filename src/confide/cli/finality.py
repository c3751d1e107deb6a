"""The last step of a run: its receipt into the log, and what is said of it. receipt.md §6.2.

A receipt that is not logged yet is written all the same, and is never called final.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rich.text import Text

from confide.adapters.log_entry import Logged
from confide.adapters.log_http import ask_log
from confide.cli.localnodes import IDLE_SECONDS
from confide.cli.receipt_log import log_document, log_line
from confide.cli.screen import command_line, heading, printable
from confide.client.finality import finalise, pending_path, store_inside
from confide.errors import LogRejected, Unavailable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from confide.cli.job import Job
    from confide.cli.tree import Tree
    from confide.client.agent import RunOutcome
    from confide.client.finality import LogChoice
    from confide.tlog.verify import VerifiedInclusion
    from confide.wire.json import JsonValue

__all__ = [
    "Finality",
    "finality_document",
    "finality_row",
    "make_final",
    "show_finality",
    "unfinished_parts",
]


@dataclass(frozen=True, slots=True)
class Finality:
    """Whether a receipt is in the log. `off` only where the command line said so."""

    state: Literal["final", "pending", "rejected", "off"]
    logged: VerifiedInclusion | None = None
    why: str = ""
    failure: LogRejected | None = None


def make_final(job: Job, outcome: RunOutcome, *, wait_seconds: float) -> Finality:
    """Log the receipt of `outcome`, which is kept already, and keep it again with its proof."""
    if job.log is None:
        return Finality("off")
    path = job.receipt_path
    try:
        found = job.runner.run(
            finalise(
                path,
                outcome.receipt,
                _reachable(job, job.log, wait_seconds),
                clock=job.places.clock,
                entropy=job.places.entropy,
                wait_seconds=wait_seconds,
                store=store_inside(path, outcome.receipt),
            )
        )
    except LogRejected as error:
        return Finality("rejected", failure=error)
    except Unavailable as error:
        return Finality("pending", why=str(error))
    except KeyboardInterrupt as error:
        error.add_note(f"the receipt is at {path} and may not be logged: {_finish_command(job)}")
        raise
    if isinstance(found, Logged):
        return Finality("final", logged=found.inclusion)
    return Finality("pending", why=found.why)


def _reachable(job: Job, choice: LogChoice, wait_seconds: float) -> LogChoice:
    """Return `choice` with the address of the local log, which may have stopped when idle."""
    if job.request.node is not None or ask_log(choice.url) is not None:
        return choice
    try:
        node = job.engine.up_log(idle_seconds=IDLE_SECONDS, within_seconds=wait_seconds)
    except Unavailable:
        return choice
    return replace(choice, url=node.url)


def show_finality(tree: Tree, job: Job, outcome: RunOutcome) -> Finality:
    """Make the receipt final under the step `log` of `tree`."""
    if job.log is not None:
        tree.begin("log", "waiting for its witnesses")
    found = make_final(job, outcome, wait_seconds=job.request.log_wait)
    if found.logged is not None:
        names = ", ".join(found.logged.witnesses) or "no witness"
        tree.done("log", f"#{found.logged.index}, seen by {names}")
    elif found.state == "pending":
        tree.leave("log", f"pending: {found.why}")
    elif found.state == "off":
        tree.leave("log", "not logged: --no-log")
    else:
        tree.fail("log", "the log's proof does not hold")
    return found


def finality_row(found: Finality) -> str:
    """Return what stands beside `log` in the summary."""
    if found.logged is not None:
        return printable(log_line(found.logged))
    return {
        "pending": "pending: not final, and can be denied until it is",
        "off": "not logged, as you said: it can be denied",
        "rejected": "the log's proof does not hold",
    }[found.state]


def unfinished_parts(job: Job, found: Finality) -> list[RenderableType]:
    """Return what is left to do, also about receipts of earlier runs; nothing where all is done."""
    parts: list[RenderableType] = []
    if found.state == "pending":
        parts += [
            heading("Pending", "the receipt is not in the log yet"),
            Text(f"  {printable(found.why)}. Finish it:", style="yellow"),
            command_line(_finish_command(job)),
        ]
    waiting = [each for each in job.left_over if each.trouble]
    settled = len(job.left_over) - len(waiting)
    if settled:
        parts.append(Text(f"  {settled} receipt(s) of earlier runs became final", style="green"))
    parts += [
        Text(f"  still pending: {each.receipt} ({printable(each.trouble)})", style="yellow")
        for each in waiting
    ]
    return parts


def _finish_command(job: Job) -> str:
    words = ["confide", "log", "add", str(job.receipt_path)]
    if job.request.node is not None and job.log is not None:
        words += ["--log", job.log.url, "--policy", str(job.log.policy_file)]
    return shlex.join(words)


def finality_document(job: Job, found: Finality) -> JsonValue:
    """Return the member `log` of a result."""
    earlier: JsonValue = [
        {"receipt": str(each.receipt), "pending": each.trouble or None} for each in job.left_over
    ]
    if found.logged is not None:
        return {**log_document(found.logged), "earlier": earlier}
    if found.state == "pending":
        return {
            "state": "pending",
            "why": found.why,
            "kept": str(pending_path(job.receipt_path)),
            "finish": _finish_command(job),
            "earlier": earlier,
        }
    return {"state": found.state, "earlier": earlier}
