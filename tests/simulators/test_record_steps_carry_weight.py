"""Without any one of the steps of training-record.md §6, some bad record is accepted.

Every bad record here is refused by the whole procedure first. Steps that establish a value which
later steps stand on are replaced by one that establishes it without looking.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from mutants import without
from runs import expectation_and_roots
from trainings import (
    ADAPTER,
    MERGED,
    Happening,
    Job,
    byproduct,
    refusals,
    resealed,
    sha,
    train,
    verify,
)

from confide.appraisal.binding import parse_statement
from confide.errors import Reason
from confide.expectation import parse_expectation
from confide.training import record_verify as procedure
from confide.training.predicates import encode_hardware, parse_hardware, parse_test_result
from confide.training.record_parse import parse_training_record
from confide.training.record_steps import appraise_claim
from confide.wire.dsse import Envelope
from confide.wire.json import jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.training.record_file import RecordFile

    Bad = tuple[RecordFile, dict[str, Any]]

OTHER = Job("other")


def _not_canonical() -> Bad:
    def spaced(document: dict[str, Any]) -> bytes:
        return jcs(document).replace(b'":', b'": ', 1)

    return resealed(train(), encode=spaced), {}


def _statement_too_many() -> Bad:
    blind = train(Job("blind", evaluated=False))
    payload = train().file.statements["evaluation/base"].payload
    more = {**blind.file.statements, "evaluation/base": blind.node.keys.signer.seal(payload)}
    return replace(blind.file, statements=more), {}


def _other_expectation() -> Bad:
    return train().file, {"expectation": replace(expectation_and_roots()[0], name="another")}


def _after_another_record() -> Bad:
    def later(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"]["finishedOn"] = "2026-11-22T12:00:01Z"

    return replace(train().file, after=resealed(train(), later).after), {}


def _foreign_signature() -> Bad:
    file = train().file
    signatures = train(OTHER).file.record.signatures
    return replace(file, record=Envelope(file.record.payload, signatures)), {}


def _hardware_not_proven() -> Bad:
    merged, (boot,) = parse_hardware(train().file.statements["hardware"].payload, "merged")
    hardware = encode_hardware("merged", merged, (replace(boot, gpus=2),))
    return resealed(train(), statements={"hardware": hardware}), {}


def _job_not_measured() -> Bad:
    return train(Job("not measured: nothing", measured="nothing")).file, {}


def _other_base() -> Bad:
    return train(Job("other base", base=sha("other base model"))).file, {}


def _machine_swapped() -> Bad:
    return train(Job("swapped", turns=(Happening("restarted", 4, "other"),))).file, {}


def _older_checkpoint() -> Bad:
    def edit(document: dict[str, Any]) -> None:
        byproducts = document["predicate"]["runDetails"]["byproducts"]
        byproducts.remove(byproduct(document, "checkpoint/8"))

    return resealed(train(), edit), {}


def _other_directory() -> Bad:
    return train().file, {"outputs": {"merged": bytes(32)}}


def _evaluation_of_another_job() -> Bad:
    payload = train(OTHER).file.statements["evaluation/tuned"].payload
    return resealed(train(), statements={"evaluation/tuned": payload}), {}


def _stopped_early() -> Bad:
    return train(Job("short", steps=6)).file, {}


def _parse_anything(state: Any) -> None:
    value = parse_json(state.file.record.payload, what="x", reason=Reason.TRAINING_FORMAT)
    state.record = parse_training_record(jcs(value))


def _take_statements(state: Any) -> None:
    held = state.file.statements
    _, state.hardware = parse_hardware(held["hardware"].payload, "merged")
    state.manifests = {"merged": MERGED, "adapter": ADAPTER}
    if "evaluation/tuned" in held:
        state.evaluation = (
            parse_test_result(held["evaluation/base"].payload, "base"),
            parse_test_result(held["evaluation/tuned"].payload, "merged"),
        )


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
    2: (_statement_too_many, _take_statements),
    3: (_other_expectation, _take_expectation),
    4: (_after_another_record, _take_after),
    5: (_foreign_signature, None),
    6: (_hardware_not_proven, _take_boots),
    7: (_job_not_measured, None),
    8: (_other_base, None),
    9: (_machine_swapped, None),
    10: (_older_checkpoint, None),
    11: (_other_directory, None),
    12: (_evaluation_of_another_job, None),
    13: (_stopped_early, None),
}


def test_every_step_is_here() -> None:
    assert [f"record/{number}" for number in BAD] == [s.id for s in procedure.RECORD_STEPS]


@pytest.mark.parametrize("number", BAD)
def test_without_this_step_a_bad_record_is_accepted(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, blind = BAD[number]
    file, known = make()
    assert str(number) in refusals(file, **known)
    steps = without(procedure.RECORD_STEPS, f"record/{number}", blind)
    monkeypatch.setattr(procedure, "RECORD_STEPS", steps)
    verify(file, **known)
