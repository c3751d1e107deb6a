"""`confide compare A B`: two services, claim by claim, in the same words. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from confide.appraisal.claim_names import ClaimName
from confide.cli.policy_files import read_policy
from confide.cli.screen import Screen, hanging, heading, printable, simulated_line
from confide.cli.service_screen import MARKS, value_of
from confide.cli.service_targets import (
    Options,
    is_url,
    load,
    read_target,
    service_roots,
)
from confide.cli.service_verify import hold, judge
from confide.errors import ConfigurationError
from confide.rats import Status

if TYPE_CHECKING:
    from rich.console import RenderableType

    from confide.rats import AttestationResult, Claim
    from confide.wire.json import JsonValue

__all__ = ["app"]

app = typer.Typer(add_completion=False)
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
        list[Path] | None,
        typer.Option(metavar="FILE", help="What vendors say: as for confide verify."),
    ] = None,
    simulated_roots: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Accept SIMULATED evidence under these roots."),
    ] = None,
    at: Annotated[str, typer.Option(metavar="TIME", help="When to check validity.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Compare what two services prove, claim by claim, in the same words.

    Exit codes: 0 both could be judged, 20 unavailable or of a kind not judged here, 30 malformed,
    2 usage. Neither is accepted by being compared: that is for `confide verify`.
    """
    screen = Screen.of(ctx, as_json=as_json)
    if first == second == "-":
        raise ConfigurationError("standard input is there once; name a file for the other one")
    roots = service_roots(simulated_roots)
    held = hold(read_policy(policy), roots)
    options = Options(
        policy=policy,
        endorsements=tuple(endorsements or ()),
        fetch=fetch,
        simulated_roots=simulated_roots,
        at=at,
    )
    sides: list[_Side] = []
    for target in (first, second):
        loaded = load(target, None if is_url(target) else read_target(target), options)
        result, refused = judge(loaded, held, roots)
        sides.append(_Side(loaded.name, result, accepted=refused is None))
    screen.show(
        *([simulated_line()] if roots.simulated else []),
        _table(sides),
        *_limits(sides),
        heading("Held to", f"the policy {held.name} {held.digest[:16]}…"),
    )
    differ: list[JsonValue] = [*_differing(sides)]
    screen.event(
        "result",
        {
            "policy": held.digest,
            "simulated": roots.simulated,
            "sides": [side.document() for side in sides],
            "claims": {name.value: [side.status(name) for side in sides] for name in ClaimName},
            "differ": differ,
        },
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two: its name, what was found, and whether the policy accepts it."""

    name: str
    result: AttestationResult
    accepted: bool

    def claim(self, name: ClaimName) -> Claim | None:
        """Return a claim, None where it does not apply."""
        return next((c for c in self.result.claims if c.name == name.value), None)

    def status(self, name: ClaimName) -> str:
        """Return the status of a claim in a word."""
        claim = self.claim(name)
        return "not-applicable" if claim is None else claim.status.value

    def count(self, status: Status) -> int:
        """Return how many claims have `status`."""
        return sum(claim.status is status for claim in self.result.claims)

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON object of this side."""
        return {
            "target": self.name,
            "format": self.result.subject,
            "outcome": "accepted" if self.accepted else "rejected",
            "values": {claim.name: claim.value for claim in self.result.claims},
            "limits": list(self.result.limits),
        }


def _differing(sides: list[_Side]) -> list[str]:
    return [name.value for name in ClaimName if len({side.status(name) for side in sides}) > 1]


def _table(sides: list[_Side]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("  claim", no_wrap=True)
    for letter, side in zip("AB", sides, strict=True):
        title = printable(side.name.rpartition("/")[2] or side.name, max_chars=40)
        table.add_column(f"{letter}: {title} ({side.result.subject})", overflow="fold", ratio=1)
    table.add_row("  outcome", *(_outcome(side) for side in sides))
    table.add_row("  proven", *(_counts(side) for side in sides))
    differ = _differing(sides)
    for name in ClaimName:
        label = Text(f"≠ {name}", "bold") if name in differ else Text(f"  {name}")
        table.add_row(label, *(_cell(side.claim(name)) for side in sides))
    return table


def _outcome(side: _Side) -> Text:
    return Text("accepted", "bold green") if side.accepted else Text("rejected", "bold red")


def _counts(side: _Side) -> Text:
    count = {status: side.count(status) for status in Status}
    return Text(
        f"{count[Status.PASS]} proven, {count[Status.NOT_PROVEN]} not, "
        f"{count[Status.FAIL]} contradicted",
        "dim",
    )


def _cell(claim: Claim | None) -> Text:
    if claim is None:
        return Text("does not apply", style="dim")
    mark, colour = MARKS[claim.status]
    return Text.assemble((f"{mark} ", colour), value_of(claim, max_chars=_MAX_VALUE))


def _limits(sides: list[_Side]) -> list[RenderableType]:
    """Return what no check shows about one of the two and not about the other."""
    one, other = (side.result.limits for side in sides)
    found: list[RenderableType] = []
    for letter, own, foreign in (("A", one, other), ("B", other, one)):
        lines = [limit for limit in own if limit not in foreign]
        if lines:
            found.append(heading(f"What no check shows about {letter} alone"))
            found += [hanging("  · ", printable(limit), style="dim") for limit in lines]
    return found
