"""Replays between two training nodes in memory: one trained, another executes drawn steps.

A `Bundle` is what the owner holds of a training; `send` brings it to a node, `ask` asks there.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from arithmetic import SALT
from dataset_rows import commit
from runs import expectation_and_roots
from train_world import KEY, ROWS, TrainWorld, opened

from confide.training.audit import AuditedLog, audit_log
from confide.training.draw import Sample, draw_sample, replay_beacon
from confide.training.record_file import parse_record_file
from confide.training.record_verify import verify_record
from confide.training.replay_result import ReplayFile, parse_replay_file
from confide.training.replay_verify import Asked, VerifiedResult, verify_replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx2

    from confide.training.replay import Tolerance

REPLAYS = "/v1/fine_tuning/replays"
CHALLENGE = bytes(range(32))
NONCE = b"n" * 32
TENTH = Fraction(1, 10)


@dataclass
class Bundle:
    """What an owner holds of one training: record, opened log, sealed checkpoints."""

    record: bytes
    log: bytes
    checkpoints: dict[int, bytes]
    rows: bytes = ROWS
    audited: AuditedLog = field(init=False)

    def __post_init__(self) -> None:
        self.audited = audit_log(
            verify_record(
                parse_record_file(self.record),
                roots=expectation_and_roots()[1],
                now=None,
                expectation=None,
                nonce=None,
                outputs={},
            ),
            self.log,
            dataset_salt=SALT,
            rows=None,
        )

    def sample(self, count: int, challenge: bytes = CHALLENGE) -> Sample:
        """The draw of `count` steps."""
        record = self.audited.record.record
        beacon = replay_beacon(record.head, challenge=challenge, checkpoint=None)
        return draw_sample(beacon, record.steps, count=count, fraction=TENTH, miss=TENTH)


async def trained(world: TrainWorld, **changed: Any) -> Bundle:
    """Train on `world` and fetch what its owner gets."""
    async with world.client() as client:
        job = await world.ask(client, **changed)
        done = await world.until(client, job.id, "succeeded")
        files = await world.results(client, done)
    checkpoints = {
        int(name.removeprefix("checkpoint-").removesuffix(".sealed")): data
        for name, data in files.items()
        if name.startswith("checkpoint-")
    }
    log = opened(job.id, "owner-log.sealed", files["owner-log.sealed"])
    return Bundle(files["record.json"], log, checkpoints)


@asynccontextmanager
async def two_nodes(
    tmp: Path, *, same_machine: bool = False, ranks: int = 1
) -> AsyncIterator[tuple[TrainWorld, TrainWorld]]:
    """A node that trains, and one that replays: on another machine, unless it is the same."""
    gpu = "model-node" if same_machine else "another"
    for name in ("first", "second"):
        (tmp / name).mkdir(parents=True)
    async with AsyncExitStack() as stack:
        first = TrainWorld(tmp / "first" / "files", keys=b"first", ranks=ranks)
        second = TrainWorld(tmp / "second" / "files", keys=b"second", gpu=gpu)
        yield (
            await stack.enter_async_context(first.up()),
            await stack.enter_async_context(second.up()),
        )


async def put(
    http: httpx2.AsyncClient, data: bytes, *, purpose: str = "fine-tune-state", **fields: str
) -> str:
    """Send a file; return its id."""
    answer = await http.post(
        "/v1/files", data={"purpose": purpose, **fields}, files={"file": ("file", data)}
    )
    assert answer.status_code == 200, answer.text
    made: str = answer.json()["id"]
    return made


async def send(world: TrainWorld, bundle: Bundle, **changed: Any) -> dict[str, Any]:
    """Send everything of `bundle` to `world`; return a request for a replay of six steps."""
    async with world.plain() as http:
        committed = commit(bundle.rows, SALT).digest.hex()
        usual: dict[str, Any] = {
            "record": await put(http, bundle.record),
            "owner_log": await put(http, bundle.log),
            "training_file": await put(
                http,
                bundle.rows,
                purpose="fine-tune",
                dataset=committed,
                dataset_salt=SALT.hex(),
            ),
            "validation_file": None,
            "checkpoints": {
                str(step): await put(http, data) for step, data in bundle.checkpoints.items()
            },
            "checkpoint_key": KEY.hex(),
            "nonce": NONCE.hex(),
            "expectation": world.expectation_value(),
            "challenge": CHALLENGE.hex(),
            "log_checkpoint": None,
            "steps": 6,
            "fraction": "1/10",
            "tolerance": None,
            "another_machine": True,
        }
    return usual | changed


async def ask(world: TrainWorld, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Ask for a replay; return the status and the answer."""
    async with world.plain() as http:
        answer = await http.post(REPLAYS, json=request)
        return answer.status_code, answer.json()


async def ended(world: TrainWorld, replay_id: str) -> dict[str, Any]:
    """Wait until a replay has ended."""
    async with world.plain() as http:
        while True:
            found: dict[str, Any] = (await http.get(f"{REPLAYS}/{replay_id}")).json()
            if found["status"] not in ("queued", "running"):
                return found
            await asyncio.sleep(0.005)


async def result(world: TrainWorld, replay_id: str) -> ReplayFile:
    """The file of a replay that came to a verdict."""
    found = await ended(world, replay_id)
    assert found["status"] == "succeeded", found
    async with world.plain() as http:
        return parse_replay_file((await http.get(f"{REPLAYS}/{replay_id}/result")).content)


async def replayed(world: TrainWorld, bundle: Bundle, **changed: Any) -> ReplayFile:
    """Send, ask, wait: the file with the result."""
    status, answer = await ask(world, await send(world, bundle, **changed))
    assert status == 200, answer
    return await result(world, answer["id"])


async def refusal(world: TrainWorld, bundle: Bundle, **changed: Any) -> tuple[str, str]:
    """Ask for what is refused; return code and parameter."""
    status, answer = await ask(world, await send(world, bundle, **changed))
    assert status in (400, 404), answer
    return answer["error"]["code"], answer["error"]["param"]


async def failure(world: TrainWorld, bundle: Bundle, **changed: Any) -> str:
    """Ask for what fails when it is executed; return the code."""
    status, answer = await ask(world, await send(world, bundle, **changed))
    assert status == 200, answer
    found = await ended(world, answer["id"])
    assert found["status"] == "failed", found
    code: str = found["error"]["code"]
    return code


def verified(
    file: ReplayFile,
    bundle: Bundle,
    *,
    count: int = 6,
    tolerance: Tolerance | None = None,
    **known: Any,
) -> VerifiedResult:
    """Verify as the owner who asked for `count` steps does."""
    expectation, roots = expectation_and_roots()
    facts: dict[str, Any] = {
        "roots": roots,
        "now": None,
        "expectation": expectation,
        "record": None,
        "asked": Asked(NONCE, bundle.sample(count), tolerance, bundle.audited, ended=True),
    }
    return verify_replay(file, **{**facts, **known})


def predicate(file: ReplayFile) -> dict[str, Any]:
    """What a result says, as JSON."""
    found: dict[str, Any] = json.loads(file.result.payload)["predicate"]
    return found


__all__ = [
    "CHALLENGE",
    "NONCE",
    "REPLAYS",
    "Bundle",
    "ask",
    "ended",
    "failure",
    "predicate",
    "put",
    "refusal",
    "replayed",
    "result",
    "send",
    "trained",
    "two_nodes",
    "verified",
]
