"""What one owner has on a training node is not there for another: through every route there is.

A foreign id is answered as one that never was, byte for byte: not even that it is there is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from replay_world import ask, ended, send, trained
from starlette.routing import Route
from train_world import TrainWorld
from training_place import run

if TYPE_CHECKING:
    from pathlib import Path

    import httpx2

STRANGER = "a-token-of-somebody-else"
BODIES: dict[str, Any] = {
    "POST /v1/uploads/{id}/complete": {"json": {"part_ids": []}},
    "POST /v1/uploads/{id}/parts": {"files": {"data": ("data", b"x")}},
}


def routes(world: TrainWorld) -> list[tuple[str, str]]:
    """Method and path of every route that names something."""
    found = [*world.app._app.routes, *world.files._app.routes]
    return sorted(
        (method, route.path)
        for route in found
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
        if "{id}" in route.path
    )


@pytest.fixture
def world(tmp_path: Path) -> TrainWorld:
    return TrainWorld(tmp_path / "files")


async def belongings(world: TrainWorld) -> list[str]:
    """The id of everything that an owner can have here: a job, its results, a replay, an upload."""
    bundle = await trained(world)
    request = await send(world, bundle, another_machine=False)
    _, replay = await ask(world, request)
    await ended(world, replay["id"])
    async with world.plain() as http:
        jobs = (await http.get("/v1/fine_tuning/jobs")).json()["data"]
        files = (await http.get("/v1/files")).json()["data"]
        said = {"bytes": 4, "filename": "rows.jsonl", "mime_type": "x", "purpose": "fine-tune"}
        upload = (await http.post("/v1/uploads", json=said)).json()
    # Rows, results, state that was brought: of every purpose there is one.
    assert len({each["purpose"] for each in files}) == 3
    return [*(each["id"] for each in (*jobs, *files)), replay["id"], upload["id"]]


async def answers(
    http: httpx2.AsyncClient, world: TrainWorld, name: str
) -> list[tuple[int, bytes]]:
    found = []
    for method, path in routes(world):
        place = path.format(id=name, index=0, step=4)
        answer = await http.request(method, place, **BODIES.get(f"{method} {path}", {}))
        found.append((answer.status_code, answer.content))
    return found


def test_what_an_owner_has_is_not_there_for_another(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up():
            names = await belongings(world)
            before = world.stored
            async with world.plain() as http:
                http.headers["authorization"] = f"Bearer {STRANGER}"
                never = await answers(http, world, "never-was")
                assert {status for status, _ in never} == {404}
                for name in names:
                    assert await answers(http, world, name) == never, name
                for path in ("/v1/files", "/v1/fine_tuning/jobs"):
                    assert (await http.get(path)).json()["data"] == []
            assert world.stored == before
            # The owner still has all of it.
            async with world.plain() as http:
                for name in names:
                    found = [status for status, _ in await answers(http, world, name)]
                    assert set(found) - {404}, name

    run(scenario())


def test_what_an_owner_has_cannot_be_named_in_the_request_of_another(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up():
            bundle = await trained(world)
            request = await send(world, bundle, another_machine=False)
            job = {
                "model": "support-notes",
                "training_file": request["training_file"],
                "confide": world.asked(),
            }
            async with world.plain() as http:
                http.headers["authorization"] = f"Bearer {STRANGER}"
                for path, body in (
                    ("/v1/fine_tuning/replays", request),
                    ("/v1/fine_tuning/jobs", job),
                ):
                    answer = await http.post(path, json=body)
                    assert answer.status_code == 404, path
                    assert answer.json()["error"]["code"] == "not_found"

    run(scenario())
