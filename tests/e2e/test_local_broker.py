"""Secrets and memory as an owner types them: put, release, run, revoke. Real processes."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from leaks import Canaries

if TYPE_CHECKING:
    from newcomer import Newcomer

pytestmark = pytest.mark.container
FOLLOWUP = Path(__file__).parents[2] / "examples" / "followup"
SAMPLE = FOLLOWUP / "sample" / "notes.csv"
SECRET = "local/secret/pseudonym-key"


def run(newcomer: Newcomer, *words: object, agent: Path = FOLLOWUP) -> tuple[int, dict[str, Any]]:
    code, events = newcomer.run(agent, "--input", SAMPLE, *words)
    return code, events[-1]


def refused(newcomer: Newcomer, reason: str, *words: object, agent: Path = FOLLOWUP) -> None:
    """The run is refused for this reason, before anything was executed."""
    code, end = run(newcomer, *words, agent=agent)
    assert code == 10, end
    assert end["findings"][0]["reason"] == reason
    assert "the agent was not started" in " ".join(end["known"])
    assert "confide secret" in " ".join(end["advice"])


def secret(newcomer: Newcomer, *words: object) -> dict[str, Any]:
    code, out, err = newcomer.confide("secret", *words, "--json")
    assert code == 0, err
    last: dict[str, Any] = json.loads(out.splitlines()[-1])
    return last


def process_of(newcomer: Newcomer, role: str) -> int:
    _code, out, _err = newcomer.confide("status", "--json")
    nodes = json.loads(out.splitlines()[-1])["nodes"]
    return next(int(node["pid"]) for node in nodes if node["role"] == role)


def test_an_owner_opens_a_secret_and_a_memory_to_one_expectation_and_to_no_other(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    canaries = Canaries(1, secrets.token_bytes)
    value = tmp_path / "value"
    value.write_text(canaries.words[0])

    # Nothing is held, then nothing is released: each is said, and nothing is executed.
    refused(newcomer, "resource-unknown")
    put = secret(newcomer, "put", SECRET, "--from", value)
    assert put["state"] == "held"
    refused(newcomer, "release-missing")

    code, first = run(newcomer, "--release")
    assert code == 0, first
    asked = first["happened"]
    assert [each["name"] for each in asked["secrets"]] == ["pseudonym-key"]
    assert (asked["state"]["opened"], asked["state"]["saved"]) == (0, 1)
    assert first["log"]["state"] == "final"
    # The release stands: the next run needs no other, and finds what the first one left.
    code, second = run(newcomer)
    assert code == 0, second
    assert (second["happened"]["state"]["opened"], second["happened"]["state"]["saved"]) == (1, 2)
    report = Path(second["paths"]["outputs"]) / "followup.md"
    assert "run 2" in report.read_text()

    # A stranger, offline: roots, the log's policy, the file.
    code, out, _err = newcomer.confide(*second["verify"].split()[1:], "--require-log")
    assert code == 0
    assert "pseudonym-key (version" in out
    assert "number 1 opened, saved as number 2" in out

    # Other code is another Expectation.
    other = tmp_path / "other"
    shutil.copytree(FOLLOWUP, other)
    agent = other / "agent.py"
    agent.write_text(agent.read_text().replace("# Follow-up", "# Other code"))
    refused(newcomer, "release-missing", agent=other)

    # The broker killed in the middle of its life: what it took is there, and goes on.
    os.kill(process_of(newcomer, "broker"), signal.SIGKILL)
    code, third = run(newcomer)
    assert code == 0, third
    assert third["happened"]["state"]["saved"] == 3

    # Revoked by its digest; it holds for the next run.
    [release] = [row["statement"] for row in secret(newcomer, "ls")["releases"]]
    assert secret(newcomer, "revoke", release)["state"] == "revoked"
    refused(newcomer, "release-revoked")

    # On no disk of ours: not in the store, receipts, outputs, logs of the processes.
    newcomer.confide("down")
    for path in newcomer.home.rglob("*"):
        if path.is_file() and not path.is_relative_to(newcomer.home / ".cache"):
            assert not canaries.inside(path.read_bytes()), path
