"""Two training nodes, as processes, at one job: real ranks, TLS between them, a listener."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from dataset_rows import lines
from deployment import Installation
from leaks import Canaries
from seat_links import tapped
from tiny_models import make_model
from train_world import KEY
from training_process import Finished, TrainingNode

from confide.adapters.entropy import SystemEntropy
from confide.trainer.checkpoint_files import CheckpointFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.model, pytest.mark.slow]
STEPS = 12


@dataclass
class Table:
    """Both nodes; `asked` is what went between them over HTTP, `linked` what the ranks sent."""

    first: TrainingNode
    guest: TrainingNode
    asked: bytearray = field(default_factory=bytearray)
    linked: bytearray = field(default_factory=bytearray)


def opened_checkpoint(found: Finished, step: int, folder: Path) -> bytes:
    """What a checkpoint holds, in plain."""
    record = found.record.record
    [entry] = [each for each in record.checkpoints if each.step == step]
    (folder / f"checkpoint-{step:09}.sealed").write_bytes(found.files[f"checkpoint-{step}.sealed"])
    files = CheckpointFiles(folder, plan=record.plan.digest, key=KEY, session=bytes(32))
    return files.read(entry)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    installation = Installation(tmp_path / "node", "")
    base = make_model(tmp_path / "base")
    found = Table(TrainingNode(installation, base), TrainingNode(installation, base))
    with ExitStack() as stack:
        links = []
        for _ in range(2):
            # Nodes listen on one address of this machine and are told to be at another one.
            port = free_port()
            stack.enter_context(tapped(("127.0.0.1", port), found.linked, at=("127.0.0.2", port)))
            links.append(("--seat-address", f"127.0.0.2:{port}"))
        found.guest.start("--serve-seats", "--simulate-machine", "second", *links[1])
        stack.callback(found.guest.node.stop)
        port = int(found.guest.node.url.rpartition(":")[2])
        host, tap = stack.enter_context(tapped(("127.0.0.1", port), found.asked))
        found.first.start("--seat", f"http://{host}:{tap}=1", *links[0])
        stack.callback(found.first.node.stop)
        yield found


def test_two_nodes_give_the_weights_of_one_and_nothing_is_to_be_heard(
    table: Table, tmp_path: Path
) -> None:
    canaries = Canaries(100, SystemEntropy().token)
    rows = lines(
        *({"prompt": f"{word}: ", "completion": f" {word[::-1]}"} for word in canaries.words)
    )
    changed = {"gradient_accumulation_steps": 2, "max_steps": STEPS}

    async def work() -> None:
        async with table.first.client() as client:
            file = await table.first.upload(client, rows)
            job = await table.first.ask(client, file, **changed)
            await table.first.at_step(client, job.id, 1)
            assert len(table.first.trainers()) == len(table.guest.trainers()) == 1
            done = await table.first.until(client, job.id, "succeeded")
            found = await table.first.finished(client, done)
        [[own, other]] = found.record.seats
        assert [(own.first, own.ranks), (other.first, other.ranks)] == [(0, 1), (1, 1)]
        assert own.machine != other.machine
        assert found.happened == []
        async with table.guest.client() as client:
            file = await table.guest.upload(client, rows)
            job = await table.guest.ask(client, file, **changed)
            alone = await table.guest.finished(
                client, await table.guest.until(client, job.id, "succeeded")
            )
        assert alone.record.record.plan.world == 1
        assert found.record.record.plan.world == 2
        assert found.trees == alone.trees

        assert not canaries.inside(bytes(table.asked)), "rows went between the nodes"
        assert not canaries.inside(bytes(table.linked))
        # What the eleventh step began with went round as it stands in the checkpoint before.
        state = opened_checkpoint(found, 10, tmp_path)
        assert len(table.linked) > STEPS * len(found.trees["adapter"]["adapter_model.safetensors"])
        patterns = {state[at : at + 16] for at in range(0, len(state) - 16, 16)} - {bytes(16)}
        assert len(patterns) > 100
        heard = bytes(table.linked)
        assert not any(pattern in heard for pattern in patterns)

    asyncio.run(work())
    kept = [path.name for path in (table.guest.state / "checkpoints").rglob("*") if path.is_file()]
    assert len(kept) == 2, "of its own job; of the seat it keeps nothing"
