"""SIMULATED services of others through the whole verifier: honest ones pass, faults are named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.nvidia_policy import GpuMode
from confide.appraisal.service_profiles import AUDIT
from confide.errors import EvidenceRejected, Rejected
from confide.formats.verify import verify
from confide.rats import Status
from confide.simulator.aci import SimulatedAci
from confide.simulator.near import SimulatedNear, encode_report
from confide.simulator.nvidia import simulated_nvidia_roots
from confide.trust.roots import make_simulated_roots
from confide.wire.endorsements import Endorsements
from confide.wire.service import Capture

if TYPE_CHECKING:
    from confide.rats import AttestationResult

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NONCE = hashlib.sha256(b"the caller's nonce").digest()
POLICY = replace(AUDIT, unsafe_simulated=True)
REQUEST, RESPONSE = b'{"model":"m"}', b"data: [DONE]\n\n"


@cache
def _near() -> SimulatedNear:
    return SimulatedNear(b"foreign", NOW, gpus=1, mode=GpuMode.SPT)


def _verify_near(document: Any, **beside: bytes) -> AttestationResult:
    capture = Capture(
        documents={"report": encode_report(document), **beside},
        nonce=NONCE,
        tls_spki_sha256=_near().nodes[0].spki_sha256,
    )
    return verify(
        capture, _near().endorsements(NOW), POLICY, now=NOW, roots=_near().roots(), nonce=NONCE
    )


def _status(result: AttestationResult, name: ClaimName) -> Status:
    return result.claim(name.value).status


def _refused(document: Any, name: ClaimName, **beside: bytes) -> Rejected:
    with pytest.raises(Rejected) as caught:
        _verify_near(document, **beside)
    result = caught.value.result
    assert result is not None
    assert _status(result, name) is Status.FAIL
    return caught.value


_PROVEN = (
    ClaimName.HARDWARE,
    ClaimName.FRESHNESS,
    ClaimName.KEYS,
    ClaimName.TLS,
    ClaimName.EVENT_LOG,
    ClaimName.WORKLOAD,
    ClaimName.GPU,
    ClaimName.GPU_FIRMWARE,
    ClaimName.GPU_FRESHNESS,
)


def test_near_what_is_proven_and_what_is_not() -> None:
    answer = json.dumps(_near().signature(REQUEST, RESPONSE)).encode()
    result = _verify_near(
        _near().direct_report(NONCE), signature=answer, request=REQUEST, response=RESPONSE
    )
    assert result.simulated
    proven = {claim.name for claim in result.claims if claim.status is Status.PASS}
    assert proven >= {name.value for name in (*_PROVEN, ClaimName.RESPONSE_SIGNATURE)}
    for name in (
        ClaimName.KEY_LIFETIME,
        ClaimName.MODEL_WEIGHTS,
        ClaimName.WORKLOAD_COMPLETE,
        ClaimName.GPU_BINDING,
        ClaimName.GPU_COLOCATION,
        ClaimName.PHYSICAL_ATTACK,
    ):
        assert _status(result, name) is Status.NOT_PROVEN


def test_near_eight_gpus_without_switches_are_no_whole() -> None:
    service = SimulatedNear(b"eight", NOW)
    capture = Capture(
        documents={"report": encode_report(service.direct_report(NONCE))},
        nonce=NONCE,
        tls_spki_sha256=service.nodes[0].spki_sha256,
    )
    result = verify(
        capture, service.endorsements(NOW), POLICY, now=NOW, roots=service.roots(), nonce=NONCE
    )
    assert _status(result, ClaimName.GPU_FIRMWARE) is Status.PASS
    assert _status(result, ClaimName.GPU_TOPOLOGY) is not Status.PASS


@pytest.mark.parametrize("tls", [True, False])
def test_near_gateway(tls: bool) -> None:
    document = _near().gateway_report(NONCE, tls=tls)
    capture = Capture(
        documents={"report": encode_report(document)},
        nonce=NONCE,
        tls_spki_sha256=_near().gateway.spki_sha256,
    )
    result = verify(
        capture, _near().endorsements(NOW), POLICY, now=NOW, roots=_near().roots(), nonce=NONCE
    )
    gateway, model = result.parts
    assert _status(gateway, ClaimName.TLS) is (Status.PASS if tls else Status.NOT_PROVEN)
    assert _status(model, ClaimName.GPU) is Status.PASS
    assert _status(result, ClaimName.KEYS) is Status.PASS


def _log_edited(document: Any) -> None:
    document["event_log"] = [dict(item) for item in document["event_log"]]
    document["event_log"][-4]["event_payload"] = "00" * 32


def _compose_edited(document: Any) -> None:
    document["info"]["tcb_info"]["app_compose"] += " "


def _key_swapped(document: Any) -> None:
    document["signing_public_key"] = "11" * 32


def _address_swapped(document: Any) -> None:
    document |= {"signing_public_key": "11" * 32, "signing_address": "11" * 32}


def _fingerprint_removed(document: Any) -> None:
    del document["tls_cert_fingerprint"]


def _other_devices(document: Any) -> None:
    other = SimulatedNear(b"elsewhere", NOW, gpus=1, mode=GpuMode.SPT)
    payload = other.direct_report(NONCE)["nvidia_payload"]
    document["nvidia_payload"] = payload


def _old_devices(document: Any) -> None:
    payload = json.loads(_near().direct_report(bytes(32))["nvidia_payload"])  # type: ignore[arg-type]
    payload["nonce"] = NONCE.hex()
    for entry in payload["evidence_list"]:
        entry["nonce"] = NONCE.hex()
    document["nvidia_payload"] = payload


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (_log_edited, ClaimName.EVENT_LOG),
        (_compose_edited, ClaimName.WORKLOAD),
        (_key_swapped, ClaimName.KEYS),
        (_address_swapped, ClaimName.KEYS),
        (_fingerprint_removed, ClaimName.KEYS),
        (_other_devices, ClaimName.GPU),
        (_old_devices, ClaimName.GPU_FRESHNESS),
    ],
)
def test_near_faults_fail_the_claim_they_are_about(edit: Any, name: ClaimName) -> None:
    document = _near().direct_report(NONCE)
    document["all_attestations"] = []
    edit(document)
    _refused(document, name)


def test_near_another_nonce() -> None:
    error = _refused(_near().direct_report(bytes(32)), ClaimName.FRESHNESS)
    assert isinstance(error, EvidenceRejected)


def test_near_a_signature_over_other_bytes() -> None:
    answer = json.dumps(_near().signature(REQUEST, RESPONSE)).encode()
    _refused(
        _near().direct_report(NONCE),
        ClaimName.RESPONSE_SIGNATURE,
        signature=answer,
        request=REQUEST,
        response=RESPONSE + b"\n",
    )


_ACI = SimulatedAci(b"foreign", NOW)


def _verify_aci(document: Any, **beside: bytes) -> AttestationResult:
    capture = Capture(
        documents={"report": json.dumps(document).encode(), **beside},
        nonce=NONCE,
        tls_spki_sha256=_ACI.spki_sha256,
    )
    return verify(
        capture,
        Endorsements(tdx=(_ACI.platform.collateral(),)),
        POLICY,
        now=NOW,
        roots=make_simulated_roots(_ACI.platform.anchor(), simulated_nvidia_roots(b"foreign")),
        nonce=NONCE,
    )


def test_aci_what_is_proven_and_what_is_not() -> None:
    receipt = json.dumps(_ACI.receipt(REQUEST, RESPONSE)).encode()
    result = _verify_aci(_ACI.report(NONCE), receipt=receipt, request=REQUEST, response=RESPONSE)
    proven = {claim.name for claim in result.claims if claim.status is Status.PASS}
    assert proven >= {name.value for name in (*_PROVEN[:6], ClaimName.RESPONSE_SIGNATURE)}
    for name in (ClaimName.GPU, ClaimName.MODEL_WEIGHTS, ClaimName.KEY_LIFETIME):
        assert _status(result, name) is Status.NOT_PROVEN


def test_aci_a_swapped_key_is_refused() -> None:
    document: Any = _ACI.report(NONCE)
    document["attestation"]["workload_keyset"]["tls_public_keys"][0]["spki_sha256"] = "22" * 32
    with pytest.raises(EvidenceRejected) as caught:
        _verify_aci(document)
    result = caught.value.result
    assert result is not None
    assert _status(result, ClaimName.KEYS) is Status.FAIL
