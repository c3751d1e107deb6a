"""SIMULATED hostile operators of services: what must not be accepted.

Each test is one way in that was tried. The service is honest but for the one thing that the test
does; the claim that the attack is about is named, and may not pass.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import reader_cases as cases
from service_outcomes import (
    CASE,
    OTHER_NONCE,
    dstack_documents,
    gpu_set,
    judge,
    outcome,
    refused,
    roots,
    status,
)
from services import LATER, LOOK, NONCE, NOW, near_policy

import confide
from confide.appraisal.nvidia_policy import GpuMode
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import EvidenceRejected, PolicyRejected, Reason
from confide.formats.verify import read_evidence, verify
from confide.rats import Status
from confide.simulator.near import SimulatedNear, encode_report
from confide.simulator.nvidia import simulated_nvidia_roots
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine
from confide.simulator.snp_faults import SnpFault
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.simulator.tdx_faults import TdxFault
from confide.trust.roots import make_simulated_roots
from confide.wire.bundle import encode_bundle
from confide.wire.endorsements import Endorsements, SnpEndorsement
from confide.wire.evidence import RimDocument
from confide.wire.service import Capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.rats import AttestationResult


# --- nonces and connections -----------------------------------------------------------------------


def test_the_nonce_of_a_bundle_does_not_make_recorded_devices_fresh() -> None:
    """The processor signs today's nonce; the devices are of last year, and so is the bundle's."""
    documents = dstack_documents(cases.NONCE, gpu_set().collect(OTHER_NONCE))
    capture = Capture(documents=documents, format="dstack", nonce=OTHER_NONCE)
    own = Endorsements(
        tdx=(cases.platform().collateral(),), nvidia=gpu_set().endorsements(cases.NOW)
    )
    look = replace(LOOK, claims=replace(LOOK.claims, unsafe_tolerate=UnsafeAny()))
    result = outcome(
        lambda: verify(
            encode_bundle(capture, own),
            own,
            look,
            now=cases.NOW,
            roots=roots(),
            nonce=cases.NONCE,
        )
    )
    assert status(result, "freshness") is Status.PASS
    assert status(result, "gpu") is Status.PASS
    assert status(result, "gpu-freshness") is not Status.PASS


def test_a_bundle_does_not_say_where_the_callers_connection_ended() -> None:
    case = CASE()
    bundle = encode_bundle(case.capture, case.endorsements)
    policy = near_policy(case)
    error = refused(
        lambda: confide.verify(
            bundle, Endorsements(), policy, now=LATER, roots=case.roots, nonce=NONCE
        )
    )
    assert type(error) is PolicyRejected
    assert status(error.result, "tls") is Status.NOT_PROVEN


def test_a_bundle_whose_connection_ended_elsewhere_says_so() -> None:
    case = CASE()
    between = replace(case.capture, tls_spki_sha256=bytes(32))
    error = refused(
        lambda: confide.verify(
            encode_bundle(between, case.endorsements),
            Endorsements(),
            near_policy(case),
            now=LATER,
            roots=case.roots,
            nonce=NONCE,
        )
    )
    assert status(error.result, "tls") is Status.FAIL


@pytest.mark.parametrize("kind", ["capture", "evidence"])
def test_a_nonce_that_is_given_stands_before_that_of_a_capture(kind: str) -> None:
    """Whoever passes what came out of a bundle, and the nonce they drew, means the latter."""
    case = CASE()
    given: Any = case.capture if kind == "capture" else read_evidence(case.capture)[0]
    error = refused(
        lambda: confide.verify(
            given,
            case.endorsements,
            near_policy(case),
            now=LATER,
            roots=case.roots,
            nonce=OTHER_NONCE,
        )
    )
    assert status(error.result, "freshness") is Status.FAIL


@pytest.mark.parametrize("nonce", [b"", b"\x00", NONCE[:31], NONCE + b"\x00", bytes(32)])
def test_another_nonce_of_any_length_is_not_the_callers(nonce: bytes) -> None:
    case = CASE()
    replayed = replace(case.capture, nonce=nonce)
    error = refused(
        lambda: confide.verify(
            replayed, case.endorsements, near_policy(case), now=LATER, roots=case.roots
        )
    )
    assert status(error.result, "freshness") is Status.FAIL


# --- revocation -----------------------------------------------------------------------------------


def test_older_collateral_does_not_undo_a_revocation() -> None:
    """The caller's list names the PCK; the service brings the list of the week before."""
    case = CASE()
    revoking = SimulatedTdxPlatform(b"service tests", NOW, TdxFault.REVOKED_PCK).collateral()
    (older,) = case.endorsements.tdx
    for offered in ((revoking, older), (revoking,)):
        error = refused(
            lambda offered=offered: confide.verify(  # type: ignore[misc]
                case.capture,
                replace(case.endorsements, tdx=offered),
                near_policy(case),
                now=LATER,
                roots=case.roots,
            )
        )
        assert error.reason is Reason.CERT_REVOKED
        assert status(error.result, "hardware") is Status.FAIL


@pytest.mark.parametrize("order", [1, -1])
def test_certificates_without_a_list_do_not_undo_a_revocation(order: int) -> None:
    machine = SimulatedSnpMachine(cases.SEED, cases.NOW)
    revoking = SimulatedSnpMachine(cases.SEED, cases.NOW, fault=SnpFault.REVOKED_LEAF)
    report = machine.report(SimulatedSnpLaunch(measurement=b"m" * 48), report_data=bytes(64))
    offered = (
        SnpEndorsement(
            leaf_der=revoking.leaf_der, chain_pem=revoking.chain_pem, crl_der=revoking.crl_der
        ),
        SnpEndorsement(leaf_der=machine.leaf_der, chain_pem=machine.chain_pem, crl_der=None),
    )[::order]
    both = make_simulated_roots(
        cases.platform().anchor(), simulated_nvidia_roots(cases.SEED), machine.roots()
    )
    error = refused(
        lambda: verify(
            report, Endorsements(snp=offered), LOOK, now=cases.NOW, roots=both, nonce=NONCE
        )
    )
    assert type(error) is EvidenceRejected
    assert error.reason is Reason.CERT_REVOKED


