"""The `confide` command: one module per verb, imported when the verb is used.

Every error of every verb comes through `_Verbs.invoke` and `cli.exits`; nothing else decides
about exit codes of errors.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from confide.cli.parameters import spare_coercion
from confide.version import __version__

__all__ = ["VERBS", "app", "main"]

# Module of each verb and its line in `confide --help`; the order is that of a newcomer's day.
VERBS: dict[str, str] = {
    "demo": "Run the bundled example end to end: before, during, after.",
    "run": "Run a batch agent privately, and prove it.",
    "chat": "Talk to an agent privately, and prove it.",
    "verify": "Verify a receipt, saved evidence, or a live service.",
    "capture": "Save what a service presents, with endorsements, for later.",
    "compare": "Compare what two services prove, claim by claim.",
    "policy": "Say in words what a policy accepts.",
    "expect": "Make, show and compare Expectations: what must run.",
    "train": "Train a model privately, and prove how it was made.",
    "key": "Make a key that outputs can be sealed to.",
    "open": "Open an output that was sealed to your key.",
    "build": "Build the reproducible image of an agent folder.",
    "up": "Start the local nodes (SIMULATED).",
    "status": "Say which local nodes run.",
    "down": "Stop the local nodes.",
    "proxy": "Serve proven models to programs that cannot change, on this machine.",
    "relay": "Forward sealed requests without reading them.",
    "receipts": "List, show, verify and export the receipts of answers.",
    "log": "Run, watch and check a transparency log.",
    "broker": "Run the key broker and keep its store.",
    "secret": "Put, release and revoke secrets at a key broker.",
    "keys": "Make, list and revoke API keys of a model node; show what they used.",
    "data": "Check, commit to and prove rows of training data.",
    "doctor": "Say what this machine has and lacks, and how to mend it.",
    "node": "Run one node in the foreground.",
}
_HIDDEN = frozenset({"node"})


class _Verbs(TyperGroup):
    """Verbs by name; a module is imported when its verb is called, not for `--help`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options of `confide` itself."""
        return spare_coercion(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the verbs in order."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """Return a stand-in that knows the verb's help line."""
        del ctx
        line = VERBS.get(cmd_name)
        if line is None:
            return None
        return TyperCommand(cmd_name, help=line, hidden=cmd_name in _HIDDEN)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Replace the stand-in by the verb itself."""
        # For the suggestion next to "no such command".
        self.commands = dict.fromkeys(VERBS)  # type: ignore[assignment]
        name, command, rest = super().resolve_command(ctx, args)
        if command is None:
            return name, command, rest
        module = importlib.import_module(f"confide.cli.{command.name}")
        loaded = typer.main.get_command(module.app)
        loaded.name = command.name
        _flow(loaded)
        own = loaded.get_params
        loaded.get_params = lambda ctx: spare_coercion(own(ctx))  # type: ignore[method-assign]
        return name, loaded, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; what it raises becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except BaseException as error:
            if hasattr(error, "exit_code"):
                raise
            _fail(ctx.find_root().obj, error)


def _flow(command: Any) -> None:
    """Let help break lines where the terminal does, not where the source does."""
    if command.help:
        paragraphs = (" ".join(part.split()) for part in command.help.split("\n\n"))
        command.help = "\n\n".join(paragraphs)
    for below in getattr(command, "commands", {}).values():
        _flow(below)


def _fail(screen: Any, error: BaseException) -> None:
    from confide.cli import exits  # noqa: PLC0415 - `--help` needs none of it
    from confide.cli.screen import Screen  # noqa: PLC0415

    if os.environ.get("CONFIDE_DEBUG") == "1":  # noqa: TID251 - the command line reads it once
        raise error
    problem = exits.problem_of(error)
    exits.report(screen if isinstance(screen, Screen) else Screen(as_json=False), problem)
    raise typer.Exit(problem.code) from error


app = typer.Typer(
    cls=_Verbs,
    name="confide",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"confide {__version__}")  # noqa: T201 - this is what was asked for
        raise typer.Exit


@app.callback()
def confide(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run agents privately and prove it: checks before, a sealed run, a receipt after.

    Exit codes: 0 accepted, 10 rejected, 20 unavailable, 30 malformed, 2 usage.
    """


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets an escape, never a crash.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app()
