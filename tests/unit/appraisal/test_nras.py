"""Tokens of a simulated service: accepted as they are, refused for the reason of every fault."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from confide.appraisal import nras
from confide.appraisal.claim_names import ClaimName
from confide.appraisal.nras import (
    NRAS_ISSUER,
    NrasPolicy,
    NrasResult,
    ReportedDevice,
    appraise_nras,
)
from confide.appraisal.nvidia_policy import AllowedVersions, MinimumVersion
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import EvidenceRejected, PolicyRejected, Reason, Rejected
from confide.rats import Status
from confide.simulator.nras import EXPECTED, SIMULATED_NRAS_ISSUER, NrasFault, SimulatedNras

if TYPE_CHECKING:
    from confide.appraisal.steps import Step

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
NONCE = bytes(range(32))
GPUS = tuple(
    ReportedDevice("gpu", str(10**47 + number), "570.124.06", "96.00.9f.00.01")
    for number in range(2)
)
SWITCHES = (ReportedDevice("switch", str(10**46), "", "96.10.55.00.01"),)
POLICY = NrasPolicy(
    device_count=2,
    driver=MinimumVersion("570.00"),
    vbios=AllowedVersions(("96.00.9F.00.01",)),
)


def appraise(
    fault: NrasFault | None = None,
    *,
    devices: tuple[ReportedDevice, ...] = GPUS,
    version: str = "3.0",
    **changed: Any,
) -> NrasResult:
    service = SimulatedNras(b"test", NOW, fault)
    inputs: dict[str, Any] = {
        "jwks": service.jwks(),
        "expected_nonce": NONCE,
        "issuer": SIMULATED_NRAS_ISSUER,
        "policy": POLICY,
        "now": NOW,
        **changed,
    }
    return appraise_nras(service.token(devices, NONCE, version=version), **inputs)


def refused(fault: NrasFault | None = None, **changed: Any) -> Rejected:
    with pytest.raises(Rejected) as refusal:
        appraise(fault, **changed)
    return refusal.value


@pytest.mark.parametrize("version", ["2.0", "3.0"])
def test_an_honest_token_is_accepted(version: str) -> None:
    result = appraise(version=version, reports=GPUS)
    assert result.version == version
    assert [device.ueid for device in result.devices] == [device.ueid for device in GPUS]
    assert {device.vbios_version for device in result.devices} == {"96.00.9F.00.01"}
    assert result.not_after == NOW + timedelta(hours=1)
    assert {claim.name for claim in result.claims if claim.status is Status.PASS} == {
        ClaimName.GPU,
        ClaimName.GPU_FIRMWARE,
        ClaimName.GPU_FRESHNESS,
    }
    assert all(finding.status is Status.PASS for finding in result.findings)


def test_switches_have_a_bios_and_no_driver() -> None:
    result = appraise(
        devices=SWITCHES,
        policy=replace(POLICY, device_count=1, vbios=AllowedVersions(("96.10.55.00.01",))),
        reports=SWITCHES,
    )
    assert [(device.kind, device.driver_version) for device in result.devices] == [("switch", "")]


def test_a_simulated_service_is_accepted_only_by_name_and_says_so() -> None:
    assert appraise().simulated
    assert refused(issuer=NRAS_ISSUER).reason is Reason.TOKEN_ISSUER


def test_trust_in_the_keys_is_told_apart() -> None:
    fetched = appraise()
    assert not fetched.authority_pinned
    assert any("No root is published" in limit for limit in fetched.limits)
    pin = SimulatedNras(b"test", NOW).authority_pin
    pinned = appraise(policy=replace(POLICY, pinned_authorities=frozenset({pin})))
    assert pinned.authority_pinned
    assert pinned.authorities == (pin.hex(),)
    assert len(pinned.limits) == len(fetched.limits) - 1
    other = refused(policy=replace(POLICY, pinned_authorities=frozenset({bytes(32)})))
    assert other.reason is Reason.TOKEN_SIGNATURE_INVALID


def test_keys_of_another_service_with_the_same_names_do_not_verify() -> None:
    honest, other = SimulatedNras(b"test", NOW), SimulatedNras(b"other", NOW)
    names = [key["kid"] for key in json.loads(honest.jwks())["keys"]]
    forged = json.loads(other.jwks())
    for key, name in zip(forged["keys"], names, strict=True):
        key["kid"] = name
    refusal = refused(jwks=json.dumps(forged).encode())
    assert refusal.reason is Reason.TOKEN_SIGNATURE_INVALID


@pytest.mark.parametrize("fault", NrasFault, ids=str)
def test_every_fault_is_refused_for_its_reason(fault: NrasFault) -> None:
    refusal = refused(fault)
    assert refusal.reason is EXPECTED[fault], str(refusal)
    assert isinstance(refusal, PolicyRejected if fault is NrasFault.WARNING else EvidenceRejected)


def test_without_a_key_set_nothing_is_accepted_and_all_else_is_told() -> None:
    refusal = refused(jwks=None)
    assert [failure.reason for failure in refusal.failures] == [Reason.TOKEN_KID_UNKNOWN]
    both = refused(NrasFault.EXPIRED, jwks=None)
    assert [failure.reason for failure in both.failures] == [
        Reason.TOKEN_KID_UNKNOWN,
        Reason.TOKEN_EXPIRED,
    ]


@pytest.mark.parametrize("jwks", [b"", b"{}", b'{"keys":[]}', b"[" * 50, b'{"keys":[{}]}'])
def test_a_broken_key_set_is_no_key_set(jwks: bytes) -> None:
    assert refused(jwks=jwks).reason is Reason.TOKEN_KID_UNKNOWN


@pytest.mark.parametrize("token", [b"", b"[]", b"null", b'[["JWT","a.b.c"],{}]', b"[" * 99])
def test_what_is_no_token_is_refused_with_one_of_our_errors(token: bytes) -> None:
    with pytest.raises(EvidenceRejected) as refusal:
        appraise_nras(token, jwks=None, expected_nonce=NONCE, policy=POLICY, now=NOW)
    assert refusal.value.reason is Reason.TOKEN_MALFORMED


@pytest.mark.parametrize(
    ("moment", "accepted"),
    [
        (NOW - timedelta(seconds=60), True),
        (NOW - timedelta(seconds=61), False),
        (NOW + timedelta(hours=1, seconds=60), True),
        (NOW + timedelta(hours=1, seconds=61), False),
    ],
)
def test_the_leeway_is_one_minute(moment: datetime, accepted: bool) -> None:
    if accepted:
        appraise(now=moment)
    else:
        assert refused(now=moment).reason is Reason.TOKEN_EXPIRED


def test_a_warning_is_accepted_by_the_policy_alone_and_never_dropped() -> None:
    result = appraise(NrasFault.WARNING, policy=replace(POLICY, accept_warnings=True))
    assert result.warnings == ("SIMULATED: A SIGNER IS ON HOLD",)


def test_policy_alone_is_told_from_evidence() -> None:
    for policy, reason in (
        (replace(POLICY, device_count=8), Reason.GPU_MISSING),
        (replace(POLICY, device_count=1), Reason.TOPOLOGY_COUNT),
        (replace(POLICY, driver=MinimumVersion("999.0")), Reason.VERSION_NOT_ALLOWED),
        (replace(POLICY, vbios=AllowedVersions(("1.0",))), Reason.VERSION_NOT_ALLOWED),
    ):
        refusal = refused(policy=policy)
        assert refusal.reason is reason
        assert isinstance(refusal, PolicyRejected)
    anything = NrasPolicy(device_count=UnsafeAny(), driver=UnsafeAny(), vbios=UnsafeAny())
    assert appraise(policy=anything).policy_digest != appraise().policy_digest


def test_the_reports_are_of_the_same_devices() -> None:
    first, second = GPUS
    for reports in (
        (),
        (first,),
        (first, second, second),
        (first, replace(second, ueid="7")),
        (first, replace(second, driver_version="570.124.07")),
        (first, replace(second, vbios_version="96.00.9F.00.02")),
        (first, replace(second, kind="switch")),
    ):
        assert refused(reports=reports).reason is Reason.TOKEN_CLAIMS
    appraise(reports=(second, first))


def test_the_caller_names_a_nonce_and_a_time() -> None:
    for wrong in ({"expected_nonce": b"short"}, {"now": NOW.replace(tzinfo=None)}):
        with pytest.raises(ValueError, match="nonce has 32 bytes"):
            appraise(**wrong)
    with pytest.raises(ValueError, match="at least one device"):
        replace(POLICY, device_count=0)
    with pytest.raises(ValueError, match="32 bytes"):
        replace(POLICY, pinned_authorities=frozenset({b"x"}))


def test_any_changed_character_of_a_token_is_refused() -> None:
    """Every third character of the tokens and of nothing else, replaced by another one."""
    service = SimulatedNras(b"test", NOW)
    token, keys = service.token(GPUS[:1], NONCE), service.jwks()
    policy = replace(POLICY, device_count=1)
    changed = accepted = 0
    for at in range(9, len(token) - 3, 3):
        if token[at : at + 1] in b'",[]{}:':
            continue
        other = b"B" if token[at : at + 1] == b"A" else b"A"
        edited = token[:at] + other + token[at + 1 :]
        changed += 1
        try:
            appraise_nras(
                edited,
                jwks=keys,
                expected_nonce=NONCE,
                issuer=SIMULATED_NRAS_ISSUER,
                policy=policy,
                now=NOW,
            )
        except EvidenceRejected:
            continue
        accepted += 1
    assert changed > 900
    assert accepted == 0


# Without the step, the fault is accepted.
ACCEPTED_WITHOUT = {
    "nras/2a": NrasFault.ALG_DEVICE,
    "nras/3a": NrasFault.FORGED_OVERALL,
    "nras/3b": NrasFault.FORGED_DEVICE,
    "nras/4b": NrasFault.OTHER_DEVICE_ISSUER,
    "nras/5b": NrasFault.DIGEST_DIFFERS,
    "nras/6b": NrasFault.OTHER_DEVICE_NONCE,
    "nras/7a": NrasFault.OVERALL_FALSE,
    "nras/7b": NrasFault.MEASUREMENTS_FAIL,
    "nras/7c": NrasFault.CHAIN_REVOKED,
    "nras/9a": NrasFault.DEVICE_TWICE,
    "nras/9e": NrasFault.WARNING,
}
# Without the step, a later one refuses: what is missing has no digest, an error has no nonce.
BACKED_UP = {
    "nras/6a": NrasFault.ERROR_DETAILS,
}
# Without the step the inputs of the policy or of the caller are not compared at all.
CHANGED_INPUT: dict[str, dict[str, Any]] = {
    "nras/8": {"now": NOW + timedelta(days=300)},
    "nras/9b": {"reports": GPUS[:1]},
    "nras/9c": {"policy": replace(POLICY, device_count=1)},
    "nras/9d": {"policy": replace(POLICY, driver=MinimumVersion("999.0"))},
}
# They read what others need: without them the procedure stops as a bug would.
READERS = {"nras/1", "nras/2b", "nras/4a"}
# Shown below: a token presented beside those that were vouched for.
SUBMODULES = "nras/5a"


def _remove(monkeypatch: pytest.MonkeyPatch, removed: str) -> None:
    """Remove one step, and its name from the needs of the others."""

    def without(steps: tuple[Step[Any], ...]) -> tuple[Step[Any], ...]:
        return tuple(
            replace(step, needs=tuple(need for need in step.needs if need != removed))
            for step in steps
            if step.id != removed
        )

    monkeypatch.setattr(nras, "NRAS_STEPS", without(nras.NRAS_STEPS))


def test_the_tables_name_every_step() -> None:
    named = {*ACCEPTED_WITHOUT, *BACKED_UP, *CHANGED_INPUT, *READERS, SUBMODULES}
    assert named == {step.id for step in nras.NRAS_STEPS}


@pytest.mark.parametrize(("step", "fault"), ACCEPTED_WITHOUT.items(), ids=ACCEPTED_WITHOUT)
def test_without_the_step_the_fault_is_accepted(
    monkeypatch: pytest.MonkeyPatch, step: str, fault: NrasFault
) -> None:
    assert {failure.step for failure in refused(fault).failures} == {step}
    _remove(monkeypatch, step)
    appraise(fault)


@pytest.mark.parametrize(("step", "changed"), CHANGED_INPUT.items(), ids=CHANGED_INPUT)
def test_without_the_step_the_input_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, step: str, changed: dict[str, Any]
) -> None:
    assert {failure.step for failure in refused(**changed).failures} == {step}
    _remove(monkeypatch, step)
    if step == "nras/8":
        with pytest.raises(ValueError, match="empty"):
            appraise(**changed)  # there is no instant at which the result would end
    else:
        appraise(**changed)


@pytest.mark.parametrize(("step", "fault"), BACKED_UP.items(), ids=BACKED_UP)
def test_without_the_step_the_reason_is_no_longer_the_right_one(
    monkeypatch: pytest.MonkeyPatch, step: str, fault: NrasFault
) -> None:
    _remove(monkeypatch, step)
    assert refused(fault).reason is not EXPECTED[fault]


@pytest.mark.parametrize("step", sorted(READERS))
def test_without_a_reader_the_procedure_stops(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    _remove(monkeypatch, step)
    with pytest.raises((RuntimeError, KeyError, ValueError)):
        appraise()


def test_without_the_submodules_a_removed_device_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = replace(POLICY, device_count=1)
    assert refused(NrasFault.DEVICE_REMOVED, policy=alone).reason is Reason.TOKEN_SUBMODS_MISMATCH
    _remove(monkeypatch, SUBMODULES)
    appraise(NrasFault.DEVICE_REMOVED, policy=alone)
