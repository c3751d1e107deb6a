"""`confide train RECIPE`: which word means what, what is said before a node is asked, what is seen.

Whole trainings on the command line are in tests/e2e/test_train_cli_process.py.
"""

from __future__ import annotations

import cProfile
import io
import json
import os
import pstats
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nodes import CountingEntropy
from rich.console import Console
from rich.text import Text
from runs import expectation_and_roots
from train_world import ROWS

from confide.cli.curve import curve, short_number
from confide.cli.screen import Screen
from confide.cli.train_live import LiveTraining, in_words
from confide.client.train_folder import OwnerFolder
from confide.client.train_job import JobNews, JobView, failure_of
from confide.errors import ConfigurationError, FormatError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

RECIPE = 'base_model = "support-notes"\nlearning_rate = 1e-2\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    return path


# --- words ----------------------------------------------------------------------------------------


def test_a_first_word_that_is_no_verb_is_a_recipe(cli: Cli, recipe: Path) -> None:
    for words in ((recipe,), ("run", recipe)):
        seen = cli("train", *words)
        assert seen.code == 2
        assert "--data" in seen.err


def test_help_names_the_verbs_in_the_order_of_a_training(cli: Cli) -> None:
    out = cli("train", "--help").out
    places = [out.index(f"│ {verb} ") for verb in ("run", "resume", "jobs", "open", "report")]
    assert places == sorted(places)
    assert "confide train RECIPE.toml --data ROWS.jsonl" in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--node", "http://127.0.0.1:9"), "--node needs --expectation"),
        (("--node", "http://127.0.0.1:9", "--base", "x"), "--base is for a local node"),
        (("--roots", "vendor"), "--roots goes with --node"),
    ],
)
def test_what_belongs_together_is_said(
    cli: Cli, recipe: Path, words: tuple[str, ...], said: str
) -> None:
    seen = cli("train", recipe, "--data", recipe.with_name("rows.jsonl"), *words)
    assert (seen.code, said in seen.err) == (2, True), seen.err


def test_what_cannot_be_sent_is_said_before_a_local_node_is_started(
    cli: Cli, recipe: Path, tmp_path: Path
) -> None:
    rows, absent = recipe.with_name("rows.jsonl"), tmp_path / "absent.jsonl"
    os.mkfifo(tmp_path / "pipe")
    for words, said in (
        (("--data", absent), "absent.jsonl cannot be read: No such file or directory"),
        (("--data", rows, "--validation", absent), "absent.jsonl cannot be read"),
        (("--data", tmp_path), "is no file: rows are read again when they are sent"),
        (("--data", tmp_path / "pipe"), "is no file"),
        (("--data", rows, "--suffix", "my model!"), "--suffix: letters, digits, - and _ only"),
        (("--data", rows, "--suffix", "a" * 65), "64 at most"),
    ):
        seen = cli("train", recipe, *words)
        assert (seen.code, said in seen.err) == (2, True), seen.err
    assert cli("status", "--json").result["nodes"] == []


def test_a_recipe_in_yaml_is_told_how_to_become_one(cli: Cli, recipe: Path) -> None:
    yaml = recipe.with_suffix(".yaml")
    yaml.write_text("base_model: support-notes\n")
    seen = cli("train", yaml, "--data", recipe.with_name("rows.jsonl"))
    assert (seen.code, "a recipe is TOML" in seen.err) == (2, True), seen.err
    recipe.write_text("base_model: support-notes\n")
    seen = cli("train", recipe, "--data", recipe.with_name("rows.jsonl"))
    assert (seen.code, "malformed: recipe: not TOML" in seen.err) == (30, True), seen.err


def test_a_misspelt_key_is_answered_with_the_right_one(cli: Cli, recipe: Path) -> None:
    recipe.write_text(RECIPE + "micro_batchsize = 2\n")
    seen = cli("train", recipe, "--data", recipe, "--json")
    assert seen.code == 30
    assert "did you mean micro_batch_size?" in seen.events[-1]["message"]
    assert "training.md §1" in seen.events[-1]["advice"][0]


def test_a_training_of_which_nothing_was_kept_goes_on_nowhere(cli: Cli, tmp_path: Path) -> None:
    expectation, roots = expectation_and_roots()
    folder = OwnerFolder.create(
        tmp_path / "mine",
        node="http://127.0.0.1:9",
        expectation=expectation,
        roots=roots,
        recipe=None,
        entropy=CountingEntropy(),
    )
    folder.now_at(replace(folder.state, job="ftjob-1"))
    seen = cli("train", "resume", folder.path, "--node", "http://127.0.0.1:9")
    assert (seen.code, "nothing whole of the job was kept" in seen.err) == (2, True), seen.err
    (folder.path / "handover").mkdir()
    (folder.path / "handover" / "handover.json").write_bytes(b"{}")
    seen = cli("train", "resume", folder.path, "--node", "http://127.0.0.1:9")
    assert (seen.code, "nothing whole of the job was kept" in seen.err) == (2, True), seen.err


def test_there_are_no_trainings_yet(cli: Cli) -> None:
    assert "no trainings yet" in cli("train", "jobs").out
    assert cli("train", "jobs", "--json").result["trainings"] == []


# --- what failed ----------------------------------------------------------------------------------


def ended(code: str, *, resumable: bool = False, status: str = "failed") -> JobView:
    error = None if status == "cancelled" else (code, "Line 4: 300 tokens, at most 128.")
    return JobView("ftjob-1", status, "m", 1, 0, None, error, resumable, None, ())


