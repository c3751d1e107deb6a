"""A thousand canaries in an input: nowhere on the host, while the agent works and afterwards.

Looked at: state, cache, data and logs of the nodes, container storage, /run, /var/log and /tmp,
arguments and environment of every process, and every byte on the loopback wire.

Left out, because they are inside the trust domain of the node: the memory file systems of the run
(shown here to be memory) and the hop from the model node to its engine, which in production is
inside the same confidential VM. Left out, because it is the owner's: the client's own folder.
"""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from deployment import SHARED_MEMORY, published
from leaks import Canaries, Place, Wire, process_leaks

from confide.adapters.entropy import SystemEntropy

if TYPE_CHECKING:
    from collections.abc import Callable

    from deployment import Deployment
    from stub_openai import StubOpenAI

    from confide.client.agent import RunOutcome

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def canaries() -> Canaries:
    return Canaries(1000, SystemEntropy().token)


def places(deployment: Deployment) -> list[Place]:
    """Where a host could find what a node or the engine wrote."""
    root = deployment.installation.root
    found = [
        Place("xdg and logs", root, without=(root / "client",)),
        Place("container storage", Path("/var/lib/containers")),
        Place("engine state", Path("/run")),
        Place("system logs", Path("/var/log")),
        Place("temporary files", Path("/tmp"), without=(root,)),  # noqa: S108 - looked at, not used
        Place("home of the engine", Path.home(), without=(Path(sys.base_prefix),)),
    ]
    return [place for place in found if place.root.is_dir()]


@dataclass(slots=True)
class Watched:
    """What was found while the agent worked, afterwards, and on the wire."""

    outcome: RunOutcome
    folder: Path
    during: set[str]
    after: set[str]
    wire: Wire
    memory: list[Path]
    in_memory: set[str]


@pytest.fixture(scope="module")
def watched(deployment: Deployment, stub: StubOpenAI, canaries: Canaries) -> Watched:
    """One run over all canaries, looked at in its middle and after its end."""
    text = "\n".join(canaries.words)
    since = time.time() - 1
    gate = stub.gate("canaries")

    def look() -> set[str]:
        found = process_leaks(canaries)
        for place in places(deployment):
            found |= place.leaks(canaries, since)
        return found

    async def work() -> Watched:
        folder = deployment.folder()
        orders: list[dict[str, Any]] = [
            {"do": "copy"},
            {"do": "call", "file": "notes.txt", "save": "label.txt"},
            {"do": "call", "text": "hold:canaries"},
            {"do": "call", "file": "notes.txt", "stream": True, "save": "stream.txt"},
        ]
        files = {"notes.txt": text.encode()}
        task = asyncio.ensure_future(deployment.run_async(orders, files=files, folder=folder))
        await asyncio.to_thread(gate.wait)
        memory = [
            m
            for m in SHARED_MEMORY.glob("confide-*")
            if m.name[8:] in deployment.installation.marks
        ]
        inside = {
            str(p) for m in memory for p in Place("m", m).files(since) if canaries.inside_file(p)
        }
        during = await asyncio.to_thread(look)
        gate.opened.set()
        outcome = await task
        return Watched(outcome, folder, during, set(), wire, memory, inside)

    with Wire() as wire:
        seen = asyncio.run(work())
    deployment.nothing_left()
    seen.after = look()
    return seen


def test_the_run_used_every_canary(watched: Watched, canaries: Canaries) -> None:
    assert watched.outcome.failure is None
    found = published(watched.folder)
    assert canaries.inside(found["notes.txt"]) == set(canaries.words)
    assert set(found) == {"label.txt", "notes.txt", "stream.txt"}


