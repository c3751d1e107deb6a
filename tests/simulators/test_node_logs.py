"""What our own nodes write into RTMR3: order, uniqueness, payloads. eventlog.md §3 and §4.

Logs that replay are the hard case: the register fits, only the meaning is wrong.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from appraisals import Role, appraise, booted, refusals
from nodes import KERNEL, NOW, SEED, SOFTWARE, WEIGHTS
from runs import expectation_and_roots, world

from confide.appraisal.eventlog import (
    NodeEvents,
    read_node_events,
    replay_runtime,
    run_commitment,
)
from confide.appraisal.steps import Refused
from confide.errors import FormatError, Reason
from confide.node.attester import Attester
from confide.simulator.machine import SimulatedGuest, make_platform
from confide.wire.json import jcs
from confide.wire.rtmr_log import RUNTIME_EVENT_TYPE, RuntimeEvent, encode_log, parse_log

IMAGE = RuntimeEvent("confide-agent-image", b"i" * 32)
EXPECTATION = RuntimeEvent("confide-expectation", b"e" * 32)
READY = RuntimeEvent("confide-ready", b"")
AGENT, MODEL = booted("agent"), booted("model")


def read(*events: RuntimeEvent) -> NodeEvents:
    return read_node_events(parse_log(encode_log(events)))


def refused(*events: RuntimeEvent) -> Reason:
    try:
        read(*events)
    except (Refused, FormatError) as error:
        return error.reason
    raise AssertionError("a bad log was read")


def test_the_boot_of_both_nodes_is_read() -> None:
    agent = read(*AGENT)
    assert (agent.node.role, agent.node.software, agent.model) == ("agent", SOFTWARE, None)
    model = read(*MODEL)
    assert model.model is not None
    assert model.model.weights == WEIGHTS
    assert model.gpu is not None
    assert len(model.gpu.serials) == 1


def test_runs_follow_the_boot_in_any_number() -> None:
    events = read(*AGENT, EXPECTATION, IMAGE, EXPECTATION, EXPECTATION)
    assert events.runs == (EXPECTATION, IMAGE, EXPECTATION, EXPECTATION)
    assert events.has_run_event("confide-agent-image", b"i" * 32)
    assert not events.has_run_event("confide-agent-image", b"j" * 32)
    assert not events.has_run_event("confide-expectation", b"i" * 32)


def test_a_run_event_hides_what_ran_and_tells_runs_apart() -> None:
    made = {
        run_commitment(name, run=run, digest=digest)
        for name in ("confide-expectation", "confide-agent-image")
        for run in (b"1" * 32, b"2" * 32)
        for digest in (b"a" * 32, b"b" * 32)
    }
    assert len(made) == 8
    assert b"a" * 32 not in made


@pytest.mark.parametrize("log", [AGENT, MODEL], ids=["agent", "model"])
@pytest.mark.parametrize("at", range(4))
def test_no_boot_event_may_be_missing(log: tuple[RuntimeEvent, ...], at: int) -> None:
    if at < len(log):
        assert refused(*log[:at], *log[at + 1 :]) is Reason.EVENT_MISSING


@pytest.mark.parametrize("log", [AGENT, MODEL], ids=["agent", "model"])
@pytest.mark.parametrize("at", range(4))
def test_no_boot_event_may_stand_twice(log: tuple[RuntimeEvent, ...], at: int) -> None:
    if at < len(log):
        assert refused(*log[: at + 1], *log[at:]) is Reason.EVENT_DUPLICATE
        assert refused(*log, log[at]) is Reason.EVENT_DUPLICATE


@pytest.mark.parametrize("at", [1, 2])
def test_boot_events_stand_in_order(at: int) -> None:
    swapped = list(MODEL)
    swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
    assert refused(*swapped) is Reason.EVENT_ORDER


def test_the_first_event_is_the_node() -> None:
    assert refused(READY, *AGENT[:1]) is Reason.EVENT_MISSING
    assert refused() is Reason.EVENT_MISSING


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_unknown_event_is_refused_wherever_it_stands(at: int) -> None:
    foreign = RuntimeEvent("another", b"")
    assert refused(*AGENT[:at], foreign, *AGENT[at:]) is Reason.EVENT_UNKNOWN


@pytest.mark.parametrize("at", [1, 2])
def test_nothing_of_dstack_stands_after_the_nodes_own(at: int) -> None:
    foreign = RuntimeEvent("app-id", b"")
    assert refused(*AGENT[:at], foreign, *AGENT[at:]) is Reason.EVENT_UNKNOWN


def test_no_run_starts_before_the_node_is_ready() -> None:
    assert refused(AGENT[0], IMAGE, AGENT[1]) is Reason.EVENT_ORDER


def test_events_of_a_model_node_do_not_stand_on_an_agent_node() -> None:
    assert refused(*AGENT, MODEL[1]) is Reason.EVENT_ORDER
    assert refused(AGENT[0], MODEL[1], AGENT[1]) is Reason.EVENT_ORDER


NODE = {"role": "agent", "software": SOFTWARE.hex(), "version": "1"}
MODEL_EVENT = {"name": "m", "served": "embedded", "weights": WEIGHTS.hex()}
GPU_EVENT = {"devices": "00" * 32, "policy": "00" * 32, "serials": ["a"]}


@pytest.mark.parametrize(
    ("at", "payload"),
    [
        (0, b""),
        (0, b"agent"),
        (0, b'{"role":"agent","role":"model","software":"","version":""}'),
        (0, jcs({**NODE, "role": "broker"})),
        (0, jcs({**NODE, "software": "00" * 31})),
        (0, jcs({**NODE, "software": SOFTWARE.hex().upper()})),
        (0, jcs({**NODE, "trusted": True})),
        (0, jcs({"role": "agent", "software": SOFTWARE.hex()})),
        (1, jcs({**MODEL_EVENT, "served": "elsewhere"})),
        (1, jcs({"name": "m", "served": "embedded"})),
        (1, jcs({**MODEL_EVENT, "served": "upstream"})),
        (2, jcs({**GPU_EVENT, "serials": []})),
        (2, jcs({**GPU_EVENT, "serials": [1]})),
        (2, jcs({**GPU_EVENT, "devices": ""})),
    ],
)
def test_a_payload_that_is_not_what_its_name_says_is_refused(at: int, payload: bytes) -> None:
    log = list(MODEL)
    if at == 0:
        log = list(AGENT)
    log[at] = replace(log[at], payload=payload)
    assert refused(*log) is Reason.LOG_FORMAT


def test_weights_outside_the_node_are_read_as_not_measured() -> None:
    outside = replace(MODEL[1], payload=jcs({"name": "m", "served": "upstream"}))
    events = read(MODEL[0], outside, *MODEL[2:])
    assert events.model is not None
    assert events.model.weights is None


# Through a whole appraisal: the quote is genuine, the log replays, the meaning is refused


def _attested_log(role: Role, *events: RuntimeEvent) -> dict[str, Reason]:
    guest = SimulatedGuest(
        make_platform(SEED, NOW, ()), role=role, software=SOFTWARE, kernel=KERNEL
    )
    plain = (world().agent if role == "agent" else world().model).attester
    attester = Attester(plain.keyset, guest, plain.collateral, plain.devices)
    digest = expectation_and_roots()[0].digest

    async def attest() -> Any:
        for event in events:
            await guest.extend(event)
        return await attester.attest(purpose="channel", nonce=b"n" * 32, expectation=digest)

    bundle = asyncio.run(attest())
    if events == booted(role):
        appraise(bundle, role)
        return {}
    return refusals(bundle, role)


@pytest.mark.parametrize(
    ("role", "events", "reason"),
    [
        ("agent", (), Reason.EVENT_MISSING),
        ("agent", AGENT[:1], Reason.EVENT_MISSING),
        ("agent", (*AGENT, *AGENT), Reason.EVENT_DUPLICATE),
        ("agent", (AGENT[0], IMAGE, AGENT[1]), Reason.EVENT_ORDER),
        ("agent", (*AGENT, RuntimeEvent("x", b"")), Reason.EVENT_UNKNOWN),
        ("model", (MODEL[0], MODEL[2], MODEL[1], MODEL[3]), Reason.EVENT_ORDER),
        ("model", (MODEL[0], MODEL[1], MODEL[3]), Reason.EVENT_MISSING),
    ],
)
def test_a_log_that_replays_but_means_something_else_is_refused(
    role: Role, events: tuple[RuntimeEvent, ...], reason: Reason
) -> None:
    assert _attested_log(role, *events) == {"6": reason}


@pytest.mark.parametrize("role", ["agent", "model"])
def test_the_log_of_the_boot_is_accepted(role: Role) -> None:
    assert _attested_log(role, *booted(role)) == {}


def test_the_log_of_an_agent_node_does_not_make_a_model_node() -> None:
    assert _attested_log("model", *AGENT) == {"7": Reason.NODE_ROLE_MISMATCH}


# The entries


def entry(**changed: Any) -> Any:
    (document,) = encode_log((READY,))
    assert isinstance(document, dict)
    return {name: value for name, value in {**document, **changed}.items() if value is not ...}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"imr": 4}, Reason.LOG_REGISTER),
        ({"imr": -1}, Reason.LOG_REGISTER),
        ({"imr": True}, Reason.LOG_FORMAT),
        ({"imr": ...}, Reason.LOG_FORMAT),
        ({"event_type": 2**32}, Reason.LOG_FORMAT),
        ({"imr": 2, "event_type": 1, "digest": ""}, Reason.LOG_FORMAT),
        ({"digest": "00" * 32}, Reason.LOG_FORMAT),
        ({"digest": "zz"}, Reason.LOG_FORMAT),
        ({"event": "a\nb"}, Reason.LOG_FORMAT),
        ({"event": "a" * 257}, Reason.LOG_FORMAT),
        ({"event_payload": "0"}, Reason.LOG_FORMAT),
        ({"version": 3}, Reason.LOG_FORMAT),
        ({"note": ""}, Reason.LOG_FORMAT),
    ],
)
def test_an_entry_that_is_none_is_refused(changed: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(FormatError) as error:
        parse_log([entry(**changed)])
    assert error.value.reason is reason


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"imr": 2}, Reason.RUNTIME_EVENT_TYPE),
        ({"event_type": 1}, Reason.RUNTIME_EVENT_TYPE),
        ({"event_type": 1, "digest": ""}, Reason.RUNTIME_EVENT_TYPE),
        ({"digest": "00" * 48}, Reason.DIGEST_MISMATCH),
        ({"version": 1}, Reason.DIGEST_MISMATCH),
        ({"version": 1, "digest": ""}, Reason.PREIMAGE_MISMATCH),
        ({"preimage": "00"}, Reason.PREIMAGE_MISMATCH),
        ({"preimage": ""}, Reason.PREIMAGE_MISMATCH),
    ],
)
def test_what_an_entry_supplies_must_be_what_is_recomputed(
    changed: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(Refused) as error:
        replay_runtime(parse_log([entry(**changed)]))
    assert error.value.reason is reason


def test_digests_need_not_be_supplied() -> None:
    whole, bare = [entry()], [entry(digest="", preimage=...)]
    assert replay_runtime(parse_log(whole)) == replay_runtime(parse_log(bare))


def test_the_two_versions_hash_differently() -> None:
    event = RuntimeEvent("confide-node", b"payload")
    assert event.digest(1) != event.digest(2)
    assert RUNTIME_EVENT_TYPE.to_bytes(4, "little") not in event.preimage()


def test_too_many_entries_are_refused() -> None:
    with pytest.raises(FormatError):
        parse_log([entry()] * 16_385)
