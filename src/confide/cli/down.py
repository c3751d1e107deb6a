"""`confide down`: stop the local nodes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from confide.cli.localnodes import local_engine
from confide.cli.places import Places
from confide.cli.screen import Screen

__all__ = ["app"]

app = typer.Typer()


@app.command()
def down(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Stop the local nodes and the local log.

    Keys of nodes, and what they held in memory, are gone with them; the log stays on the disk.
    """
    screen = Screen.of(ctx, as_json=as_json)
    stopped = local_engine(Places.here()).down()
    screen.show(Text(f"{stopped} process(es) stopped" if stopped else "no node was running"))
    screen.event("result", {"stopped": stopped, "simulated": True})
