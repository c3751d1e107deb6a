"""Agents with secrets and state, in real containers behind a real channel. state.md §2.

The broker is the one of the tests; what it releases is looked for everywhere afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from deployment import AGENTS, published
from leaks import Canaries, process_leaks
from nodes import NOW
from secret_broker import SecretBroker, refused
from secret_node import SecretNode, asking, secret_node
from test_no_plaintext import places

from confide.adapters.entropy import SystemEntropy
from confide.errors import Reason, ReceiptRejected, RunRefused
from confide.receipts.statement import parse_run_statement

if TYPE_CHECKING:
    from deployment import Deployment
    from stub_openai import StubOpenAI

    from confide.adapters.image_build import BuiltAgent
    from confide.client.agent import RunOutcome
    from confide.expectation import Expectation
    from confide.receipts.transcript import Event

pytestmark = pytest.mark.container

FILE = "/run/secrets/db-password"


@pytest.fixture(scope="module")
def canaries() -> Canaries:
    return Canaries(2, SystemEntropy().token)


@pytest.fixture(scope="module")
def talker(deployment: Deployment, build_cache: Path) -> BuiltAgent:
    return deployment.installation.build(AGENTS / "talker", cache=build_cache)


def broker(canaries: Canaries, **how: Any) -> SecretBroker:
    values = dict(zip(("db-password", "token"), map(str.encode, canaries.words), strict=True))
    return SecretBroker(NOW, values, **how)


async def run_at(
    node: SecretNode,
    deployment: Deployment,
    expectation: Expectation,
    orders: list[dict[str, Any]],
    folder: Path | None = None,
) -> RunOutcome:
    folder = folder or deployment.folder()
    proven = await node.client.prove(expectation)
    inputs = deployment.inputs(folder, orders, {})
    return await node.client.run(
        proven, inputs, destination=folder / "out", on_progress=lambda _: None
    )


def run(deployment: Deployment, place: SecretBroker, *rest: Any) -> RunOutcome:
    async def go() -> RunOutcome:
        async with secret_node(deployment, place) as node:
            return await run_at(node, deployment, *rest)

    return asyncio.run(go())


def events(outcome: RunOutcome, kind: str) -> list[Event]:
    statement = parse_run_statement(outcome.receipt.run.payload)
    return [event for event in statement.events if event.kind == kind]


# --- secrets ------------------------------------------------------------------------------------


def test_no_value_leaves_the_run(deployment: Deployment, canaries: Canaries) -> None:
    """Printed, encoded, written to files: none of it is in anything that comes out or stays."""
    place, folder, since = broker(canaries), deployment.folder(), time.time() - 1
    orders = [{"do": "reveal", "file": FILE}]
    outcome = run(deployment, place, asking(deployment, place, "db-password"), orders, folder)
    assert outcome.failure is None, outcome.failure
    name = "[secret db-password]"
    found = published(folder)
    assert outcome.stdout.decode() == f"connecting with {name}\n"
    assert name in outcome.stderr.decode()
    assert json.loads(found["dump.json"]) == {"password": name, "hex": name}
    assert found["url.txt"].decode() == name
    assert found["long.bin"] == (bytes(700_000) + name.encode()) * 2
    changed = [(event["where"], event["count"]) for event in events(outcome, "scrubbed")]
    assert changed == [
        ("stdout", 1),
        ("stderr", 1),
        ("output/0", 2),
        ("output/1", 2),
        ("output/2", 1),
    ]
    receipt = outcome.receipt
    payloads = [e.payload for e in (receipt.run, *receipt.inferences, *receipt.releases)]
    given = (receipt.encode(), outcome.stdout, outcome.stderr, *payloads, *found.values())
    assert canaries.inside(b"\0".join(given)) == set()
    deployment.nothing_left()
    left = {leak for look in places(deployment) for leak in look.leaks(canaries, since)}
    assert left | process_leaks(canaries) == set()


@pytest.mark.slow
def test_while_the_agent_runs_a_file_is_in_memory_alone(
    deployment: Deployment, canaries: Canaries, stub: StubOpenAI
) -> None:
    """A variable is also in the engine's record and the environment of the agent: 2.2 says so."""
    place, gate, since = broker(canaries), stub.gate("secrets"), time.time() - 1
    expectation = asking(deployment, place, "db-password", "TOKEN=token")

    def look(word: str) -> set[str]:
        found = {
            f"{place.name} {path.name}"
            for place in places(deployment)
            for path in place.files(since)
            if word in canaries.inside_file(path)
        }
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and word in canaries.inside_file(process / "environ"):
                found.add("environment of a process")
        return found

    async def go() -> tuple[set[str], set[str]]:
        async with secret_node(deployment, place) as node:
            orders = [{"do": "call", "text": "hold:secrets"}]
            task = asyncio.ensure_future(run_at(node, deployment, expectation, orders))
            await asyncio.to_thread(gate.wait)
            found = [await asyncio.to_thread(look, word) for word in canaries.words]
            gate.opened.set()
            assert (await task).failure is None
            return found[0], found[1]

    in_file, in_variable = asyncio.run(go())
    assert in_file == set()
    assert {"container storage config.json", "environment of a process"} <= in_variable
    deployment.nothing_left()
    assert look(canaries.words[0]) == set()
    # Removed is not overwritten: the database of the engine keeps old pages, and we say so.
    assert look(canaries.words[1]) <= {
        "container storage bolt_state.db",
        "container storage db.sql",
    }


