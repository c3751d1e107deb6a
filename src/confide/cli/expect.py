"""`confide expect`: make, show and compare Expectations."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from confide.adapters.files import write_atomically
from confide.cli import exits
from confide.cli.expectation_files import read_expectation
from confide.cli.screen import Screen, fields, heading, printable, simulated_line
from confide.expectation import diff_expectations

if TYPE_CHECKING:
    from confide.expectation import Expectation
    from confide.wire.json import JsonValue

__all__ = ["app"]

_MAKE = "make"
_SIMULATED = "this Expectation names simulated roots; it accepts nothing else."
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File to write. Default: stdout.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


class _MakeByDefault(TyperGroup):
    """`confide expect AGENT` means `confide expect make AGENT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb in where the first word is none."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [_MAKE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_MakeByDefault,
    no_args_is_help=True,
    help="Make, show and compare Expectations: what must run.\n\n"
    "`confide expect AGENT` and `confide expect FILE.toml` are short for `confide expect make`.",
)


@app.command(_MAKE)
def make(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="AGENT|FILE.toml", help="Agent, or an Expectation in TOML.")
    ],
    output: Output = None,
    upstream: Annotated[
        str, typer.Option(metavar="URL", help="OpenAI-compatible engine of the local nodes.")
    ] = "",
    model: Annotated[str, typer.Option(metavar="NAME", help="Model of the local nodes.")] = "",
    as_json: Json = False,
) -> None:
    """Make the canonical Expectation of an agent on local nodes, or of a TOML file."""
    screen = Screen.of(ctx, as_json=as_json)
    if source.endswith(".toml") and not Path(source).is_dir():
        expectation = read_expectation(Path(source))
    else:
        expectation = _for_agent(screen, source, upstream=upstream, model=model)
    raw = expectation.canonical()
    if output is not None:
        write_atomically(output, raw, mode=0o644)
    elif not as_json:
        sys.stdout.write(raw.decode())
        sys.stdout.write("\n" if screen.out.is_terminal else "")
    if _simulated(expectation):
        screen.complain(simulated_line(_SIMULATED))
    screen.say(f"Expectation sha256:{expectation.digest.hex()}")
    screen.event("result", _document(expectation, output))


def _for_agent(screen: Screen, source: str, *, upstream: str, model: str) -> Expectation:
    # An Expectation file can be read without any of this.
    from confide.cli.agents import build, find_agent  # noqa: PLC0415
    from confide.cli.localnodes import (  # noqa: PLC0415
        broker_for,
        choose_model,
        local_engine,
        reference_for,
    )
    from confide.cli.places import Places  # noqa: PLC0415
    from confide.client.expect import expectation_for  # noqa: PLC0415

    places = Places.here()
    agent = find_agent(source, mode="batch")
    engine = local_engine(places)
    choice = choose_model(engine, wanted=agent.manifest.model, upstream=upstream, model=model)
    built = asyncio.run(build(agent, source, places.paths, screen.say))
    broker = broker_for(engine, built.manifest)
    reference = reference_for(places, engine, choice)
    return expectation_for(built.manifest, built.image.digest, reference, broker=broker)


def _simulated(expectation: Expectation) -> bool:
    return expectation.hardware.roots.startswith("simulated:")


def _document(expectation: Expectation, path: Path | None) -> dict[str, JsonValue]:
    return {
        "digest": expectation.digest.hex(),
        "simulated": _simulated(expectation),
        "path": None if path is None else str(path),
        "expectation": expectation.document(),
    }


@app.command()
def show(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Expectation: canonical JSON or TOML.")],
    as_json: Json = False,
) -> None:
    """Show an Expectation, field by field."""
    screen = Screen.of(ctx, as_json=as_json)
    expectation = read_expectation(file)
    parts = [Text.assemble((printable(expectation.name), "bold"), "  Expectation")]
    if _simulated(expectation):
        parts.append(simulated_line(_SIMULATED))
    screen.show(*parts, fields([("sha256", expectation.digest.hex())]))
    for section, value in expectation.document().items():
        if isinstance(value, dict):
            rows = [(key, _value(item)) for key, item in value.items()]
            screen.show(heading(section), fields(rows))
        elif section not in {"type", "name"}:
            screen.show(heading(section), Text(f"  {_value(value)}"))
    screen.event("result", _document(expectation, file))


def _value(value: JsonValue) -> str:
    if isinstance(value, list):
        return "\n".join(printable(str(item)) for item in value) or "(none)"
    return printable(str(value)) or "(none)"


@app.command()
def diff(
    ctx: typer.Context,
    before: Annotated[Path, typer.Argument(metavar="A", help="Expectation.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Expectation to compare with it.")],
    as_json: Json = False,
) -> None:
    """Say how two Expectations differ, and what each difference means.

    Exit codes: 0 equal, 10 different.
    """
    screen = Screen.of(ctx, as_json=as_json)
    left, right = read_expectation(before), read_expectation(after)
    found = diff_expectations(left, right)
    for item in found:
        screen.show(
            Text.assemble((item.path, "bold"), (f"  {item.meaning}", "dim")),
            Text.assemble(("  - ", "red"), printable(item.before, max_chars=2000)),
            Text.assemble(("  + ", "green"), printable(item.after, max_chars=2000)),
        )
    if not found:
        screen.show(Text(f"equal: sha256:{left.digest.hex()}"))
    screen.event(
        "result",
        {
            "equal": not found,
            "before": left.digest.hex(),
            "after": right.digest.hex(),
            "simulated": _simulated(left) or _simulated(right),
            "differences": [
                {"path": d.path, "before": d.before, "after": d.after, "meaning": d.meaning}
                for d in found
            ],
        },
    )
    if found:
        raise typer.Exit(exits.REJECTED)
