"""Nodes that dstack launched: its events stand first, and the Expectation has to name them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from appraisals import NONCE, Role, appraise, refusals
from dstack_logs import COMPOSE_HASH, events
from nodes import SOFTWARE, SimulatedNode, fitting_expectation, roots

from confide.errors import FormatError, Reason
from confide.expectation import parse_expectation
from confide.wire.json import jcs
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.expectation import Expectation
    from confide.wire.evidence import EvidenceBundle

ROLES: tuple[Role, ...] = ("agent", "model")
HEX = COMPOSE_HASH.hex()
# 0.5.x writes version 1 digests, later ones version 2.
OLD = tuple(replace(event, version=1) for event in events())
FORMS = {"version 1": OLD, "version 2": tuple(events())}


def wanting(*compose: str) -> Expectation:
    fitting = fitting_expectation(roots())
    return replace(
        fitting,
        agent_node=replace(fitting.agent_node, compose=compose),
        model_node=replace(fitting.model_node, compose=compose),
    )


def launched(
    role: Role, expectation: Expectation, before: Sequence[RuntimeEvent]
) -> EvidenceBundle:
    async def make() -> EvidenceBundle:
        node = SimulatedNode(role)
        await node.boot(before)
        return await node.attest("channel", NONCE, expectation.digest)

    return asyncio.run(make())


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("form", FORMS)
def test_a_node_of_the_expected_compose_is_accepted(role: Role, form: str) -> None:
    expectation = wanting("00" * 32, HEX)
    node = appraise(launched(role, expectation, FORMS[form]), role, expectation=expectation)
    assert node.events.dstack is not None
    assert node.events.dstack.compose_hash == COMPOSE_HASH
    assert node.events.node.role == role


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("compose", "before", "reason"),
    [
        ((), OLD, Reason.EVENT_UNKNOWN),
        ((HEX,), (), Reason.EVENT_MISSING),
        (("00" * 32,), OLD, Reason.COMPOSE_HASH_MISMATCH),
    ],
    ids=["dstack where none is expected", "no dstack where one is", "another compose"],
)
def test_where_it_was_launched_is_the_expectations_to_say(
    role: Role, compose: tuple[str, ...], before: Sequence[RuntimeEvent], reason: Reason
) -> None:
    expectation = wanting(*compose)
    found = refusals(launched(role, expectation, before), role, expectation=expectation)
    assert found["7"] is reason


NODE = RuntimeEvent(
    "confide-node", jcs({"role": "agent", "software": SOFTWARE.hex(), "version": "1"})
)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (OLD[:-1], Reason.EVENT_MISSING),
        ((*OLD, OLD[2]), Reason.EVENT_DUPLICATE),
        (OLD[1:3][::-1] + OLD[3:], Reason.EVENT_ORDER),
        ((*OLD[:3], RuntimeEvent("other", b""), *OLD[3:]), Reason.EVENT_UNKNOWN),
        ((*OLD, RuntimeEvent("other", b"")), Reason.EVENT_UNKNOWN),
        ((*OLD, NODE), Reason.EVENT_DUPLICATE),
        ((NODE, *OLD), Reason.EVENT_UNKNOWN),
        ((RuntimeEvent("other", b""), *OLD), Reason.EVENT_UNKNOWN),
    ],
    ids=["cut", "compose twice", "order", "within", "between", "node twice", "node first", "first"],
)
def test_what_dstack_measured_stands_whole_and_first(
    before: Sequence[RuntimeEvent], reason: Reason
) -> None:
    expectation = wanting(HEX)
    found = refusals(launched("agent", expectation, before), "agent", expectation=expectation)
    assert found["6"] is reason


def test_the_compose_survives_both_spellings() -> None:
    expectation = wanting(HEX)
    assert parse_expectation(expectation.canonical()) == expectation
    assert wanting().digest == fitting_expectation(roots()).digest


def test_an_empty_list_is_not_a_second_form_of_none() -> None:
    document = wanting().document()
    document["agent_node"] = {**document["agent_node"], "compose": []}  # type: ignore[dict-item]
    with pytest.raises(FormatError, match="canonical"):
        parse_expectation(jcs(document))