def test_the_model_gets_what_the_agent_sends(
    deployment: Deployment, canaries: Canaries, stub: StubOpenAI
) -> None:
    """Scrubbing is for what comes out; what the agent asks the model goes as it is."""
    place, before = broker(canaries), stub.prompts
    orders = [{"do": "call", "file": FILE, "save": "label.txt"}]
    outcome = run(deployment, place, asking(deployment, place, "db-password"), orders)
    assert outcome.failure is None
    assert stub.prompts == before + 1
    body = {
        "model": "support-notes",
        "messages": [{"role": "user", "content": canaries.words[0]}],
        "stream": False,
    }
    [call] = events(outcome, "model-call")
    assert call["request"] == hashlib.sha256(json.dumps(body).encode()).digest()


def test_a_variable_is_there_and_scrubbed(deployment: Deployment, canaries: Canaries) -> None:
    place = broker(canaries)
    outcome = run(deployment, place, asking(deployment, place, "TOKEN=token"), [{"do": "reveal"}])
    assert outcome.failure is None
    assert outcome.stdout == b"connecting with [secret token]\n"


def test_what_is_not_released_refuses_the_run_and_says_why(
    deployment: Deployment, canaries: Canaries
) -> None:
    place = broker(canaries, failures={"token": refused(Reason.RELEASE_REVOKED)})
    expectation = asking(deployment, place, "db-password", "TOKEN=token", state=True)
    folder = deployment.folder()

    async def go() -> RunRefused:
        async with secret_node(deployment, place) as node:
            with pytest.raises(RunRefused) as error:
                await run_at(node, deployment, expectation, [{"do": "say", "text": "x"}], folder)
            return error.value

    found = asyncio.run(go())
    assert (found.reason, found.failures[0].step) == (Reason.RELEASE_REVOKED, "broker/4.2")
    assert not (folder / "out").exists()
    assert place.asked == ["attest", "db-password", "token", "close"]
    deployment.nothing_left()


def test_a_broker_that_holds_nothing_of_that_name_refuses_the_run(
    deployment: Deployment, canaries: Canaries
) -> None:
    """The broker of the local stack is another one than is named, and holds nothing."""
    place = broker(canaries)
    with pytest.raises(RunRefused) as error:
        deployment.run([], expectation=asking(deployment, place, "db-password"))
    assert error.value.reason is Reason.RESOURCE_UNKNOWN
    assert place.asked == []


# --- state --------------------------------------------------------------------------------------


def remember(text: str, *more: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"do": "remember", "text": text}, *more]


