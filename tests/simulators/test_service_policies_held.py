"""SIMULATED services before careless relying parties: what a policy says is held, to the letter."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import reader_cases as cases
from service_outcomes import (
    CASE,
    OTHER_NONCE,
    accepted,
    dstack_documents,
    gpu_set,
    judge,
    outcome,
    refused,
    roots,
    status,
)
from services import LATER, LOOK, NONCE, near_policy, policy_text

import confide
from confide.appraisal.claim_names import ClaimName
from confide.appraisal.ear import ear_document
from confide.appraisal.launch import MrConfigV3, mr_config_v3_hash
from confide.appraisal.policy_file import parse_policy
from confide.appraisal.service import _REGISTERS
from confide.appraisal.service_devices import judge_devices
from confide.appraisal.service_launch import _key_provider, judge_snp_launch
from confide.appraisal.service_ledger import Ledger
from confide.appraisal.service_snp import _STEPS
from confide.appraisal.service_tdx import _LEVEL_STEPS
from confide.appraisal.snp_appraise import POLICY_STEPS as SNP_POLICY_STEPS
from confide.appraisal.tdx_appraise import POLICY_STEPS as TDX_POLICY_STEPS
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import FormatError, Reason
from confide.formats.verify import read_evidence, verify
from confide.rats import Status
from confide.wire.bundle import encode_bundle
from confide.wire.endorsements import Endorsements
from confide.wire.json import jcs
from confide.wire.service import Attester, Capture, LaunchDocument, ReportBinding

if TYPE_CHECKING:
    from confide.appraisal.service_policy import Policy


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


@pytest.mark.parametrize(
    ("listed", "expected"), [("kms", Status.NOT_PROVEN), ("none", Status.FAIL)]
)
def test_the_key_provider_that_host_data_commits_to_is_held_against_the_list(
    listed: str, expected: Status
) -> None:
    compose = b"{}"
    document = MrConfigV3(
        compose_hash=hashlib.sha256(compose).digest(), key_provider="kms"
    ).encode()
    attester = Attester(
        name="machine",
        binding=ReportBinding(scheme="none", expected=None, nonce=None),
        launch=LaunchDocument(kind="dstack-compose", raw=compose),
        vm_config={"mr_config": document.decode()},
    )
    ledger = Ledger("machine")
    workload = replace(LOOK.workload, key_providers=frozenset({listed}))
    policy = replace(LOOK, workload=workload)
    judge_snp_launch(attester, mr_config_v3_hash(document), policy=policy, ledger=ledger)
    assert ledger.holds(ClaimName.WORKLOAD)
    assert ledger.status(ClaimName.KEY_LIFETIME) is expected


def test_a_firmware_log_beside_a_dstack_log_is_replayed_too() -> None:
    """The log of the guest fits; the one of its firmware is of somebody else."""
    case = CASE()
    evidence = read_evidence(case.capture)[0]
    odd = tuple(replace(item, firmware_log=b"log") for item in evidence.attesters)
    result = outcome(
        lambda: confide.verify(
            replace(evidence, attesters=odd), case.endorsements, LOOK, now=LATER, roots=case.roots
        )
    )
    assert status(result, "event-log") is Status.FAIL
