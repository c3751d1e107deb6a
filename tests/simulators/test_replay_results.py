"""Results of replays, edited: every false word is refused by its own step."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from mutants import without
from replay_world import NONCE, Bundle, replayed, trained, two_nodes, verified
from runs import expectation_and_roots

from confide.appraisal.binding import parse_statement
from confide.errors import FormatError, Reason, TrainingRejected
from confide.expectation import parse_expectation
from confide.receipts.held import appraise_held
from confide.training import replay_verify as procedure
from confide.training.draw import draw_steps, replay_beacon
from confide.training.replay_result import parse_replay_file, parse_replay_result
from confide.training.replay_verify import REPLAYED_STEPS, Asked
from confide.wire.dsse import Envelope
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from train_world import TrainWorld

    from confide.training.replay_result import ReplayFile


@dataclass
class Held:
    """A result, what it is about, another training, and the node that a forger has."""

    file: ReplayFile
    bundle: Bundle
    other: Bundle
    world: TrainWorld

    def resealed(self, edit: Callable[[dict[str, Any]], None]) -> ReplayFile:
        """The result as a node would sign and quote it that lies."""
        document = json.loads(self.file.result.payload)
        edit(document["predicate"])
        keys = self.world.node.keys
        envelope = keys.signer.seal(jcs(document))
        evidence = asyncio.run(
            self.world.node.attest(
                "claim",
                bytes.fromhex(document["predicate"]["nonce"]),
                hashlib.sha256(self.file.expectation).digest(),
                envelope.digest,
            )
        )
        return replace(self.file, result=envelope, evidence=evidence)

    def refusals(self, file: ReplayFile, **known: Any) -> dict[str, Reason | None]:
        """The steps that refuse `file`; it must be refused."""
        with pytest.raises(TrainingRejected) as rejected:
            verified(file, self.bundle, **known)
        return {
            each.step.removeprefix("replayed/"): each.reason
            for each in rejected.value.failures
            if each.step.startswith("replayed/")
        }


@asynccontextmanager
async def _made(tmp: Path) -> AsyncIterator[Held]:
    async with two_nodes(tmp) as (first, second):
        bundle = await trained(first)
        other = await trained(first, recipe=None)
        yield Held(await replayed(second, bundle), bundle, other, second)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    async def make() -> Held:
        async with _made(tmp_path_factory.mktemp("replays")) as found:
            return found

    return asyncio.run(make())


def test_a_result_is_read_back_from_its_bytes(held: Held) -> None:
    again = parse_replay_file(held.file.encode())
    assert again.encode() == held.file.encode()
    found = verified(again, held.bundle)
    assert found.digest == held.file.result.digest
    assert parse_replay_result(held.file.result.payload) == found.result


def test_a_stranger_verifies_it_without_the_log_and_is_told_so(held: Held) -> None:
    found = verified(held.file, held.bundle, asked=None, expectation=None)
    details = {each.step: each.detail for each in found.findings}
    assert details["replayed/6"] == "drawn from a challenge that the verifier did not choose"
    assert details["replayed/7"] == "no record at hand to compare"
    with_record = verified(
        held.file, held.bundle, asked=None, record=held.bundle.audited.record
    ).findings
    assert {each.step: each.detail for each in with_record}["replayed/7"] == (
        held.bundle.audited.record.digest.hex()
    )


def test_what_was_edited_without_a_key_is_refused(held: Held) -> None:
    document = json.loads(held.file.result.payload)
    document["predicate"]["at"] = "2026-11-22T12:00:01Z"
    edited = replace(held.file, result=Envelope(jcs(document), held.file.result.signatures))
    assert held.refusals(edited) == {"3": Reason.CLAIM_MISMATCH}
    unsigned = replace(held.file, result=Envelope(held.file.result.payload, ()))
    assert held.refusals(unsigned) == {"4": Reason.RECEIPT_SIGNATURE}
    keyid, signature = held.file.result.signatures[0]
    false = Envelope(held.file.result.payload, ((keyid, bytes(len(signature))),))
    assert held.refusals(replace(held.file, result=false)) == {"4": Reason.RECEIPT_SIGNATURE}


def test_evidence_of_another_result_is_refused(held: Held) -> None:
    other = held.resealed(lambda said: said.update(at="2026-11-22T12:00:01Z"))
    swapped = replace(held.file, evidence=other.evidence)
    assert held.refusals(swapped) == {"3": Reason.CLAIM_MISMATCH}


def test_a_result_for_another_nonce_or_expectation_is_refused(held: Held) -> None:
    asked = Asked(b"m" * 32, held.bundle.sample(6), None, held.bundle.audited, ended=True)
    assert held.refusals(held.file, asked=asked) == {"3": Reason.NONCE_MISMATCH}
    known, _ = expectation_and_roots()
    wanted = replace(known, model=replace(known.model, weights="22" * 32))
    assert held.refusals(held.file, expectation=wanted) == {"2": Reason.EXPECTATION_MISMATCH}


def test_a_result_about_another_record_is_refused(held: Held) -> None:
    asked = Asked(NONCE, held.other.sample(6), None, held.other.audited, ended=True)
    assert "7" in held.refusals(held.file, asked=asked)
    refused = held.refusals(held.file, asked=None, record=held.other.audited.record)
    assert refused == {"7": Reason.REPLAY_RESULT}


def _draw_again(said: dict[str, Any], challenge: bytes) -> None:
    beacon = replay_beacon(bytes.fromhex(said["head"]), challenge=challenge, checkpoint=None)
    said["challenge"], said["beacon"] = challenge.hex(), beacon.hex()
    said["drawn"] = list(draw_steps(beacon, said["steps"], len(said["drawn"])))
    said["windows"] = [[1, said["steps"]]]
    said["executed"] = said["steps"]
    said["states"] = 16


def _begin_nowhere(said: dict[str, Any]) -> None:
    # Checkpoints stand at every fourth step: none before this one.
    first = said["drawn"][0] - (said["drawn"][0] % 4 == 1)
    assert first > 1
    said["windows"] = [[first, said["steps"]]]
    said["executed"] = said["steps"] - first + 1


# A node that is genuine, signs, quotes, and lies.
LIES: dict[str, tuple[Callable[[dict[str, Any]], None], dict[str, Reason]]] = {
    "easier steps": (
        lambda said: said.update(drawn=[1, 2, 3, 4, 5, 6], windows=[[1, 6]], executed=6, states=3),
        {"6": Reason.REPLAY_RESULT},
    ),
    "another beacon": (
        lambda said: said.update(beacon="00" * 32),
        {"6": Reason.REPLAY_RESULT},
    ),
    "a challenge of its own": (
        lambda said: _draw_again(said, b"z" * 32),
        {"6": Reason.REPLAY_RESULT},
    ),
    "a drawn step outside of its windows": (
        lambda said: said.update(windows=said["windows"][1:]),
        {"1": Reason.REPLAY_RESULT},
    ),
    "fewer executed steps": (
        lambda said: said.update(executed=said["executed"] - 1),
        {"1": Reason.REPLAY_RESULT},
    ),
    "fewer states": (
        lambda said: said.update(states=said["states"] - 1),
        {"8": Reason.REPLAY_RESULT},
    ),
    "more windows": (
        lambda said: said.update(windows=[[1, 32]], executed=32),
        {"8": Reason.REPLAY_RESULT},
    ),
    "a window that begins at no checkpoint": (
        _begin_nowhere,
        {"7": Reason.REPLAY_RESULT},
    ),
    "another probability": (
        lambda said: said.update(missed=0.0),
        {"1": Reason.TRAINING_FORMAT},
    ),
    "a larger fraction": (
        lambda said: said.update(fraction="1/2", missed=0.0),
        {"1": Reason.TRAINING_FORMAT},
    ),
    "an agreement with a divergence": (
        lambda said: said.update(
            divergence={"step": 3, "members": ["loss"], "first": True}, verdict="agrees"
        ),
        {"1": Reason.TRAINING_FORMAT},
    ),
    "within a tolerance that nobody asked for": (
        lambda said: said.update(
            tolerance={"abs": 0.5, "rel": 0.5}, states=0, made={"adapter": True}
        ),
        {"6": Reason.REPLAY_RESULT},
    ),
    "states within a tolerance": (
        lambda said: said.update(tolerance={"abs": 0.5, "rel": 0.5}, made={"adapter": True}),
        {"1": Reason.REPLAY_RESULT},
    ),
    "another environment": (
        lambda said: said.update(environment={"isa": "another"}),
        {"7": Reason.REPLAY_RESULT},
    ),
    "another head": (
        lambda said: said.update(head="00" * 32),
        {"6": Reason.REPLAY_RESULT},
    ),
    "another plan": (
        lambda said: said.update(plan="00" * 32),
        {"7": Reason.REPLAY_RESULT},
    ),
    "another base": (
        lambda said: said.update(base="00" * 32),
        {"5": Reason.MODEL_MISMATCH},
    ),
    "other software": (
        lambda said: said.update(software="00" * 32),
        {"5": Reason.NODE_SOFTWARE_MISMATCH},
    ),
    "another machine": (
        lambda said: said.update(machine="00" * 32),
        {"5": Reason.TRAINING_MACHINE},
    ),
    "the same machine": (
        lambda said: said.update(same_machine=True),
        {"7": Reason.TRAINING_MACHINE},
    ),
    "another keyset": (
        lambda said: said.update(keyset="00" * 32),
        {"4": Reason.KEYSET_MISMATCH},
    ),
    "no end, where one was asked for": (
        lambda said: said.update(made=None),
        {"8": Reason.REPLAY_RESULT},
    ),
    "half of the end": (
        lambda said: said["made"].pop("merged"),
        {"8": Reason.REPLAY_RESULT},
    ),
    "an end that differs, and agrees": (
        lambda said: said["made"].update(merged=False),
        {"1": Reason.TRAINING_FORMAT},
    ),
    "an end after a step that differs": (
        lambda said: said.update(
            divergence={"step": 3, "members": ["loss"], "first": True}, verdict="diverges"
        ),
        {"1": Reason.REPLAY_RESULT},
    ),
    "a first step within a tolerance": (
        lambda said: said.update(
            tolerance={"abs": 0.5, "rel": 0.5},
            states=0,
            made=None,
            divergence={"step": 3, "members": ["loss"], "first": True},
            verdict="diverges",
        ),
        {"1": Reason.REPLAY_RESULT},
    ),
    "merged within a tolerance": (
        lambda said: said.update(tolerance={"abs": 0.5, "rel": 0.5}, states=0),
        {"1": Reason.REPLAY_RESULT},
    ),
    "an end of nothing": (
        lambda said: said.update(made={}),
        {"1": Reason.TRAINING_FORMAT},
    ),
    "an end of something else": (
        lambda said: said["made"].update(optimizer=True),
        {"1": Reason.TRAINING_FORMAT},
    ),
    "one member more": (
        lambda said: said.update(more=1),
        {"1": Reason.TRAINING_FORMAT},
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_dishonest_node_is_refused_by_the_step_that_it_breaks(held: Held, lie: str) -> None:
    edit, steps = LIES[lie]
    assert steps.items() <= held.refusals(held.resealed(edit)).items()


def test_the_forger_signs_as_the_node_does(held: Held) -> None:
    """What the lies are told by is accepted where it does not lie."""
    verified(held.resealed(lambda _said: None), held.bundle).require_agreement()


@pytest.mark.parametrize("part", ["adapter", "evaluation", "merged"])
def test_an_end_that_is_said_to_differ_is_named(held: Held, part: str) -> None:
    def edit(said: dict[str, Any]) -> None:
        said["made"][part] = False
        said["verdict"] = "diverges"

    with pytest.raises(TrainingRejected, match=f"{part} came out otherwise"):
        verified(held.resealed(edit), held.bundle).require_agreement()


def test_a_step_that_is_said_to_diverge_is_named(held: Held) -> None:
    first = held.bundle.sample(6).drawn[0]
    found = {"step": first, "members": ["loss"], "first": True}
    lie = held.resealed(lambda said: said.update(verdict="diverges", divergence=found, made=None))
    with pytest.raises(TrainingRejected, match=f"step {first} is another: loss"):
        verified(lie, held.bundle).require_agreement()


@pytest.mark.parametrize(
    "edit",
    [
        lambda said: said.update(drawn=[]),
        lambda said: said.update(drawn=[2, 1]),
        lambda said: said.update(drawn=[1, 1]),
        lambda said: said.update(drawn=[33]),
        lambda said: said.update(drawn=[True]),
        lambda said: said.update(windows=[[1]]),
        lambda said: said.update(windows=[[2, 1]]),
        lambda said: said.update(windows=[[0, 1]]),
        lambda said: said.update(windows=[1]),
        lambda said: said.update(fraction="2/20"),
        lambda said: said.update(fraction="2/1"),
        lambda said: said.update(tolerance={"abs": 1, "rel": 0}),
        lambda said: said.update(tolerance={"abs": "0", "rel": 0}),
        lambda said: said.update(
            verdict="diverges", divergence={"step": 1, "members": ["x"], "first": True}
        ),
        lambda said: said.update(
            verdict="diverges", divergence={"step": 1, "members": [], "first": True}
        ),
        lambda said: said.update(steps=10_000_001),
    ],
)
def test_a_payload_has_one_form(held: Held, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(held.file.result.payload)
    edit(document["predicate"])
    with pytest.raises(FormatError):
        parse_replay_result(jcs(document))


@pytest.mark.parametrize("subjects", [0, 2])
def test_a_payload_is_about_one_record(held: Held, subjects: int) -> None:
    document = json.loads(held.file.result.payload)
    document["subject"] = document["subject"] * subjects
    with pytest.raises(FormatError):
        parse_replay_result(jcs(document))


def test_every_step_is_reached_by_a_lie() -> None:
    reached = {step for _, steps in LIES.values() for step in steps} | {"2", "3"}
    assert {each.id.removeprefix("replayed/") for each in REPLAYED_STEPS} == reached


# --- without any one of the steps some false result is accepted -----------------------------------


def _parse_only(state: Any) -> None:
    state.result = parse_replay_result(state.file.result.payload)


def _take_expectation(state: Any) -> None:
    state.expectation = parse_expectation(state.file.expectation)


def _take_evidence(state: Any) -> None:
    said = parse_statement(state.file.evidence.statement)
    state.node = appraise_held(
        state,
        state.file.evidence,
        subject="any",
        role="model",
        purpose="claim",
        nonce=said.nonce,
        claim=said.claim,
        now=state.result.at,
    )


def _lie(name: str) -> Callable[[Held], tuple[ReplayFile, dict[str, Any]]]:
    return lambda held: (held.resealed(LIES[name][0]), {})


def _other_expectation(held: Held) -> tuple[ReplayFile, dict[str, Any]]:
    known = expectation_and_roots()[0]
    return held.file, {"expectation": replace(known, name="another")}


def _other_evidence(held: Held) -> tuple[ReplayFile, dict[str, Any]]:
    other = held.resealed(lambda said: said.update(at="2026-11-22T12:00:01Z"))
    return replace(held.file, evidence=other.evidence), {}


def _no_signature(held: Held) -> tuple[ReplayFile, dict[str, Any]]:
    keyid, signature = held.file.result.signatures[0]
    false = Envelope(held.file.result.payload, ((keyid, bytes(len(signature))),))
    return replace(held.file, result=false), {}


BAD: dict[int, tuple[Callable[[Held], tuple[ReplayFile, dict[str, Any]]], Any]] = {
    1: (_lie("fewer executed steps"), _parse_only),
    2: (_other_expectation, _take_expectation),
    3: (_other_evidence, _take_evidence),
    4: (_no_signature, None),
    5: (_lie("another machine"), None),
    6: (_lie("another beacon"), None),
    7: (_lie("another plan"), None),
    8: (_lie("more windows"), None),
}


@pytest.mark.parametrize("number", BAD)
def test_without_this_step_a_false_result_is_accepted(
    held: Held, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, blind = BAD[number]
    file, known = make(held)
    assert str(number) in held.refusals(file, **known)
    steps = without(procedure.REPLAYED_STEPS, f"replayed/{number}", blind)
    monkeypatch.setattr(procedure, "REPLAYED_STEPS", steps)
    verified(file, held.bundle, **known)


def test_every_step_is_here() -> None:
    assert [f"replayed/{number}" for number in BAD] == [each.id for each in REPLAYED_STEPS]
