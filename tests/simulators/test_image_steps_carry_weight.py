"""Without any one of the steps of training-image.md §5, some bad record is accepted.

As test_record_steps_carry_weight.py: every bad record is refused by the whole procedure first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from image_trainings import (
    MADE,
    ImageStory,
    forge_image,
    image_refusals,
    made_manifest,
    train_image,
    verify_image,
)
from mutants import without
from runs import expectation_and_roots
from trainings import resealed, sha, train

from confide.agents.sandbox import ExitKind
from confide.appraisal.binding import parse_statement
from confide.errors import Reason
from confide.expectation import parse_expectation
from confide.training import image_verify as procedure
from confide.training.image_parse import parse_image_record
from confide.training.predicates import encode_hardware, parse_hardware
from confide.training.record_steps import appraise_claim
from confide.wire.dsse import Envelope
from confide.wire.json import jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.training.record_file import RecordFile

    Bad = tuple[RecordFile, dict[str, Any]]


def _not_canonical() -> Bad:
    def spaced(document: dict[str, Any]) -> bytes:
        return jcs(document).replace(b'":', b'": ', 1)

    return resealed(train_image(), encode=spaced), {}


def _evaluation_beside_it() -> Bad:
    trained = train_image()
    payload = train().file.statements["evaluation/tuned"].payload
    evaluation = trained.node.keys.signer.seal(payload)
    held = {**trained.file.statements, "evaluation/tuned": evaluation}
    return replace(trained.file, statements=held), {}


def _other_expectation() -> Bad:
    known = {"expectation": replace(expectation_and_roots()[0], name="another")}
    return train_image().file, known


def _after_another_record() -> Bad:
    def later(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"]["finishedOn"] = "2026-11-22T12:00:01Z"

    return replace(train_image().file, after=resealed(train_image(), later).after), {}


def _foreign_signature() -> Bad:
    file = train_image().file
    signatures = train_image(ImageStory("another job")).file.record.signatures
    return replace(file, record=Envelope(file.record.payload, signatures)), {}


def _hardware_not_proven() -> Bad:
    made, (boot,) = parse_hardware(train_image().file.statements["hardware"].payload, "output")
    payload = encode_hardware("output", made, (replace(boot, gpus=2),))
    return resealed(train_image(), statements={"hardware": payload}), {}


def _job_not_measured() -> Bad:
    return forge_image(ImageStory("not measured", measured="nothing")).file, {}


def _other_base() -> Bad:
    return forge_image(ImageStory("other base", base=sha("another base"))).file, {}


def _other_directory() -> Bad:
    return train_image().file, {"outputs": {"output": bytes(32)}}


def _killed() -> Bad:
    return forge_image(ImageStory("killed", end=ExitKind.KILLED_WALL, status=None)).file, {}


def _parse_anything(state: Any) -> None:
    value = parse_json(state.file.record.payload, what="x", reason=Reason.TRAINING_FORMAT)
    state.record = parse_image_record(jcs(value))


def _take_statements(state: Any) -> None:
    held = state.file.statements
    _, state.hardware = parse_hardware(held["hardware"].payload, "output")
    state.manifests = {"output": made_manifest(MADE)}


def _take_expectation(state: Any) -> None:
    state.expectation = parse_expectation(state.file.expectation)


def _appraised(state: Any, bundle: Any) -> Any:
    said = parse_statement(bundle.statement)
    return appraise_claim(
        state, bundle, "any", nonce=said.nonce, claim=said.claim or b"", own=state.now
    )


def _take_after(state: Any) -> None:
    state.node = _appraised(state, state.file.after)


def _take_boots(state: Any) -> None:
    state.boots = [_appraised(state, bundle) for bundle in state.file.boots]


BAD: dict[int, tuple[Callable[[], Bad], Callable[[Any], None] | None]] = {
    1: (_not_canonical, _parse_anything),
    2: (_evaluation_beside_it, _take_statements),
    3: (_other_expectation, _take_expectation),
    4: (_after_another_record, _take_after),
    5: (_foreign_signature, None),
    6: (_hardware_not_proven, _take_boots),
    7: (_job_not_measured, None),
    8: (_other_base, None),
    9: (_other_directory, None),
    10: (_killed, None),
}


def test_every_step_is_here() -> None:
    assert [f"image/{number}" for number in BAD] == [s.id for s in procedure.IMAGE_STEPS]


@pytest.mark.parametrize("number", BAD)
def test_without_this_step_a_bad_record_is_accepted(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, blind = BAD[number]
    file, known = make()
    assert str(number) in image_refusals(file, **known)
    steps = without(procedure.IMAGE_STEPS, f"image/{number}", blind)
    monkeypatch.setattr(procedure, "IMAGE_STEPS", steps)
    verify_image(file, **known)
