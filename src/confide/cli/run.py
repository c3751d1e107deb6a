"""`confide run AGENT`: before, during, after, for a batch agent."""

from __future__ import annotations

from typing import Annotated

import typer

from confide.cli import result
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
from confide.cli.screen import Screen
from confide.cli.tree import Tree

__all__ = ["app", "run_job"]

app = typer.Typer()


@app.command()
def run(
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
    """Run a batch agent privately, and prove it.

    Checks the nodes before anything is sent, sends inputs sealed, verifies the receipt before
    outputs are shown, and puts it into a log. Exit codes: 0 accepted, 10 rejected, 20 unavailable,
    30 malformed, 2 usage.
    """
    screen = Screen.of(ctx, as_json=as_json)
    request = Request(
        agent=agent,
        mode="batch",
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
        code = run_job(screen, job)
    raise typer.Exit(code)


def run_job(screen: Screen, job: Job) -> int:
    """Run `job` under its tree; return the exit code."""
    plan = (*job.before, *job.during, *AFTER)
    with Tree(screen, f"confide run · {job.name}", plan, simulated=job.simulated) as tree:
        with before_sending():
            proven = job.prove(tree)
        tree.begin("send", f"{len(job.inputs)} file(s)")
        with after_sending():
            outcome = job.runner.run(
                job.client.run(
                    proven,
                    job.inputs,
                    destination=job.destination,
                    on_progress=lambda progress: result.follow(tree, progress),
                )
            )
        final = result.conclude(job, outcome, tree)
    return result.summarise(screen, job, outcome, final)
