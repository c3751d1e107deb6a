"""Nodes that die, are full, or lose their client in the middle. The next run works."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from deployment import Deployment, Node, until

from confide.errors import ConfideError, Reason, RemoteProtocolError, RunRefused, Unavailable
from confide.receipts.statement import parse_run_statement
from confide.wire.frames import FrameKind, encode_frame, json_frame
from confide.wire.json import b64encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from stub_openai import StubOpenAI

    from confide.client.agent import ProvenAgentNode, RunOutcome

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def own(deployment: Deployment) -> Iterator[Deployment]:
    """The deployment with an agent node of these tests' own: its slots are theirs to fill."""
    with deployment.installation.agent_node(deployment.model_url) as node:
        yield Deployment(deployment.installation, deployment.built, deployment.model_url, node.url)


async def _in_the_middle(
    place: Deployment, stub: StubOpenAI, name: str, url: str | None = None
) -> tuple[asyncio.Task[RunOutcome], Path, list[Any]]:
    """A run whose agent stands in a model call, and the client's folder."""
    folder, seen = place.folder(), list[Any]()
    orders = [{"do": "call", "text": f"hold:{name}"}, {"do": "copy"}]
    task = asyncio.ensure_future(
        place.run_async(orders, files={"a": b"a"}, folder=folder, url=url, progress=seen)
    )
    await asyncio.to_thread(stub.gate(name).wait)
    return task, folder, seen


# --- killed -------------------------------------------------------------------------------------


def test_an_agent_node_killed_in_the_middle(deployment: Deployment, stub: StubOpenAI) -> None:
    """SIGKILL: no handler runs. The client is told; the agent, its files and mounts are gone."""
    node = deployment.installation.start("agent", "--model-url", deployment.model_url)

    async def work() -> tuple[BaseException | RunOutcome, Path, list[Any]]:
        task, folder, seen = await _in_the_middle(deployment, stub, "agent-dies", node.url)
        assert deployment.leftovers()
        node.process.kill()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        return result, folder, seen

    result, folder, seen = asyncio.run(work())
    assert node.process.wait(timeout=60) == -signal.SIGKILL
    stub.gate("agent-dies").opened.set()
    assert isinstance(result, RemoteProtocolError)
    assert result.reason is Reason.CHANNEL_TRUNCATED
    # What is known: how far it got. Nothing that came is presented as a result.
    assert "started" in {progress.step for progress in seen}
    assert not (folder / "out").exists()
    deployment.nothing_left()
    deployment.still_works()


def test_a_model_node_killed_in_the_middle(deployment: Deployment, stub: StubOpenAI) -> None:
    """The agent sees a failed call; the run has a receipt that says that the node failed."""
    at = deployment.installation
    model = at.start("model", "--model", "support-notes", "--upstream", at.upstream)

    async def work(agent: Node) -> RunOutcome:
        task, _folder, _seen = await _in_the_middle(deployment, stub, "model-dies", agent.url)
        model.process.kill()
        return await task

    with at.agent_node(model.url) as agent:
        outcome = asyncio.run(work(agent))
        model.process.wait(timeout=60)
        stub.gate("model-dies").opened.set()
        assert outcome.verified is None
        statement = parse_run_statement(outcome.receipt.run.payload)
        assert statement.result == "node-failed"
        made = [event for event in statement.events if event.kind == "model-call"]
        assert len(made) == 1
        assert made[0]["receipt"] is None
        # The next run is refused while there is no model node, and says why.
        with pytest.raises(Unavailable):
            deployment.run([{"do": "copy"}], url=agent.url)
    deployment.nothing_left()
    deployment.still_works()


def test_the_local_engine_replaces_a_node_that_was_killed(deployment: Deployment) -> None:
    at = deployment.installation
    (pid,) = [state.node.pid for state in at.engine.status() if state.node.role == "agent"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not all(state.alive for state in at.engine.status()), "the node is gone")
    model, agent = at.up()
    assert model == deployment.model_url
    assert agent != deployment.agent_url
    deployment.agent_url = agent
    deployment.nothing_left()
    deployment.still_works()


