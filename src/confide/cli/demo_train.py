"""`confide demo train`: rows in, a model out that nobody else opens, used, walked back to one row.

Every stage is a command that anybody can type, run as a process of its own and shown as typed.
What is said at the end is read from the files that these commands left.
"""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.adapters.upstream_serve import BUNDLED_WEIGHTS
from confide.cli import exits
from confide.cli.demo_words import learnt, same_digest, story, what_was_shown
from confide.cli.localnodes import local_engine
from confide.cli.places import Places, read_bounded
from confide.cli.screen import (
    Screen,
    command_line,
    fields,
    hanging,
    heading,
    printable,
    simulated_line,
)
from confide.client.local import example_folder
from confide.client.train_folder import OwnerFolder
from confide.errors import ConfigurationError
from confide.expectation import parse_expectation
from confide.receipts.file import parse_receipt_file
from confide.training.owner_log import parse_owner_log
from confide.training.record_file import parse_record_file
from confide.training.record_parse import parse_training_record

if TYPE_CHECKING:
    from pathlib import Path

    from confide.training.owner_log import OwnerLog

__all__ = ["app"]

app = typer.Typer()
_EXAMPLE = "desks"
_SUFFIX = "desks"
_ROWS = 600
_ROW = 17
_SHOWN_ROWS = 2


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the agent was told about each new note, and what is right."""

    rows: tuple[tuple[str, str, str], ...]

    @property
    def right(self) -> int:
        """How many desks were the right ones."""
        return sum(said == wanted for said, wanted, _note in self.rows)


class _Failed(Exception):
    """A command of the demo that did not end well; it has said why."""

    def __init__(self, code: int) -> None:
        self.code = code


@app.command()
def train(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Train privately, use the model in an agent, verify the whole chain. SIMULATED hardware."""
    screen, places = Screen.of(ctx, as_json=as_json), Places.here()
    example = example_folder(_EXAMPLE)
    engine = local_engine(places)
    before = any(state.alive for state in engine.status())
    began = time.monotonic()
    try:
        work = _make_work(places)
        _Demo(screen, example, work, places.paths.simulated_roots).play(places)
        screen.show(Text(f"\nAll of it took {time.monotonic() - began:.0f} s.", style="dim"))
    except _Failed as failed:
        raise typer.Exit(failed.code) from failed
    finally:
        if not before:
            engine.down()


def _make_work(places: Places) -> Path:
    places.paths.make_private()
    now, token = places.clock.now(), places.entropy.token(2)
    work = places.paths.data / "demo" / f"{now:%Y%m%dT%H%M%SZ}-train-{token.hex()}"
    work.mkdir(mode=0o700, parents=True)
    return work


