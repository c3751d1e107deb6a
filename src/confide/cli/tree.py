"""Before, during, after: the steps of a run as they happen.

On a terminal a tree that fills itself, in a pipe one line a finished step, with `--json` one object
a change. It shows what it is told; `done` is not a verdict.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from confide.cli.screen import printable, simulated_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.console import RenderableType

    from confide.cli.screen import Screen

__all__ = ["Plan", "Tree"]

Plan = tuple[tuple[str, str, str], ...]
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAMES_A_SECOND = 8
# A step that reports all the time is heard this often where lines stay.
_QUIET_SECONDS = 10.0
# Wider than this, the eye loses the line between a step and its time.
_MAX_COLUMNS = 100
_MARKS = {
    "pending": ("·", "dim"),
    "done": ("✓", "green"),
    "unfinished": ("…", "yellow"),
    "failed": ("✗", "bold red"),
    "active": (" ", "cyan"),
}


@dataclass(slots=True)
class _Item:
    phase: str
    label: str
    state: str = "pending"
    detail: str = ""
    began: float = 0.0
    seconds: float = 0.0
    told: float = 0.0


class Tree:
    """
    The steps of `plan` (phase, key, label), shown under `title`.

    Use as a context manager. An exception inside marks the step that was active as failed. On a
    terminal `below` is drawn under the steps.
    """

    def __init__(
        self,
        screen: Screen,
        title: str,
        plan: Plan,
        *,
        simulated: bool,
        below: Callable[[], RenderableType] | None = None,
    ) -> None:
        self._screen = screen
        self._title = title
        self._items = {key: _Item(phase, label) for phase, key, label in plan}
        self._label_width = max(len(label) for _phase, _key, label in plan)
        self.simulated = simulated
        self._below = below
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Start showing."""
        if self._screen.live:
            self._live = Live(
                get_renderable=self._render,
                console=self._screen.out,
                refresh_per_second=_FRAMES_A_SECOND,
            )
            self._live.__enter__()
        else:
            self._screen.show(Text(self._title))
            if self.simulated:
                self._screen.show(simulated_line())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing; what was active when an exception came has failed."""
        if error is not None:
            for key, item in self._items.items():
                if item.state == "active":
                    self._end(key, "failed", item.detail)
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def has(self, key: str) -> bool:
        """Whether `key` is a step of the plan."""
        return key in self._items

    def begin(self, key: str, detail: str = "") -> None:
        """Step `key` has begun."""
        item = self._items[key]
        item.state, item.detail, item.began = "active", printable(detail), time.monotonic()
        item.told = item.began
        self._tell(key)

    def note(self, key: str, detail: str) -> None:
        """Step `key` goes on; `detail` says how."""
        item = self._items[key]
        if item.detail == printable(detail):
            return
        item.detail = printable(detail)
        self._tell(key)
        now = time.monotonic()
        if not self._screen.live and now - item.told >= _QUIET_SECONDS:
            item.told = now
            self._line(item, "…")

    def done(self, key: str, detail: str = "") -> None:
        """Step `key` is done."""
        self._end(key, "done", detail)

    def fail(self, key: str, detail: str = "") -> None:
        """Step `key` failed."""
        self._end(key, "failed", detail)

    def leave(self, key: str, detail: str) -> None:
        """Step `key` is left undone, and nothing failed: `detail` says why."""
        self._end(key, "unfinished", detail)

    def leave_active(self, detail: str) -> None:
        """Leave what is active undone, as `leave` does."""
        for key, item in self._items.items():
            if item.state == "active":
                self.leave(key, detail)

    def _end(self, key: str, state: str, detail: str) -> None:
        item = self._items[key]
        now = time.monotonic()
        item.seconds = now - item.began if item.state == "active" else 0.0
        item.state, item.detail = state, printable(detail)
        self._tell(key)
        if not self._screen.live:
            self._line(item, _MARKS[state][0])

    def _tell(self, key: str) -> None:
        item = self._items[key]
        self._screen.event(
            "step",
            {
                "phase": item.phase,
                "step": key,
                "state": item.state,
                "detail": item.detail,
                "seconds": round(item.seconds, 3)
                if item.state in {"done", "failed", "unfinished"}
                else None,
                "simulated": self.simulated,
            },
        )

    def _line(self, item: _Item, mark: str) -> None:
        words = f"{item.phase:<7} {mark} {item.label:<{self._label_width}}  {item.detail}".rstrip()
        self._screen.show(
            Text(f"{words}  ({item.seconds:.1f} s)" if item.seconds >= 0.05 else words)
        )

    def _render(self) -> Group:
        title = Text(self._title, style="bold")
        parts = [title, simulated_line()] if self.simulated else [title]
        rows = Table.grid(padding=(0, 2, 0, 0), expand=True)
        rows.width = min(self._screen.out.width, _MAX_COLUMNS)
        rows.add_column(no_wrap=True, width=9)
        rows.add_column(no_wrap=True, width=self._label_width + 2)
        rows.add_column(style="dim", no_wrap=True, overflow="ellipsis", ratio=1)
        rows.add_column(style="dim", no_wrap=True, justify="right", width=7)
        phase = ""
        for item in self._items.values():
            rows.add_row(
                Text("" if item.phase == phase else f"  {item.phase}", style="bold"),
                self._marked(item),
                Text(item.detail),
                self._timing(item),
            )
            phase = item.phase
        drawn = () if self._below is None else (self._below(),)
        return Group(Text(), *parts, Text(), rows, *drawn)

    def _marked(self, item: _Item) -> Text:
        mark, style = _MARKS[item.state]
        if item.state == "active":
            mark = _FRAMES[int(time.monotonic() * _FRAMES_A_SECOND) % len(_FRAMES)]
        return Text.assemble((mark, style), " ", (item.label, style if style == "dim" else ""))

    @staticmethod
    def _timing(item: _Item) -> Text:
        if item.state == "pending":
            return Text("")
        spent = time.monotonic() - item.began if item.state == "active" else item.seconds
        return Text(f"{spent:.1f} s" if spent >= 0.05 else "")
