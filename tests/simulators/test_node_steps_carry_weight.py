"""Without any one of the steps of binding.md §3, or of the log steps inside, bad evidence passes.

Every bad case here is refused by the whole procedure first, by that step alone. Steps that
establish a value which later steps stand on are replaced by one that establishes it without
looking.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from appraisals import NONCE, Role, appraise, attested, faulty, honest, model_node_with, refusals
from mutants import without
from nodes import KERNEL, NOW, SEED, SOFTWARE
from nodes import without as with_hardware
from runs import expectation_and_roots, world

from confide.appraisal import node as procedure
from confide.appraisal.binding import Statement, parse_statement
from confide.appraisal.eventlog import LOG_STEPS, NodeEvents, _read_node, read_node_events
from confide.simulator.machine import SimulatedGuest, make_platform
from confide.simulator.nvidia import SimulatedGpuSet
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.wire.keyset import parse_keyset
from confide.wire.rtmr_log import RuntimeEvent, parse_log
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.appraisal.nvidia import GpuSetResult
    from confide.wire.evidence import EvidenceBundle

    Bad = tuple[EvidenceBundle, Role, dict[str, Any]]
    Blind = Callable[[Any], Any]


def _under(role: Role, **changed: Any) -> Bad:
    """Honest evidence under an Expectation that asks for something else."""
    other = replace(expectation_and_roots()[0], **changed)
    node = world().agent if role == "agent" else world().model
    return (
        asyncio.run(node.attest("channel", NONCE, other.digest)),
        role,
        {"expectation": other},
    )


def _roots_not_named() -> Bad:
    vendor = with_hardware(expectation_and_roots()[0], roots="vendor")
    return _under("agent", hardware=vendor.hardware)


def _other_nonce() -> Bad:
    return honest("agent"), "agent", {"nonce": b"o" * 32}


def _other_expectation() -> Bad:
    return honest("agent"), "agent", {"expectation": replace(expectation_and_roots()[0], name="x")}


def _other_keyset() -> Bad:
    other = world(b"second boot").agent.keys.keyset.document()
    return replace(honest("agent"), keyset=other), "agent", {}


def _debug_td() -> Bad:
    return faulty("debug-td", "agent"), "agent", {}


def _event_added() -> Bad:
    return faulty("log-event-added", "agent"), "agent", {}


def _other_software() -> Bad:
    spec = replace(expectation_and_roots()[0].agent_node, software=("00" * 32,))
    return _under("agent", agent_node=spec)


def _other_weights() -> Bad:
    model = replace(expectation_and_roots()[0].model, weights="00" * 32)
    return _under("model", model=model)


def _devices_unnamed_by_the_cpu() -> Bad:
    place = world()
    statement = Statement(
        "channel", NONCE, place.model.keys.keyset.digest, place.expectation.digest
    )
    quote, _ = asyncio.run(place.model.guest.quote(statement.report_data))
    bundle = replace(honest("model"), statement=statement.document(), quote=quote)
    return bundle, "model", {}


@cache
def _honest_gpus() -> GpuSetResult | None:
    return appraise(honest("model"), "model").gpus


def _devtools() -> Bad:
    _honest_gpus()  # Made while the procedure is still whole.
    return faulty("devtools", "model"), "model", {}


def _other_device_than_at_boot() -> Bad:
    others = SimulatedGpuSet(SEED, (SimulatedGpu(label="another device"),), now=NOW)
    return model_node_with(gpus=others), "model", {}


def _claim_not_named() -> Bad:
    strict = with_hardware(expectation_and_roots()[0], accept_not_proven=())
    return _under("agent", hardware=strict.hardware)


def _take_statement(state: Any) -> None:
    state.statement = parse_statement(state.bundle.statement)


def _take_keyset(state: Any) -> None:
    state.keyset = parse_keyset(state.bundle.keyset)


def _take_quote(state: Any) -> None:
    # The result of an honest quote, with the registers of this one.
    donor = procedure._State(
        honest(state.role),
        "donor",
        state.role,
        "channel",
        NONCE,
        None,
        expectation_and_roots()[0],
        state.roots,
        NOW,
    )
    procedure._step_2(donor)
    procedure._step_5(donor)
    assert donor.tdx is not None
    rtmr = parse_quote(state.bundle.quote).body.rtmr
    state.tdx = replace(donor.tdx, claims=replace(donor.tdx.claims, rtmr=rtmr))


def _take_log(state: Any) -> None:
    state.events = read_node_events(parse_log(state.bundle.runtime_log))


def _take_devices(state: Any) -> None:
    state.gpus = _honest_gpus()


def _take_claims(state: Any) -> None:
    state.claims = procedure._claims(state)


# Step to what it alone refuses, and to what stands in for it where a value is needed.
NODE_MUTANTS: dict[str, tuple[Callable[[], Bad], Blind | None]] = {
    "node/1": (_roots_not_named, None),
    "node/2": (_other_nonce, _take_statement),
    "node/3": (_other_expectation, None),
    "node/4": (_other_keyset, _take_keyset),
    "node/5": (_debug_td, _take_quote),
    "node/6": (_event_added, _take_log),
    "node/7": (_other_software, None),
    "node/8": (_other_weights, None),
    "node/9": (_devices_unnamed_by_the_cpu, None),
    "node/10": (_devtools, _take_devices),
    "node/11": (_other_device_than_at_boot, None),
    "node/12": (_claim_not_named, _take_claims),
}


def test_every_node_step_has_its_mutant() -> None:
    assert list(NODE_MUTANTS) == [step.id for step in procedure.NODE_STEPS]


@pytest.mark.parametrize("step", NODE_MUTANTS)
def test_without_the_step_bad_evidence_is_accepted(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    make, blind = NODE_MUTANTS[step]
    bundle, role, known = make()
    assert set(refusals(bundle, role, **known)) == {step.removeprefix("node/")}
    monkeypatch.setattr(procedure, "NODE_STEPS", without(procedure.NODE_STEPS, step, blind))
    appraise(bundle, role, **known)


# The log steps


def _firmware_log_cut() -> Bad:
    bundle = honest("agent")
    header = bundle.firmware_log[: 32 + 33]
    return replace(bundle, firmware_log=header), "agent", {}


def _ready_first() -> Bad:
    """A node that measured itself only after it said that it was ready."""
    guest = SimulatedGuest(
        make_platform(SEED, NOW, ()), role="agent", software=SOFTWARE, kernel=KERNEL
    )
    asyncio.run(guest.extend(RuntimeEvent("confide-ready", b"")))
    return attested("agent", guest), "agent", {}


def _read_loosely(state: Any) -> None:
    named = {entry.event.name: entry.event for entry in state.runtime}
    state.events = NodeEvents(_read_node(named["confide-node"].payload), None, None, ())


LOG_MUTANTS: dict[str, tuple[Callable[[], Bad], Blind | None]] = {
    "log/1": (_firmware_log_cut, None),
    "log/2": (_event_added, None),
    "log/3": (_ready_first, _read_loosely),
}


def test_every_log_step_has_its_mutant() -> None:
    assert list(LOG_MUTANTS) == [step.id for step in LOG_STEPS]


@pytest.mark.parametrize("step", LOG_MUTANTS)
def test_without_the_log_step_a_bad_log_is_accepted(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    make, blind = LOG_MUTANTS[step]
    bundle, role, known = make()
    assert set(refusals(bundle, role, **known)) == {"6"}
    monkeypatch.setattr(procedure, "LOG_STEPS", without(LOG_STEPS, step, blind))
    appraise(bundle, role, **known)
