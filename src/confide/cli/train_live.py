"""A training as it goes on: steps of the way, and the curve of its loss.

On a terminal one view that fills itself; in a pipe a line for every twentieth of the steps; with
`--json` an object for each event. What it shows of a running job is the node's word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from confide.cli.curve import curve, short_number
from confide.cli.report import counted
from confide.cli.screen import human_bytes, printable
from confide.client.train import Watcher

if TYPE_CHECKING:
    from rich.console import RenderableType

    from confide.cli.screen import Screen
    from confide.cli.tree import Plan, Tree
    from confide.client.train_job import JobNews, JobView
    from confide.wire.json import JsonValue

__all__ = ["PLAN", "LiveTraining", "in_words"]

PLAN: Final[Plan] = (
    ("before", "rows", "rows read"),
    ("before", "prove", "node proven"),
    ("before", "send", "rows sent sealed"),
    ("during", "job", "job asked for"),
    ("during", "train", "trained"),
    ("after", "open", "results opened"),
    ("after", "verify", "held together"),
)
_WAITING: Final = {
    "validating_files": "the node reads the files",
    "queued": "queued",
    "pausing": "pausing after a checkpoint",
}
_HEIGHT: Final = 6
_WIDEST: Final = 64
_LINES: Final = 20
_KEPT: Final = 100_000
# Seconds: less than this is not worth a word.
_SOON: Final = 1.0


def in_words(seconds: float) -> str:
    """Return a time in words: `40 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@dataclass(slots=True)
class LiveTraining:
    """What is known of a running training. `tree` is set once there is something to draw on."""

    screen: Screen
    tree: Tree | None = None
    steps: int = 0
    step: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    # Loss on held-out rows, by the step after which it was taken.
    held_out: dict[int, float] = field(default_factory=dict)
    # From the recipe: after how many steps there is a checkpoint; 0 where it is not known.
    checkpoint_every: int = 0
    _numbers: dict[str, float] = field(default_factory=dict)
    _told: int = 0
    # The curve as it was drawn last, for so many losses and this width.
    _drawn: tuple[tuple[int, int], tuple[list[str], list[str]]] | None = None

    def watcher(self) -> Watcher:
        """Return what a training tells."""
        return Watcher(
            read=lambda size, rows: self._note("rows", f"{rows:,} rows, {human_bytes(size)}"),
            sent=lambda sent, of: self._note("send", f"{human_bytes(sent)} of {human_bytes(of)}"),
            news=self._news,
            stood=self._stood,
            silent=lambda seconds: self._note(
                "train", f"no answer for {in_words(seconds)}; asking again"
            ),
            fetched=lambda got, of: self._note("open", f"{human_bytes(got)} of {human_bytes(of)}"),
        )

    def _note(self, key: str, detail: str) -> None:
        if self.tree is not None:
            self.tree.note(key, detail)

    def _stood(self, job: JobView) -> None:
        if job.status in _WAITING:
            self._note("train", _WAITING[job.status])
        elif not self.step:
            self._note("train", "the node reads the base model")

    def _news(self, news: JobNews) -> None:
        numbers = dict(news.numbers)
        self.screen.event("news", _document(news))
        if "valid_loss" in numbers:
            self._evaluated(numbers)
        elif "train_loss" in numbers:
            self._stepped(numbers)
        elif news.level != "info":
            self.screen.say(f"{news.level}: {printable(news.message)}")

    def _evaluated(self, numbers: dict[str, float]) -> None:
        if "base_loss" in numbers:
            self.held_out[0] = numbers["base_loss"]
        self.held_out[int(numbers.get("step", self.step))] = numbers["valid_loss"]
        # That of the end stands on the last screen.
        if "base_loss" not in numbers and not self.screen.live:
            share = numbers.get("valid_accuracy", 0.0)
            self.screen.show(Text(f"        {self.judged()}  accuracy {share:.1%}"))

    def judged(self) -> str:
        """Return the newest loss on held-out rows, in a few words."""
        last = max(self.held_out)
        return f"held out after step {last:,}  loss {short_number(self.held_out[last])}"

    def _stepped(self, numbers: dict[str, float]) -> None:
        self._numbers = numbers
        self.step, self.steps = int(numbers.get("step", 0)), int(numbers.get("steps", 0))
        if len(self.losses) < _KEPT:
            self.losses[self.step] = numbers["train_loss"]
        if self.screen.live:
            # Elsewhere a line, or an object, says it already.
            self._note("train", f"step {self.step:,} of {self.steps:,}")
        every = max(1, self.steps // _LINES)
        due = self.step >= self._told + every or self.step == self.steps or not self._told
        if not self.screen.live and due and self.step != self._told:
            self._told = self.step
            self.screen.show(Text(f"        {self.line()}"))

    def line(self) -> str:
        """Return how it stands, in one line."""
        return f"{self._at()}  {self._pace()}".rstrip()

    def _at(self) -> str:
        numbers, parts = self._numbers, [f"step {self.step:,} of {self.steps:,}"]
        parts.append(f"loss {short_number(numbers.get('train_loss', 0.0))}")
        parts.append(f"lr {short_number(numbers.get('learning_rate', 0.0))}")
        return "  ".join(parts)

    def _pace(self) -> str:
        """Return how fast it is and what is left, by the node's word; the last second is not."""
        speed, left = (
            self._numbers.get(name, 0.0) for name in ("tokens_per_second", "seconds_left")
        )
        parts = [f"{speed:,.0f} tokens/s"] if speed else []
        return "  ".join([*parts, f"{in_words(left)} left"] if left >= _SOON else parts)

    def render(self) -> RenderableType:
        """Return what is drawn under the steps of the way: nothing before the first step."""
        if not self.losses:
            return Text()
        width = max(16, min(_WIDEST, self.screen.out.width - 24))
        # Several frames a second are drawn, and most of them show the same steps.
        if self._drawn is None or self._drawn[0] != (len(self.losses), width):
            self._drawn = ((len(self.losses), width), self._curve(width))
        labels, lines = self._drawn[1]
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(justify="right", style="dim", no_wrap=True, width=20)
        grid.add_column(no_wrap=True)
        for label, line in zip(labels, lines, strict=True):
            grid.add_row(Text(label), Text(line, style="cyan"))
        grid.add_row(Text(""), self._bar(width))
        # Two lines of it: together they are wider than a terminal of 80 columns.
        told = [Text(" " * 21 + line) for line in (self._at(), self._pace()) if line]
        return Group(Text(), grid, *told, *self._more())

    def _curve(self, width: int) -> tuple[list[str], list[str]]:
        """Return the labels of the lines of the curve, and these."""
        values = [loss for _, loss in sorted(self.losses.items())]
        # As far to the right as it has come.
        drawn = max(1, round(width * min(1.0, self.step / max(1, self.steps))))
        labels = [""] * _HEIGHT
        labels[0], labels[-1] = short_number(max(values)), short_number(min(values))
        labels[_HEIGHT // 2 - 1] = "loss"
        return labels, curve(values, width=drawn, height=_HEIGHT)

    def _bar(self, width: int) -> Text:
        filled = round(width * min(1.0, self.step / max(1, self.steps)))
        return Text.assemble(("━" * filled, "green"), ("━" * (width - filled), "dim"))

    def _more(self) -> list[Text]:
        parts = []
        if self.checkpoint_every:
            made = self.step // self.checkpoint_every
            made += self.step == self.steps and self.step % self.checkpoint_every > 0
            parts.append(f"{counted(made, 'checkpoint')}, sealed to your key")
        if self.held_out:
            parts.append(self.judged())
        return [Text(" " * 21 + "  ".join(parts), style="dim")] if parts else []


def _document(news: JobNews) -> dict[str, JsonValue]:
    return {
        "id": news.id,
        "at": news.at,
        "level": news.level,
        "message": news.message,
        "data": dict(news.numbers),
    }
