"""The main job on real nodes, and two of it at once: what every fault test departs from."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from deployment import calls, published

from confide.receipts.file import parse_receipt_file

if TYPE_CHECKING:
    from deployment import Deployment
    from stub_openai import StubOpenAI

    from confide.client.agent import RunOutcome

pytestmark = pytest.mark.container


def test_an_agent_runs_and_its_receipt_verifies(deployment: Deployment) -> None:
    folder = deployment.folder()
    outcome = deployment.run(
        [
            {"do": "call", "text": "which label?", "save": "label.txt"},
            {"do": "call", "text": "which label?", "stream": True, "save": "stream.txt"},
            {"do": "copy"},
        ],
        files={"notes.csv": b"note\nI was charged twice\n", "empty": b""},
        folder=folder,
    )
    assert outcome.failure is None
    assert calls(outcome) == ["complete", "complete"]
    found = published(folder)
    assert found.pop("stream.txt").startswith(b"data: {")
    assert found == {
        "empty": b"", "label.txt": b"billing", "notes.csv": b"note\nI was charged twice\n",
    }  # fmt: skip
    assert parse_receipt_file(outcome.receipt.encode()) == outcome.receipt
    assert outcome.verified is not None
    assert outcome.verified.simulated
    deployment.nothing_left()


def test_two_runs_at_once_have_two_receipts(deployment: Deployment, stub: StubOpenAI) -> None:
    gates = [stub.gate("first"), stub.gate("second")]

    async def both() -> list[RunOutcome]:
        tasks = [
            asyncio.ensure_future(
                deployment.run_async(
                    [{"do": "call", "text": f"hold:{name}"}, {"do": "say", "text": name}]
                )
            )
            for name in ("first", "second")
        ]
        for gate in gates:
            await asyncio.to_thread(gate.wait)
        # Both agents now stand in the middle of a model call.
        for gate in reversed(gates):
            gate.opened.set()
        return await asyncio.gather(*tasks)

    outcomes = asyncio.run(both())
    assert [outcome.failure for outcome in outcomes] == [None, None]
    assert [outcome.stdout for outcome in outcomes] == [b"first\n", b"second\n"]
    runs = {outcome.verified.statement.run for outcome in outcomes if outcome.verified}
    assert len(runs) == 2
    assert [len(outcome.receipt.inferences) for outcome in outcomes] == [1, 1]
    deployment.nothing_left()


def test_the_receipt_holds_no_content(deployment: Deployment) -> None:
    secret = "the customer is called Ada"
    outcome = deployment.run(
        [{"do": "call", "text": secret}, {"do": "say", "text": secret}],
        files={"secret-name.txt": secret.encode()},
    )
    assert outcome.failure is None
    text = outcome.receipt.encode()
    payloads = b"".join(e.payload for e in (outcome.receipt.run, *outcome.receipt.inferences))
    # None of these can stand in base64 by chance: each has a space, a dot or a hyphen.
    for word in (secret, "called Ada", "secret-name.txt"):
        assert word.encode() not in text + payloads
    assert json.loads(outcome.receipt.run.payload)["predicate"]["result"] == "completed"
