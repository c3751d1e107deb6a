"""Agents that misbehave inside real nodes: bounded, told apart, proven, and nothing of them stays.

An end that is not a success still has a receipt whose every step but the last holds.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from deployment import published, until

from confide.errors import Reason, ReceiptRejected
from confide.receipts.statement import RunStatement, parse_run_statement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deployment import Deployment
    from stub_openai import StubOpenAI

    from confide.client.agent import RunOutcome

pytestmark = pytest.mark.container

_MIB = 1 << 20


def _events(statement: RunStatement, kind: str) -> list[dict[str, Any]]:
    return [dict(event.members) for event in statement.events if event.kind == kind]


def _unsuccessful(outcome: RunOutcome) -> RunStatement:
    """The statement of a run that did not complete: everything about it holds but that."""
    assert outcome.verified is None
    assert isinstance(outcome.failure, ReceiptRejected)
    assert [finding.step for finding in outcome.failure.failures] == ["receipt/12"]
    assert outcome.failure.reason is Reason.RUN_FAILED
    return parse_run_statement(outcome.receipt.run.payload)


# --- the network --------------------------------------------------------------------------------


def test_every_way_out_fails_and_is_in_the_transcript(deployment: Deployment) -> None:
    folder = deployment.folder()
    outcome = deployment.run([{"do": "dial"}], folder=folder)
    assert outcome.verified is not None, outcome.failure
    found = json.loads(published(folder)["attempts.json"])
    assert set(found) == {"ipv4", "ipv6", "name", "proxy"}
    assert not [what for what in found.values() if what.startswith("REACHED")], found
    attempts = _events(outcome.verified.statement, "egress")
    assert {attempt["allowed"] for attempt in attempts} == {False}
    assert {attempt["outcome"] for attempt in attempts} == {"refused"}
    told = {(attempt["via"], attempt["destination"].rpartition(":")[0]) for attempt in attempts}
    assert ("direct", "192.0.2.7") in told
    assert ("direct", "[2001:db8::7]") in told
    assert ("http", "leak.example") in told
    assert any(via == "dns" and "leak.example" in where for via, where in told | _dns(attempts))
    deployment.nothing_left()


def _dns(attempts: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(a["via"], a["destination"]) for a in attempts if a["via"] == "dns"}


# --- without bounds -----------------------------------------------------------------------------

# Paths inside the container.
_SCRATCH, _SHM = "/tmp", "/dev/shm"  # noqa: S108
_TEN_GB = 10_000 * _MIB


@pytest.mark.parametrize(
    ("order", "limits", "end"),
    [
        ({"do": "fill", "path": "/output/big", "bytes": _TEN_GB}, {}, "killed-output"),
        (
            {"do": "fill", "path": f"{_SCRATCH}/big", "bytes": _TEN_GB},
            {"memory_bytes": 48 * _MIB},
            "killed-memory",
        ),
        ({"do": "fork"}, {}, "killed-pids"),
        ({"do": "hang"}, {"wall_seconds": 1}, "killed-wall"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_agent_without_bounds_is_killed_and_has_a_receipt(
    deployment: Deployment, order: Mapping[str, Any], limits: Mapping[str, int], end: str
) -> None:
    folder, before = deployment.folder(), _free_disk()
    outcome = deployment.run(
        [{"do": "say", "text": "begin"}, order],
        expectation=deployment.expectation(limits=limits),
        folder=folder,
    )
    statement = _unsuccessful(outcome)
    assert statement.result == "agent-killed"
    assert [(e["end"], e["status"]) for e in _events(statement, "agent-exited")] == [(end, None)]
    assert outcome.stdout == b"begin\n"
    assert not (folder / "out").exists()
    assert before - _free_disk() < 1 << 30
    deployment.nothing_left()


def _free_disk() -> int:
    found = os.statvfs("/var/lib")
    return found.f_bavail * found.f_frsize


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (f"{_SCRATCH}/big", "No space left on device"),
        (f"{_SHM}/big", "No space left on device"),
        ("/agent/big", "Read-only file system"),
        ("/big", "Read-only file system"),
    ],
)
def test_nowhere_but_in_its_output_is_room_for_more(
    deployment: Deployment, path: str, why: str
) -> None:
    before = _free_disk()
    outcome = deployment.run([{"do": "fill", "path": path, "bytes": _TEN_GB}])
    statement = _unsuccessful(outcome)
    assert statement.result == "agent-failed"
    assert why.encode() in outcome.stderr
    assert before - _free_disk() < 1 << 30
    deployment.nothing_left()


# --- ends ---------------------------------------------------------------------------------------


def test_an_agent_that_fails_has_a_receipt_that_says_so(deployment: Deployment) -> None:
    folder = deployment.folder()
    outcome = deployment.run(
        [{"do": "copy"}, {"do": "leave", "status": 7}], files={"a": b"a"}, folder=folder
    )
    statement = _unsuccessful(outcome)
    assert statement.result == "agent-failed"
    assert [(e["end"], e["status"]) for e in _events(statement, "agent-exited")] == [("exited", 7)]
    # What it left is kept, under a name that says what it is worth.
    assert not (folder / "out").exists()
    assert (folder / "out.unverified" / "a").read_bytes() == b"a"
    deployment.nothing_left()


def test_binary_output_comes_through_untouched(deployment: Deployment) -> None:
    folder = deployment.folder()
    outcome = deployment.run([{"do": "binary"}], folder=folder)
    assert outcome.failure is None
    assert outcome.stdout == bytes(range(256)) * 16 + b"\x1b[2J\x1b]0;owned\x07"
    assert published(folder) == {"raw.bin": bytes(range(256)) * 4}


def test_an_agent_that_deletes_its_output_has_none(deployment: Deployment) -> None:
    folder = deployment.folder()
    outcome = deployment.run([{"do": "unlink"}], folder=folder)
    assert outcome.verified is not None
    assert _events(outcome.verified.statement, "output") == []
    assert published(folder) == {}


def test_a_model_that_fails_is_in_the_receipt(deployment: Deployment) -> None:
    """The agent asks for a model that is not there: refused with a receipt, then it fails."""
    outcome = deployment.run([{"do": "call", "text": "hello", "model": "another"}])
    statement = _unsuccessful(outcome)
    assert statement.result == "agent-failed"
    assert [event["status"] for event in _events(statement, "model-call")] == [404]
    assert len(outcome.receipt.inferences) == 1


def _made(outcome: RunOutcome) -> list[tuple[str, bool, bool]]:
    """The model calls of a verified run: outcome, whether there was an answer, and a receipt."""
    assert outcome.verified is not None, outcome.failure
    made = _events(outcome.verified.statement, "model-call")
    return [(m["outcome"], m["response"] is not None, m["receipt"] is not None) for m in made]


def test_a_call_that_the_agent_gave_up_is_accounted_for(
    deployment: Deployment, stub: StubOpenAI
) -> None:
    """SDKs time out and try again: the first answer still has a receipt, and the run verifies."""

    async def work() -> RunOutcome:
        orders: list[dict[str, Any]] = [
            {"do": "call", "text": "hold:given-up", "seconds": 0.2},
            {"do": "call", "text": "hold:second", "save": "label.txt"},
        ]
        task = asyncio.ensure_future(deployment.run_async(orders))
        await asyncio.to_thread(stub.gate("second").wait)
        # The agent is past its first call, and the engine answers that one only now.
        stub.gate("given-up").opened.set()
        stub.gate("second").opened.set()
        return await task

    made = _made(asyncio.run(work()))
    assert sorted(made) == [("agent-left", True, True), ("complete", True, True)]
    deployment.nothing_left()


def test_a_call_that_outlives_its_agent_is_accounted_for(
    deployment: Deployment, stub: StubOpenAI
) -> None:
    """The agent leaves while the engine still works: its prompt was read, so it is on record."""

    async def work() -> RunOutcome:
        orders: list[dict[str, Any]] = [
            {"do": "call", "text": "hold:outlives", "seconds": 0.2},
            {"do": "leave", "status": 0},
        ]
        task = asyncio.ensure_future(deployment.run_async(orders))
        await asyncio.to_thread(stub.gate("outlives").wait)
        await asyncio.to_thread(until, deployment.no_agent_runs, "the agent is gone")
        stub.gate("outlives").opened.set()
        return await task

    assert _made(asyncio.run(work())) == [("agent-left", True, True)]
    deployment.nothing_left()


def test_after_all_of_this_the_node_works(deployment: Deployment) -> None:
    deployment.still_works()
