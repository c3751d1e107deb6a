"""SIMULATED Tinfoil, Trustee, own and bare evidence through the whole verifier.

The table of docs/protocols/services.md §3 says what each service can prove; what the verifier finds
on honest evidence may not be more.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import reader_cases as cases
from appraisals import NONCE as NODE_NONCE
from appraisals import honest
from runs import expectation_and_roots

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.service_profiles import AUDIT
from confide.crypto.x509 import split_pem_chain
from confide.errors import Reason, Rejected
from confide.formats.verify import verify
from confide.rats import Status
from confide.simulator.nvidia import SimulatedGpuSet, simulated_nvidia_roots
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine
from confide.simulator.tinfoil import SimulatedEnclave
from confide.simulator.trustee import SimulatedPod, snp_report_json
from confide.trust.roots import make_simulated_roots
from confide.wire.ccel import encode_ccel
from confide.wire.endorsements import Endorsements, SnpEndorsement
from confide.wire.evidence import encode_evidence_file
from confide.wire.json import b64encode, jcs, parse_json
from confide.wire.service import Capture

if TYPE_CHECKING:
    from confide.rats import AttestationResult
    from confide.trust.roots import Roots
    from confide.wire.evidence import GpuEvidence

POLICY = replace(AUDIT, unsafe_simulated=True)
_TABLE = Path(__file__).resolve().parents[2] / "docs" / "protocols" / "services.md"


@cache
def table() -> dict[str, dict[str, str]]:
    """What each column of the table of services.md §3 says about each claim."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in _TABLE.read_text().split("## 3.")[1].split("## 4.")[0].splitlines()
        if line.startswith("|") and not line.startswith("|--")
    ]
    head, *body = rows
    return {
        column: {row[0].strip("`"): row[index] for row in body}
        for index, column in enumerate(head)
        if index
    }


@cache
def gpu_set() -> SimulatedGpuSet:
    return SimulatedGpuSet(cases.SEED, (SimulatedGpu(),), now=cases.NOW)


def gpus(nonce: bytes) -> tuple[GpuEvidence, ...]:
    return gpu_set().collect(nonce)


@cache
def amd() -> SimulatedSnpMachine:
    return SimulatedSnpMachine(cases.SEED, cases.NOW)


@cache
def roots() -> Roots:
    return make_simulated_roots(
        cases.platform().anchor(), simulated_nvidia_roots(cases.SEED), amd().roots()
    )


@cache
def pod() -> SimulatedPod:
    return SimulatedPod(
        platform=cases.platform(),
        init_data=cases.INIT_DATA,
        firmware_log=encode_ccel(()),
        gpus=gpus,
    )


@cache
def endorsements() -> Endorsements:
    machine = amd()
    return Endorsements(
        tdx=(cases.platform().collateral(),),
        snp=(
            SnpEndorsement(
                leaf_der=machine.leaf_der, chain_pem=machine.chain_pem, crl_der=machine.crl_der
            ),
        ),
        nvidia=gpu_set().endorsements(cases.NOW),
    )


def judge(documents: dict[str, bytes] | bytes, **changed: Any) -> AttestationResult:
    facts: dict[str, Any] = {"nonce": cases.NONCE, "tls_spki_sha256": cases.TLS, **changed}
    capture = cases.capture(documents, **facts)
    return verify(capture, endorsements(), POLICY, now=cases.NOW, roots=roots())


def proven(result: AttestationResult) -> set[str]:
    return {claim.name for claim in result.claims if claim.status is Status.PASS}


def refused(documents: dict[str, bytes] | bytes) -> AttestationResult:
    with pytest.raises(Rejected) as caught:
        judge(documents)
    assert caught.value.result is not None
    return caught.value.result


def outcome(documents: dict[str, bytes] | bytes, **changed: Any) -> AttestationResult:
    """The whole result, whether it was accepted or refused."""
    try:
        return judge(documents, **changed)
    except Rejected as error:
        if error.result is None:
            raise
        return error.result


def snp_documents() -> bytes:
    host_data = hashlib.sha384(cases.INIT_DATA).digest()[:32]
    launch = SimulatedSnpLaunch(measurement=bytes(48), host_data=host_data)
    report = amd().report(launch, report_data=cases.NONCE + bytes(32))
    ders = split_pem_chain(
        amd().chain_pem, max_certificates=2, what="chain", reason=Reason.CHAIN_MALFORMED
    )
    chain = [
        {"cert_type": kind, "data": list(der)}
        for kind, der in zip(("VCEK", "ASK", "ARK"), (amd().leaf_der, *ders), strict=True)
    ]
    return jcs({"attestation_report": snp_report_json(report), "cert_chain": chain})


def azure_documents() -> bytes:
    runtime = b'{"SIMULATED":"runtime data"}'
    bound = hashlib.sha256(runtime).digest() + bytes(32)
    hardware = (bytes(128) + bound).ljust(1184, b"\0")
    numbers = (20 + len(runtime), 1, 4, 1, len(runtime))
    blob = b"HCLA" + bytes(28) + hardware + b"".join(n.to_bytes(4, "little") for n in numbers)
    return jcs(
        {
            "tpm_quote": {},
            "hcl_report": list(blob + runtime),
            "td_quote": list(cases.quote(bound)),
        }
    )


