"""Two training nodes, as processes, at one job that Ray links: docs/protocols/training-ranks.md §6.

Real ranks, real programs of Ray, a listener on the loopback device where this user may have one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dataset_rows import lines
from deployment import Installation
from leaks import Canaries
from own_network import own_network
from ray_seats import MEMORY, gone
from test_training_seats_process import opened_checkpoint
from tiny_models import make_model
from training_process import TrainingNode

from confide.adapters.entropy import SystemEntropy
from confide.rays.session import session_members

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import openai

pytestmark = pytest.mark.model
# Far more than are done while it is looked at what runs.
STEPS = 120
# From: Linux include/uapi/linux/if_ether.h, every protocol.
ETH_P_ALL = 3


@dataclass
class Table:
    """Seat 0, and the node that it invites."""

    first: TrainingNode
    guest: TrainingNode

    def held(self) -> list[int]:
        """Who holds the seats of clusters, one process for each node where there is a cluster."""
        return [*rays(self.first), *rays(self.guest)]

    def everything(self) -> set[int]:
        """Every process of a cluster."""
        return {member for pid in self.held() for member in session_members(pid)}


def rays(node: TrainingNode) -> list[int]:
    """The process of a node that holds its seat in a cluster."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if [b"confide.rays", str(node.node.pid).encode()] == words[3:5]:
                found.append(int(process.name))
    return found


@pytest.fixture(scope="module", autouse=True)
def apart() -> Iterator[None]:
    with own_network() as given:
        if not given:
            pytest.skip("RAY NOT TESTED: it listens at every address; a network apart needs root")
        yield


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    installation = Installation(tmp_path / "node", "")
    base = make_model(tmp_path / "base")
    found = Table(TrainingNode(installation, base), TrainingNode(installation, base))
    with ExitStack() as stack:
        found.guest.start(
            *("--serve-seats", "--simulate-machine", "second"),
            *("--ray", "--seat-address", "127.0.0.3"),
        )
        stack.callback(found.guest.node.stop)
        found.first.start(
            *("--seat", f"{found.guest.node.url}=1", "--ray", "--seat-address", "127.0.0.2")
        )
        stack.callback(found.first.node.stop)
        yield found


async def rows_of(node: TrainingNode, client: openai.AsyncOpenAI, words: Iterable[str]) -> str:
    rows = lines(*({"prompt": f"{word}: ", "completion": f" {word[::-1]}"} for word in words))
    return await node.upload(client, rows)


@contextmanager
def listening() -> Iterator[bytearray | None]:
    """What goes over the loopback device to and from the seats; None where nobody may listen."""
    try:
        device = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    except PermissionError:
        yield None
        return
    ends = {socket.inet_aton(f"127.0.0.{last}") for last in (2, 3)}
    heard = bytearray()
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            try:
                frame = device.recv(1 << 17)
            except TimeoutError:
                continue
            # From: RFC 791 §3.1, after 14 bytes of Ethernet.
            if {frame[26:30], frame[30:34]} & ends:
                heard.extend(frame[54:])

    with device:
        device.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
        device.bind(("lo", 0))
        device.settimeout(0.2)
        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield heard
        finally:
            over.set()
            thread.join()


def written() -> bytes:
    """What lies in the folders of clusters, and in memory beside them that has a name."""
    found = bytearray()
    for folder in MEMORY.glob("confide-ray-*"):
        for path in folder.rglob("*"):
            if path.is_file():
                found += path.name.encode() + path.read_bytes()
    return bytes(found)


