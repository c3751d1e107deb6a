"""Faces in the evidence: a node that has one says so, and is refused until that is accepted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from appraisals import appraise, model_node_with, refusals
from runs import expectation_and_roots

from confide.appraisal.eventlog import read_node_events
from confide.appraisal.steps import Refused
from confide.errors import FormatError, Reason
from confide.rats import Status
from confide.wire.faces import LACKS, FaceName
from confide.wire.json import jcs
from confide.wire.rtmr_log import RuntimeEvent, encode_log, parse_log

if TYPE_CHECKING:
    from confide.expectation import Expectation
    from confide.wire.json import JsonValue

ALL = tuple(FaceName)


def accepting(*faces: FaceName) -> Expectation:
    expectation, _ = expectation_and_roots()
    named = (*expectation.hardware.accept_not_proven, *(f"face-{face}" for face in faces))
    hardware = replace(expectation.hardware, accept_not_proven=named)
    return replace(expectation, hardware=hardware)


@pytest.mark.parametrize("face", ALL)
def test_a_face_that_nobody_accepted_is_refused(face: FaceName) -> None:
    bundle = model_node_with(faces=(face,))
    assert refusals(bundle, "model") == {"12": Reason.CLAIM_NOT_PROVEN}


def test_an_accepted_face_is_told_with_what_it_lacks() -> None:
    wanted = accepting(FaceName.NEAR)
    bundle = model_node_with(faces=(FaceName.NEAR,), expectation=wanted)
    node = appraise(bundle, "model", expectation=wanted)
    assert node.events.faces == (FaceName.NEAR,)
    claim = node.result.claim("face-near")
    assert (claim.status, claim.value) == (Status.NOT_PROVEN, LACKS[FaceName.NEAR])


def test_accepting_one_face_accepts_no_other() -> None:
    wanted = accepting(FaceName.NEAR)
    bundle = model_node_with(faces=ALL, expectation=wanted)
    assert refusals(bundle, "model", expectation=wanted) == {"12": Reason.CLAIM_NOT_PROVEN}


def test_accepting_a_face_asks_for_none() -> None:
    wanted = accepting(*ALL)
    bundle = model_node_with(expectation=wanted)
    assert appraise(bundle, "model", expectation=wanted).events.faces == ()


def test_keys_of_a_face_that_was_not_measured_are_refused() -> None:
    wanted = accepting(FaceName.NEAR)
    bundle = model_node_with(faces=(), keyed=(FaceName.NEAR,), expectation=wanted)
    found = refusals(bundle, "model", expectation=wanted)
    assert found["7"] is Reason.KEYSET_MISMATCH


_NODE = RuntimeEvent("confide-node", jcs({"role": "model", "software": "aa" * 32, "version": "1"}))
_MODEL = RuntimeEvent("confide-model", jcs({"name": "m", "served": "upstream"}))
_GPU = RuntimeEvent(
    "confide-gpu", jcs({"devices": "bb" * 32, "policy": "cc" * 32, "serials": ["s"]})
)
_READY = RuntimeEvent("confide-ready", b"")


def _faces(payload: JsonValue) -> RuntimeEvent:
    return RuntimeEvent("confide-faces", jcs(payload))


_NEAR = _faces({"faces": ["near"]})


@pytest.mark.parametrize(
    "payload",
    [
        {"faces": []},
        {"faces": ["near", "ehbp"]},
        {"faces": ["near", "near"]},
        {"faces": ["telnet"]},
        {"faces": "near"},
        {"faces": ["near"], "more": 1},
        {},
    ],
    ids=["none", "unsorted", "twice", "unknown", "no list", "more", "empty"],
)
def test_one_set_of_faces_has_one_form(payload: JsonValue) -> None:
    log = parse_log(encode_log((_NODE, _MODEL, _GPU, _faces(payload), _READY)))
    with pytest.raises(FormatError) as refusal:
        read_node_events(log)
    assert refusal.value.reason is Reason.LOG_FORMAT


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ((_NODE, _MODEL, _GPU, _READY, _NEAR), Reason.EVENT_ORDER),
        ((_NODE, _NEAR, _MODEL, _GPU, _READY), Reason.EVENT_ORDER),
        ((_NODE, _MODEL, _GPU, _NEAR, _NEAR, _READY), Reason.EVENT_DUPLICATE),
    ],
    ids=["after ready", "too early", "twice"],
)
def test_faces_stand_once_and_before_ready(
    events: tuple[RuntimeEvent, ...], reason: Reason
) -> None:
    with pytest.raises(Refused) as refusal:
        read_node_events(parse_log(encode_log(events)))
    assert refusal.value.reason is reason


def test_an_agent_node_has_no_faces() -> None:
    agent = RuntimeEvent(
        "confide-node", jcs({"role": "agent", "software": "aa" * 32, "version": "1"})
    )
    with pytest.raises(Refused) as refusal:
        read_node_events(parse_log(encode_log((agent, _NEAR, _READY))))
    assert refusal.value.reason is Reason.EVENT_ORDER
