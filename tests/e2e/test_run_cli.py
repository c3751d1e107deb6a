"""The main job as a newcomer types it: `confide run examples/analyst`, in a home of its own."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from deployment import WAIT_SECONDS

if TYPE_CHECKING:
    from newcomer import Newcomer
    from stub_openai import StubOpenAI

pytestmark = pytest.mark.container
EXAMPLES = Path(__file__).parents[2] / "examples"
ANALYST = EXAMPLES / "analyst"
SAMPLE = ANALYST / "sample" / "notes.csv"


def test_one_command_keeps_the_promise_and_a_stranger_can_check(newcomer: Newcomer) -> None:
    code, events = newcomer.run(ANALYST, "--input", SAMPLE)
    result = events[-1]
    assert code == 0, events
    assert (result["verdict"], result["simulated"]) == ("accepted", True)
    done = [event["step"] for event in events if event.get("state") == "done"]
    assert done == [
        "image", "nodes", "expectation", "prove",
        "send", "model", "agent",
        "receipt", "verify", "log",
    ]  # fmt: skip
    assert result["happened"]["model_calls"]["count"] == 8
    assert sorted(result["outputs"]) == ["labelled.csv", "summary.md"]
    folder = Path(result["paths"]["receipt"]).parent
    assert folder.is_relative_to(newcomer.home / ".local" / "share" / "confide" / "runs")
    assert sorted(path.name for path in folder.iterdir()) == [
        "expectation.json", "output", "receipt.json",
    ]  # fmt: skip
    # Nothing in the working directory but the home's own dot folders.
    assert all(path.name.startswith(".") for path in newcomer.home.iterdir())

    assert (result["log"]["state"], len(result["log"]["witnesses"])) == ("final", 1)
    words = result["verify"].split()[1:]
    code, out, _err = newcomer.confide(*words, "--require-log", "--outputs", folder / "output")
    assert code == 0
    assert out.startswith("ACCEPTED (SIMULATED)")
    assert f"#{result['log']['index']} of " in out
    code, out, _err = newcomer.confide("verify", folder / "receipt.json")
    assert code == 10
    assert out.startswith("REJECTED (SIMULATED)")


def test_the_same_expectation_can_be_made_before_and_held_to(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    held, output = tmp_path / "held.json", tmp_path / "results"
    words = ("--upstream", newcomer.upstream)
    assert newcomer.confide("expect", ANALYST, "-o", held, *words)[0] == 0
    code, events = newcomer.run(
        ANALYST, "--input", SAMPLE, "--expectation", held, "--output", output
    )
    assert code == 0, events
    assert (output / "summary.md").read_text().startswith("# Support notes")
    assert Path(events[-1]["paths"]["expectation"]).read_bytes() == held.read_bytes()

    document = json.loads(held.read_bytes())
    document["agent"]["image"] = "0" * 64
    held.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))
    code, events = newcomer.run(ANALYST, "--expectation", held)
    assert code == 10
    assert events[-1]["findings"][0]["reason"] == "agent-image-mismatch"
    assert events[-1]["known"] == ["no input left this machine; nothing was executed"]


def test_a_chat_with_piped_input(newcomer: Newcomer) -> None:
    code, out, err = newcomer.confide(
        "chat", EXAMPLES / "chat", "--upstream", newcomer.upstream, "--json",
        said="my invoice is wrong\n\nit crashes\n/quit\nnever said\n",
    )  # fmt: skip
    assert code == 0, out + err
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["number"] for event in events if event["event"] == "turn"] == [1, 2]
    assert events[-1]["happened"]["turns"] == 2
    assert events[-1]["verdict"] == "accepted"


@pytest.mark.parametrize("how", ["Ctrl-C", "node killed"])
def test_stopped_in_the_middle(
    newcomer: Newcomer, stub: StubOpenAI, tmp_path: Path, how: str
) -> None:
    name = f"cli-{how.split(maxsplit=1)[0]}".lower()
    gate = stub.gate(name)
    notes, output = tmp_path / "notes.csv", tmp_path / "results"
    notes.write_text(f"id,note\n1,hold:{name}\n")
    process = newcomer.start(
        "run", ANALYST, "--input", notes, "--output", output, "--upstream", newcomer.upstream,
        start_new_session=True,
    )  # fmt: skip
    gate.wait()
    if how == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    else:
        _code, out, _err = newcomer.confide("status", "--json")
        nodes = json.loads(out)["nodes"]
        os.kill(next(node["pid"] for node in nodes if node["role"] == "agent"), signal.SIGKILL)
    _out, err = process.communicate(timeout=WAIT_SECONDS)
    gate.opened.set()
    assert process.returncode == (130 if how == "Ctrl-C" else 20)
    assert "whether the agent ran is not known" in err
    assert "Traceback" not in err
    # No output, and nothing half-received beside where it would have been.
    assert [path.name for path in tmp_path.iterdir()] == ["notes.csv"]

    code, events = newcomer.run(ANALYST, "--input", SAMPLE)
    assert code == 0, events


def test_a_simulated_fault_is_refused_before_anything_leaves(newcomer: Newcomer) -> None:
    words = ("--upstream", newcomer.upstream, "--simulate-fault", "agent=debug-td")
    assert newcomer.confide("up", *words)[0] == 0
    try:
        code, events = newcomer.run(ANALYST, "--input", SAMPLE)
    finally:
        newcomer.confide("down")
    assert code == 10
    error = events[-1]
    assert error["known"] == ["no input left this machine; nothing was executed"]
    assert "td-debug" in {finding["reason"] for finding in error["findings"]}
    assert error["advice"]


@pytest.mark.parametrize(
    ("example", "outputs", "calls"),
    [("triage", ["queues.json", "triage.csv"], 16), ("digest", ["digest.md"], 8)],
    ids=["openai-agents over the Responses API", "pydantic-ai"],
)
def test_other_frameworks_run_unmodified(
    newcomer: Newcomer, example: str, outputs: list[str], calls: int
) -> None:
    code, events = newcomer.run(EXAMPLES / example, "--input", SAMPLE)
    result = events[-1]
    assert code == 0, events
    assert sorted(result["outputs"]) == outputs
    assert result["happened"]["model_calls"]["count"] == calls
    # Telemetry is switched off and nothing else was tried.
    assert result["happened"]["egress"] == {"allowed": 0, "refused": 0, "refused_to": []}


def test_a_node_that_is_named_is_proven_like_any_other(newcomer: Newcomer, tmp_path: Path) -> None:
    code, events = newcomer.run(ANALYST, "--input", SAMPLE)
    assert code == 0
    expectation = events[-1]["paths"]["expectation"]
    _code, out, _err = newcomer.confide("status", "--json")
    status = [json.loads(line) for line in out.splitlines()][-1]
    urls = {node["role"]: node["url"] for node in status["nodes"]}
    roots = newcomer.home / ".config" / "confide" / "simulated-roots.json"
    words = ("run", ANALYST, "--input", SAMPLE, "--expectation", expectation,
             "--node", urls["agent"], "--log", urls["log"],
             "--log-policy", status["log_policy"])  # fmt: skip
    code, out, err = newcomer.confide(*words, "--roots", roots, "--output", tmp_path / "named")
    assert code == 0, err
    assert (tmp_path / "named" / "labelled.csv").is_file()
    code, _out, _err = newcomer.confide(*words, "--roots", "vendor", "--output", tmp_path / "no")
    assert code == 10, "vendor roots refuse what is simulated"
    assert not (tmp_path / "no").exists()