def test_a_state_outlives_the_run_and_a_failed_one_changes_nothing(
    deployment: Deployment, canaries: Canaries
) -> None:
    place = broker(canaries)
    expectation = asking(deployment, place, state=True)

    async def go() -> list[RunOutcome]:
        async with secret_node(deployment, place) as node:
            return [
                await run_at(node, deployment, expectation, orders)
                for orders in (
                    remember("first"),
                    remember("lost", {"do": "leave", "status": 3}),
                    remember("second"),
                    remember("third"),
                )
            ]

    first, failed, second, third = asyncio.run(go())
    assert first.stdout == b"nothing yet\n"
    assert failed.stdout == second.stdout == b"first\n\n"
    assert third.stdout == b"first\nsecond\n\n"
    assert isinstance(failed.failure, ReceiptRejected)
    assert [finding.step for finding in failed.failure.failures] == ["receipt/12"]
    assert [event["reason"] for event in events(failed, "state-kept")] == ["agent-failed"]
    for number, outcome in enumerate((first, second, third)):
        assert outcome.failure is None, outcome.failure
        assert [event["counter"] for event in events(outcome, "state-opened")] == [number]
        assert [event["counter"] for event in events(outcome, "state-saved")] == [number + 1]
    assert place.counter == 3
    assert b"first" not in place.sealed
    deployment.nothing_left()


def test_a_client_that_goes_away_gives_the_lease_back(
    deployment: Deployment, canaries: Canaries, stub: StubOpenAI
) -> None:
    place, gate = broker(canaries), stub.gate("lease")
    expectation = asking(deployment, place, state=True)

    async def go() -> None:
        async with secret_node(deployment, place) as node:
            orders = remember("never", {"do": "call", "text": "hold:lease"})
            task = asyncio.ensure_future(run_at(node, deployment, expectation, orders))
            await asyncio.to_thread(gate.wait)
            assert place.leased
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.opened.set()
            async with asyncio.timeout(60):
                while place.leased:  # noqa: ASYNC110 - the node's doing tells no event
                    await asyncio.sleep(0.05)

    asyncio.run(go())
    assert (place.counter, place.asked[-1]) == (0, "close")
    deployment.nothing_left()


# --- chat ---------------------------------------------------------------------------------------


def test_a_chat_has_secrets_and_state_too(
    deployment: Deployment, canaries: Canaries, talker: BuiltAgent
) -> None:
    place = broker(canaries)
    expectation = asking(deployment, place, "db-password", state=True, built=talker)

    async def chat(node: SecretNode, *lines: str) -> tuple[list[Any], RunOutcome]:
        folder = deployment.folder()
        proven = await node.client.prove(expectation)
        session = await node.client.open_chat(
            proven, [], destination=folder / "out", on_progress=lambda _: None
        )
        said = [json.loads(await session.turn(line)) for line in lines]
        return said, await session.finish()

    async def go() -> None:
        async with secret_node(deployment, place) as node:
            said, outcome = await chat(node, "hello", "again")
            assert said == [
                {"said": "hello", "secret": "[secret db-password]", "asked": 1},
                {"said": "again", "secret": "[secret db-password]", "asked": 2},
            ]
            assert outcome.failure is None, outcome.failure
            scrubbed = {event["where"]: event["count"] for event in events(outcome, "scrubbed")}
            assert scrubbed == {"turns": 2, "stdout": 2}
            assert canaries.inside(outcome.stdout) == set()
            said, outcome = await chat(node, "and now?")
            assert said[0]["asked"] == 3
            assert outcome.failure is None

    asyncio.run(go())
    assert (place.counter, place.leased) == (2, False)
    deployment.nothing_left()


def test_a_chat_that_expires_gives_the_lease_back(
    deployment: Deployment, canaries: Canaries, talker: BuiltAgent
) -> None:
    place = broker(canaries)
    expectation = asking(deployment, place, "db-password", state=True, built=talker, wall_seconds=2)

    async def go() -> None:
        async with secret_node(deployment, place) as node:
            proven = await node.client.prove(expectation)
            session = await node.client.open_chat(
                proven, [], destination=deployment.folder() / "out", on_progress=lambda _: None
            )
            assert place.leased
            async with asyncio.timeout(60):
                while place.leased:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.05)
            with pytest.raises(RunRefused) as error:
                await session.finish()
            assert error.value.reason is Reason.SESSION_UNKNOWN

    asyncio.run(go())
    assert place.counter == 0
    deployment.nothing_left()
