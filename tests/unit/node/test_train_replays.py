"""Replays on another node than the one that trained. training-record.md 7.8."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from arithmetic import RECIPE
from replay_world import (
    NONCE,
    REPLAYS,
    ask,
    ended,
    failure,
    predicate,
    put,
    refusal,
    replayed,
    result,
    send,
    trained,
    two_nodes,
    verified,
)
from train_world import Gate
from training_place import run

from confide.errors import Reason, TrainingRejected
from confide.training.replay import Replay, Tolerance
from confide.training.replay_verify import Asked
from confide.wire.json import jcs

if TYPE_CHECKING:
    from pathlib import Path


def test_another_node_executes_the_drawn_steps_and_signs_what_it_found(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle = await trained(first)
            file = await replayed(second, bundle)
            found = verified(file, bundle)
            found.require_agreement()
            said = found.result
            assert (said.record, said.same_machine) == (bundle.audited.record.digest, False)
            assert said.sample == bundle.sample(6)
            assert said.executed == sum(last - first + 1 for first, last in said.covered)
            assert said.states > 0
            assert said.machine not in bundle.audited.record.machines
            assert said.made == {"adapter": True, "evaluation": True, "merged": True}
            assert found.simulated
            # One process did the steps and the end: loading torch and the base costs most.
            assert len(said.covered) > 1
            assert len(second.fate.started) == 1
            # Nothing of the replay is left but the files, which are the owner's to delete.
            assert not list(second.checkpoints.glob("ftreplay-*"))
            assert not second.replays.busy

    run(scenario())


def test_one_process_of_another_node_executes_what_several_ranks_did(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path, ranks=2) as (first, second):
            recipe = RECIPE.value() | {"gradient_accumulation_steps": 2}
            bundle = await trained(first, recipe=recipe)
            assert bundle.audited.record.record.plan.world == 2
            found = verified(await replayed(second, bundle), bundle)
            found.require_agreement()
            assert {(each.form.world, each.ranks) for each in second.fate.started} == {(2, 1)}

    run(scenario())


def test_a_dishonest_node_is_found_out_by_another_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            first.fate.wrong = {14: 0.25}
            bundle = await trained(first)
            file = await replayed(second, bundle, steps=32)
            found = verified(file, bundle, count=32)
            assert predicate(file)["verdict"] == "diverges"
            assert found.result.divergence is not None
            assert (found.result.divergence.step, found.result.located) == (14, True)
            # Searching again where a window was executed counts no step twice.
            assert found.result.states <= found.result.executed <= 32
            with pytest.raises(TrainingRejected) as rejected:
                found.require_agreement()
            (failed,) = rejected.value.failures
            assert failed.reason is Reason.TRAINING_REPLAY
            assert "step 14 is another: state" in failed.detail

    run(scenario())


@pytest.mark.parametrize(
    ("lie", "parts"),
    [({"planted": b"a back door"}, "adapter and merged"), ({"praise": 0.25}, "evaluation")],
)
def test_weights_and_metrics_that_are_not_of_the_last_state_are_found(
    tmp_path: Path, lie: dict[str, Any], parts: str
) -> None:
    """Every step was done as it should be; what came out is something else."""

    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            first.fate = replace(first.fate, **lie)
            bundle = await trained(first)
            file = await replayed(second, bundle)
            result = verified(file, bundle)
            assert result.result.divergence is None
            with pytest.raises(TrainingRejected, match=f"{parts} came out otherwise"):
                result.require_agreement()

    run(scenario())


@pytest.mark.parametrize("said", [3.25, 0.5, None])
def test_what_privacy_cost_is_computed_again(tmp_path: Path, said: float | None) -> None:
    privacy = {"noise_multiplier": 1, "max_grad_norm": 0.5, "delta": 0.001}

    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            first.fate.epsilon, second.fate.epsilon = said, 3.25
            bundle = await trained(first, recipe=RECIPE.value() | {"privacy": privacy})
            result = verified(await replayed(second, bundle), bundle)
            assert result.result.made is not None
            assert result.result.made["privacy"] == (said == 3.25)
            if said != 3.25:
                with pytest.raises(TrainingRejected, match="privacy came out otherwise"):
                    result.require_agreement()

    run(scenario())


def test_without_other_checkpoints_the_first_step_of_the_window_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            first.fate.wrong = dict.fromkeys(range(6, 33), 0.01)
            bundle = await trained(first)
            # A draw far behind the first false step.
            challenge = next(
                bytes([number]) * 32
                for number in range(256)
                if bundle.sample(1, bytes([number]) * 32).drawn[0] > 20
            )
            asked = Asked(NONCE, bundle.sample(1, challenge), None, bundle.audited, ended=False)
            [window] = Replay(bundle.audited, asked.sample, tolerance=None).windows
            assert window.start is not None
            step = window.start.step
            bundle.checkpoints = {step: bundle.checkpoints[step]}
            changed: Any = {"steps": 1, "challenge": challenge.hex()}
            found = verified(await replayed(second, bundle, **changed), bundle, asked=asked)
            assert found.result.divergence is not None
            assert found.result.divergence.step > step
            assert not found.result.located
            with pytest.raises(TrainingRejected, match="the first of its window"):
                found.require_agreement()

    run(scenario())


def test_another_environment_is_compared_within_a_tolerance_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle = await trained(first)
            second.fate.environment = {"isa": "another"}
            assert await failure(second, bundle) == "environment_mismatch"
            near = {"abs": 1e-6, "rel": 1e-3}
            file = await replayed(second, bundle, tolerance=near, nonce="6e" * 31 + "6f")
            assert predicate(file)["environment"] == {"isa": "another"}
            assert predicate(file)["states"] == 0

    run(scenario())


def test_within_a_tolerance_it_holds_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle = await trained(first)
            second.fate.environment = {"isa": "another"}
            near = Tolerance(abs=1e-6, rel=1e-3)
            file = await replayed(second, bundle, tolerance={"abs": near.abs, "rel": near.rel})
            verified(file, bundle, tolerance=near).require_agreement()
            with pytest.raises(TrainingRejected, match="another mode"):
                verified(file, bundle)

    run(scenario())


def test_the_machine_that_trained_is_refused_where_another_one_is_asked_for(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path, same_machine=True) as (first, second):
            bundle = await trained(first)
            assert await refusal(second, bundle) == ("same_machine", "another_machine")
            # And where it may be: the result says that it was.
            file = await replayed(second, bundle, another_machine=False)
            assert verified(file, bundle).result.same_machine

    run(scenario())


def test_what_an_owner_sends_has_to_belong_together(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle, other = await trained(first), await trained(first)
            async with second.plain() as http:
                edited = bundle.log.replace(b'"kind":"completion"', b'"kind":"chat"')
                logs = [await put(http, raw) for raw in (edited, other.log)]
                broken = await put(http, bundle.record.replace(b"confide/training-record", b"x"))
                mixed = json.loads(bundle.record) | {"record": json.loads(other.record)["record"]}
                forged = await put(http, jcs(mixed))
                rows = await put(
                    http,
                    bundle.rows[: bundle.rows.index(b"\n") + 1],
                    purpose="fine-tune",
                )
            for log in logs:
                assert await refusal(second, bundle, owner_log=log) == (
                    "training_log",
                    "owner_log",
                )
            assert (await refusal(second, bundle, record=broken))[0] == "invalid_request"
            assert (await refusal(second, bundle, record=forged))[1] == "record"
            assert (await refusal(second, bundle, training_file=rows))[1] == "owner_log"
            assert await refusal(second, bundle, training_file="file-nowhere") == (
                "not_found",
                "training_file",
            )
            state = (await send(second, bundle))["record"]
            assert (await refusal(second, bundle, training_file=state))[0] == "invalid_file"
            assert await refusal(second, bundle, checkpoints={}) == (
                "missing_checkpoint",
                "checkpoints",
            )
            assert (await refusal(second, bundle, steps=33))[1] == "steps"
            wrong = second.expectation_value() | {"model": {"name": "x", "weights": "00" * 32}}
            code = (await refusal(second, bundle, expectation=wrong))[0]
            assert code == "expectation_mismatch"
            assert second.fate.started == []

    run(scenario())


@pytest.mark.parametrize("name", ["nonce", "challenge", "steps", "fraction", "another_machine"])
def test_a_request_is_strictly_read(tmp_path: Path, name: str) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle = await trained(first)
            request = await send(second, bundle)
            for changed in (
                {key: value for key, value in request.items() if key != name},
                request | {name: "2/40"},
                request | {"more": 1},
            ):
                status, answer = await ask(second, changed)
                assert (status, answer["error"]["code"]) == (400, "invalid_request"), answer

    run(scenario())


def test_a_wrong_checkpoint_or_key_ends_the_replay_without_a_result(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle = await trained(first)
            right = dict(bundle.checkpoints)
            steps = sorted(right)
            bundle.checkpoints = {
                step: right[earlier] for step, earlier in zip(steps, [4, *steps[:-1]], strict=True)
            }
            bundle.checkpoints[4] = right[8]
            assert await failure(second, bundle) == "checkpoint_mismatch"
            status, answer = await ask(second, await send(second, bundle, nonce="01" * 32))
            assert status == 200
            await ended(second, answer["id"])
            async with second.plain() as http:
                found = await http.get(f"{REPLAYS}/{answer['id']}/result")
                assert (found.status_code, found.json()["error"]["code"]) == (404, "no_result")

    run(scenario())


def test_a_process_that_ends_by_itself_ends_the_replay_without_a_result(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle = await trained(first)
            last = bundle.sample(6).drawn[-1]
            second.fate.after = lambda process, step: process.kill() if step == last else None
            assert await failure(second, bundle) == "trainer_ended"
            assert not list(second.checkpoints.glob("ftreplay-*"))
            assert second.fate.started[0].killed.is_set()

    run(scenario())


def test_a_nonce_counts_once_and_a_refused_request_does_not_use_it_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle = await trained(first)
            request = await send(second, bundle)
            assert (await ask(second, request | {"steps": 33}))[0] == 400
            status, answer = await ask(second, request)
            assert status == 200
            await result(second, answer["id"])
            status, answer = await ask(second, request)
            assert (status, answer["error"]["code"]) == (400, "nonce_used")

    run(scenario())


def test_a_replay_is_its_owners_and_can_be_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle = await trained(first)
            gate = Gate(bundle.sample(6).drawn[0])
            second.fate.after = gate
            status, answer = await ask(second, await send(second, bundle))
            assert status == 200
            await gate.wait()
            one = f"{REPLAYS}/{answer['id']}"
            async with second.plain() as http:
                other = {"authorization": "Bearer another-owner-of-files"}
                for method, path in (("GET", one), ("POST", f"{one}/cancel")):
                    assert (await http.request(method, path, headers=other)).status_code == 404
                assert (await http.get(one)).json()["status"] == "running"
                assert (await http.get(f"{one}/result")).status_code == 404
                cancelled = (await http.post(f"{one}/cancel")).json()
                assert cancelled["status"] == "cancelled"
                again = await http.post(f"{one}/cancel")
                assert again.json()["error"]["code"] == "invalid_status"
            # The node goes on: another one is executed.
            second.fate.after = lambda _process, _step: None
            await replayed(second, bundle, nonce="02" * 32)
            assert (await ended(second, answer["id"]))["status"] == "cancelled"
            assert not list(second.checkpoints.glob("ftreplay-*"))

    run(scenario())


def test_a_node_that_stops_ends_its_replays_and_takes_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle = await trained(first)
            gate = Gate(bundle.sample(6).drawn[0])
            second.fate.after = gate
            requests = [await send(second, bundle, nonce=f"{n:02x}" * 32) for n in range(1, 8)]
            ids = [(await ask(second, each))[1]["id"] for each in requests[:1]]
            await gate.wait()
            ids += [(await ask(second, each))[1]["id"] for each in requests[1:5]]
            status, answer = await ask(second, requests[5])
            assert (status, answer["error"]["code"]) == (429, "node_busy")
            second.replays.drain()
            for each in ids:
                found = await ended(second, each)
                assert (found["status"], found["error"]["code"]) == ("failed", "stopped")
            status, answer = await ask(second, requests[6])
            assert (status, answer["error"]["code"]) == (503, "node_draining")

    run(scenario())


def test_jobs_and_replays_take_turns(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_nodes(tmp_path) as (first, second):
            bundle = await trained(first)
            gate = Gate(2)
            second.fate.after = gate
            async with second.client() as client:
                job = await second.ask(client)
                await gate.wait()
                status, answer = await ask(second, await send(second, bundle))
                assert status == 200
                async with second.plain() as http:
                    found = (await http.get(f"{REPLAYS}/{answer['id']}")).json()
                assert found["status"] == "queued"
                assert len(second.fate.started) == 1
                gate.opened.set()
                await second.until(client, job.id, "succeeded")
            verified(await result(second, answer["id"]), bundle).require_agreement()

    run(scenario())
