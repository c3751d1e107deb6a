"""`confide up`: start the local nodes, SIMULATED."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from confide.adapters.upstream_serve import BUNDLED_NAME
from confide.cli.localnodes import choose_model, local_engine
from confide.cli.places import Places
from confide.cli.run_options import WeightsOption
from confide.cli.screen import Screen
from confide.cli.status import show_nodes
from confide.errors import ConfigurationError
from confide.simulator.machine import FAULT_NAMES

__all__ = ["app"]

app = typer.Typer()


@app.command()
def up(
    ctx: typer.Context,
    upstream: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="OpenAI-compatible engine to serve; several are a pool."),
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="Name of the model.")] = "",
    weights: WeightsOption = None,
    idle_seconds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after so many idle seconds.")
    ] = None,
    simulate_fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=NAME",
            help="SIMULATED fault of the `agent` or `model` node, to see it refused.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Start the local nodes (SIMULATED) and the local log, and leave them running."""
    screen = Screen.of(ctx, as_json=as_json)
    faults = _faults(simulate_fault or [])
    engine = local_engine(Places.here())
    choice = choose_model(
        engine,
        wanted=BUNDLED_NAME,
        upstream=",".join(upstream or ()),
        model=model,
        weights=weights,
    )
    if faults:
        # A fault belongs to a boot: nodes that run already would not have it.
        engine.down()
    screen.say("starting the log, its witness, the model node and the agent node")
    engine.up(choice, idle_seconds=idle_seconds, faults=faults)
    for role, name in faults.items():
        screen.show(Text(f"SIMULATED fault in the {role} node: {name}", "yellow"))
    show_nodes(screen, engine)


def _faults(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        role, equals, name = word.partition("=")
        if not equals or role not in {"agent", "model"}:
            raise ConfigurationError("--simulate-fault wants agent=NAME or model=NAME")
        if name not in FAULT_NAMES:
            raise ConfigurationError(
                f"no simulated fault of that name; known: {', '.join(FAULT_NAMES)}"
            )
        if role in found:
            raise ConfigurationError(f"two faults for the {role} node; one boot has one")
        found[role] = name
    return found
