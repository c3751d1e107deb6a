"""The `confide` command: one module per verb, joined here."""

from __future__ import annotations

import typer

from confide.cli import node

__all__ = ["app", "main"]

app = typer.Typer(
    name="confide",
    help="Run agents privately and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(node.app, name="node")


def main() -> None:
    """Run the command line."""
    app()
