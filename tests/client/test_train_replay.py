"""The owner's side of a replay elsewhere, against a genuine node that lies on demand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from arithmetic import SALT
from nodes import roots as simulated_roots
from replay_world import CHALLENGE, TENTH, Bundle, trained
from train_world import KEY, TrainWorld
from training_owners import QuickSleeper, TrainingOwners, run, running_training_node

from confide.adapters.entropy import SystemEntropy
from confide.adapters.http_client import make_node_client
from confide.client.held import HeldNode, TrustPolicy
from confide.client.train_node import NodeRefused, TrainingNode
from confide.client.train_replay import ReplayOrder, replay_elsewhere
from confide.errors import (
    ConfideError,
    ConfigurationError,
    FormatError,
    Rejected,
    RemoteProtocolError,
    TrainingRejected,
    Unavailable,
)
from confide.training.replay_verify import Asked, VerifiedResult, verify_replay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.training.replay_result import ReplayFile

TOKEN = "a-token-of-one-replay-alone"
REPLAYS = "/v1/fine_tuning/replays"


@dataclass
class Desk:
    """An owner with a training that ended elsewhere, and a node that can replay it."""

    folder: Path
    bundle: Bundle
    place: TrainingOwners

    def order(self, **changed: Any) -> ReplayOrder:
        """What is asked for; the nonce is a new one each time."""
        bundle = self.bundle
        count = changed.pop("count", 6)
        nonce = SystemEntropy().token(32)
        usual: dict[str, Any] = {
            "asked": Asked(nonce, bundle.sample(count), None, bundle.audited, ended=True),
            "challenge": CHALLENGE,
            "note": None,
            "expectation": self.place.world.expectation,
            "record": self.folder / "record.json",
            "owner_log": self.folder / "log.json",
            "data": self.folder / "rows.jsonl",
            "salt": SALT,
            "validation": None,
            "validation_salt": SALT,
            "checkpoints": self.folder,
            "checkpoint_key": KEY,
            "bisect": False,
            "elsewhere": True,
        }
        return ReplayOrder(**(usual | changed))

    async def ask(self, order: ReplayOrder, **trust: Any) -> ReplayFile:
        """Have it executed; what comes is not verified."""
        http, clock = make_node_client(), self.place.clock
        policy = TrustPolicy(trust.get("expectation", order.expectation), simulated_roots())
        held = HeldNode(self.place.url, policy, http, clock, SystemEntropy())
        try:
            return await replay_elsewhere(
                TrainingNode(held, token=TOKEN),
                order,
                entropy=SystemEntropy(),
                sleeper=QuickSleeper(),
                told=lambda _executed, _steps: None,
            )
        finally:
            await held.close()
            await http.aclose()

    def verified(self, file: ReplayFile, order: ReplayOrder) -> VerifiedResult:
        """Hold it to proof and to what was asked for."""
        return verify_replay(
            file,
            roots=simulated_roots(),
            now=None,
            expectation=order.expectation,
            record=None,
            asked=order.asked,
        )

    def refused(self, kind: type[ConfideError], **changed: Any) -> str:
        """Ask for what comes to no result; return why."""
        with pytest.raises(kind) as caught:
            run(self.ask(self.order(**changed)))
        return str(caught.value)

    @property
    def kept(self) -> list[Path]:
        """What the node keeps of files."""
        return list(self.place.world.folder.iterdir())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    tmp = tmp_path_factory.mktemp("replay")
    (tmp / "first").mkdir()

    async def train() -> Bundle:
        async with TrainWorld(tmp / "first" / "files", keys=b"first").up() as world:
            return await trained(world)

    bundle = asyncio.run(train())
    (tmp / "record.json").write_bytes(bundle.record)
    (tmp / "log.json").write_bytes(bundle.log)
    (tmp / "rows.jsonl").write_bytes(bundle.rows)
    for step, sealed in bundle.checkpoints.items():
        (tmp / f"checkpoint-{step:09}.sealed").write_bytes(sealed)
    with running_training_node(tmp / "node", gpu="another") as place:
        yield Desk(tmp, bundle, place)


@pytest.fixture
def desk(shared: Desk) -> Iterator[Desk]:
    shared.place.liar.asked.clear()
    yield shared
    liar = shared.place.liar
    liar.answer, liar.break_at = None, lambda _method, _path: False
    assert shared.kept == [], "the owner left something behind"


def test_a_replay_elsewhere_is_asked_for_fetched_and_verified(desk: Desk) -> None:
    order = desk.order()
    found = desk.verified(run(desk.ask(order)), order)
    found.require_agreement()
    assert not found.result.same_machine
    assert found.result.sample.fraction == TENTH
    # Record, log, rows, and the checkpoints of the windows alone.
    assert desk.place.liar.asked.count(("POST", "/v1/files")) == 3 + len(order.wanted)


def test_every_checkpoint_goes_along_where_the_first_step_is_to_be_found(desk: Desk) -> None:
    order = desk.order(bisect=True, count=1)
    assert len(order.wanted) == 8
    desk.verified(run(desk.ask(order)), order).require_agreement()


def test_nothing_is_sent_to_a_node_that_is_not_what_was_expected(desk: Desk) -> None:
    known = desk.place.world.expectation
    other = replace(known, model=replace(known.model, weights="22" * 32))
    with pytest.raises(Rejected):
        run(desk.ask(desk.order(), expectation=other))
    assert desk.place.liar.asked == []


def test_what_the_node_refuses_is_said_in_its_words(desk: Desk) -> None:
    assert "audit/1" in desk.refused(NodeRefused, owner_log=desk.folder / "record.json")
    assert "dataset" in desk.refused(ConfideError, salt=b"s" * 32)


def test_a_file_that_is_not_at_hand_is_named(desk: Desk) -> None:
    assert "nowhere" in desk.refused(ConfigurationError, record=desk.folder / "nowhere")


def test_a_wrong_key_comes_to_no_verdict(desk: Desk) -> None:
    assert "no verdict" in desk.refused(Unavailable, checkpoint_key=b"k" * 32)


def test_the_result_of_another_replay_is_refused(desk: Desk) -> None:
    first, second = desk.order(), desk.order()
    one, two = run(desk.ask(first)), run(desk.ask(second))
    desk.verified(one, first)
    with pytest.raises(TrainingRejected, match="another nonce"):
        desk.verified(one, second)
    with pytest.raises(TrainingRejected):
        desk.verified(replace(two, evidence=one.evidence), second)


def test_an_answer_that_is_no_result_is_refused(desk: Desk) -> None:
    desk.place.liar.answer = lambda path, body: b"{}" if path.endswith("/result") else body
    desk.refused(FormatError)


def test_a_node_that_speaks_nonsense_of_a_replay_broke_the_protocol(desk: Desk) -> None:
    def nonsense(path: str, body: bytes) -> bytes:
        return b'{"id": 7}' if path == REPLAYS else body

    desk.place.liar.answer = nonsense
    desk.refused(RemoteProtocolError)
    # What it has begun goes on without an owner who could know its name.
    asyncio.run(_ended(desk))


async def _ended(desk: Desk) -> None:
    while desk.place.world.replays.busy:  # noqa: ASYNC110 - another loop's, which tells no event
        await asyncio.sleep(0.01)


def test_a_lost_connection_is_made_again(desk: Desk) -> None:
    lost = iter([True, True, False, True])

    def breaks(method: str, path: str) -> bool:
        return method == "GET" and path.startswith(REPLAYS) and next(lost, False)

    desk.place.liar.break_at = breaks
    order = desk.order()
    desk.verified(run(desk.ask(order)), order).require_agreement()


def test_who_does_not_wait_cancels(desk: Desk) -> None:
    desk.place.liar.break_at = lambda method, path: method == "GET" and path.startswith(REPLAYS)
    desk.refused(ConfideError)
    cancelled = [path for method, path in desk.place.liar.asked if path.endswith("/cancel")]
    assert len(cancelled) == 1