def test_a_node_that_is_told_to_stop_ends_its_runs(
    deployment: Deployment, stub: StubOpenAI
) -> None:
    node = deployment.installation.start("agent", "--model-url", deployment.model_url)

    async def work() -> BaseException | RunOutcome:
        task, _folder, _seen = await _in_the_middle(deployment, stub, "told-to-stop", node.url)
        node.process.terminate()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        return result

    result = asyncio.run(work())
    assert node.process.wait(timeout=60) == 0
    stub.gate("told-to-stop").opened.set()
    assert isinstance(result, ConfideError)
    deployment.nothing_left()


def test_a_node_leaves_no_core_file(deployment: Deployment) -> None:
    """Its memory holds keys and plaintext: an abort must not write it down."""
    node = deployment.installation.start(
        "model", "--model", "support-notes", "--upstream", deployment.installation.upstream
    )
    limits = Path(f"/proc/{node.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4:6] == ["0", "0"]
    assert node.stop(signal.SIGABRT) == -signal.SIGABRT
    assert not list(deployment.installation.root.glob("core*"))


# --- full ---------------------------------------------------------------------------------------


def test_a_node_with_as_many_runs_as_it_takes_refuses_the_next(
    own: Deployment, stub: StubOpenAI
) -> None:
    names = [f"slot-{number}" for number in range(4)]

    async def work() -> list[RunOutcome]:
        tasks = [(await _in_the_middle(own, stub, name))[0] for name in names]
        with pytest.raises(RunRefused) as refusal:
            await own.run_async([{"do": "copy"}])
        assert refusal.value.reason is Reason.NODE_BUSY
        for name in names:
            stub.gate(name).opened.set()
        return await asyncio.gather(*tasks)

    outcomes = asyncio.run(work())
    assert [outcome.failure for outcome in outcomes] == [None] * 4
    own.nothing_left()
    own.still_works()


def test_clients_that_come_in_the_same_moment_share_the_slots(
    own: Deployment, stub: StubOpenAI
) -> None:
    """Nine at once for four places: four run, five are told, whatever order the node sees."""

    async def one(number: int) -> str:
        try:
            outcome = await own.run_async([{"do": "call", "text": f"hold:rush-{number}"}])
        except RunRefused as refusal:
            return refusal.reason.value
        return "ran" if outcome.failure is None else "failed"

    async def work() -> list[str]:
        tasks = [asyncio.ensure_future(one(number)) for number in range(9)]
        # Those that are refused end by themselves; those that run stand at their gates.
        for _refused in range(5):
            await asyncio.wait(
                [task for task in tasks if not task.done()],
                return_when="FIRST_COMPLETED",
                timeout=60,
            )
            if sum(task.done() for task in tasks) >= 5:
                break
        for number in range(9):
            stub.gate(f"rush-{number}").opened.set()
        return await asyncio.gather(*tasks)

    results = asyncio.run(work())
    assert sorted(results) == ["node-busy"] * 5 + ["ran"] * 4
    own.nothing_left()


# --- clients that go away -----------------------------------------------------------------------

_CLIENT = """
import asyncio, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from client_process import main
main(Path({plan!r}))
"""


def _client_process(place: Deployment, name: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A real client process that runs the probe agent up to the gate `name`."""
    folder = place.folder()
    expectation = folder / "expectation.json"
    expectation.write_bytes(place.expectation().canonical())
    orders = [{"do": "call", "text": f"hold:{name}"}, {"do": "copy"}]
    given = place.inputs(folder, orders, {"a": b"a"})
    plan = {
        "url": place.agent_url,
        "roots": str(place.installation.paths.simulated_roots),
        "expectation": str(expectation),
        "inputs": [[item.name, str(item.path), item.size] for item in given],
        "destination": str(folder / "out"),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    program = _CLIENT.format(here=str(Path(__file__).parent), plan=str(folder / "plan.json"))
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=place.installation.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    return process, folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_a_client_that_goes_away_cancels_its_run(
    own: Deployment, stub: StubOpenAI, number: signal.Signals
) -> None:
    name = f"client-{number.name.lower()}"
    process, folder = _client_process(own, name)
    try:
        stub.gate(name).wait()
        assert own.leftovers()
        process.send_signal(number)
        process.communicate(timeout=60)
        # The model still holds the call: nothing but the client's leaving can end this run.
        until(lambda: not own.leftovers(stages=False), lambda: str(own.leftovers()))
        own.still_works()
    finally:
        process.kill()
        process.communicate()
        stub.gate(name).opened.set()
    assert not (folder / "out").exists()
    # A client that was killed could not clean up after itself; one that was interrupted did.
    left = list(folder.glob(".receiving-*"))
    assert bool(left) == (number is signal.SIGKILL)
    for stage in left:
        shutil.rmtree(stage)


def test_clients_that_go_away_free_every_slot(own: Deployment, stub: StubOpenAI) -> None:
    names = [f"leaver-{number}" for number in range(4)]

    async def work() -> None:
        tasks = [(await _in_the_middle(own, stub, name))[0] for name in names]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(work())
    own.nothing_left()
    for name in names:
        stub.gate(name).opened.set()
    own.still_works()


def test_a_client_that_stops_inside_its_input_frees_the_node(own: Deployment) -> None:
    """Half an input, then nothing, then gone: the sandbox that waited for the rest goes too."""

    expectation = own.expectation()

    async def body(proven: ProvenAgentNode) -> AsyncIterator[bytes]:
        yield json_frame(
            FrameKind.HEADER,
            {"expectation": b64encode(expectation.canonical()), "nonce": proven.nonce.hex()},
        )
        yield json_frame(FrameKind.FILE, {"path": "half", "bytes": 1000})
        yield encode_frame(FrameKind.DATA, bytes(500))
        await asyncio.to_thread(until, lambda: bool(own.leftovers()), "the run is prepared")
        raise _Gone

    async def work() -> None:
        async with own.client() as client:
            proven = await client.prove(expectation)
            with pytest.raises(_Gone):
                await proven.sealed.request("POST", "/confide/v1/runs", (), body(proven))

    asyncio.run(work())
    own.nothing_left()
    own.still_works()


class _Gone(Exception):
    """The client of the test above stops here."""


# --- the client's disk is full ------------------------------------------------------------------


def test_a_client_with_a_full_disk_loses_nothing_it_had(own: Deployment) -> None:
    folder = own.folder()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False
    ).returncode:
        pytest.skip("FULL DISK NOT TESTED: this process may not mount a small file system")
    try:
        given = own.inputs(
            own.folder(), [{"do": "fill", "path": "/output/big", "bytes": 3 << 20}], {}
        )
        (folder / "before").write_bytes(b"mine")
        with pytest.raises((Unavailable, OSError)) as refusal:
            own.run([], inputs=given, folder=folder)
        assert isinstance(refusal.value, Unavailable), repr(refusal.value)
        assert sorted(path.name for path in folder.iterdir()) == ["before"]
        assert (folder / "before").read_bytes() == b"mine"
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    own.nothing_left()
    own.still_works()


def test_a_node_without_room_says_so(deployment: Deployment) -> None:
    """The state directory of a node is full: it does not start, and says what failed."""
    full = deployment.folder()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(full)], check=False
    ).returncode:
        pytest.skip("FULL DISK NOT TESTED: this process may not mount a small file system")
    try:
        environment = {**deployment.installation.environment, "XDG_STATE_HOME": str(full)}
        done = subprocess.run(
            [sys.executable, "-m", "confide", "node", "model", "--port", "1", "--model", "m",
             "--upstream", "http://127.0.0.1:9"],
            env=environment, check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    finally:
        subprocess.run(["umount", str(full)], check=True)
    assert done.returncode == 20, done.stderr
    assert "Traceback" not in done.stderr


def test_health_is_answered_after_all_of_this(own: Deployment) -> None:
    assert httpx2.get(f"{own.agent_url}/confide/v1/health", trust_env=False, timeout=60).json()[
        "ready"
    ]
