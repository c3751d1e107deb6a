"""Jobs that go on elsewhere: handed over by one node, held to proof and taken up by another.

docs/protocols/training-node.md §7. Two nodes in memory, on two machines or on one.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import openai
import pytest
from arithmetic import RECIPE, SALT
from runs import expectation_and_roots
from train_world import KEY, OWNER, ROWS, FakeProcess, Gate, TrainWorld, opened
from training_place import TOKEN, run

from confide.crypto.sealed_file import open_file_under
from confide.training.audit import audit_log
from confide.training.handover import HandoverFile, parse_handover, parse_handover_file
from confide.training.record_file import parse_record_file
from confide.training.record_verify import VerifiedRecord, verify_record
from confide.wire.dsse import Envelope
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from openai.types.fine_tuning import FineTuningJob

    from confide.training.audit import AuditedLog

CONTENT = "/v1/fine_tuning/jobs/{}/checkpoints/{}/content"


@dataclass
class Fetched:
    """What an owner holds of a job: the opened handover, the sealed checkpoint, the nonce."""

    handover: bytes
    checkpoint: bytes
    nonce: str

    @property
    def file(self) -> HandoverFile:
        return parse_handover_file(self.handover)

    @property
    def step(self) -> int:
        return parse_handover(self.file.envelope.payload).checkpoint.step


@asynccontextmanager
async def nodes(
    tmp_path: Path, *worlds: dict[str, Any]
) -> AsyncIterator[list[tuple[TrainWorld, openai.AsyncOpenAI]]]:
    """Nodes that are up, each with a client of the same owner."""
    async with AsyncExitStack() as stack:
        found = []
        for number, more in enumerate(worlds):
            made = TrainWorld(
                tmp_path / str(number) / "files", **({"keys": b"boot %d" % number} | more)
            )
            (tmp_path / str(number)).mkdir(exist_ok=True)
            world = await stack.enter_async_context(made.up())
            found.append((world, await stack.enter_async_context(world.client())))
        yield found


HERE: dict[str, Any] = {}
ELSEWHERE: dict[str, Any] = {"gpu": "another"}
NONCE = "17" * 32


async def raw(world: TrainWorld, path: str) -> tuple[int, bytes]:
    """Ask the inner application."""
    async with world.plain() as http:
        answer = await http.get(path)
        return answer.status_code, answer.content


async def fetch(world: TrainWorld, job: FineTuningJob) -> Fetched:
    """Fetch the handover of a job, and the checkpoint that it names."""
    status, sealed = await raw(world, f"/v1/fine_tuning/jobs/{job.id}/handover")
    assert status == 200, sealed
    handover = opened(job.id, "handover.sealed", sealed)
    step = parse_handover(parse_handover_file(handover).envelope.payload).checkpoint.step
    status, checkpoint = await raw(world, CONTENT.format(job.id, step))
    assert status == 200
    nonce = world.entry(job.id).job.request.nonce.hex()
    return Fetched(handover, checkpoint, nonce)


async def stopped_at(world: TrainWorld, client: openai.AsyncOpenAI, step: int) -> Fetched:
    """A job that is in the middle of a step when its owner fetches what it has."""
    gate = Gate(step)
    world.fate.after = gate
    job = await world.ask(client, nonce=NONCE)
    await gate.wait()
    return await fetch(world, job)


async def bring(client: openai.AsyncOpenAI, name: str, data: bytes) -> str:
    made = await client.files.create(file=(name, data), purpose="fine-tune-state")  # type: ignore[arg-type]
    assert (made.purpose, made.bytes) == ("fine-tune-state", len(data))
    return made.id


async def go_on(
    world: TrainWorld, client: openai.AsyncOpenAI, fetched: Fetched, **changed: Any
) -> FineTuningJob:
    """Bring what was fetched to another node, and ask for the job again."""
    brought = {
        "handover": await bring(client, "handover.json", fetched.handover),
        "checkpoint": await bring(client, "checkpoint", fetched.checkpoint),
    }
    return await world.ask(
        client, **({"nonce": fetched.nonce, "continue": brought} | changed)
    )


async def proven(
    world: TrainWorld, client: openai.AsyncOpenAI, job: FineTuningJob
) -> tuple[VerifiedRecord, AuditedLog]:
    """What a stranger and the owner find of a job that succeeds."""
    done = await world.until(client, job.id, "succeeded")
    files = await world.results(client, done)
    record = verify_record(
        parse_record_file(files["record.json"]),
        roots=expectation_and_roots()[1],
        now=None,
        expectation=world.expectation,
        nonce=bytes.fromhex(NONCE),
        outputs={},
    )
    log = opened(job.id, "owner-log.sealed", files["owner-log.sealed"])
    return record, audit_log(record, log, dataset_salt=SALT, rows=None)


async def straight(tmp_path: Path) -> VerifiedRecord:
    """The record of the same job to which nothing happened."""
    async with nodes(tmp_path / "straight", HERE) as [(world, client)]:
        return (await proven(world, client, await world.ask(client, nonce=NONCE)))[0]


def kinds(audited: AuditedLog) -> list[str]:
    return [event.kind for event in audited.log.events if event.kind != "checkpoint"]


@pytest.mark.parametrize(
    ("second", "turn", "events"),
    [(ELSEWHERE, "moved", ["restarted", "machine"]), (HERE, "restarted", ["restarted"])],
)
def test_a_job_whose_node_is_gone_goes_on_on_another_node_with_the_same_bits(
    tmp_path: Path, second: dict[str, Any], turn: str, events: list[str]
) -> None:
    async def scenario() -> None:
        async with nodes(tmp_path, HERE, second) as [(first, client), (other, again)]:
            fetched = await stopped_at(first, client, 11)
            assert fetched.step == 8
            job = await go_on(other, again, fetched)
            assert job.model_extra is not None
            assert job.model_extra["confide"]["step"] == 8
            record, audited = await proven(other, again, job)
        assert [each.kind for each in record.record.turns] == ["started", turn]
        assert [each.step for each in record.record.turns] == [0, 8]
        assert len(set(record.machines)) == (2 if turn == "moved" else 1)
        assert kinds(audited) == events
        assert other.fate.started[0].form.resume is not None
        undisturbed = await straight(tmp_path)
        assert record.record.outputs == undisturbed.record.outputs
        assert record.record.head == undisturbed.record.head

    run(scenario())