class _Demo:
    """The stages, in their order, in the folder `work`."""

    def __init__(self, screen: Screen, example: Path, work: Path, roots: Path) -> None:
        self.screen = screen
        self.example = example
        self.work = work
        self.roots = roots
        self.training = work / "training"
        self.tuned = self.training / "tuned"

    def play(self, places: Places) -> None:
        """Play everything. Raises `_Failed` where a command does not end well."""
        self.screen.show(Text(story()), simulated_line())
        self._stage("1  Rows that nobody else should read", "in a folder of this demo")
        self._make_rows()
        self._stage("2  Trained where nobody can look", "sealed rows in, sealed weights out")
        recipe = str(self.example / "recipe.toml")
        words = ["train", recipe, "--data", "rows.jsonl", "--suffix", _SUFFIX, "-o", "training"]
        self._confide(*words, "--checkpoints")
        self._confide("log", "add", "training/tuned/record.json")
        self._stage("3  Used by an agent", "the same digest: what was trained is what answers")
        name = self._name()
        sample = self.example / "sample"
        self._confide(
            *("run", str(self.example), "--input", str(sample / "notes.csv")),
            *("--model", name, "--weights", "training/tuned/merged"),
            *("--output", "output", "--receipt", "receipt.json"),
        )
        answers = self._answers()
        self._show_answers(answers)
        self._show_digests()
        self._stage("4  One verification of everything", "offline, by another process")
        salt = ["--salt", "training/dataset.salt"]
        self._confide("data", "prove", "rows.jsonl", str(_ROW), *salt, "-o", "row.proof")
        engine = local_engine(places)
        engine.roots()
        self._confide(
            *("verify", "receipt.json", "--with", "training/tuned/record.json"),
            *("--with", "row.proof", "--outputs", "output"),
            *("--simulated-roots", str(self.roots)),
            *("--log-policy", str(engine.log_policy())),
        )
        self._show_end(answers)

    def _stage(self, title: str, note: str) -> None:
        self.screen.show(heading(title, note))

    def _make_rows(self) -> None:
        script = [str(self.example / "rows.py"), "--rows", str(_ROWS), "-o", "rows.jsonl"]
        self._run([sys.executable, *script], f"python {shlex.join(script)}")
        with (self.work / "rows.jsonl").open(encoding="utf-8") as file:
            shown = [next(file).rstrip("\n") for _ in range(_SHOWN_ROWS)]
        self.screen.show(*(Text(f"  {printable(row)}", style="dim") for row in shown))
        self._confide("data", "check", "rows.jsonl")

    def _confide(self, *words: str) -> None:
        more = ["--json"] if self.screen.as_json else []
        command = [sys.executable, "-m", "confide", *words, *more]
        self._run(command, shlex.join(["confide", *words]))

    def _run(self, command: list[str], shown: str) -> None:
        line = Text(f"$ {shown}", style="bold cyan", no_wrap=True, overflow="ignore")
        self.screen.show(Text(), line)
        sys.stdout.flush()
        # The same interpreter; processes that share nothing but the files that they leave.
        done = subprocess.run(command, cwd=self.work, check=False)  # noqa: S603 - our own programs
        if done.returncode:
            raise _Failed(done.returncode)

    def _name(self) -> str:
        """Return what the tuned model is called (training-node.md 2.4)."""
        state = OwnerFolder.open(self.training).state
        if state.job is None or state.recipe is None:
            raise ConfigurationError(f"{self.training} holds no finished training")
        ident = state.job.removeprefix("ftjob-")[:8]
        return f"ft:{state.recipe.base_model}:confide:{_SUFFIX}:{ident}"

    def _log(self) -> OwnerLog:
        return parse_owner_log((self.tuned / "owner-log.json").read_bytes())

    def _answers(self) -> _Answers:
        with (self.example / "sample" / "answers.csv").open(newline="", encoding="utf-8") as file:
            wanted = {row["id"]: row["desk"] for row in csv.DictReader(file)}
        raw = read_bounded(self.work / "output" / "desks.csv", "output").decode("utf-8", "replace")
        rows = csv.DictReader(raw.splitlines())
        return _Answers(tuple((row["desk"], wanted[row["id"]], row["note"]) for row in rows))

    def _show_answers(self, answers: _Answers) -> None:
        lines = []
        for said, wanted, note in answers.rows:
            mark, style = ("✓", "green") if said == wanted else ("✗", "red")
            right = "" if said == wanted else f"  (right: {wanted})"
            begun = Text.assemble((f"  {mark} ", style), f"{printable(said):<7}")
            lines.append(hanging(begun, f"{printable(note)}{right}"))
        total = len(answers.rows)
        self.screen.show(
            heading("What the agent wrote", f"{answers.right} of {total} right"), *lines
        )

    def _show_digests(self) -> None:
        record = parse_record_file((self.tuned / "record.json").read_bytes()).record
        made = parse_training_record(record.payload).outputs["merged"].hex()
        receipt = parse_receipt_file((self.work / "receipt.json").read_bytes())
        wanted = parse_expectation(receipt.expectation)
        rows = same_digest(made, wanted.model.weights)
        self.screen.show(heading("Weights", "SHA-256 of what was measured"), fields(rows))

    def _next(self) -> list[list[str]]:
        """Return what can be done with what is there: a page, and steps executed again."""
        record = "training/tuned/record.json"
        owner = ["--owner-log", "training/tuned/owner-log.json", "--salt", "training/dataset.salt"]
        trust = ["--simulated-roots", str(self.roots)]
        page = ["train", "report", record, "-o", "report.html", *owner, "--with", "receipt.json"]
        again = ["train", "replay", record, *owner, "--data", "rows.jsonl"]
        again += ["--base", str(BUNDLED_WEIGHTS), "--checkpoints", "training/tuned/checkpoints"]
        again += ["--checkpoint-key", "training/checkpoint.key", "--steps", "2", "--threads", "1"]
        return [[*page, *trust], [*again, *trust]]

    def _show_end(self, answers: _Answers) -> None:
        evaluations = self._log().evaluations
        if evaluations is None:
            raise ConfigurationError("the recipe of the demo holds rows out")
        base, tuned = (each.metrics for each in evaluations)
        facts = learnt(base, tuned, right=answers.right, asked=len(answers.rows))
        self.screen.show(heading("What was learnt"), fields(facts), *what_was_shown())
        self.screen.show(
            heading("Your turn", "everything is in the folder of this demo"),
            command_line(f"cd {shlex.quote(str(self.work))}"),
            *(command_line(shlex.join(["confide", *words])) for words in self._next()),
            command_line("confide train YOUR-RECIPE.toml --data YOUR-ROWS.jsonl"),
        )
        self.screen.event(
            "result",
            {
                "folder": str(self.work),
                "simulated": True,
                "exit": exits.ACCEPTED,
                "base": {"loss": base.loss, "accuracy": base.accuracy},
                "tuned": {"loss": tuned.loss, "accuracy": tuned.accuracy},
                "answers": {"right": answers.right, "asked": len(answers.rows)},
            },
        )
