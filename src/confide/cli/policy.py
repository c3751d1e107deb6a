"""`confide policy`: what a policy accepts, in words; and a file to start from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.appraisal.policy_words import explain as words_of
from confide.cli.policy_files import read_policy
from confide.cli.screen import Screen, heading

if TYPE_CHECKING:
    from confide.appraisal.service_policy import Policy

__all__ = ["app", "toml_of"]

app = typer.Typer(no_args_is_help=True, help="Explain policies for evidence of services.")
_STYLES = {"open": "yellow", "closed": "red", "plain": ""}
_MARKS = {"open": "!", "closed": "✗", "plain": "·"}
_NOTE = "! leaves something open    ✗ accepts nothing as written    · asks for this"


@app.command()
def explain(
    ctx: typer.Context,
    policy: Annotated[
        str, typer.Argument(metavar="strict|audit|FILE", help="A profile or a policy file.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say in words what a policy accepts."""
    screen = Screen.of(ctx, as_json=as_json)
    found = read_policy(policy)
    parts = [Text.assemble("policy ", (found.name, "bold"), f"  {found.digest}")]
    section = ""
    for sentence in words_of(found):
        if sentence.section != section:
            section = sentence.section
            parts.append(heading(section))
        parts.append(
            Text.assemble(
                (f"  {_MARKS[sentence.tone]} ", _STYLES[sentence.tone]),
                (sentence.text, _STYLES[sentence.tone]),
                (f"  [{sentence.field}]", "dim"),
            )
        )
    screen.show(*parts, Text(f"\n{_NOTE}", style="dim"))
    screen.event(
        "policy",
        {
            "name": found.name,
            "digest": found.digest,
            "relaxations": list(found.relaxations),
            "document": found.document(),
            "sentences": [
                {"section": s.section, "field": s.field, "text": s.text, "tone": s.tone}
                for s in words_of(found)
            ],
        },
    )


@app.command()
def show(
    ctx: typer.Context,
    policy: Annotated[
        str, typer.Argument(metavar="strict|audit|FILE", help="A profile or a policy file.")
    ],
) -> None:
    """Write a policy out in full, as TOML: a file to start from."""
    screen = Screen.of(ctx)
    screen.show(*(Text(line) for line in toml_of(read_policy(policy)).splitlines()))


def toml_of(policy: Policy) -> str:
    """Return `policy` as a file, every field written out."""
    document = policy.document()
    lines = [f'type = "{document["type"]}"', f'name = "{policy.name}"']
    lines.append(f"unsafe_simulated = {str(policy.unsafe_simulated).lower()}")
    for name, section in document.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]"]
            lines += [f"{field} = {_toml(value)}" for field, value in section.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return "[" + ", ".join(f'"{item}"' for item in value) + "]"
        case int():
            return str(value)
    return f'"{value}"'
