"""`confide status`: which local nodes run. What a node says of itself, not what was proven."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from confide.cli import exits
from confide.cli.localnodes import local_engine
from confide.cli.places import Places
from confide.cli.screen import Screen, fields, printable, simulated_line
from confide.engines.roles import ROLES, RUN_ROLES
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from confide.engines.local import LocalEngine, NodeState
    from confide.engines.processes import LocalNode

__all__ = ["app", "show_nodes"]

app = typer.Typer()


@app.command()
def status(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Say which local nodes run, and whether the local log does.

    Exit codes: 0 the nodes, the log and its witness run, 20 otherwise.
    """
    screen = Screen.of(ctx, as_json=as_json)
    if not show_nodes(screen, local_engine(Places.here())):
        raise typer.Exit(exits.UNAVAILABLE)


def show_nodes(screen: Screen, engine: LocalEngine) -> bool:
    """Show every recorded process; return whether all of them run and answer."""
    states = engine.status()
    running = {state.node.role for state in states if state.alive and state.says}
    complete = running >= set(RUN_ROLES)
    roots = hashlib.sha256(encode_roots_file(engine.roots())).hexdigest()
    screen.show(simulated_line("local nodes run on a simulated machine."))
    for state in states:
        screen.show(*_node(state))
    if not states:
        screen.show(Text("no node runs; confide up starts them, confide run does it by itself"))
    policy = engine.log_policy()
    screen.show(Text(), fields([("roots", roots), ("log policy", str(policy))]))
    screen.event(
        "result",
        {
            "running": complete,
            "simulated": True,
            "roots": roots,
            "log_policy": str(policy),
            "nodes": [
                {
                    "role": state.node.role,
                    "alive": state.alive,
                    "url": state.node.url,
                    "pid": state.node.pid,
                    "model": state.node.model or None,
                    "source": state.node.source or None,
                    "says": state.says or None,
                    "log": state.node.log,
                }
                for state in states
            ],
        },
    )
    return complete


def _node(state: NodeState) -> tuple[Text, Table]:
    node = state.node
    mark, word = ("✓", "green"), "runs"
    if not state.alive:
        mark, word = ("✗", "red"), "is not running"
    elif not state.says:
        mark, word = ("✗", "red"), "runs, but does not answer"
    rows = [("log file", node.log)]
    if state.alive:
        served = f"{printable(node.model)}  from {printable(node.source)}"
        label = "keyset" if node.model else "says"
        rows = [
            ("url", f"{node.url}  (process {node.pid})"),
            *([("model", served)] if node.model else []),
            (label, f"{printable(state.says)}  (its own word)"),
            *rows,
        ]
    return Text.assemble("\n", mark, f" {_title(node)} {word}"), fields(rows)


def _title(node: LocalNode) -> str:
    return next(spec.title for role, spec in ROLES.items() if role == node.role)
