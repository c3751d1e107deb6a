"""Verbs about this machine, without a container and without a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

AGENT = """
name = "probe"
mode = "batch"
entry = ["python3", "/agent/agent.py"]
model = "support-notes"
[limits]
input_bytes = 8
"""


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "agent.toml").write_text(AGENT)
    (folder / "agent.py").write_text("")
    return folder


def test_status_without_nodes(cli: Cli) -> None:
    seen = cli("status")
    assert seen.code == 20
    assert "no node runs" in seen.out
    assert " SIMULATED " in seen.out
    result = cli("status", "--json").result
    assert (result["running"], result["nodes"], result["simulated"]) == (False, [], True)


def test_down_without_nodes(cli: Cli) -> None:
    assert cli("down").out == "no node was running\n"
    assert cli("down", "--json").result == {"event": "result", "stopped": 0, "simulated": True}


def test_doctor_says_what_is_missing_and_how_to_mend_it(cli: Cli, tmp_path: Path) -> None:
    seen = cli("doctor", PATH=str(tmp_path))
    assert seen.code == 20
    assert "Agents cannot run here yet." in seen.out
    assert "apt-get install podman runc" in seen.out
    result = cli("doctor", "--json", PATH=str(tmp_path)).result
    states = {item["name"]: item["state"] for item in result["findings"]}
    assert result["able"] is False
    assert states["container engine"] == "missing"
    assert states["Python"] == "ok"
    assert states["NVIDIA GPU"] == "simulated"
    assert result["machines"] == {"simulated": False, "tdx": False, "dstack": False, "gpus": False}
    assert result["proves"] == "nothing"
    assert all(item["mend"] for item in result["findings"] if item["state"] == "missing")


@pytest.mark.parametrize("fault", ["agent", "agent=no-such-fault", "gpu=devtools"])
def test_a_fault_that_nobody_knows_starts_nothing(cli: Cli, fault: str) -> None:
    assert cli("up", "--simulate-fault", fault).code == 2
    assert cli("status").code == 20


def test_inputs_are_looked_at_before_anything_starts(
    cli: Cli, agent: Path, tmp_path: Path, home: Path
) -> None:
    large, named = tmp_path / "large", tmp_path / "two\nlines"
    large.write_bytes(b"123456789")
    named.write_bytes(b"1")
    for path, why in (
        (tmp_path / "none", "does not exist"),
        (large, "9 bytes, and limits.input_bytes allows 8"),
        (named, "two\\nlines has a name that no agent is given"),
    ):
        seen = cli("run", agent, "--input", path)
        assert seen.code == 2
        assert why in seen.err
        assert len(seen.err.splitlines()) == 1
    assert not list(home.rglob("nodes.json"))


def test_a_batch_agent_is_not_a_chat_agent(cli: Cli, agent: Path) -> None:
    seen = cli("chat", agent)
    assert seen.code == 2
    assert "use confide run" in seen.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--node", "http://127.0.0.1:1"], "--node needs --roots"),
        (["--node", "http://127.0.0.1:1", "--roots", "vendor"], "--node needs --expectation"),
        (["--roots", "vendor"], "--roots goes with --node"),
    ],
)
def test_a_node_needs_roots_and_an_expectation(
    cli: Cli, agent: Path, words: list[str], why: str
) -> None:
    seen = cli("run", agent, *words)
    assert seen.code == 2
    assert why in seen.err


def test_an_output_directory_with_something_in_it_is_left_alone(
    cli: Cli, agent: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    assert cli("run", agent, "--output", taken).code == 2
    assert (taken / "mine").read_text() == "mine"


def test_a_folder_without_manifest(cli: Cli, tmp_path: Path) -> None:
    seen = cli("run", tmp_path, "--json")
    assert seen.code == 2
    assert seen.events[-1]["kind"] == "configuration"
    assert "agent.toml" in seen.events[-1]["message"]


def test_weights_go_with_the_name_of_their_model(cli: Cli, tmp_path: Path) -> None:
    seen = cli("up", "--weights", tmp_path)
    assert (seen.code, "--weights goes with --model" in seen.err) == (2, True)
    seen = cli("up", "--weights", tmp_path / "absent", "--model", "ft:base:confide:x:00000000")
    assert (seen.code, "is not a directory" in seen.err) == (2, True)
    assert cli("status").code == 20


def test_a_base_that_is_not_here_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    recipe, rows = tmp_path / "recipe.toml", tmp_path / "rows.jsonl"
    recipe.write_text('base_model = "elsewhere"\nlearning_rate = 1e-4\n')
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    seen = cli("train", recipe, "--data", rows)
    assert seen.code == 2
    assert "name it with --base DIR" in seen.err
    assert cli("status").code == 20
