"""The routes of a training node at their edges: methods, sizes, pages, owners, absent things."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from replay_world import ended, put, send, trained
from train_world import MODEL, TrainWorld
from training_place import run

if TYPE_CHECKING:
    from pathlib import Path

    import httpx2

JOBS = "/v1/fine_tuning/jobs"
REPLAYS = "/v1/fine_tuning/replays"


@pytest.fixture
def world(tmp_path: Path) -> TrainWorld:
    return TrainWorld(tmp_path / "files")


def error(answer: httpx2.Response) -> tuple[int, str, str | None]:
    """Status, code and parameter of a refusal, which has OpenAI's shape."""
    document: dict[str, Any] = answer.json()
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"message", "type", "param", "code"}
    return answer.status_code, document["error"]["code"], document["error"]["param"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/fine_tuning"),
        ("GET", f"{JOBS}/x/nothing"),
        ("GET", f"{JOBS}/x/checkpoints/1"),
        ("GET", f"{REPLAYS}/x/nothing"),
        ("POST", "/confide/v1/statement"),
    ],
)
def test_a_route_that_is_none_is_404(world: TrainWorld, method: str, path: str) -> None:
    async def scenario() -> None:
        async with world.up(), world.plain() as http:
            assert error(await http.request(method, path)) == (404, "not_found", None)

    run(scenario())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", JOBS),
        ("PUT", JOBS),
        ("POST", f"{JOBS}/x"),
        ("DELETE", f"{JOBS}/x"),
        ("POST", f"{JOBS}/x/events"),
        ("GET", f"{JOBS}/x/cancel"),
        ("GET", f"{JOBS}/x/pause"),
        ("POST", f"{JOBS}/x/attestation"),
        ("POST", "/v1/models"),
        ("DELETE", f"/v1/models/{MODEL}"),
        ("GET", REPLAYS),
        ("DELETE", f"{REPLAYS}/x"),
        ("POST", f"{REPLAYS}/x/result"),
        ("GET", f"{REPLAYS}/x/cancel"),
    ],
)
def test_another_method_is_405(world: TrainWorld, method: str, path: str) -> None:
    async def scenario() -> None:
        async with world.up(), world.plain() as http:
            assert error(await http.request(method, path)) == (405, "method_not_allowed", None)

    run(scenario())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{JOBS}/ftjob-nowhere"),
        ("GET", f"{JOBS}/ftjob-nowhere/events"),
        ("GET", f"{JOBS}/ftjob-nowhere/checkpoints"),
        ("GET", f"{JOBS}/ftjob-nowhere/checkpoints/4/content"),
        ("GET", f"{JOBS}/ftjob-nowhere/handover"),
        ("GET", f"{JOBS}/ftjob-nowhere/attestation"),
        ("POST", f"{JOBS}/ftjob-nowhere/cancel"),
        ("POST", f"{JOBS}/ftjob-nowhere/pause"),
        ("POST", f"{JOBS}/ftjob-nowhere/resume"),
        ("GET", f"{REPLAYS}/ftreplay-nowhere"),
        ("GET", f"{REPLAYS}/ftreplay-nowhere/result"),
        ("POST", f"{REPLAYS}/ftreplay-nowhere/cancel"),
    ],
)
def test_what_is_not_there_is_404_and_without_a_token_401(
    world: TrainWorld, method: str, path: str
) -> None:
    async def scenario() -> None:
        async with world.up(), world.plain() as http:
            assert error(await http.request(method, path))[:2] == (404, "not_found")
            for token in ("", "Bearer short", "Basic a-long-token-of-one-owner"):
                nobody = {"authorization": token}
                answer = await http.request(method, path, headers=nobody)
                assert error(answer) == (401, "invalid_api_key", None)

    run(scenario())