# --- one machine for two --------------------------------------------------------------------------


def two_models(edit: Callable[[list[Any]], None]) -> tuple[SimulatedNear, Capture]:
    """A gateway with two model machines, and its report after `edit` of the two."""
    near = SimulatedNear(b"service tests", NOW, nodes=2, gpus=1, mode=GpuMode.SPT)
    document: Any = json.loads(encode_report(near.gateway_report(NONCE)))
    edit(document["model_attestations"])
    raw = json.dumps(document).encode()
    return near, replace(
        CASE().capture, documents={"report": raw}, tls_spki_sha256=near.gateway.spki_sha256
    )


def look_at(near: SimulatedNear, capture: Capture, **claims: Any) -> AttestationResult:
    policy = replace(LOOK, claims=replace(LOOK.claims, **claims))
    endorsements = near.endorsements(NOW)
    return outcome(
        lambda: confide.verify(capture, endorsements, policy, now=LATER, roots=near.roots())
    )


def test_one_set_of_devices_does_not_stand_for_two_machines() -> None:
    def share(models: list[Any]) -> None:
        models[1]["nvidia_payload"] = models[0]["nvidia_payload"]

    honest = look_at(*two_models(lambda _: None))
    assert status(honest, "gpu") is Status.PASS
    result = look_at(*two_models(share))
    assert [status(part, "gpu") for part in result.parts[1:]] == [Status.FAIL, Status.FAIL]
    assert result.findings[0].reason is Reason.DUPLICATE_DEVICE


def test_one_machine_shown_twice_is_said() -> None:
    def repeat(models: list[Any]) -> None:
        models[1] = {**models[0], "model_name": "simulated/another"}

    result = look_at(*two_models(repeat))
    assert status(result, "gpu") is Status.PASS
    assert any("show one machine, twice" in limit for limit in result.limits)


def test_two_attesters_of_one_name_are_not_judged() -> None:
    evidence = read_evidence(CASE().capture)[0]
    same = tuple(replace(item, name="machine") for item in evidence.attesters)
    with pytest.raises(ValueError, match="name"):
        confide.verify(
            replace(evidence, attesters=same),
            CASE().endorsements,
            LOOK,
            now=LATER,
            roots=CASE().roots,
        )


def test_a_gateway_that_shows_bad_devices_is_refused_for_them() -> None:
    """Nobody asks a gateway for devices; what it shows counts."""
    near, capture = two_models(lambda _: None)
    document = json.loads(capture.documents["report"])
    payload = json.loads(document["model_attestations"][0]["nvidia_payload"])
    raw = bytearray(base64.b64decode(payload["evidence_list"][0]["evidence"]))
    raw[2000] ^= 1
    payload["evidence_list"][0]["evidence"] = base64.b64encode(raw).decode()
    document["gateway_attestation"]["nvidia_payload"] = payload
    edited = replace(capture, documents={"report": json.dumps(document).encode()})
    assert status(look_at(near, edited).parts[0], "gpu") is Status.FAIL


def test_one_machine_with_the_devices_of_two_is_said() -> None:
    def lend(models: list[Any]) -> None:
        models[1] = {**models[0], "nvidia_payload": models[1]["nvidia_payload"]}

    result = look_at(*two_models(lend))
    assert any("show one machine, twice" in limit for limit in result.limits)


# --- devices that nobody looked at ----------------------------------------------------------------

RESTING = ("gpu-firmware", "gpu-freshness", "gpu-topology")


def test_what_no_step_looked_at_is_not_proven() -> None:
    """Too many manifests stop the appraisal at its first step: nothing else was established."""
    case = CASE()
    junk = tuple(RimDocument(f"junk-{number}", b"<x/>") for number in range(65))
    nvidia = replace(case.endorsements.nvidia, rims=(*case.endorsements.nvidia.rims, *junk))
    endorsements = replace(case.endorsements, nvidia=nvidia)
    policy = near_policy(case, without=("gpu",))
    policy = replace(policy, claims=replace(policy.claims, unsafe_tolerate=frozenset({"gpu"})))
    error = refused(lambda: judge(case, policy, endorsements=endorsements))
    for name in RESTING:
        assert status(error.result, name) is Status.NOT_PROVEN


def test_a_forged_report_proves_nothing_about_its_device() -> None:
    """Whoever tolerates `gpu` is told nothing in the name of a device that did not sign."""
    case = CASE()
    document = json.loads(case.capture.documents["report"])
    payload = json.loads(document["model_attestations"][0]["nvidia_payload"])
    raw = bytearray(base64.b64decode(payload["evidence_list"][0]["evidence"]))
    raw[-1] ^= 1
    payload["evidence_list"][0]["evidence"] = base64.b64encode(raw).decode()
    document["model_attestations"][0]["nvidia_payload"] = json.dumps(payload)
    forged = replace(case.capture, documents={"report": json.dumps(document).encode()})
    policy = replace(LOOK, claims=replace(LOOK.claims, unsafe_tolerate=UnsafeAny()))
    result = judge(case, policy, capture=forged)
    assert status(result, "gpu") is Status.FAIL
    for name in RESTING:
        assert status(result, name) is not Status.PASS
