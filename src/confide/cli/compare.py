"""`confide compare A B`: two services, claim by claim, in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from confide.appraisal.claim_names import ClaimName
from confide.cli.policy_files import read_policy
from confide.cli.screen import Screen, heading, printable, shortened
from confide.cli.service_targets import (
    Options,
    is_url,
    load,
    read_target,
    service_roots,
)
from confide.cli.service_verify import judge
from confide.rats import AttestationResult, Status

__all__ = ["app"]

app = typer.Typer()
_WORDS = {Status.PASS: "✓", Status.NOT_PROVEN: "-", Status.FAIL: "✗"}
_COLOURS = {Status.PASS: "green", Status.NOT_PROVEN: "yellow", Status.FAIL: "red"}
_MAX_VALUE = 90


@app.command()
def compare(
    ctx: typer.Context,
    first: Annotated[str, typer.Argument(metavar="A", help="Evidence, a bundle, or https://…")],
    second: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    policy: Annotated[
        str, typer.Option(metavar="strict|audit|FILE", help="What both are held to.")
    ] = "audit",
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Ask the vendors for missing endorsements.")
    ] = False,
    endorsements: Annotated[
        list[Path] | None, typer.Option(help="Bundles or collateral to take endorsements from.")
    ] = None,
    simulated_roots: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Accept SIMULATED evidence under these roots."),
    ] = None,
    at: Annotated[str, typer.Option(metavar="TIME", help="When to check validity.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compare what two services prove, line by line. Exit code 0 unless one cannot be read."""
    screen = Screen.of(ctx, as_json=as_json)
    held, roots = read_policy(policy), service_roots(simulated_roots)
    options = Options(
        policy=policy,
        endorsements=tuple(endorsements or ()),
        fetch=fetch,
        simulated_roots=simulated_roots,
        at=at,
    )
    results: list[AttestationResult] = []
    for target in (first, second):
        loaded = load(target, None if is_url(target) else read_target(target), options)
        results.append(judge(loaded, held, roots)[0])
    screen.show(
        *([Text(" SIMULATED ", style="bold black on yellow")] if roots.simulated else []),
        heading("Claim by claim", f"held to the policy {held.name}"),
        _table(first, second, results),
        heading("Claims that differ", ", ".join(_differing(results)) or "none"),
    )
    screen.event(
        "comparison",
        {
            "policy": held.digest,
            "claims": {
                name.value: [_status(result, name) for result in results] for name in ClaimName
            },
            "differ": list(_differing(results)),
        },
    )


def _status(result: AttestationResult, name: ClaimName) -> str:
    return next((c.status.value for c in result.claims if c.name == name), "not-applicable")


def _differing(results: list[AttestationResult]) -> list[str]:
    return [
        name.value for name in ClaimName if len({_status(result, name) for result in results}) > 1
    ]


def _table(first: str, second: str, results: list[AttestationResult]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("  claim", no_wrap=True)
    for target, result in zip((first, second), results, strict=True):
        title = printable(target.rpartition("/")[2] or target, max_chars=40)
        table.add_column(f"{title} ({result.subject})", overflow="fold", ratio=1)
    for name in ClaimName:
        row = [_cell(result, name) for result in results]
        differs = len({_status(result, name) for result in results}) > 1
        table.add_row(Text(f"{'≠' if differs else ' '} {name}", "bold" if differs else ""), *row)
    return table


def _cell(result: AttestationResult, name: ClaimName) -> Text:
    for claim in result.claims:
        if claim.name == name.value:
            value = shortened(printable(claim.value, max_chars=_MAX_VALUE))
            return Text.assemble((f"{_WORDS[claim.status]} ", _COLOURS[claim.status]), value)
    return Text("does not apply", style="dim")