@pytest.mark.parametrize("path", [JOBS, REPLAYS])
def test_a_body_is_bounded_and_has_to_be_json(world: TrainWorld, path: str) -> None:
    async def scenario() -> None:
        async with world.up(), world.plain() as http:
            large = await http.post(path, content=b" " * ((1 << 20) + 1))
            assert error(large)[:2] == (413, "request_too_large")
            for raw in (b"", b"{", b"[]", b"null", b'{"model": "a", "model": "b"}', b"\xff"):
                assert error(await http.post(path, content=raw))[0] == 400, raw

    run(scenario())


def test_a_model_is_the_base_or_none(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.plain() as http:
            listed = (await http.get("/v1/models")).json()
            assert [each["id"] for each in listed["data"]] == [MODEL]
            assert (await http.get(f"/v1/models/{MODEL}")).json()["id"] == MODEL
            for name in ("another", f"{MODEL}/more"):
                absent = error(await http.get(f"/v1/models/{name}"))
                assert absent == (404, "model_not_found", "model")

    run(scenario())


@pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "1000", "x", "", "\u0661"])
def test_a_page_has_one_to_a_hundred_items(world: TrainWorld, limit: str) -> None:
    async def scenario() -> None:
        async with world.up(), world.plain() as http:
            refused = await http.get(JOBS, params={"limit": limit})
            assert error(refused) == (400, "invalid_value", "limit")

    run(scenario())


def test_pages_follow_each_other_without_gap_or_overlap(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.plain() as http:
            async with world.client() as client:
                job = await world.ask(client)
                await world.until(client, job.id, "succeeded")
            path = f"{JOBS}/{job.id}/events"
            whole = (await http.get(path, params={"limit": "100"})).json()
            assert not whole["has_more"]
            found: list[str] = []
            query = {"limit": "7"}
            while True:
                page = (await http.get(path, params=query)).json()
                found += [each["id"] for each in page["data"]]
                if not page["has_more"]:
                    break
                assert len(page["data"]) == 7
                query["after"] = found[-1]
            assert found == [each["id"] for each in whole["data"]]
            last = (await http.get(path, params={"after": found[-1]})).json()
            assert (last["data"], last["has_more"]) == ([], False)
            refused = await http.get(path, params={"after": "ftevent-nowhere"})
            assert error(refused) == (400, "invalid_value", "after")

    run(scenario())


def test_an_owner_sees_no_job_of_another(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.plain() as http:
            async with world.client() as client:
                job = await world.ask(client)
                await world.until(client, job.id, "succeeded")
            other = {"authorization": "Bearer another-owner-of-files"}
            assert (await http.get(JOBS, headers=other)).json()["data"] == []
            for path in ("", "/events", "/checkpoints", "/attestation", "/handover"):
                answer = await http.get(f"{JOBS}/{job.id}{path}", headers=other)
                assert error(answer)[:2] == (404, "not_found")

    run(scenario())


def test_a_replay_tells_numbers_alone(world: TrainWorld) -> None:
    async def scenario() -> None:
        async with world.up(), world.plain() as http:
            bundle = await trained(world)
            request = await send(world, bundle, another_machine=False)
            made = (await http.post(REPLAYS, json=request)).json()
            assert made.keys() == {
                *("object", "id", "created_at", "finished_at", "status"),
                *("steps", "executed", "error"),
            }
            done = await ended(world, made["id"])
            assert (done["status"], done["executed"]) == ("succeeded", done["steps"])
            assert request["checkpoint_key"] not in json.dumps(done)
            # Files are the owner's to delete; a replay needs them when it is asked for.
            assert (await http.delete(f"/v1/files/{request['record']}")).json()["deleted"]
            again = await http.post(REPLAYS, json=request | {"nonce": "03" * 32})
            assert error(again) == (404, "not_found", "record")
            state = await put(http, b"anything")
            broken = await http.post(REPLAYS, json=request | {"nonce": "04" * 32, "record": state})
            assert error(broken)[0] == 400

    run(scenario())
