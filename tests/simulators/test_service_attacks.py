"""SIMULATED hostile operators, and relying parties who are careless: what must not be accepted.

Each test is one way in that was tried. The service is honest but for the one thing that the test
does; the claim that the attack is about is named, and may not pass.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import reader_cases as cases
from services import LATER, LOOK, NONCE, NOW, NearCase, near_case, near_policy, policy_text

import confide
from confide.appraisal.claim_names import ClaimName
from confide.appraisal.ear import ear_document
from confide.appraisal.nvidia_policy import GpuMode
from confide.appraisal.policy_file import parse_policy
from confide.appraisal.service import _REGISTERS
from confide.appraisal.service_devices import judge_devices
from confide.appraisal.service_launch import _key_provider
from confide.appraisal.service_ledger import Ledger
from confide.appraisal.service_snp import _STEPS
from confide.appraisal.service_tdx import _LEVEL_STEPS
from confide.appraisal.snp_appraise import POLICY_STEPS as SNP_POLICY_STEPS
from confide.appraisal.tdx_appraise import POLICY_STEPS as TDX_POLICY_STEPS
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import EvidenceRejected, FormatError, PolicyRejected, Reason, Rejected
from confide.formats.verify import read_evidence, verify
from confide.rats import Status
from confide.simulator.near import SimulatedNear, encode_report
from confide.simulator.nvidia import SimulatedGpuSet, simulated_nvidia_roots
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine
from confide.simulator.snp_faults import SnpFault
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.simulator.tdx_faults import TdxFault
from confide.trust.roots import make_simulated_roots
from confide.wire.bundle import encode_bundle
from confide.wire.endorsements import Endorsements, SnpEndorsement
from confide.wire.evidence import RimDocument
from confide.wire.json import b64encode, jcs
from confide.wire.service import Capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.appraisal.service_policy import Policy
    from confide.rats import AttestationResult
    from confide.trust.roots import Roots
    from confide.wire.evidence import GpuEvidence

CASE = cache(near_case)
OTHER_NONCE = b"\x5a" * 32


def outcome(call: Callable[[], AttestationResult]) -> AttestationResult:
    """The result, whether it was accepted or refused."""
    try:
        return call()
    except Rejected as error:
        if error.result is None:
            raise
        return error.result


def refused(call: Callable[[], object]) -> Rejected:
    with pytest.raises(Rejected) as caught:
        call()
    assert caught.value.result is not None
    return caught.value


def status(result: AttestationResult | None, name: str) -> Status:
    assert result is not None
    return result.claim(name).status


# --- nonces and connections -----------------------------------------------------------------------


@cache
def gpu_set() -> SimulatedGpuSet:
    return SimulatedGpuSet(cases.SEED, (SimulatedGpu(),), now=cases.NOW)


@cache
def roots() -> Roots:
    return make_simulated_roots(cases.platform().anchor(), simulated_nvidia_roots(cases.SEED))


def dstack_documents(nonce: bytes, devices: tuple[GpuEvidence, ...]) -> dict[str, bytes]:
    """An answer of the guest over `nonce`, beside evidence of devices asked for apart."""
    entries = [
        {"arch": "HOPPER", "evidence": b64encode(d.report), "certificate": b64encode(d.chain_pem)}
        for d in devices
    ]
    bundle = {
        "vendor": "nvidia",
        "format": "nvidia-nvattest-collect-evidence-json-v1",
        "evidence": json.dumps({"evidences": entries}),
    }
    answer = {
        "quote": cases.quote(nonce + bytes(32)).hex(),
        "event_log": "[]",
        "report_data": nonce.hex(),
    }
    return {"quote": json.dumps(answer).encode(), "gpu": json.dumps({"bundles": [bundle]}).encode()}


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


# --- lists ----------------------------------------------------------------------------------------


def listing(policy: Policy, **lists: Any) -> Policy:
    return replace(policy, tdx=replace(policy.tdx, **lists))


@pytest.mark.parametrize(
    ("register", "claim"), [("rtmr3", "event-log"), ("mrconfigid", "workload")]
)
def test_a_list_is_kept_to_also_where_the_value_follows_from_a_log(
    register: str, claim: str
) -> None:
    """RTMR3 replays, MRCONFIGID names the app: that makes neither the one that was listed."""
    case = CASE()
    policy = near_policy(case)
    assert accepted(case, policy)
    other = listing(policy, **{register: frozenset({"00" * 47 + "01"})})
    error = refused(lambda: judge(case, other))
    assert status(error.result, claim) is Status.FAIL


def test_combining_a_list_with_an_empty_one_accepts_nothing_that_either_refuses() -> None:
    case = CASE()
    empty = near_policy(case)
    other = listing(empty, rtmr3=frozenset({"00" * 48}))
    for pair in (
        (empty, other),
        (other, empty),
        (other, listing(empty, rtmr3=frozenset({"11" * 48}))),
    ):
        both = pair[0].both(pair[1])
        assert both.tdx.rtmr3 == frozenset({"none"})
        assert not accepted(case, both)
        assert not accepted(case, both.both(empty))
    assert accepted(case, empty.both(empty))


def judge(case: NearCase, policy: Policy, **changes: Any) -> AttestationResult:
    capture = changes.pop("capture", case.capture)
    endorsements = changes.pop("endorsements", case.endorsements)
    return confide.verify(
        capture, endorsements, policy, **{"now": LATER, "roots": case.roots, **changes}
    )


def accepted(case: NearCase, policy: Policy) -> bool:
    try:
        judge(case, policy)
    except Rejected:
        return False
    return True


@pytest.mark.parametrize("claim", ["launch", "images-pinned", "workload-expected", "gpu"])
def test_a_claim_that_is_required_and_tolerated_is_required(claim: str) -> None:
    case = CASE()
    policy = near_policy(case)
    policy = replace(
        policy,
        claims=replace(policy.claims, unsafe_tolerate=UnsafeAny()),
        tdx=replace(policy.tdx, mrtd=frozenset[str]()),
        workload=replace(policy.workload, documents=frozenset({"00" * 32})),
        nvidia=replace(policy.nvidia, counts=frozenset({"8"})),
    )
    required = replace(policy, claims=replace(policy.claims, require=frozenset({claim})))
    if claim == "images-pinned":
        assert accepted(case, required)
    else:
        error = refused(lambda: judge(case, required))
        assert status(error.result, claim) is Status.FAIL


@pytest.mark.parametrize("claim", ["gpu-colocation", "physical-attack", "model-weights"])
def test_a_claim_that_nothing_makes_refuses_whoever_requires_it(claim: str) -> None:
    case = CASE()
    policy = near_policy(case)
    policy = replace(policy, claims=replace(policy.claims, require=frozenset({claim})))
    assert refused(lambda: judge(case, policy)).reason is Reason.CLAIM_NOT_PROVEN


def test_simulated_devices_under_a_policy_for_real_ones() -> None:
    """Roots of which one alone is simulated: what hangs under it is refused on its own."""
    case = CASE()
    evidence = read_evidence(case.capture)[0]
    ledger = Ledger("model[0]")
    judge_devices(
        evidence.attesters[1],
        evidence,
        case.endorsements.nvidia,
        key_sets=(),
        roots=case.roots.nvidia,
        policy=replace(near_policy(case), unsafe_simulated=False),
        now=LATER,
        ledger=ledger,
    )
    assert ledger.claims[ClaimName.GPU].status is Status.FAIL
    assert ledger.reasons[ClaimName.GPU] is Reason.SIMULATED_NOT_ALLOWED


# --- key providers --------------------------------------------------------------------------------


@pytest.mark.parametrize("documents", ["bare", "without a log", "tinfoil"])
def test_a_list_of_key_providers_refuses_evidence_that_shows_none(documents: str) -> None:
    shown = {
        "bare": {"document": cases.quote()},
        "without a log": {"quote": cases.quote()},
        "tinfoil": {"document": jcs(cases.enclave().v3(cases.NONCE))},
    }[documents]
    capture = Capture(
        documents=shown, nonce=cases.NONCE, format="dstack" if "quote" in shown else ""
    )
    own = Endorsements(tdx=(cases.platform().collateral(),))
    claims = replace(LOOK.claims, unsafe_tolerate=frozenset[str]())
    workload = replace(LOOK.workload, key_providers=frozenset({"none", "kms"}))
    policy = replace(LOOK, claims=claims, workload=workload)
    error = refused(lambda: verify(capture, own, policy, now=cases.NOW, roots=roots()))
    assert status(error.result, "key-lifetime") is Status.FAIL
    verify(capture, own, replace(LOOK, claims=claims), now=cases.NOW, roots=roots())


def test_a_key_provider_with_a_name_of_its_own_is_not_shown_as_text() -> None:
    ledger = Ledger("machine")
    wanted = replace(LOOK.workload, key_providers=frozenset({"kms"}))
    _key_provider("kms\x1b[2J", replace(LOOK, workload=wanted), ledger)
    claim = ledger.claims[ClaimName.KEY_LIFETIME]
    assert claim.status is Status.FAIL
    assert claim.value.isprintable()


# --- what nobody reads ----------------------------------------------------------------------------


def test_every_step_of_a_policy_speaks_about_a_claim() -> None:
    """A step that fails and lowers no claim would be a demand that nobody holds."""
    tdx = {step.id for step in TDX_POLICY_STEPS}
    mapped = _LEVEL_STEPS.keys() | _REGISTERS.keys()
    # Report data are judged with the keys; bytes after a signature are zeros or refused before.
    assert tdx - mapped == {"tdx/4.2", "tdx/31"}
    assert mapped <= tdx
    snp = {step.id for step in SNP_POLICY_STEPS}
    assert snp - _STEPS.keys() == {"snp/11.4"}
    assert _STEPS.keys() - snp <= {"snp/10.1", "snp/10.2", "snp/10.3"} | snp


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_a_nonce_of_another_length_in_a_bundle_is_no_crash(length: int) -> None:
    documents = dstack_documents(cases.NONCE, gpu_set().collect(cases.NONCE))
    capture = Capture(documents=documents, format="dstack", nonce=b"n" * length)
    own = Endorsements(
        tdx=(cases.platform().collateral(),), nvidia=gpu_set().endorsements(cases.NOW)
    )
    bundle = encode_bundle(capture, own)
    for nonce in (None, cases.NONCE):
        result = outcome(
            lambda nonce=nonce: verify(  # type: ignore[misc]
                bundle, own, LOOK, now=cases.NOW, roots=roots(), nonce=nonce
            )
        )
        assert status(result, "gpu-freshness") is not Status.PASS


def test_what_is_refused_does_not_read_as_affirming() -> None:
    """Every claim behind the vector is proven; another one is required, and is not."""
    case = CASE()
    policy = near_policy(case)
    policy = replace(
        policy, claims=replace(policy.claims, require=policy.claims.require | {"model-weights"})
    )
    error = refused(lambda: judge(case, policy))
    assert error.result is not None
    document: Any = ear_document(error.result, accepted=False, version="1")
    assert document["submods"]["model[0]"]["ear.status"] == "contraindicated"
    for submodule in document["submods"].values():
        assert submodule["ear.status"] not in {"affirming", "none"}


# --- careless relying parties ---------------------------------------------------------------------


@pytest.mark.parametrize("floor", ["Turin:0.0.23.0", "Genoa:1.7.0.23.72", "Milan:0.0.24.0 "])
def test_a_floor_of_another_products_form_is_no_dropped_demand(floor: str) -> None:
    text = policy_text(CASE(), require=("hardware",))
    with pytest.raises(FormatError):
        parse_policy(f'{text}\n[snp]\nmin_tcb = ["{floor}"]\n')


def test_a_bound_document_under_unknown_software_is_said() -> None:
    """Whoever does not ask for the launch is told what the document is worth."""
    case = CASE()
    result = judge(case, LOOK)
    assert status(result, "workload") is Status.PASS
    assert any("gateway: the launch document is bound, and" in limit for limit in result.limits)
    assert not any(
        "launch is not proven" in limit for limit in judge(case, near_policy(case)).limits
    )


def test_a_nonce_beside_one_document_counts_as_the_one_that_was_sent() -> None:
    """A file has no place for it: it is not refused for that, nor is another one believed."""
    case = CASE()
    raw = case.capture.documents["report"]
    fresh = judge(case, LOOK, capture=raw, nonce=NONCE)
    assert status(fresh, "freshness") is Status.PASS
    stale = outcome(lambda: judge(case, LOOK, capture=raw, nonce=OTHER_NONCE))
    assert status(stale, "freshness") is Status.FAIL
    silent = judge(case, LOOK, capture=raw)
    assert status(silent, "freshness") is Status.NOT_PROVEN


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


def test_one_machine_with_the_devices_of_two_is_said() -> None:
    def lend(models: list[Any]) -> None:
        models[1] = {**models[0], "nvidia_payload": models[1]["nvidia_payload"]}

    result = look_at(*two_models(lend))
    assert any("show one machine, twice" in limit for limit in result.limits)
