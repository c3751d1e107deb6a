"""The before / during / after tree: on a terminal, in a pipe, for a program."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from confide.cli.screen import Screen, human_bytes, printable, shortened
from confide.cli.tree import Plan, Tree

PLAN: Plan = (
    ("before", "prove", "agent node proven"),
    ("during", "agent", "agent"),
    ("after", "verify", "receipt verified"),
)


def tell(tree: Tree) -> None:
    with tree:
        tree.begin("prove")
        tree.done("prove", "TDX")
        tree.begin("agent", "starting")
        tree.note("agent", "1 model call(s)")
        raise ConnectionError


def test_a_pipe_gets_one_line_a_step_and_sees_what_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConnectionError):
        tell(Tree(Screen(as_json=False), "confide run", PLAN, simulated=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "confide run"
    assert lines[1].startswith(" SIMULATED ")
    assert lines[2] == "before  ✓ agent node proven  TDX"
    assert lines[-1] == "during  ✗ agent              1 model call(s)"


def test_a_program_gets_one_object_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConnectionError):
        tell(Tree(Screen(as_json=True), "confide run", PLAN, simulated=True))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(e["phase"], e["step"], e["state"]) for e in events] == [
        ("before", "prove", "active"),
        ("before", "prove", "done"),
        ("during", "agent", "active"),
        ("during", "agent", "active"),
        ("during", "agent", "failed"),
    ]
    assert all(event["simulated"] is True for event in events)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_the_whole_plan_within_its_width(columns: int) -> None:
    screen = Screen(as_json=False)
    file = io.StringIO()
    screen.out = Console(file=file, force_terminal=True, width=columns, color_system=None)
    with pytest.raises(ConnectionError):
        tell(Tree(screen, "confide run", PLAN, simulated=True))
    last = file.getvalue().rsplit("confide run", 1)[-1].splitlines()
    shown = [line for line in last if line.strip() and "\x1b" not in line]
    assert "SIMULATED" in shown[0]
    assert [line.split()[0] for line in shown[1:]] == ["before", "during", "after"]
    assert [mark for line in shown for mark in "✓✗·" if mark in line] == ["✓", "✗", "·"]
    assert max(len(line) for line in shown) <= columns


def test_details_are_made_printable(capsys: pytest.CaptureFixture[str]) -> None:
    with Tree(Screen(as_json=False), "t", PLAN, simulated=False) as tree:
        tree.done("prove", "\x1b[31mred\nline")
    assert "\\x1b[31mred\\nline" in capsys.readouterr().out


def test_words_for_people() -> None:
    assert printable("a\u202eb\x07") == "a\\u202eb\\x07"
    assert printable("x" * 10, max_chars=4) == "xxxx…"
    assert shortened("digest " + "ab" * 32) == "digest abababababababab…"
    sizes = [human_bytes(number) for number in (0, 1023, 1024, 5 << 20)]
    assert sizes == ["0 B", "1023 B", "1.0 KiB", "5.0 MiB"]