def test_two_nodes_by_ray_give_the_weights_of_one(table: Table, tmp_path: Path) -> None:
    canaries = Canaries(100, SystemEntropy().token)
    changed = {"gradient_accumulation_steps": 2, "max_steps": STEPS}
    before = set(MEMORY.iterdir())

    async def work() -> None:
        async with table.first.client() as client:
            file = await rows_of(table.first, client, canaries.words)
            with listening() as heard:
                job = await table.first.ask(client, file, engine="ray", **changed)
                await table.first.at_step(client, job.id, 2)
                assert len(table.first.trainers()) == len(table.guest.trainers()) == 1
                assert len(table.held()) == 2
                everything, on_disk = table.everything(), written()
                assert on_disk, "Ray has written something, in memory"
                assert not canaries.inside(on_disk)
                assert b"PRIVATE KEY" not in on_disk
                done = await table.first.until(client, job.id, "succeeded")
            found = await table.first.finished(client, done)
        assert gone(everything) == set()
        assert {path.name for path in set(MEMORY.iterdir()) - before if "ray" in path.name} == set()
        [[own, other]] = found.record.seats
        assert [(own.engine, own.first), (other.engine, other.first)] == [("ray", 0), ("ray", 1)]
        assert found.happened == []
        [said] = [each.detail for each in found.record.findings if each.step == "record/6"]
        assert str(said).endswith("linked by ray")
        async with table.guest.client() as client:
            file = await rows_of(table.guest, client, canaries.words)
            job = await table.guest.ask(client, file, **changed)
            alone = await table.guest.finished(
                client, await table.guest.until(client, job.id, "succeeded")
            )
        assert alone.record.record.plan.world == 1
        assert found.trees == alone.trees

        if heard is None:
            pytest.skip("ALL ELSE HOLDS, NOT LISTENED TO: this user may not open a packet socket")
        # What the eleventh step began with went from seat to seat, and is not to be heard.
        state = opened_checkpoint(found, 10, tmp_path)
        assert len(heard) > STEPS * len(found.trees["adapter"]["adapter_model.safetensors"])
        patterns = {state[at : at + 16] for at in range(0, len(state) - 16, 256)} - {bytes(16)}
        assert len(patterns) > 100
        raw = bytes(heard)
        assert not any(pattern in raw for pattern in patterns)
        assert not canaries.inside(raw)

    asyncio.run(work())


@pytest.mark.slow
@pytest.mark.parametrize(("seat", "program"), [(1, b"ray::Carrier"), (0, b"raylet")])
def test_a_seat_that_ray_loses_fails_the_job_and_it_goes_on_to_the_same_bits(
    table: Table, seat: int, program: bytes
) -> None:
    changed = {"gradient_accumulation_steps": 2, "max_steps": 600}
    words = [f"word{number}" for number in range(40)]

    async def work() -> None:
        async with table.first.client() as client:
            file = await rows_of(table.first, client, words)
            job = await table.first.ask(client, file, engine="ray", **changed)
            await table.first.at_step(client, job.id, 11)
            holder = (rays(table.first), rays(table.guest))[seat][0]
            everything = table.everything()
            [lost] = [pid for pid in session_members(holder) if _program(pid).startswith(program)]
            os.kill(lost, signal.SIGKILL)
            ended = await table.first.until(client, job.id, "failed")
            assert ended.error is not None
            assert ended.error.code == "seat_lost"
            assert gone(everything) == set()
            resumed: Any = ended.to_dict()["confide"]
            assert resumed["resumable"] is True
            await client.fine_tuning.jobs.resume(job.id)
            found = await table.first.finished(
                client, await table.first.until(client, job.id, "succeeded")
            )
            assert found.happened == ["restarted"]
            assert [{each.engine for each in boot} for boot in found.record.seats] == [{"ray"}] * 2
        async with table.guest.client() as client:
            file = await rows_of(table.guest, client, words)
            job = await table.guest.ask(client, file, **changed)
            alone = await table.guest.finished(
                client, await table.guest.until(client, job.id, "succeeded")
            )
        assert found.trees == alone.trees

    asyncio.run(work())


async def both_hold(table: Table) -> None:
    """Wait until both nodes have begun to hold a seat."""
    for _ in range(2000):
        if len(table.held()) == 2:
            return
        await asyncio.sleep(0.05)
    pytest.fail("no cluster was begun")


def _program(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].rpartition(b"/")[2]


@pytest.mark.slow
def test_a_pause_and_a_cancel_leave_no_process_and_no_folder(table: Table) -> None:
    changed = {"gradient_accumulation_steps": 2, "max_steps": 400}
    words = [f"word{number}" for number in range(40)]
    before = set(MEMORY.glob("confide-ray-*"))

    async def work() -> None:
        async with table.first.client() as client:
            file = await rows_of(table.first, client, words)
            job = await table.first.ask(client, file, engine="ray", **changed)
            await table.first.at_step(client, job.id, 2)
            everything = table.everything()
            assert len(everything) > 8
            await client.fine_tuning.jobs.pause(job.id)
            await table.first.until(client, job.id, "paused")
            assert gone(everything) == set()
            await client.fine_tuning.jobs.resume(job.id)
            await both_hold(table)
            everything = table.everything()
            # In the middle of the cluster's start.
            await client.fine_tuning.jobs.cancel(job.id)
            assert gone(everything) == set()
            assert table.held() == []
            assert set(MEMORY.glob("confide-ray-*")) <= before

    asyncio.run(work())