def bare_documents() -> dict[str, bytes]:
    entries = [
        {
            "arch": "HOPPER",
            "nonce": cases.NONCE.hex(),
            "evidence": b64encode(device.report),
            "certificate": b64encode(device.chain_pem),
        }
        for device in gpus(cases.NONCE)
    ]
    return {"quote": cases.quote(), "gpus": jcs(entries)}


_HARDWARE = {ClaimName.HARDWARE, ClaimName.TCB, ClaimName.DEBUG_OFF}
_BOUND = _HARDWARE | {ClaimName.KEYS, ClaimName.FRESHNESS}
_GPUS = {ClaimName.GPU, ClaimName.GPU_FIRMWARE, ClaimName.GPU_FRESHNESS}
_CASES: dict[str, tuple[str, Any, set[ClaimName]]] = {
    "tinfoil v2": (
        "tinfoil v2",
        lambda: jcs(cases.enclave().v2()),
        _HARDWARE | {ClaimName.KEYS, ClaimName.TLS},
    ),
    "tinfoil bundle": (
        "tinfoil v2",
        lambda: jcs(cases.enclave().bundle()),
        _HARDWARE | {ClaimName.KEYS, ClaimName.TLS},
    ),
    "tinfoil v3": (
        "tinfoil v3",
        lambda: jcs(cases.enclave().v3(cases.NONCE, gpus=gpus(cases.NONCE))),
        _BOUND | _GPUS | {ClaimName.TLS, ClaimName.GPU_BINDING},
    ),
    "trustee": (
        "trustee",
        lambda: pod().exchange(cases.NONCE),
        _BOUND | _GPUS | {ClaimName.EVENT_LOG, ClaimName.WORKLOAD, ClaimName.GPU_BINDING},
    ),
    "trustee agent": (
        "trustee",
        lambda: {"evidence": jcs(pod().evidence(cases.NONCE)), "init-data": cases.INIT_DATA},
        _HARDWARE | {ClaimName.FRESHNESS, ClaimName.EVENT_LOG, ClaimName.WORKLOAD},
    ),
    "trustee snp": (
        "trustee",
        lambda: {"evidence": snp_documents(), "init-data": cases.INIT_DATA},
        _HARDWARE | {ClaimName.FRESHNESS, ClaimName.WORKLOAD},
    ),
    "trustee on azure": ("trustee on Azure", azure_documents, {ClaimName.HARDWARE}),
    "bare": ("bare", bare_documents, _HARDWARE | _GPUS),
}


@pytest.mark.parametrize("name", _CASES)
def test_honest_evidence_proves_what_the_clauses_say_and_no_more(name: str) -> None:
    column, documents, expected = _CASES[name]
    found = proven(judge(documents()))
    assert found >= {claim.value for claim in expected}
    assert not {claim for claim in found if table()[column][claim].startswith("no")}


def test_our_own_file_proves_what_the_clauses_say_and_no_more() -> None:
    raw = encode_evidence_file(honest("model"))
    _, own_roots = expectation_and_roots()
    capture = Capture(documents={"evidence": raw}, nonce=NODE_NONCE)
    result = verify(capture, Endorsements(), POLICY, now=cases.NOW, roots=own_roots)
    expected = _BOUND | _GPUS | {ClaimName.EVENT_LOG, ClaimName.GPU_BINDING}
    assert proven(result) >= {claim.value for claim in expected}
    assert not {claim for claim in proven(result) if table()["confide"][claim].startswith("no")}


def test_the_table_has_one_row_for_each_claim_and_one_column_for_each_format() -> None:
    columns = {"near", "aci", "dstack", "tinfoil v2", "tinfoil v3", "trustee", "trustee on Azure"}
    assert set(table()) == columns | {"confide", "bare"}
    for column in table().values():
        assert list(column) == [claim.value for claim in ClaimName]
        for cell in column.values():
            assert cell.startswith(("yes", "no", "listed", "doc", "TLS", "RA-TLS", "the caller"))


@pytest.mark.parametrize("name", ["tinfoil v3", "trustee", "trustee agent"])
def test_evidence_for_another_nonce_is_not_fresh(name: str) -> None:
    _, documents, _ = _CASES[name]
    result = outcome(documents(), nonce=b"\1" * 32)
    assert ClaimName.FRESHNESS.value not in proven(result)
    assert ClaimName.FRESHNESS.value in proven(outcome(documents()))


def test_a_key_that_the_hardware_did_not_sign_fails() -> None:
    document = cases.enclave().v3(cases.NONCE)
    other = SimulatedEnclave(
        platform=cases.platform(), tls=b"x" * 32, hpke=cases.HPKE, release=cases.RELEASE
    ).v3(cases.NONCE)
    result = refused(jcs({**document, "crypto_material": other["crypto_material"]}))
    assert result.claim(ClaimName.KEYS.value).status is Status.FAIL


def test_devices_of_another_machine_fail_their_binding() -> None:
    documents = pod().exchange(cases.NONCE)

    def swap(value: Any) -> None:
        other = pod().exchange(bytes(32))["attestation"]
        body = parse_json(other, what="case", reason=Reason.SERVICE_FORMAT)
        assert isinstance(body, dict)
        evidence: Any = body["tee-evidence"]
        value["tee-evidence"]["additional_evidence"] = evidence["additional_evidence"]

    result = refused({"attestation": cases.edited(documents["attestation"], swap)})
    assert result.claim(ClaimName.KEYS.value).status is Status.FAIL
    assert result.claim(ClaimName.GPU_BINDING.value).status is not Status.PASS
