"""Errors become one message and one exit code; no traceback reaches a user."""

from __future__ import annotations

import importlib
import io
import itertools
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer
from rich.console import Console

from confide.cli import exits
from confide.cli.advice import advice_for
from confide.cli.main import VERBS
from confide.cli.screen import Screen
from confide.errors import (
    ConfigurationError,
    EvidenceRejected,
    FormatError,
    LocalProtocolError,
    PolicyRejected,
    Reason,
    ReceiptRejected,
    RemoteProtocolError,
    RunRefused,
    Unavailable,
    Unsupported,
)
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from sessions import Cli

FINDING = Finding(Status.FAIL, "tdx/9", "docs/protocols/tdx.md#9", "cpu", "old", Reason.TCB_STATUS)


def test_what_is_told_of_an_error_wraps_below_itself() -> None:
    screen = Screen(as_json=False)
    told = io.StringIO()
    screen.err = Console(width=80, file=told, force_terminal=True, color_system=None)
    error = FormatError("rows", reason=Reason.ROW_FORMAT, clause="x")
    error.add_note("the job ftjob-4c5c94a82639163921b82d9d58b78a1d does not need this program")
    exits.report(screen, exits.problem_of(error))
    first, *below = told.getvalue().splitlines()
    assert first.startswith("malformed: ")
    assert {line[:9] for line in below} == {"  to do  ", "  known  ", " " * 9}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EvidenceRejected((FINDING,)), 10),
        (PolicyRejected((FINDING,)), 10),
        (ReceiptRejected((FINDING,)), 10),
        (RunRefused((FINDING,)), 10),
        (FormatError("x", reason=Reason.QUOTE_FORMAT, clause="§1"), 30),
        (Unavailable("no answer"), 20),
        (Unsupported("another TEE"), 20),
        (RemoteProtocolError("cut", reason=Reason.CHANNEL_TRUNCATED), 20),
        (OSError(28, "No space left on device", "/data/receipt.json"), 20),
        (ConfigurationError("HOME is not set"), 2),
        (KeyboardInterrupt(), 130),
        (LocalProtocolError("a bug"), 70),
        (ValueError("a bug"), 70),
    ],
)
def test_every_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exits.problem_of(error).code == code


def test_an_unforeseen_error_does_not_repeat_its_text() -> None:
    problem = exits.problem_of(ValueError("the secret prompt"))
    assert "secret" not in problem.message
    assert any("report" in text for text in problem.advice)


def test_notes_become_what_is_known() -> None:
    error = Unavailable("gone")
    error.add_note("no input left this machine")
    assert exits.problem_of(error).known == ("no input left this machine",)


def test_a_refusal_is_shown_with_step_reason_clause_and_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exits.report(Screen(as_json=False), exits.problem_of(EvidenceRejected((FINDING,))))
    seen = capsys.readouterr()
    assert seen.out == ""
    for text in ("tdx/9", "tcb-status", "docs/protocols/tdx.md#9", "to do"):
        assert text in seen.err


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_advice_that_never_lowers_the_guard(reason: Reason) -> None:
    advice = advice_for(reason)
    assert advice.endswith(".")
    assert "anyway" not in advice
    assert "ignore" not in advice


@pytest.mark.parametrize("reason", Reason)
def test_malformed_bytes_say_nothing_about_hardware(reason: Reason) -> None:
    problem = exits.problem_of(FormatError("x", reason=reason, clause="§1"))
    assert problem.code == 30
    if advice_for(reason) == advice_for(Reason.QUOTE_SIGNATURE):
        assert "genuine" not in problem.advice[0]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(cli: Cli, verb: str) -> None:
    seen = cli(verb, "--help")
    assert seen.code == 0
    assert "--" in seen.out
    assert isinstance(importlib.import_module(f"confide.cli.{verb}").app, typer.Typer)


def test_a_misspelt_verb_is_suggested(cli: Cli) -> None:
    seen = cli("verfy")
    assert seen.code == 2
    assert "verify" in seen.err


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from confide.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'cryptography', 'lxml', 'httpx2', 'starlette', 'aiohttp', 'torch'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_verify_needs_no_network_client_and_no_node() -> None:
    program = (
        "import sys; import confide.cli.verify\n"
        "edges = {'httpx2', 'starlette', 'aiohttp', 'granian'}\n"
        "sys.exit(', '.join(edges & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_bug_is_one_line_and_exit_70(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_text: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("confide.cli.verify.read_target", broken)
    seen = cli("verify", "receipt.json")
    assert seen.code == 70
    assert "Traceback" not in seen.out + seen.err
    assert "secret" not in seen.out + seen.err
    assert "unexpected ZeroDivisionError" in seen.err


@pytest.mark.parametrize("words", [("run",), ("receipts", "verify"), ("keys", "usage")])
def test_help_breaks_lines_where_the_terminal_does(cli: Cli, words: tuple[str, ...]) -> None:
    seen = cli(*words, "--help")
    assert seen.code == 0
    text = seen.out.split("╭")[0].split("Usage:")[1]
    for paragraph in re.split(r"\n\s*\n", text)[1:]:
        # The next word would not have had room.
        lines = [line.strip() for line in paragraph.strip().splitlines()]
        for line, after in itertools.pairwise(lines):
            assert len(line) + 1 + len(after.split()[0]) > 76, paragraph
