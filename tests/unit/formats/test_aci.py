"""The reader of ACI reports: what it takes, what it recomputes, what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from confide.appraisal.claim_names import ClaimName
from confide.errors import FormatError, Reason, Unsupported
from confide.formats.aci import FORMAT as ACI
from confide.simulator.aci import SimulatedAci
from confide.wire.json import parse_json
from confide.wire.service import Capture
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from pathlib import Path

    from confide.wire.service import Attester, Evidence

NOW = datetime(2026, 8, 20, 12, tzinfo=UTC)
NONCE = hashlib.sha256(b"the caller's nonce").digest()
SERVICE = SimulatedAci(b"aci-tests", NOW)


def _read(document: Any, *, nonce: bytes | None = NONCE, at: datetime | None = None) -> Evidence:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return ACI.read(Capture(documents={"report": raw}, nonce=nonce, at=at))


def _only(document: Any, *, nonce: bytes | None = NONCE, at: datetime | None = None) -> Attester:
    (attester,) = _read(document, nonce=nonce, at=at).attesters
    return attester


def _failed(attester: Attester) -> set[str]:
    return {remark.claim for remark in attester.remarks if remark.failed}


def _unproven(attester: Attester) -> set[str]:
    return {remark.claim for remark in attester.remarks if not remark.failed}


def _signed(attester: Attester) -> bytes:
    assert attester.tdx is not None
    return parse_quote(attester.tdx.quote).body.report_data


def test_report_data_is_recomputed_from_the_keyset() -> None:
    attester = _only(SERVICE.report(NONCE))
    assert attester.binding.expected == _signed(attester)
    assert attester.binding.nonce == NONCE
    assert not _failed(attester)
    assert _unproven(attester) == {ClaimName.KEY_LIFETIME, ClaimName.MODEL_WEIGHTS}


def test_the_published_statement(vectors: Path) -> None:
    case: Any = parse_json(
        (vectors / "channel" / "aci.json").read_bytes(), what="x", reason=Reason.SERVICE_FORMAT
    )
    document: Any = SERVICE.report(NONCE)
    document["attestation"]["workload_keyset"] = case["keyset"]["object"]
    document["workload_keyset_digest"] = case["keyset"]["digest"]
    challenged = case["statement"][0]
    attester = _only(document, nonce=bytes.fromhex(challenged["nonce"]))
    assert attester.binding.expected == bytes.fromhex(challenged["slot"])
    assert [key.name for key in attester.keys] == ["receipt-0", "e2ee-0", "tls-0"]


def test_all_keys_of_the_keyset_are_covered() -> None:
    attester = _only(SERVICE.report(NONCE))
    assert [(k.name, k.use, k.algorithm, k.value) for k in attester.keys] == [
        ("receipt-0", "signing", "ed25519", SERVICE.signer.public_key),
        ("e2ee-0", "encryption", "x25519", SERVICE.e2ee_key),
        ("tls-0", "tls", "spki-sha256", SERVICE.spki_sha256),
    ]
    assert attester.binding.covers == {"receipt-0", "e2ee-0", "tls-0", "statement"}


@pytest.mark.parametrize("member", ["receipt_signing_keys", "e2ee_public_keys"])
def test_a_swapped_key_does_not_fit_the_quote(member: str) -> None:
    document: Any = SERVICE.report(NONCE)
    document["attestation"]["workload_keyset"][member][0]["public_key"] = "11" * 32
    attester = _only(document)
    assert attester.binding.expected != _signed(attester)
    assert _failed(attester) == {ClaimName.KEYS}


def test_an_unknown_member_of_the_keyset_counts_too() -> None:
    document: Any = SERVICE.report(NONCE)
    document["attestation"]["workload_keyset"]["more"] = True
    attester = _only(document)
    assert attester.binding.expected != _signed(attester)


def test_a_report_for_another_nonce_does_not_fit() -> None:
    attester = _only(SERVICE.report(bytes(32)))
    assert attester.binding.expected != _signed(attester)


@pytest.mark.parametrize("nonce", [NONCE, None])
def test_a_report_that_nobody_challenged_is_bound_and_not_fresh(nonce: bytes | None) -> None:
    attester = _only(SERVICE.report(None), nonce=nonce)
    assert attester.binding.expected == _signed(attester)
    assert attester.binding.nonce is None
    assert ClaimName.FRESHNESS in _unproven(attester)


def test_saying_unchallenged_does_not_help_a_challenged_quote() -> None:
    document: Any = SERVICE.report(NONCE)
    document["attestation"]["report_data"] = SERVICE.report(None)["attestation"]["report_data"]  # type: ignore[index,call-overload]
    attester = _only(document)
    assert attester.binding.expected != _signed(attester)


def test_a_nonce_of_another_size_has_no_statement() -> None:
    with pytest.raises(FormatError, match="32 bytes"):
        _read(SERVICE.report(NONCE), nonce=b"short")


def test_the_end_of_the_keyset_is_carried_for_whoever_has_a_clock() -> None:
    assert _only(SERVICE.report(NONCE)).valid_until == NOW + timedelta(days=30)


def test_an_aggregator_is_not_where_the_model_runs() -> None:
    attester = _only(SERVICE.report(NONCE, serving="aggregator"))
    assert ClaimName.WORKLOAD_COMPLETE in _unproven(attester)


def test_what_dstack_gave_is_handed_on() -> None:
    attester = _only(SERVICE.report(NONCE))
    assert attester.launch is not None
    assert attester.launch.raw == SERVICE.compose
    assert attester.runtime_log == SERVICE.guest.log
    assert attester.vm_config == SERVICE.guest.vm_config
    assert attester.devices is None


@pytest.mark.parametrize("form", ["hex", "base64"])
def test_amd_reports(form: str) -> None:
    raw = bytes(range(256)) * 4 + bytes(0x4A0 - 1024)
    document: Any = SERVICE.report(NONCE)
    text = raw.hex() if form == "hex" else base64.b64encode(raw).decode()
    document["attestation"] |= {"tee_type": "sev_snp", "evidence": {"report": text}}
    attester = _only(document)
    assert attester.tdx is None
    assert attester.snp is not None
    assert attester.snp.report == raw


@pytest.mark.parametrize("text", ["", "00", "zz" * 0x4A0, "AAAA", "0x" + "00" * 0x49F])
def test_malformed_amd_reports(text: str) -> None:
    document: Any = SERVICE.report(NONCE)
    document["attestation"] |= {"tee_type": "sev_snp", "evidence": {"report": text}}
    with pytest.raises(FormatError, match="report") as caught:
        _read(document)
    assert caught.value.reason is Reason.SERVICE_FORMAT


def test_optional_members_may_be_absent() -> None:
    document: Any = SERVICE.report(NONCE)
    keyset = document["attestation"]["workload_keyset"]
    for name in ("not_after", "e2ee_public_keys", "tls_public_keys"):
        del keyset[name]
    del document["attestation"]["evidence"]["app_compose"]
    document["attestation"]["evidence"]["vm_config"] = None
    attester = _only(document, at=NOW)
    assert [key.name for key in attester.keys] == ["receipt-0"]
    assert (attester.launch, attester.vm_config) == (None, None)


def test_unknown_algorithms_are_presented_as_such() -> None:
    document: Any = SERVICE.report(NONCE)
    keyset = document["attestation"]["workload_keyset"]
    keyset["receipt_signing_keys"] += [
        {"key_id": "r2", "algo": "ml-dsa-65", "public_key": "00"},
        {"key_id": "r3", "algo": "secp256k1", "public_key": "02" * 33},
    ]
    algorithms = [key.algorithm for key in _only(document).keys if key.use == "signing"]
    assert algorithms == ["ed25519", "unknown", "secp256k1"]


@pytest.mark.parametrize(
    ("path", "value"), [("api_version", "aci/2"), ("attestation.tee_type", "sgx")]
)
def test_other_versions_and_other_tees_are_not_judged(path: str, value: str) -> None:
    document: Any = SERVICE.report(NONCE)
    _set(document, path, value)
    with pytest.raises(Unsupported):
        _read(document)


def _set(document: Any, path: str, value: Any) -> None:
    *steps, last = path.split(".")
    for step in steps:
        document = document[step]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("api_version", None),
        ("workload_keyset_digest", 1),
        ("attestation", []),
        ("attestation.workload_keyset", None),
        ("attestation.workload_keyset.receipt_signing_keys", {}),
        ("attestation.workload_keyset.receipt_signing_keys", [{}] * 65),
        (
            "attestation.workload_keyset.receipt_signing_keys",
            [{"algo": "ed25519", "public_key": "00"}],
        ),
        ("attestation.workload_keyset.e2ee_public_keys", [1]),
        ("attestation.workload_keyset.tls_public_keys", [{"spki_sha256": "0x" + "00" * 32}]),
        ("attestation.workload_keyset.not_after", -1),
        ("attestation.workload_keyset.not_after", "soon"),
        ("attestation.report_data", "00" * 31),
        ("attestation.tee_type", None),
        ("attestation.evidence", None),
        ("attestation.evidence.quote", "0x04"),
        ("attestation.evidence.quote", "0"),
        ("attestation.evidence.event_log", "{}"),
        ("attestation.evidence.event_log", "[] x"),
        ("attestation.evidence.app_compose", {}),
        ("attestation.evidence.app_compose", ""),
        ("attestation.evidence.vm_config", "{"),
        ("service_capabilities", None),
        ("service_capabilities.serving", "both"),
    ],
)
def test_malformed_members_are_refused(path: str, value: Any) -> None:
    document: Any = SERVICE.report(NONCE)
    _set(document, path, value)
    with pytest.raises(FormatError) as caught:
        _read(document)
    assert caught.value.reason is Reason.SERVICE_FORMAT


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"api_version":"a","api_version":"b"}', b"\xff", b"[" * 100]
)
def test_what_is_no_report_at_all(raw: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        _read(raw)
    assert caught.value.reason is Reason.SERVICE_FORMAT


def test_recognition_and_plan() -> None:
    assert ACI.recognise(json.dumps(SERVICE.report(NONCE)).encode())
    assert ACI.recognise(b'{"workload_keyset_digest":1,"attestation":{},"attestation":{}}')
    for raw in (b"", b"{}", b"[]", b'{"attestation":{}}'):
        assert not ACI.recognise(raw)
    assert not ACI.recognise(b" " * ((4 << 20) + 1))
    assert ACI.plan is not None
    (request,) = ACI.plan(NONCE)
    assert request.path == f"/v1/aci/attestation?nonce={NONCE.hex()}"
