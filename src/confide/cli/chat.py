"""`confide chat AGENT`: the same before and after, and turns in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.cli import result
from confide.cli.finality import make_final
from confide.cli.job import AFTER, Job, Request, after_sending, before_sending
from confide.cli.local_release import ReleaseOption
from confide.cli.log_choice import LogOption, LogPolicyOption, LogWaitOption, NoLogOption
from confide.cli.run_options import (
    AgentArgument,
    ExpectationOption,
    InputOption,
    ModelOption,
    NodeOption,
    OutputOption,
    ReceiptOption,
    RootsOption,
    UpstreamOption,
    WeightsOption,
)
from confide.cli.screen import Screen, printable
from confide.cli.tree import Tree
from confide.errors import ConfideError

if TYPE_CHECKING:
    from confide.client.agent import ChatSession, RunOutcome

__all__ = ["app"]

app = typer.Typer()
_QUIT = "/quit"
_PROMPT = "you    "
# After Ctrl-C: how long a node may take to end the session properly.
_GRACE_SECONDS = 10.0
_LOG_GRACE_SECONDS = 2.0
_MAX_ANSWER_CHARS = 100_000


@app.command()
def chat(
    ctx: typer.Context,
    agent: AgentArgument,
    inputs: InputOption = None,
    output: OutputOption = None,
    expectation: ExpectationOption = None,
    receipt: ReceiptOption = None,
    node: NodeOption = None,
    roots: RootsOption = None,
    upstream: UpstreamOption = "",
    model: ModelOption = "",
    weights: WeightsOption = None,
    release: ReleaseOption = False,
    log: LogOption = None,
    log_policy: LogPolicyOption = None,
    no_log: NoLogOption = False,
    log_wait: LogWaitOption = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Talk to an agent privately, and prove it.

    One line is one turn: text goes as {"message": text}, a JSON object as it is.
    /quit or the end of the input finishes, verifies and shows the receipt.
    """
    screen = Screen.of(ctx, as_json=as_json)
    request = Request(
        agent=agent,
        mode="chat",
        inputs=tuple(inputs or ()),
        output=output,
        expectation=expectation,
        receipt=receipt,
        node=node,
        roots=roots,
        upstream=upstream,
        model=model,
        weights=weights,
        release=release,
        log=log,
        log_policy=log_policy,
        no_log=no_log,
        log_wait=log_wait,
    )
    with Job(request) as job:
        session = _open(screen, job)
        try:
            _converse(screen, job, session)
            with Tree(screen, "after", AFTER, simulated=job.simulated) as tree:
                tree.begin("receipt", "fresh evidence of both nodes")
                with after_sending():
                    outcome = job.runner.run(session.finish())
                tree.done("receipt", f"receipt {outcome.receipt.run.digest.hex()[:16]}…")
                tree.begin("verify")
                final = result.conclude(job, outcome, tree)
            code = result.summarise(screen, job, outcome, final)
        finally:
            # Nothing is left to remove after a receipt; without one, what was being received is.
            session.abandon()
    raise typer.Exit(code)


def _open(screen: Screen, job: Job) -> ChatSession:
    plan = (*job.before, *job.during)
    with Tree(screen, f"confide chat · {job.name}", plan, simulated=job.simulated) as tree:
        with before_sending():
            proven = job.prove(tree)
        tree.begin("send", f"{len(job.inputs)} file(s)")
        with after_sending():
            session = job.runner.run(
                job.client.open_chat(
                    proven,
                    job.inputs,
                    destination=job.destination,
                    # Steps after the opening belong to the tree of the end.
                    on_progress=lambda progress: (
                        result.follow(tree, progress)
                        if progress.step in {"inputs", "model-proven", "secrets"}
                        else None
                    ),
                )
            )
        tree.done("agent", "listening")
    screen.show(
        Text(f"\nOne line is one turn. {_QUIT} or Ctrl-D ends, verifies and proves.\n", "dim")
    )
    return session


def _converse(screen: Screen, job: Job, session: ChatSession) -> None:
    number = 0
    try:
        while (line := _read_line(screen)) is not None:
            if line.strip() == _QUIT:
                break
            if not line.strip():
                continue
            number += 1
            answer = job.runner.run(session.turn(_said(line)))
            shown = printable(_heard(answer), max_chars=_MAX_ANSWER_CHARS)
            screen.show(Text.assemble(("agent  ", "bold cyan"), shown))
            screen.event("turn", {"number": number, "answer": answer, "simulated": job.simulated})
    except KeyboardInterrupt as error:
        screen.show(Text())
        outcome = _end_early(job, session)
        if outcome is not None:
            error.add_note(f"the session was ended; its receipt is at {job.receipt_path}")
        else:
            seconds = job.limits.wall_seconds
            error.add_note(
                "what was said went sealed to the proven node; there is no receipt, and the node "
                f"ends the session within {seconds} s"
            )
        raise
    except ConfideError as error:
        # The agent may have ended; the receipt says how.
        screen.say(f"the turn was not answered: {printable(str(error))}")


def _said(line: str) -> str:
    """Return the JSON line of one turn: what is an object goes as it is, text as its message."""
    text = line.rstrip("\n")
    return text if _object(text) is not None else json.dumps({"message": text})


def _heard(answer: str) -> str:
    """Return the message inside an answer, or the answer where it has none."""
    found = _object(answer) or {}
    message = found.get("message")
    return message if isinstance(message, str) else answer


def _object(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read_line(screen: Screen) -> str | None:
    if screen.live and sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, PLC0415 - gives `input` editing and history
        try:
            return input(_PROMPT)
        except EOFError:
            return None
    return sys.stdin.readline() or None


def _end_early(job: Job, session: ChatSession) -> RunOutcome | None:
    try:
        outcome = job.runner.run(asyncio.wait_for(session.finish(), _GRACE_SECONDS))
        result.save_receipt(job, outcome)
        make_final(job, outcome, wait_seconds=_LOG_GRACE_SECONDS)
    except (ConfideError, TimeoutError):
        return None
    return outcome
