"""docs/cli.md names every option of some verbs, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from confide.cli import data, keys, node, proxy, receipts, relay, train

TEXT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")


def section(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)^## ", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def options(app: typer.Typer) -> set[str]:
    command = typer.main.get_command(app)
    commands = getattr(command, "commands", {"": command})
    found = {name for each in commands.values() for param in each.params for name in param.opts}
    return {name for name in found if name.startswith("--")}


@pytest.mark.parametrize(
    ("name", "app"),
    [
        ("Proxy", proxy.app),
        ("Relay", relay.app),
        ("Receipts", receipts.app),
        ("Keys", keys.app),
        ("Training data", data.app),
        ("Training", train.app),
    ],
)
def test_options_and_their_description_are_the_same(name: str, app: typer.Typer) -> None:
    said = set(re.findall(r"`(--[a-z-]+)[ `]", section(name)))
    # Of every verb, and described once for all of them.
    assert options(app) - {"--json"} == said - {"--json"}


def test_every_sub_verb_of_receipts_is_described() -> None:
    commands = typer.main.get_command(receipts.app).commands  # type: ignore[attr-defined]
    assert set(commands) == set(re.findall(r"`receipts ([a-z]+)", section("Receipts")))


@pytest.mark.parametrize("name", ["proxy", "receipts", "keys", "train"])
def test_the_table_of_verbs_has_them(name: str) -> None:
    assert re.search(rf"^\| `{name}[ `]", TEXT, re.MULTILINE)


def test_the_options_for_a_model_nodes_callers_are_described() -> None:
    said = set(re.findall(r"^\| `(--[a-z-]+)[ `]", section("A model node's callers"), re.MULTILINE))
    there = {
        name
        for param in typer.main.get_command(node.app).commands["model"].params  # type: ignore[attr-defined]
        for name in param.opts
    }
    assert said <= there
    assert said == {"--keys", "--tenant-cache", "--metrics", "--traces", "--telemetry-by-key"}


def test_the_options_of_a_training_node_are_described() -> None:
    there = {
        name
        for param in typer.main.get_command(node.app).commands["train"].params  # type: ignore[attr-defined]
        for name in param.opts
    }
    assert set(re.findall(r"`(--[a-z-]+)[ `]", section("A training node"))) == there
