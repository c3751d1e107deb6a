"""What a node with `--serve-seats` takes from whoever can reach it (training-ranks.md 4.7, 4.8)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from arithmetic import RECIPE
from nodes import WEIGHTS
from seat_world import LINK, TIMES
from train_world import TrainWorld
from training_place import run

from confide.errors import FormatError
from confide.node.seat_host import SeatHost
from confide.node.seat_messages import (
    SEATS,
    SeatInvitation,
    parse_invitation,
    parse_seat_order,
    parse_taken_seat,
)
from confide.node.seat_rows import read_order, sent_order, training_job
from confide.training.job import TrainingData, TrainingJob
from confide.training.plan import TrainingPlan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from confide.node.seat_places import SeatTimes

ROWS = [b'{"completion":"%d","prompt":"a"}' % number for number in range(40_000)]
DIGESTS = [hashlib.sha256(bytes([number])).digest() for number in range(6)]
PLAN = TrainingPlan(RECIPE.digest, DIGESTS[0], None, WEIGHTS, bytes(32), None, world=2)


def hosting(folder: Path, *, occupied: bool = False, times: SeatTimes = TIMES) -> TrainWorld:
    return TrainWorld(
        folder / "files",
        host=lambda ports, jobs: SeatHost(
            ports, jobs.pool, LINK, occupied=lambda: occupied, times=times
        ),
    )


def invitation(world: TrainWorld) -> SeatInvitation:
    return SeatInvitation(
        world.expectation.canonical(),
        DIGESTS[1],
        DIGESTS[2],
        PLAN,
        DIGESTS[3],
        0,
        1,
        1,
        1,
        1,
        "ring",
    )


def test_a_seat_belongs_to_who_was_given_it_and_takes_one_step_after_the_other(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        world = hosting(tmp_path)
        async with world.up(), world.plain() as http:
            asked = invitation(world)
            answer = await http.post(SEATS, content=asked.encode())
            assert answer.status_code == 200
            taken = parse_taken_seat(answer.content)
            one = f"{SEATS}/{taken.id}"
            stranger = {"authorization": "Bearer another-long-token-of-one"}
            assert (await http.delete(one, headers=stranger)).status_code == 404
            assert (await http.post(f"{one}/rows", content=b"")).status_code == 409
            assert (await http.post(SEATS, content=asked.encode())).status_code == 429
            assert (await http.post(f"{one}/admission", content=b"{}")).status_code == 403
            gone = await http.delete(one)
            assert gone.status_code == 404, "who is not admitted here has no seat"
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*taken.address)
            assert (await http.post(SEATS, content=asked.encode())).status_code == 200

    run(scenario())


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"plan": replace(PLAN, base=bytes(32))}, "model_mismatch"),
        ({"plan": replace(PLAN, world=3), "ranks": 2}, "too_many_ranks"),
        ({"expectation": b"{}"}, "expectation_mismatch"),
        ({"ranks": 2}, "invalid_request"),
    ],
)
def test_what_this_node_is_not_it_takes_no_seat_for(
    tmp_path: Path, changed: dict[str, Any], code: str
) -> None:
    async def scenario() -> None:
        world = hosting(tmp_path)
        async with world.up(), world.plain() as http:
            asked = replace(invitation(world), **changed)
            answer = await http.post(SEATS, content=asked.encode())
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == code
            assert world.seats is not None
            assert not world.seats.busy

    run(scenario())


def test_a_node_at_work_and_one_that_stops_take_no_seat(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = hosting(tmp_path / "occupied", occupied=True)
        async with world.up(), world.plain() as http:
            answer = await http.post(SEATS, content=invitation(world).encode())
            assert answer.status_code == 429
        world = hosting(tmp_path / "stopping")
        async with world.up(), world.plain() as http:
            assert world.seats is not None
            world.seats.drain()
            answer = await http.post(SEATS, content=invitation(world).encode())
            assert answer.json()["error"]["code"] == "node_draining"

    run(scenario())


def test_a_seat_that_nobody_comes_back_for_is_taken_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = hosting(tmp_path, times=replace(TIMES, offered=0))
        async with world.up(), world.plain() as http:
            answer = await http.post(SEATS, content=invitation(world).encode())
            taken = parse_taken_seat(answer.content)
            while world.seats is not None and world.seats.busy:  # noqa: ASYNC110 - a timer's
                await asyncio.sleep(0.01)
            assert (await http.delete(f"{SEATS}/{taken.id}")).status_code == 404

    run(scenario())


def job(validation: bool = False) -> TrainingJob:
    apart = TrainingData("completion", DIGESTS[4], DIGESTS[5], b"s" * 32, ROWS[:3])
    data = TrainingData("completion", DIGESTS[0], DIGESTS[5], b"s" * 32, ROWS)
    return TrainingJob(RECIPE, data, apart if validation else None, WEIGHTS, world=2)


async def pieces_of(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize("validation", [False, True])
def test_rows_arrive_as_they_were_sent_and_no_salt_with_them(
    validation: bool,
) -> None:
    async def scenario() -> None:
        sent = job(validation)
        pieces = [piece async for piece in sent_order(sent)]
        assert len(pieces) > 1
        whole = b"".join(pieces)
        assert b"s" * 32 not in whole
        assert (b"s" * 32).hex().encode() not in whole
        order, rows = await read_order(pieces_of(whole, 100_003))
        plan = replace(PLAN, validation=DIGESTS[4] if validation else None)
        found = training_job(order, rows, plan)
        assert found.data.rows == ROWS
        assert found.data.salt == bytes(32)
        assert (found.validation is not None) == validation
        for other in (
            replace(plan, recipe=bytes(32)),
            replace(plan, dataset=bytes(32)),
            replace(plan, validation=bytes(32)),
        ):
            with pytest.raises(FormatError, match="of another plan"):
                training_job(order, rows, other)

    run(scenario())


def test_rows_that_are_cut_or_too_many_are_refused() -> None:
    async def scenario() -> None:
        whole = b"".join([piece async for piece in sent_order(job())])
        for wrong in (b"", whole[:-1], whole[: whole.rindex(b"\n", 0, -1) + 1], whole + b"{}\n"):
            with pytest.raises(FormatError, match="cut, or other rows"):
                await read_order(pieces_of(wrong, 1 << 16))
        with pytest.raises(FormatError, match="too much"):
            await read_order(pieces_of(b"x" * (200 << 20), 1 << 26))

    run(scenario())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seat", 0),
        ("seat", 64),
        ("first", 0),
        ("ranks", 0),
        ("ranks", 2),
        ("threads", 0),
        ("boot", -1),
        ("job", "00"),
        ("type", "confide/training-seat/v2"),
        ("more", 1),
    ],
)
def test_an_invitation_is_held_to_its_form(tmp_path: Path, name: str, value: object) -> None:
    asked = invitation(TrainWorld(tmp_path / "files"))
    assert parse_invitation(asked.encode()) == asked
    changed = json.loads(asked.encode()) | {name: value}
    with pytest.raises(FormatError):
        parse_invitation(json.dumps(changed).encode())


def test_validation_rows_come_with_their_name() -> None:
    async def scenario() -> None:
        order, _ = await read_order(sent_order(job()))
        changed = json.loads(order.encode()) | {"validation_rows": 1}
        with pytest.raises(FormatError, match="validation"):
            parse_seat_order(json.dumps(changed).encode())

    run(scenario())