def test_a_job_that_failed_says_who_has_to_do_something() -> None:
    assert isinstance(failure_of(ended("invalid_training_file")), FormatError)
    assert isinstance(failure_of(ended("out_of_memory", resumable=True)), Unavailable)
    assert isinstance(failure_of(ended("not_finite")), ConfigurationError)
    assert "nothing of it is left" in str(failure_of(ended("", status="cancelled")))


# --- what goes on ---------------------------------------------------------------------------------


def stepped(live: LiveTraining, steps: int, upto: int) -> None:
    news = live.watcher().news
    for step in range(1, upto + 1):
        numbers = {
            "step": float(step),
            "steps": float(steps),
            "train_loss": 2.0 / step,
            "learning_rate": 1e-5,
            "tokens_per_second": 1234.5,
            "seconds_left": 61.0 * (steps - step),
        }
        news(JobNews(f"e{step}", step, "info", f"Step {step}", numbers))


def test_a_pipe_gets_a_line_for_each_twentieth(capsys: pytest.CaptureFixture[str]) -> None:
    stepped(LiveTraining(Screen(as_json=False)), 1000, 1000)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert lines[0].split("  ")[-5:] == [
        "step 1 of 1,000",
        "loss 2",
        "lr 1.0e-05",
        "1,234 tokens/s",
        "16 h 55 min left",
    ]
    assert "step 1,000 of 1,000" in lines[-1]


def test_a_terminal_of_eighty_columns_wraps_nothing() -> None:
    screen = Screen(as_json=False)
    screen.out = Console(width=80, force_terminal=True, file=io.StringIO())
    live = LiveTraining(screen, checkpoint_every=10)
    stepped(live, 2000, 1500)
    screen.out.print(live.render())
    shown = Text.from_ansi(screen.out.file.getvalue()).plain.splitlines()  # type: ignore[attr-defined]
    below = [line.strip() for line in shown[shown.index(next(x for x in shown if "━" in x)) + 1 :]]
    assert below == [
        "step 1,500 of 2,000  loss 0.001333  lr 1.0e-05",
        "1,234 tokens/s  8 h 28 min left",
        "150 checkpoints, sealed to your key",
    ]


def test_a_curve_of_many_steps_is_drawn_when_there_is_more_to_show() -> None:
    live = LiveTraining(Screen(as_json=False))
    stepped(live, 2000, 1000)
    profile = cProfile.Profile()
    with profile:
        for _ in range(20):
            live.render()
        stepped(live, 2000, 1100)
        live.render()
    stats: dict[tuple[str, int, str], tuple[int, ...]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    assert sum(counts[0] for (_file, _line, name), counts in stats.items() if name == "curve") == 2


def test_the_last_second_is_not_counted_down(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveTraining(Screen(as_json=False))
    numbers = {"step": 1.0, "steps": 9.0, "train_loss": 1.0, "seconds_left": 0.4}
    live.watcher().news(JobNews("e", 1, "info", "Step 1", numbers))
    assert "left" not in capsys.readouterr().out


def test_a_pipe_gets_a_line_for_each_evaluation_on_the_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    live = LiveTraining(Screen(as_json=False))
    news = live.watcher().news
    news(JobNews("e", 1, "info", "", {"step": 40.0, "valid_loss": 1.25, "valid_accuracy": 0.5}))
    ended = {"step": 41.0, "base_loss": 2.0, "valid_loss": 1.0, "valid_accuracy": 0.6}
    news(JobNews("f", 2, "info", "", ended))
    said = capsys.readouterr().out.split("\n")
    assert said == ["        held out after step 40  loss 1.25  accuracy 50.0%", ""]
    assert live.held_out == {0: 2.0, 40: 1.25, 41: 1.0}


def test_a_program_gets_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    stepped(LiveTraining(Screen(as_json=True)), 100, 30)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["data"]["step"] for each in found] == list(range(1, 31))


def test_a_warning_of_the_node_is_shown_and_made_printable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    live = LiveTraining(Screen(as_json=False))
    live.watcher().news(JobNews("e", 1, "warn", "again\x1b[2J", {}))
    assert capsys.readouterr().err == "warn: again\\x1b[2J\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99.4, "99 s"), (100, "1 min 40 s"), (5999, "99 min 59 s"), (7500, "2 h 5 min")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


# --- the curve ------------------------------------------------------------------------------------

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(NUMBERS, min_size=1, max_size=300), st.integers(1, 40), st.integers(1, 8))
def test_a_curve_fills_its_place_and_nothing_else(
    values: list[float], width: int, height: int
) -> None:
    drawn = curve(values, width=width, height=height)
    assert [len(line) for line in drawn] == [width] * height
    dots = {character for line in drawn for character in line}
    assert all("\u2800" <= dot <= "\u28ff" for dot in dots)
    assert dots != {"\u2800"}


def test_a_curve_falls_where_the_values_fall() -> None:
    falling = curve([3.0, 2.0, 1.0], width=6, height=3)
    assert falling[0][0] != "\u2800"
    assert falling[2][5] != "\u2800"
    assert (falling[2][0], falling[0][5]) == ("\u2800", "\u2800")
    assert curve([], width=3, height=1) == ["\u2800" * 3]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (5.6881, "5.688"), (1e-4, "1.0e-04"), (2.5e7, "2.5e+07")]
)
def test_numbers_for_reading(value: float, text: str) -> None:
    assert short_number(value) == text
