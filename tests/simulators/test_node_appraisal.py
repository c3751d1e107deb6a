"""One node, appraised whole: the honest ones are accepted, everything else refused.

Evidence is byte-exact and made by the simulator; the verifier is the one that checks hardware.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from nodes import (
    KERNEL,
    NOW,
    SEED,
    SOFTWARE,
    WEIGHTS,
    without,
)
from runs import expectation_and_roots, world

from confide.appraisal.binding import Statement, devices_digest
from confide.appraisal.eventlog import ModelEvent
from confide.appraisal.node import VerifiedNode
from confide.errors import EvidenceRejected, PolicyRejected, Reason
from confide.node.attester import Attester
from confide.rats import Status
from confide.simulator.machine import (
    SimulatedGuest,
    make_platform,
    simulated_roots,
)
from confide.simulator.nvidia import SimulatedGpuSet
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.simulator.tdx import QuoteKind
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.ccel import encode_ccel, parse_ccel
from confide.wire.quantisation import Quantisation

if TYPE_CHECKING:
    from confide.expectation import Expectation
    from confide.wire.evidence import EvidenceBundle, GpuEvidence
    from confide.wire.keyset import Keyset

from appraisals import NONCE, Role, appraise, attested, honest, model_node_with, refusals

ROLES: tuple[Role, ...] = ("agent", "model")

# What is accepted


@pytest.mark.parametrize(
    ("role", "claims"),
    [
        ("agent", ["hardware", "platform", "launch", "event-log", "node-software", "keys"]),
        (
            "model",
            [
                "hardware",
                "platform",
                "launch",
                "event-log",
                "node-software",
                "keys",
                "model-weights",
                "gpu",
            ],
        ),
    ],
)
def test_an_honest_node_is_accepted_with_its_claims(role: Role, claims: list[str]) -> None:
    node = appraise(honest(role), role)
    found = node.result.claims
    assert [claim.name for claim in found if claim.status is Status.PASS] == claims
    unproven = [claim.name for claim in found if claim.status is Status.NOT_PROVEN]
    colocation = ["gpu-colocation"] if role == "model" else []
    assert unproven == [*colocation, "physical-attack"]
    assert all("SIMULATED" in claim.source for claim in found if claim.status is Status.PASS)
    assert all(claim.source == "nobody" for claim in found if claim.status is not Status.PASS)


def test_the_result_names_everything_that_was_assumed() -> None:
    expectation, roots = expectation_and_roots()
    result = appraise(honest("model"), "model").result
    assert result.simulated
    assert result.roots == roots.sha256
    assert result.policy_digest == expectation.digest.hex()
    assert (result.now, result.subject) == (NOW, "model-node")
    assert NOW < result.not_after <= NOW + timedelta(days=1)
    steps = [f.step for f in result.findings if f.step.startswith("node/")]
    assert steps == [f"node/{number}" for number in range(1, 13)]
    assert {finding.status for finding in result.findings} == {Status.PASS}


def test_the_proof_carries_keys_events_and_evidence() -> None:
    node = appraise(honest("model"), "model")
    assert node.keyset == world().model.keys.keyset
    assert node.evidence == honest("model").digest
    assert node.events.model is not None
    assert node.events.model.weights == WEIGHTS
    assert node.events.node.software == SOFTWARE


def test_a_claim_is_accepted_for_the_document_it_names() -> None:
    node = appraise(honest("model", "claim"), "model", purpose="claim", claim=b"c" * 32)
    assert node.statement.claim == b"c" * 32


@pytest.mark.parametrize("kind", list(QuoteKind))
def test_every_kind_of_quote_is_accepted(kind: QuoteKind) -> None:
    platform = make_platform(SEED, NOW, ())
    guest = SimulatedGuest(platform, role="agent", software=SOFTWARE, kernel=KERNEL, kind=kind)
    assert appraise(attested("agent", guest), "agent").events.node.role == "agent"


def test_nobody_else_makes_the_proof() -> None:
    node = appraise(honest("agent"), "agent")
    with pytest.raises(TypeError):
        VerifiedNode(
            node.keyset,
            node.statement,
            node.events,
            b"",
            node.platform,
            None,
            node.result,
            node.known,
            seal=object(),
        )


# What was asked for


@pytest.mark.parametrize(
    ("changed", "step", "reason"),
    [
        ({"nonce": b"o" * 32}, "2", Reason.NONCE_MISMATCH),
        ({"purpose": "claim", "claim": b"c" * 32}, "2", Reason.STATEMENT_MISMATCH),
        ({"claim": b"c" * 32}, "2", Reason.CLAIM_MISMATCH),
    ],
)
@pytest.mark.parametrize("role", ROLES)
def test_evidence_for_something_else_is_refused(
    role: Role, changed: dict[str, Any], step: str, reason: Reason
) -> None:
    assert refusals(honest(role), role, **changed) == {step: reason}


@pytest.mark.parametrize("claim", [None, b"d" * 32])
def test_a_claim_about_another_document_is_refused(claim: bytes | None) -> None:
    bundle = honest("agent", "claim")
    found = refusals(bundle, "agent", purpose="claim", claim=claim)
    assert found == {"2": Reason.CLAIM_MISMATCH}


def test_a_claim_does_not_open_a_channel() -> None:
    found = refusals(honest("agent", "claim"), "agent")
    assert found == {"2": Reason.STATEMENT_MISMATCH}


def test_evidence_for_another_expectation_is_refused() -> None:
    other = replace(expectation_and_roots()[0], name="another")
    found = refusals(honest("agent"), "agent", expectation=other)
    assert found == {"3": Reason.EXPECTATION_MISMATCH}


@pytest.mark.parametrize("role", ROLES)
def test_evidence_of_the_other_role_is_refused(role: Role) -> None:
    other: Role = "model" if role == "agent" else "agent"
    found = refusals(honest(other), role)
    assert found["4"] is Reason.NODE_ROLE_MISMATCH
    # The launch itself differs: the role is on the measured command line.
    assert found["5"] in {Reason.RTMR2_MISMATCH, Reason.MRCONFIGID_MISMATCH}


def test_a_launch_that_fits_does_not_make_a_model_node_an_agent_node() -> None:
    expectation = expectation_and_roots()[0]
    both = replace(expectation, agent_node=expectation.model_node)
    bundle = asyncio.run(world().model.attest("channel", NONCE, both.digest))
    found = refusals(bundle, "agent", expectation=both)
    assert found["4"] is Reason.NODE_ROLE_MISMATCH
    assert found["9"] is Reason.STATEMENT_MISMATCH


# Keyset


def test_another_keyset_is_refused() -> None:
    other = world(b"second boot").agent.keys.keyset.document()
    found = refusals(replace(honest("agent"), keyset=other), "agent")
    assert found == {"4": Reason.KEYSET_MISMATCH}


def test_the_evidence_of_another_boot_does_not_carry_this_keyset() -> None:
    other = asyncio.run(
        world(b"second boot").agent.attest("channel", NONCE, expectation_and_roots()[0].digest)
    )
    assert appraise(other, "agent").keyset != world().agent.keys.keyset
    swapped = replace(other, keyset=honest("agent").keyset)
    assert refusals(swapped, "agent") == {"4": Reason.KEYSET_MISMATCH}
    told = replace(swapped, statement=honest("agent").statement)
    assert refusals(told, "agent") == {"5": Reason.REPORT_DATA_MISMATCH}


@pytest.mark.parametrize("offset", [timedelta(days=1, seconds=1), timedelta(seconds=-61)])
def test_a_keyset_outside_its_time_is_refused(offset: timedelta) -> None:
    found = refusals(honest("agent"), "agent", now=NOW + offset)
    assert found["4"] is Reason.KEYSET_EXPIRED


def test_a_keyset_of_other_software_than_was_measured_is_refused() -> None:
    keyset = replace(world().agent.keys.keyset, software=b"s" * 32)
    found = refusals(_with_keyset(keyset), "agent")
    assert found == {"7": Reason.NODE_SOFTWARE_MISMATCH}


def _with_keyset(keyset: Keyset) -> EvidenceBundle:
    plain = world().agent.attester
    attester = Attester(keyset, plain.quotes, plain.collateral, None)
    digest = expectation_and_roots()[0].digest
    return asyncio.run(attester.attest(purpose="channel", nonce=NONCE, expectation=digest))


def test_software_outside_the_expectation_is_refused() -> None:
    expectation = expectation_and_roots()[0]
    other = replace(expectation, agent_node=replace(expectation.agent_node, software=("00" * 32,)))
    bundle = asyncio.run(world().agent.attest("channel", NONCE, other.digest))
    assert refusals(bundle, "agent", expectation=other) == {"7": Reason.NODE_SOFTWARE_MISMATCH}


def test_an_empty_set_of_software_accepts_nothing() -> None:
    expectation = expectation_and_roots()[0]
    other = replace(expectation, agent_node=replace(expectation.agent_node, software=()))
    bundle = asyncio.run(world().agent.attest("channel", NONCE, other.digest))
    assert refusals(bundle, "agent", expectation=other) == {"7": Reason.NODE_SOFTWARE_MISMATCH}


# Statement


@pytest.mark.parametrize(
    "edit",
    [
        {"devices": None},
        {"claim": None},
        {"note": "trust me"},
        {"type": "confide/statement/v2"},
        {"nonce": NONCE.hex().upper()},
        {"purpose": "channel "},
    ],
)
def test_a_statement_with_other_members_is_refused(edit: dict[str, Any]) -> None:
    bundle = honest("agent")
    assert isinstance(bundle.statement, dict)
    edited = replace(bundle, statement={**bundle.statement, **edit})
    found = refusals(edited, "agent")
    assert found == {"2": Reason.STATEMENT_MISMATCH}


@pytest.mark.parametrize("member", ["type", "purpose", "nonce", "keyset", "expectation"])
def test_a_statement_without_a_member_is_refused(member: str) -> None:
    bundle = honest("agent")
    assert isinstance(bundle.statement, dict)
    statement = {name: value for name, value in bundle.statement.items() if name != member}
    found = refusals(replace(bundle, statement=statement), "agent")
    assert found == {"2": Reason.STATEMENT_MISMATCH}


# GPUs


def test_gpu_evidence_that_is_absent_is_refused() -> None:
    found = refusals(replace(honest("model"), devices=()), "model")
    assert found == {"9": Reason.GPU_MISSING}


def test_a_model_node_that_never_had_gpu_evidence_is_refused() -> None:
    plain = world().model.attester
    attester = replace(plain, devices=None)
    digest = expectation_and_roots()[0].digest
    bundle = asyncio.run(attester.attest(purpose="channel", nonce=NONCE, expectation=digest))
    assert refusals(bundle, "model") == {"9": Reason.GPU_MISSING}


def test_gpu_evidence_of_another_statement_is_refused() -> None:
    place = world()
    other = asyncio.run(place.model.attest("channel", b"o" * 32, place.expectation.digest))
    found = refusals(replace(honest("model"), devices=other.devices), "model")
    assert found == {"9": Reason.STATEMENT_MISMATCH}


def test_gpu_evidence_on_an_agent_node_is_refused() -> None:
    found = refusals(replace(honest("agent"), devices=honest("model").devices), "agent")
    assert found == {"9": Reason.STATEMENT_MISMATCH}


def _with_devices(devices: tuple[GpuEvidence, ...], *, named: bytes | None) -> EvidenceBundle:
    """Evidence whose quote was made by a node that names `named` as its devices."""
    place = world()
    statement = Statement(
        "channel", NONCE, place.model.keys.keyset.digest, place.expectation.digest
    )
    statement = replace(statement, devices=named)
    quote, _ = asyncio.run(place.model.guest.quote(statement.report_data))
    return replace(honest("model"), statement=statement.document(), quote=quote, devices=devices)


def test_devices_that_the_cpu_did_not_name_are_refused() -> None:
    devices = honest("model").devices
    found = refusals(_with_devices(devices, named=None), "model")
    assert found == {"9": Reason.GPU_MISSING}
    found = refusals(_with_devices(devices, named=bytes(32)), "model")
    assert found == {"9": Reason.STATEMENT_MISMATCH}


def test_one_device_shown_twice_is_refused() -> None:
    twice = honest("model").devices * 2
    found = refusals(_with_devices(twice, named=devices_digest(twice)), "model")
    assert found == {"10": Reason.DUPLICATE_DEVICE}


def test_other_devices_than_at_boot_are_refused() -> None:
    others = SimulatedGpuSet(SEED, (SimulatedGpu(label="another device"),), now=NOW)
    assert refusals(model_node_with(gpus=others), "model") == {"11": Reason.GPU_MISSING}


# The model


@pytest.mark.parametrize(
    ("boot", "reason"),
    [
        ({"name": "other-model"}, Reason.MODEL_MISMATCH),
        ({"weights": b"w" * 32}, Reason.MODEL_MISMATCH),
        ({"weights": None}, Reason.CLAIM_NOT_PROVEN),
    ],
)
def test_another_model_than_expected_is_refused(boot: dict[str, Any], reason: Reason) -> None:
    assert refusals(model_node_with(**boot), "model") == {"8": reason}


def _upstream(*tolerated: str) -> Expectation:
    expectation = expectation_and_roots()[0]
    outside = replace(expectation, model=replace(expectation.model, weights=""))
    return without(outside, accept_not_proven=tolerated)


def test_weights_outside_the_node_are_refused_unless_named() -> None:
    refusing = _upstream("gpu-colocation", "physical-attack")
    bundle = model_node_with(weights=None, expectation=refusing)
    with pytest.raises(PolicyRejected) as rejected:
        appraise(bundle, "model", expectation=refusing)
    (failure,) = (f for f in rejected.value.failures if f.step == "node/12")
    assert (failure.reason, failure.detail) == (Reason.CLAIM_NOT_PROVEN, "model-weights")

    naming = _upstream("gpu-colocation", "physical-attack", "model-weights")
    node = appraise(model_node_with(weights=None, expectation=naming), "model", expectation=naming)
    assert node.result.claim("model-weights").status is Status.NOT_PROVEN
    assert node.result.claim("model-weights").value == "not measured"


def test_measured_weights_do_not_meet_an_expectation_without_any() -> None:
    naming = _upstream("gpu-colocation", "physical-attack", "model-weights")
    bundle = model_node_with(expectation=naming)
    assert refusals(bundle, "model", expectation=naming) == {"8": Reason.MODEL_MISMATCH}


def test_weights_beside_an_engine_count_by_their_digest_and_are_not_called_proven() -> None:
    naming = without(
        expectation_and_roots()[0],
        accept_not_proven=("gpu-colocation", "physical-attack", "model-weights"),
    )
    said = Quantisation("fp8", 8, ("F8_E4M3",))
    boot = {"loaded": False, "quantisation": said, "held": ("dm-verity", b"r" * 32)}
    node = appraise(model_node_with(**boot, expectation=naming), "model", expectation=naming)
    claim = node.result.claim("model-weights")
    assert claim.status is Status.NOT_PROVEN
    assert "did not start" in claim.value
    assert node.events.model == ModelEvent(
        "support-notes", WEIGHTS, loaded=False, quantisation=said, held=("dm-verity", b"r" * 32)
    )
    others = model_node_with(**boot, weights=b"w" * 32, expectation=naming)
    assert refusals(others, "model", expectation=naming) == {"8": Reason.MODEL_MISMATCH}
    strict = expectation_and_roots()[0]
    refused = refusals(model_node_with(**boot, expectation=strict), "model", expectation=strict)
    assert refused == {"12": Reason.CLAIM_NOT_PROVEN}


# What stays unproven


@pytest.mark.parametrize("claim", ["gpu-colocation", "physical-attack"])
def test_a_claim_that_is_not_proven_is_refused_unless_it_is_named(claim: str) -> None:
    expectation = expectation_and_roots()[0]
    named = tuple(n for n in expectation.hardware.accept_not_proven if n != claim)
    strict = without(expectation, accept_not_proven=named)
    bundle = asyncio.run(world().model.attest("channel", NONCE, strict.digest))
    with pytest.raises(PolicyRejected) as rejected:
        appraise(bundle, "model", expectation=strict)
    (failure,) = rejected.value.failures
    assert (failure.step, failure.detail) == ("node/12", claim)


def test_without_an_allow_list_the_platform_is_not_proven() -> None:
    expectation = expectation_and_roots()[0]
    anywhere = without(expectation, platforms=())
    bundle = asyncio.run(world().agent.attest("channel", NONCE, anywhere.digest))
    found = refusals(bundle, "agent", expectation=anywhere)
    assert found == {"12": Reason.CLAIM_NOT_PROVEN}

    named = without(
        expectation,
        platforms=(),
        accept_not_proven=("gpu-colocation", "physical-attack", "platform"),
    )
    bundle = asyncio.run(world().agent.attest("channel", NONCE, named.digest))
    node = appraise(bundle, "agent", expectation=named)
    assert node.result.claim("platform").status is Status.NOT_PROVEN


def test_a_platform_outside_the_allow_list_is_refused() -> None:
    elsewhere = without(expectation_and_roots()[0], platforms=("00" * 16,))
    bundle = asyncio.run(world().agent.attest("channel", NONCE, elsewhere.digest))
    found = refusals(bundle, "agent", expectation=elsewhere)
    assert found == {"5": Reason.PLATFORM_NOT_ALLOWED}


# Roots


def test_vendor_roots_refuse_simulated_evidence_under_an_expectation_that_says_vendor() -> None:
    vendor = without(expectation_and_roots()[0], roots="vendor")
    bundle = asyncio.run(world().model.attest("channel", NONCE, vendor.digest))
    found = refusals(bundle, "model", expectation=vendor, roots=VENDOR_ROOTS)
    assert found == {"5": Reason.ROOT_MISMATCH, "10": Reason.CHAIN_UNTRUSTED_ROOT}


def test_an_expectation_that_says_vendor_refuses_simulated_roots() -> None:
    vendor = without(expectation_and_roots()[0], roots="vendor")
    bundle = asyncio.run(world().agent.attest("channel", NONCE, vendor.digest))
    found = refusals(bundle, "agent", expectation=vendor)
    assert found == {"1": Reason.SIMULATED_NOT_ALLOWED}


def test_an_expectation_that_names_simulated_roots_refuses_vendor_roots() -> None:
    found = refusals(honest("agent"), "agent", roots=VENDOR_ROOTS)
    assert found == {"1": Reason.ROOT_MISMATCH}


def test_simulated_roots_of_another_seed_are_refused() -> None:
    other = simulated_roots(b"another installation", NOW)
    assert refusals(honest("agent"), "agent", roots=other) == {"1": Reason.SIMULATED_NOT_ALLOWED}
    named = without(expectation_and_roots()[0], roots=other.name)
    bundle = asyncio.run(world().agent.attest("channel", NONCE, named.digest))
    found = refusals(bundle, "agent", expectation=named, roots=other)
    assert found == {"5": Reason.ROOT_MISMATCH}


# Expectations that nothing can meet


@pytest.mark.parametrize(
    "hardware",
    [{"tcb_status": ("Revoked",)}, {"tcb_status": ("Fine",)}, {"platform_flags": ("fast",)}],
)
def test_an_expectation_that_cannot_be_met_is_a_refusal(hardware: dict[str, Any]) -> None:
    odd = without(expectation_and_roots()[0], **hardware)
    bundle = asyncio.run(world().agent.attest("channel", NONCE, odd.digest))
    found = refusals(bundle, "agent", expectation=odd)
    assert found == {"5": Reason.EXPECTATION_MISMATCH}


# Logs


def test_a_firmware_log_of_another_boot_is_refused() -> None:
    events = parse_ccel(honest("agent").firmware_log)
    foreign = replace(events[0], digest=hashlib.sha384(b"other firmware").digest())
    edited = replace(honest("agent"), firmware_log=encode_ccel((foreign, *events[1:])))
    assert refusals(edited, "agent") == {"6": Reason.RTMR0_MISMATCH}


def test_malformed_logs_are_refusals_and_nothing_else() -> None:
    assert refusals(replace(honest("agent"), firmware_log=b""), "agent") == {
        "6": Reason.LOG_TRUNCATED
    }
    assert refusals(replace(honest("agent"), runtime_log={}), "agent") == {"6": Reason.LOG_FORMAT}


def test_a_refusal_shows_every_step_and_names_what_was_not_run() -> None:
    with pytest.raises(EvidenceRejected) as rejected:
        appraise(honest("agent"), "agent", nonce=b"o" * 32)
    steps = [f for f in rejected.value.findings if f.step.startswith("node/")]
    assert len(steps) == 12
    assert [f.step for f in steps if f.status is Status.NOT_PROVEN] == [
        "node/3",
        "node/4",
        "node/5",
        "node/6",
        "node/7",
        "node/8",
        "node/9",
        "node/10",
        "node/11",
        "node/12",
    ]
