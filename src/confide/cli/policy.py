"""`confide policy`: what a policy accepts, in words; and a file to start from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.appraisal.policy_words import explain as words_of
from confide.cli.policy_files import read_policy
from confide.cli.screen import Screen, hanging, heading

if TYPE_CHECKING:
    from rich.console import RenderableType

    from confide.appraisal.policy_words import Sentence
    from confide.appraisal.service_policy import Policy

__all__ = ["app", "toml_of"]

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Explain policies for evidence of services."
)
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
    sentences = words_of(found)
    parts: list[RenderableType] = [
        Text.assemble("policy ", (found.name, "bold"), f"  {found.digest}"),
        _summary(found, sentences),
    ]
    section = ""
    for sentence in sentences:
        if sentence.section != section:
            section = sentence.section
            parts.append(heading(section))
        style = _STYLES[sentence.tone]
        line = Text.assemble((sentence.text, style), (f"  [{sentence.field}]", "dim"))
        parts.append(hanging(f"  {_MARKS[sentence.tone]} ", line, mark_style=style))
    screen.show(*parts, Text(f"\n{_NOTE}", style="dim"))
    screen.event(
        "result",
        {
            "name": found.name,
            "digest": found.digest,
            "relaxations": list(found.relaxations),
            "document": found.document(),
            "sentences": [
                {"section": s.section, "field": s.field, "text": s.text, "tone": s.tone}
                for s in sentences
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
    Screen.of(ctx)
    # Bytes of a file: never wrapped, whatever the terminal.
    sys.stdout.write(toml_of(read_policy(policy)))


def _summary(policy: Policy, sentences: tuple[Sentence, ...]) -> Text:
    """Say in one line how much is open, and what no evidence can meet as it is written."""
    unmet = [
        f"{claim} ({field})"
        for claim, field, listed in (
            ("workload-expected", "workload.documents", policy.workload.documents),
            ("image-provenance", "provenance.identities", policy.provenance.identities),
        )
        if claim in policy.claims.require and listed == frozenset()
    ]
    opened = sum(sentence.tone == "open" for sentence in sentences)
    text = f"{opened} fields are left open."
    if unmet:
        return Text(f"Accepts nothing as written: fill in {', '.join(unmet)}. {text}", "bold red")
    return Text(text, "yellow" if opened else "")


def toml_of(policy: Policy) -> str:
    """Return `policy` as a file, every field written out."""
    document = policy.document()
    lines = [f"type = {_toml(document['type'])}", f"name = {_toml(policy.name)}"]
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
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case int():
            return str(value)
    return f'"{"".join(_escaped(char) for char in str(value))}"'


def _escaped(char: str) -> str:
    """Return one character as it may stand in a basic string. From: TOML 1.0, String."""
    if char in {'"', "\\"}:
        return f"\\{char}"
    return char if char.isascii() and char.isprintable() else f"\\U{ord(char):08X}"