def test_the_files_of_the_run_were_in_memory(watched: Watched) -> None:
    """/input and /output are where the plaintext must be, and both are tmpfs."""
    assert {Path(path).parent.name for path in watched.in_memory} == {"input", "output"}
    for memory in watched.memory:
        kind = subprocess.run(
            ["stat", "--file-system", "--format", "%T", str(memory)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert kind.stdout.strip() == "tmpfs"
    assert Path("/proc/swaps").read_text().count("\n") == 1, "swap would put memory on a disk"


def test_no_canary_was_on_the_host_while_the_agent_worked(watched: Watched) -> None:
    assert watched.during == set()


def test_no_canary_is_on_the_host_afterwards(watched: Watched) -> None:
    assert watched.after == set()


def test_no_canary_was_on_the_wire(
    watched: Watched, canaries: Canaries, deployment: Deployment, stub: StubOpenAI
) -> None:
    assert watched.wire.lost == 0
    # The traffic was seen: to the agent node, and between the nodes, many times the input.
    for url in (deployment.agent_url, deployment.model_url):
        port = int(url.rpartition(":")[2])
        flows = [data for flow, data in watched.wire.flows.items() if port in flow]
        assert sum(map(len, flows)) > 33_000
    assert watched.wire.leaks(canaries, without_port=stub.port) == set()


def test_the_wire_is_seen_through_where_it_is_plaintext(
    watched: Watched, canaries: Canaries, stub: StubOpenAI
) -> None:
    """The hop inside the VM, left out above, is in the same recording: it is found there."""
    assert any(flow.endswith(f"> {stub.port}") for flow in watched.wire.leaks(canaries))


def test_the_receipt_holds_no_canary(watched: Watched, canaries: Canaries) -> None:
    receipt = watched.outcome.receipt
    payloads = [receipt.run.payload, *(envelope.payload for envelope in receipt.inferences)]
    assert canaries.inside(receipt.encode() + b"".join(payloads)) == set()


# --- the search finds what is there -------------------------------------------------------------


def test_one_planted_canary_is_found_in_every_place(
    deployment: Deployment, canaries: Canaries
) -> None:
    since = time.time() - 1
    word = canaries.words[-1]
    for place in places(deployment):
        planted = place.root / f"confide-test-{time.time_ns()}"
        planted.write_bytes(bytes(3 << 20) + word.encode() + b"tail")
        try:
            assert place.leaks(canaries, since) == {f"{place.name}: {planted}"}
        finally:
            planted.unlink()
        assert place.leaks(canaries, since) == set()


def test_a_canary_in_the_log_of_a_node_is_found(deployment: Deployment, canaries: Canaries) -> None:
    log = deployment.installation.paths.state / "agent-node.log"
    size, since = log.stat().st_size, time.time() - 1
    with log.open("ab") as file:
        file.write(f"prompt was {canaries.words[3]}\n".encode())
    try:
        assert places(deployment)[0].leaks(canaries, since) == {f"xdg and logs: {log}"}
    finally:
        with log.open("r+b") as file:
            file.truncate(size)


@pytest.mark.parametrize("how", ["cmdline", "environ"])
def test_a_canary_of_a_process_is_found(canaries: Canaries, how: str) -> None:
    word = canaries.words[5]
    command = ["sleep", "60"] if how == "environ" else ["sh", "-c", "read x", word]
    environment = {"PATH": "/usr/bin:/bin", **({"LEAK": word} if how == "environ" else {})}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as process:
        try:
            assert process_leaks(canaries) == {f"{process.pid} {how}"}
        finally:
            process.kill()


@pytest.mark.parametrize(
    "spell",
    [
        str.encode,
        lambda word: word.encode().hex().encode(),
        lambda word: word.encode("utf-16-le"),
        lambda word: base64.b64encode(b"{" + word.encode() + b"}"),
        lambda word: base64.b64encode(b"{}" + word.encode()),
        lambda word: base64.b64encode(word.encode() + b"!!"),
    ],
    ids=["plain", "hex", "utf-16", "base64-1", "base64-2", "base64-0"],
)
def test_every_spelling_is_found(canaries: Canaries, spell: Callable[[str], bytes]) -> None:
    for word in canaries.words[:20]:
        assert canaries.inside(b"before " + spell(word) + b" after") == {word}
    # One character less, and it is none of them.
    assert canaries.inside(spell(canaries.words[0][:-1] + "!")) == set()
