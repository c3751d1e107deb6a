"""What a person or a program sees: one screen for terminals, pipes and JSON. Decides nothing.

Everything that came from outside (a node's words, names in a receipt) goes through `printable`
before it reaches a terminal: no control character, no bidirectional override, no markup.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import typer

    from confide.trust.roots import Roots
    from confide.wire.json import JsonValue

__all__ = [
    "Screen",
    "command_line",
    "fields",
    "hanging",
    "heading",
    "human_bytes",
    "printable",
    "shortened",
    "simulated_line",
    "whose_roots",
]

# Wide enough that nothing is wrapped where nobody looks at columns.
_PIPE_COLUMNS = 4000
_HEX = re.compile(r"\b[0-9a-f]{32,}\b…?")
_SIMULATED = "SIMULATED"
_MEANING = "the checks are real; the hardware and its roots are not. For testing"


class Screen:
    """Where a verb writes: human text, or one JSON object a line when `json` is asked for."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    @classmethod
    def of(cls, ctx: typer.Context, *, as_json: bool = False) -> Screen:
        """Open the screen of one verb; errors are then written the same way."""
        screen = cls(as_json=as_json)
        ctx.find_root().obj = screen
        return screen

    @property
    def live(self) -> bool:
        """Whether somebody watches a terminal."""
        return self.out.is_terminal and not self.as_json

    def show(self, *parts: RenderableType) -> None:
        """Write human text to stdout; nothing in JSON mode."""
        if not self.as_json:
            _write(self.out, parts)

    def say(self, text: str) -> None:
        """Write one line of human text to stderr; nothing in JSON mode."""
        if not self.as_json:
            _write(self.err, (Text(text),))

    def complain(self, *parts: RenderableType) -> None:
        """Write human text about a problem to stderr; nothing in JSON mode."""
        if not self.as_json:
            _write(self.err, parts)

    def event(self, kind: str, members: dict[str, JsonValue]) -> None:
        """Write one JSON object on a line of its own; nothing in human mode."""
        if self.as_json:
            # ASCII only: whatever a member holds, a terminal that shows it stays a terminal.
            sys.stdout.write(json.dumps({"event": kind, **members}, ensure_ascii=True) + "\n")
            sys.stdout.flush()


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    return console


def _write(console: Console, parts: tuple[RenderableType, ...]) -> None:
    if console.is_terminal:
        console.print(Group(*parts), crop=False)
        return
    with console.capture() as captured:
        console.print(Group(*parts))
    # Grids pad their last column; in a file that is noise.
    lines = (line.rstrip() for line in captured.get().splitlines())
    console.file.write("".join(f"{line}\n" for line in lines))
    console.file.flush()


def printable(text: str, *, max_chars: int = 400) -> str:
    """Return `text` fit for a terminal: what is not printable is shown as an escape."""
    shown = (
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:max_chars]
    )
    return "".join(shown) + ("…" if len(text) > max_chars else "")


def shortened(text: str) -> str:
    """Return `text` with long hex shortened to 16 characters: for reading, not for comparing."""
    return _HEX.sub(lambda found: found.group()[:16] + "…", text)


def human_bytes(count: int) -> str:
    """Return `count` bytes in words: `431 B`, `1.2 MiB`."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def simulated_line(what: str = _MEANING) -> Text:
    """Return the line that no simulated screen goes without."""
    return Text.assemble((f" {_SIMULATED} ", "bold black on yellow"), " ", (what, "yellow"))


def whose_roots(roots: Roots, vendors: str = "Intel and NVIDIA") -> str:
    """Return whose the roots are that a screen's evidence was judged under."""
    if roots.simulated:
        return f"SIMULATED {roots.name.partition(':')[2][:16]}…, because you named them"
    return f"of {vendors}"


def heading(text: str, note: str = "") -> Text:
    """Return the heading of a section."""
    return Text.assemble("\n", (text, "bold"), (f"  {note}" if note else "", "dim"))


def command_line(text: str) -> Text:
    """Return a command on a line of its own that can be copied whole, however long it is."""
    return Text(f"  {text}", no_wrap=True, overflow="ignore")


def hanging(mark: str | Text, text: str | Text, *, mark_style: str = "", style: str = "") -> Table:
    """Return a paragraph that wraps below itself, with `mark` before it."""
    table = Table.grid()
    table.add_column(no_wrap=True)
    table.add_column(style=style, overflow="fold")
    before = Text(mark, style=mark_style) if isinstance(mark, str) else mark
    table.add_row(before, Text(text) if isinstance(text, str) else text)
    return table


def fields(rows: list[tuple[str, str]], *, style: str = "") -> Table:
    """Return `label  value` lines; values wrap below themselves."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=11)
    table.add_column(style=style, overflow="fold")
    for label, value in rows:
        table.add_row(Text(f"  {label}"), Text(value))
    return table
