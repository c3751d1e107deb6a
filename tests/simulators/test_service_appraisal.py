"""A simulated service, complete; then one thing wrong at a time, and the claim that says so."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from services import LATER, LOOK, NONCE, NOW, NearCase, near_case, near_policy

import confide
from confide.errors import EvidenceRejected, FormatError, PolicyRejected, Reason, Rejected
from confide.rats import Status
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.bundle import encode_bundle
from confide.wire.endorsements import Endorsements
from confide.wire.evidence import NvidiaEndorsements

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.appraisal.service_policy import Policy
    from confide.rats import AttestationResult
    from confide.wire.service import Capture

ONE_GPU = cache(near_case)


@pytest.fixture(scope="module")
def case() -> NearCase:
    return ONE_GPU()


@pytest.fixture(scope="module")
def policy(case: NearCase) -> Policy:
    return near_policy(case)


def verify(
    case: NearCase,
    policy: Policy,
    *,
    capture: Capture | None = None,
    endorsements: Endorsements | None = None,
    **changes: Any,
) -> AttestationResult:
    return confide.verify(
        capture or case.capture,
        endorsements if endorsements is not None else case.endorsements,
        policy,
        **{"now": LATER, "roots": case.roots, **changes},
    )


def edited(case: NearCase, edit: Callable[[dict[str, Any]], None]) -> Capture:
    """The capture with its report edited."""
    document = json.loads(case.capture.documents["report"])
    edit(document)
    return replace(case.capture, documents={"report": json.dumps(document).encode()})


def refused(call: Callable[[], object], kind: type[Rejected]) -> AttestationResult:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.result is not None
    return caught.value.result


def test_a_service_that_proves_what_the_policy_asks_for_is_accepted(
    case: NearCase, policy: Policy
) -> None:
    result = verify(case, policy)
    for name in policy.claims.require:
        assert result.claim(name).status is Status.PASS, name
    assert result.simulated
    assert not any(finding.failed for finding in result.findings)
    assert [part.subject for part in result.parts] == ["gateway", "model[0]"]
    assert result.policy_digest == policy.digest
    assert result.not_after > NOW
    assert all(
        claim.source.startswith("SIMULATED ")
        for claim in result.claims
        if claim.status is Status.PASS
    )


def test_what_no_service_can_prove_is_never_proven(case: NearCase, policy: Policy) -> None:
    result = verify(case, policy)
    for name in ("gpu-colocation", "physical-attack"):
        assert result.claim(name).status is Status.NOT_PROVEN
    assert any("extracted" in limit for limit in result.limits)


def test_devices_are_not_asked_of_a_machine_that_passes_requests_on(
    case: NearCase, policy: Policy
) -> None:
    gateway, model = verify(case, policy).parts
    with pytest.raises(KeyError):
        gateway.claim("gpu")
    assert model.claim("gpu").status is Status.PASS


# --- one thing wrong at a time ------------------------------------------------------------------


def test_vendor_roots_refuse_a_simulated_service(case: NearCase, policy: Policy) -> None:
    result = refused(lambda: verify(case, policy, roots=VENDOR_ROOTS), EvidenceRejected)
    assert result.claim("hardware").status is Status.FAIL


def test_a_policy_that_does_not_allow_simulation_refuses_it(case: NearCase, policy: Policy) -> None:
    strict = replace(policy, unsafe_simulated=False)
    result = refused(lambda: verify(case, strict), EvidenceRejected)
    assert result.claim("hardware").status is Status.FAIL


def test_without_collateral_nothing_is_genuine(case: NearCase, policy: Policy) -> None:
    bare = replace(case.endorsements, tdx=())
    with pytest.raises(EvidenceRejected) as caught:
        verify(case, policy, endorsements=bare)
    assert caught.value.reason is Reason.COLLATERAL_MISSING


def test_collateral_of_another_platform_does_not_help_and_does_not_hurt(
    case: NearCase, policy: Policy
) -> None:
    foreign = SimulatedTdxPlatform(b"somebody else", NOW).collateral()
    both = replace(case.endorsements, tdx=(foreign, *case.endorsements.tdx))
    assert verify(case, policy, endorsements=both).claim("hardware").status is Status.PASS
    only = replace(case.endorsements, tdx=(foreign,))
    refused(lambda: verify(case, policy, endorsements=only), EvidenceRejected)


def test_after_the_collateral_has_expired(case: NearCase, policy: Policy) -> None:
    late = NOW + timedelta(days=90)
    result = refused(lambda: verify(case, policy, now=late), EvidenceRejected)
    assert result.claim("hardware").status is Status.FAIL


def test_another_nonce_than_the_callers(case: NearCase, policy: Policy) -> None:
    replayed = replace(case.capture, nonce=bytes(32))
    result = refused(lambda: verify(case, policy, capture=replayed), EvidenceRejected)
    assert result.claim("freshness").status is Status.FAIL
    assert result.claim("gpu-freshness").status is not Status.PASS


def test_no_nonce_of_the_caller_leaves_freshness_open(case: NearCase, policy: Policy) -> None:
    silent = replace(case.capture, nonce=None)
    result = refused(lambda: verify(case, policy, capture=silent), PolicyRejected)
    assert result.claim("freshness").status is Status.NOT_PROVEN
    assert result.claim("keys").status is Status.PASS


def test_a_connection_that_ended_elsewhere(case: NearCase, policy: Policy) -> None:
    between = replace(case.capture, tls_spki_sha256=bytes(32))
    result = refused(lambda: verify(case, policy, capture=between), EvidenceRejected)
    assert result.claim("tls").status is Status.FAIL


def test_a_swapped_signing_key(case: NearCase, policy: Policy) -> None:
    def swap(document: dict[str, Any]) -> None:
        document["model_attestations"][0]["signing_address"] = "11" * 32
        document["model_attestations"][0]["signing_public_key"] = "11" * 32

    capture = edited(case, swap)
    result = refused(lambda: verify(case, policy, capture=capture), EvidenceRejected)
    assert result.claim("keys").status is Status.FAIL


def test_an_edited_event_log(case: NearCase, policy: Policy) -> None:
    def edit(document: dict[str, Any]) -> None:
        log = document["model_attestations"][0]["event_log"]
        (entry,) = [item for item in log if item["event"] == "compose-hash"]
        entry["event_payload"] = "00" * 32

    capture = edited(case, edit)
    result = refused(lambda: verify(case, policy, capture=capture), EvidenceRejected)
    assert result.claim("event-log").status is Status.FAIL


def test_an_edited_launch_document(case: NearCase, policy: Policy) -> None:
    def edit(document: dict[str, Any]) -> None:
        tcb = document["model_attestations"][0]["info"]["tcb_info"]
        tcb["app_compose"] += "\n"

    capture = edited(case, edit)
    result = refused(lambda: verify(case, policy, capture=capture), EvidenceRejected)
    assert result.claim("workload").status is Status.FAIL


def test_another_launch_document_than_the_listed_one(case: NearCase, policy: Policy) -> None:
    other = replace(policy, workload=replace(policy.workload, documents=frozenset({"00" * 32})))
    result = refused(lambda: verify(case, other), PolicyRejected)
    assert result.claim("workload").status is Status.PASS
    assert result.claim("workload-expected").status is Status.FAIL


@pytest.mark.parametrize("register", ["mrtd", "rtmr0", "rtmr1", "rtmr2"])
@pytest.mark.parametrize("listed", [frozenset[str](), frozenset({"00" * 48})])
def test_another_register_than_the_listed_one(
    case: NearCase, policy: Policy, register: str, listed: Any
) -> None:
    other = replace(policy, tdx=replace(policy.tdx, **{register: listed}))
    result = refused(lambda: verify(case, other), PolicyRejected)
    assert result.claim("launch").status is Status.FAIL


def test_a_register_that_is_left_open_leaves_the_launch_open(case: NearCase) -> None:
    modest = near_policy(case, without=("launch",))
    other = replace(modest, tdx=replace(modest.tdx, rtmr2=LOOK.tdx.rtmr2))
    assert verify(case, other).claim("launch").status is Status.NOT_PROVEN


def test_a_tcb_status_that_is_not_accepted(case: NearCase, policy: Policy) -> None:
    other = replace(policy, tdx=replace(policy.tdx, tcb_status=frozenset({"SWHardeningNeeded"})))
    result = refused(lambda: verify(case, other), PolicyRejected)
    assert result.claim("tcb").status is Status.FAIL


def test_a_platform_on_the_block_list(case: NearCase, policy: Policy) -> None:
    ppid = case.near.platform.ppid.hex()
    other = replace(policy, tdx=replace(policy.tdx, blocked_platforms=frozenset({ppid})))
    result = refused(lambda: verify(case, other), PolicyRejected)
    assert result.claim("platform").status is Status.FAIL
    listed = replace(policy, tdx=replace(policy.tdx, platforms=frozenset({ppid})))
    assert verify(case, listed).claim("platform").status is Status.PASS


def test_missing_manifests_leave_the_firmware_open(case: NearCase, policy: Policy) -> None:
    bare = replace(case.endorsements, nvidia=NvidiaEndorsements((), case.endorsements.nvidia.ocsp))
    result = refused(lambda: verify(case, policy, endorsements=bare), PolicyRejected)
    assert result.claim("gpu-firmware").status is Status.NOT_PROVEN
    assert "rim-missing" in result.claim("gpu-firmware").value


def test_missing_ocsp_answers_leave_the_devices_open(case: NearCase, policy: Policy) -> None:
    bare = replace(case.endorsements, nvidia=NvidiaEndorsements(case.endorsements.nvidia.rims, ()))
    result = refused(lambda: verify(case, policy, endorsements=bare), PolicyRejected)
    assert result.claim("gpu").status is Status.NOT_PROVEN


def test_devices_that_are_left_out(case: NearCase, policy: Policy) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["model_attestations"][0]["nvidia_payload"] = None

    capture = edited(case, edit)
    result = refused(lambda: verify(case, policy, capture=capture), PolicyRejected)
    assert result.claim("gpu").status is Status.NOT_PROVEN


def test_a_flipped_bit_in_a_device_report(case: NearCase, policy: Policy) -> None:
    import base64  # noqa: PLC0415

    def edit(document: dict[str, Any]) -> None:
        payload = json.loads(document["model_attestations"][0]["nvidia_payload"])
        raw = bytearray(base64.b64decode(payload["evidence_list"][0]["evidence"]))
        raw[2000] ^= 1
        payload["evidence_list"][0]["evidence"] = base64.b64encode(raw).decode()
        document["model_attestations"][0]["nvidia_payload"] = json.dumps(payload)

    capture = edited(case, edit)
    result = refused(lambda: verify(case, policy, capture=capture), EvidenceRejected)
    assert result.claim("gpu").status is Status.FAIL


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chips", frozenset({"GB100"})),
        ("min_driver", frozenset({"999.0"})),
        ("vbios", frozenset({"11.11"})),
        ("counts", frozenset({"8"})),
        ("modes", frozenset({"MPT"})),
        ("drivers", frozenset[str]()),
    ],
)
def test_devices_that_the_policy_does_not_list(
    case: NearCase, policy: Policy, field: str, value: Any
) -> None:
    other = replace(policy, nvidia=replace(policy.nvidia, **{field: value}))
    with pytest.raises(Rejected) as caught:
        verify(case, other)
    assert caught.value.result is not None
    failed = {c.name for c in caught.value.result.claims if c.status is Status.FAIL}
    assert failed & {"gpu", "gpu-firmware"}


def test_protected_pcie_without_switches_is_no_complete_set() -> None:
    case = near_case(gpus=8)
    policy = near_policy(case)
    result = refused(lambda: verify(case, policy), PolicyRejected)
    assert result.claim("gpu-topology").status is Status.FAIL
    assert result.claim("gpu").status is Status.PASS
    looking = verify(case, LOOK)
    assert looking.claim("gpu-topology").status is Status.FAIL


# --- bundles, results ---------------------------------------------------------------------------


def test_the_nonce_inside_a_bundle_proves_nothing(case: NearCase) -> None:
    policy = near_policy(case, without=("tls",))
    bundle = encode_bundle(case.capture, case.endorsements)
    nothing = Endorsements()
    result = refused(
        lambda: confide.verify(bundle, nothing, policy, now=LATER, roots=case.roots),
        PolicyRejected,
    )
    assert result.claim("freshness").status is Status.NOT_PROVEN
    # Neither does its word about the connection: there was none of the caller's.
    without_tls = near_policy(case, without=("tls",))
    fresh = confide.verify(bundle, nothing, without_tls, now=LATER, roots=case.roots, nonce=NONCE)
    assert fresh.claim("freshness").status is Status.PASS
    assert fresh.claim("tls").status is Status.NOT_PROVEN


def test_a_required_claim_that_applies_to_no_machine_refuses(
    case: NearCase, policy: Policy
) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["model_attestations"] = []

    capture = edited(case, edit)
    with pytest.raises((PolicyRejected, FormatError)):
        verify(case, policy, capture=capture)


def test_an_audit_reports_what_it_tolerates_and_has_no_failed_finding(case: NearCase) -> None:
    strict_status = replace(
        LOOK, tdx=replace(LOOK.tdx, tcb_status=frozenset({"SWHardeningNeeded"}))
    )
    result = verify(case, strict_status)
    assert result.claim("tcb").status is Status.FAIL
    assert not any(finding.failed for finding in result.findings)
    assert any("tolerated" in finding.detail for finding in result.findings)


def test_a_time_without_zone_and_no_machine_are_the_callers_mistakes(
    case: NearCase, policy: Policy
) -> None:
    with pytest.raises(ValueError, match="time zone"):
        verify(case, policy, now=LATER.replace(tzinfo=None))
