"""The reader of NEAR AI's reports: what it takes, what it recomputes, what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from near_service import NONCE, capture, service

from confide.appraisal.claim_names import ClaimName
from confide.crypto.ethereum import address_of
from confide.errors import FormatError, Reason, Unsupported
from confide.formats.near import FORMAT as NEAR
from confide.simulator.near import encode_report
from confide.wire.ohttp import Kem, KeyConfig, encode_key_config
from confide.wire.service import Capture
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from confide.wire.service import Attester, Evidence, Remark


def _direct(**options: Any) -> dict[str, Any]:
    return service().direct_report(NONCE, **options)


def _gateway(**options: Any) -> dict[str, Any]:
    return service().gateway_report(NONCE, **options)


def _read(document: Any, **more: bytes) -> Evidence:
    return NEAR.read(capture(document, beside=more))


def _failed(attester: Attester) -> set[str]:
    return {remark.claim for remark in attester.remarks if remark.failed}


def _remark(attester: Attester, claim: str) -> Remark:
    return next(remark for remark in attester.remarks if remark.claim == claim)


def _report_data(attester: Attester) -> bytes:
    assert attester.tdx is not None
    return parse_quote(attester.tdx.quote).body.report_data


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
@pytest.mark.parametrize("shape", ["direct_report", "gateway_report"])
def test_expected_report_data_is_what_the_hardware_signed(
    shape: str, algorithm: str, tls: bool
) -> None:
    document = getattr(service(), shape)(NONCE, algorithm=algorithm, tls=tls)
    evidence = _read(document)
    assert evidence.format == "near"
    assert evidence.nonce == NONCE
    for attester in evidence.attesters:
        assert attester.binding.expected == _report_data(attester)
        assert attester.binding.nonce == NONCE
        assert not _failed(attester)


def test_direct_shape_drops_exact_duplicates_alone() -> None:
    document = _direct()
    assert [a.name for a in _read(document).attesters] == ["model[0]", "model[1]"]
    # Any difference makes another attester, also one in a member that is not read.
    document["all_attestations"][0]["unknown"] = 1
    assert len(_read(document).attesters) == 3


def test_gateway_shape_starts_with_the_gateway() -> None:
    evidence = _read(_gateway())
    gateway, *models = evidence.attesters
    assert [a.name for a in evidence.attesters] == ["gateway", "model[0]", "model[1]"]
    assert gateway.devices is None
    assert [a.role for a in evidence.attesters] == ["gateway", "workload", "workload"]
    assert gateway.binding.scheme == "near/tls"
    assert {a.binding.scheme for a in models} == {"near/plain"}
    assert all(a.devices is not None and len(a.devices.devices) == 2 for a in models)


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_keys_and_what_the_report_data_covers(algorithm: str) -> None:
    attester = _read(_direct(algorithm=algorithm)).attesters[0]
    keys = {key.name: key for key in attester.keys}
    node = service().nodes[0]
    assert keys["tls"].value == node.spki_sha256
    assert keys["ohttp"].value == service().key_config
    assert keys["encryption"].value == node.public_key(algorithm)  # type: ignore[arg-type]
    covered = {"signing", "encryption", "tls"}
    if algorithm == "ed25519":
        assert keys["signing"].value == keys["encryption"].value
        assert attester.binding.covers == covered | {"ohttp"}
    else:
        assert keys["signing"].value == address_of(keys["encryption"].value)
        # Only the attested Ed25519 key could vouch for the OHTTP key: unproven, not contradicted.
        assert attester.binding.covers == covered
        assert not _remark(attester, ClaimName.KEYS).failed


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_a_swapped_public_key_contradicts_the_keys(algorithm: str) -> None:
    document = _direct(algorithm=algorithm)
    other = service().nodes[1].public_key(algorithm)  # type: ignore[arg-type]
    document["signing_public_key"] = other.hex()
    attester = _read(document).attesters[0]
    assert "encryption" not in attester.binding.covers
    assert _failed(attester) == {ClaimName.KEYS}


def test_optional_members_may_be_absent_or_null() -> None:
    document = _gateway()
    del document["tls_certificate"]
    for model in document["model_attestations"]:
        model |= {"signing_public_key": None, "nvidia_payload": None, "model_name": None}
        del model["info"]["tcb_info"], model["info"]["vm_config"]
    _, model, _ = _read(document).attesters
    assert (model.devices, model.launch, model.vm_config) == (None, None, None)
    assert [key.name for key in model.keys] == ["signing"]


def test_without_the_fingerprint_the_quote_does_not_fit() -> None:
    document = _direct()
    del document["tls_cert_fingerprint"]
    attester = _read(document).attesters[0]
    assert attester.binding.scheme == "near/plain"
    assert attester.binding.expected != _report_data(attester)
    assert not _remark(attester, ClaimName.TLS).failed


@pytest.mark.parametrize("shape", ["direct_report", "gateway_report"])
def test_only_the_first_machine_has_a_tls_key_for_the_caller(shape: str) -> None:
    document = getattr(service(), shape)(NONCE)
    if shape == "gateway_report":
        node = service().nodes[0]
        document["model_attestations"] = [
            service().attestation(node, NONCE, algorithm="ed25519", tls=True)
        ]
    first, *others = _read(document).attesters
    assert [k.name for k in first.keys if k.use == "tls"] == ["tls"]
    assert others
    for attester in others:
        assert not [k for k in attester.keys if k.use == "tls"]
        # It counts in the report data all the same.
        assert attester.binding.scheme == "near/tls"
        assert attester.binding.expected == _report_data(attester)


def test_another_fingerprint_does_not_fit_the_quote() -> None:
    document = _direct()
    document["tls_cert_fingerprint"] = "00" * 32
    attester = _read(document).attesters[0]
    assert attester.binding.expected != _report_data(attester)


def test_the_callers_nonce_stands_beside_the_one_in_the_report() -> None:
    document = service().direct_report(bytes(32))
    evidence = _read(document)
    assert evidence.nonce == NONCE
    assert evidence.attesters[0].binding.nonce == bytes(32)


def test_without_a_nonce_the_report_may_be_cached() -> None:
    evidence = NEAR.read(Capture(documents={"report": encode_report(_direct())}))
    assert evidence.nonce is None
    assert "cache" in _remark(evidence.attesters[0], ClaimName.FRESHNESS).text


def test_a_certificate_with_another_key_contradicts_tls() -> None:
    document = _gateway()
    assert not _failed(_read(document).attesters[0])
    document["gateway_attestation"]["tls_cert_fingerprint"] = "11" * 32
    assert _failed(_read(document).attesters[0]) == {ClaimName.TLS}


class TestOhttp:
    """The OHTTP key: signed by the attested key, the same everywhere it is stated."""

    OTHER = encode_key_config(
        KeyConfig(key_id=1, kem=Kem.X25519, public_key=bytes(32), algorithms=((1, 1), (1, 3)))
    )

    def _fails(self, document: Any, **more: bytes) -> None:
        attester = _read(document, **more).attesters[0]
        assert "ohttp" not in attester.binding.covers
        assert ClaimName.KEYS in _failed(attester)

    def test_a_signature_over_another_configuration(self) -> None:
        document = _direct()
        document["ohttp_key_config"] = self.OTHER.hex()
        document["ohttp_attestation"]["key_config"] = self.OTHER.hex()
        self._fails(document)

    def test_two_configurations(self) -> None:
        document = _direct()
        document["ohttp_key_config"] = self.OTHER.hex()
        self._fails(document)

    def test_a_signer_that_is_not_attested(self) -> None:
        document, stranger = _direct(), service().gateway.ed25519
        document["ohttp_attestation"] |= {
            "signing_key": stranger.public_key.hex(),
            "signature": stranger.sign(service().key_config).hex(),
        }
        self._fails(document)

    def test_the_document_that_clients_fetch(self) -> None:
        config = service().key_config
        for served in (config, len(config).to_bytes(2, "big") + config):
            attester = _read(_direct(), ohttp=served).attesters[0]
            assert "ohttp" in attester.binding.covers
        self._fails(_direct(), ohttp=self.OTHER)

    def test_nobody_signed_it(self) -> None:
        document = _direct()
        del document["ohttp_attestation"]
        attester = _read(document).attesters[0]
        assert "ohttp" not in attester.binding.covers
        assert not _remark(attester, ClaimName.KEYS).failed

    @pytest.mark.parametrize("raw", [b"", b"\0", b"\0\x2d" + bytes(45), bytes(45)])
    def test_what_is_no_configuration(self, raw: bytes) -> None:
        with pytest.raises(FormatError) as caught:
            _read(_direct(), ohttp=raw)
        assert caught.value.reason is Reason.SERVICE_FORMAT


def test_devices_must_answer_the_nonce_of_the_report() -> None:
    attester = _read(_direct()).attesters[0]
    assert attester.devices is not None
    assert attester.devices.nonce == NONCE
    # The GPU's own report is what counts; the text beside it may only contradict.
    for edit in (_payload_nonce, _entry_nonce):
        document = _direct()
        document["nvidia_payload"] = edit(json.loads(document["nvidia_payload"]))
        assert _failed(_read(document).attesters[0]) == {ClaimName.GPU_FRESHNESS}


def _payload_nonce(payload: Any) -> str:
    payload["nonce"] = "00" * 32
    return json.dumps(payload)


def _entry_nonce(payload: Any) -> str:
    payload["evidence_list"][1]["nonce"] = "00" * 32
    return json.dumps(payload)


def test_old_samples_have_hex_inside_the_base64() -> None:
    document = _direct()
    payload = json.loads(document["nvidia_payload"])
    genuine = base64.b64decode(payload["evidence_list"][0]["evidence"])
    for entry in payload["evidence_list"]:
        text = base64.b64decode(entry["evidence"]).hex().upper().encode()
        entry["evidence"] = base64.b64encode(text).decode()
        del entry["nonce"]
    document["nvidia_payload"] = json.dumps(payload)
    devices = _read(document).attesters[0].devices
    assert devices is not None
    assert devices.devices[0].report == genuine


def test_texts_and_values_are_read_alike() -> None:
    document = _direct()
    before = _read(document).attesters[0]
    document["event_log"] = json.dumps(document["event_log"])
    document["info"]["tcb_info"] = json.dumps(document["info"]["tcb_info"])
    document["info"]["vm_config"] = json.loads(document["info"]["vm_config"])
    document["nvidia_payload"] = json.loads(document["nvidia_payload"])
    after = _read(document).attesters[0]
    assert after.runtime_log == before.runtime_log
    assert after.vm_config == before.vm_config
    assert after.devices == before.devices
    assert after.launch == before.launch


def test_the_launch_document_keeps_its_bytes() -> None:
    attester = _read(_direct()).attesters[0]
    assert attester.launch is not None
    assert attester.launch.kind == "dstack-compose"
    assert attester.launch.raw == service().nodes[0].compose
    assert attester.tdx is not None
    measured = parse_quote(attester.tdx.quote).body.mr_config_id
    assert measured == b"\x01" + hashlib.sha256(attester.launch.raw).digest() + bytes(15)


def test_what_info_says_is_not_read() -> None:
    document = _direct()
    before = _read(document)
    document["info"] |= {"compose_hash": "00" * 32, "app_id": 7, "os_image_hash": None}
    document["info"]["tcb_info"] |= {"mrtd": "00", "rtmr3": [], "compose_hash": "ff"}
    document["all_attestations"][0] = {
        k: v for k, v in document.items() if k in document["all_attestations"][1]
    }
    assert _read(document) == before


@pytest.mark.parametrize(
    ("spelling", "text"),
    [("canonical", "no hardware"), ("escaped", "older"), ("neither", "has not the digest")],
)
def test_the_action_log_never_counts_as_proof(spelling: str, text: str) -> None:
    document = _direct()
    manager = document["compose_manager_attestation"]
    if spelling == "escaped":
        raw = json.dumps(manager["actions"], sort_keys=True, separators=(",", ":"))
        manager["actions_hash"] = hashlib.sha256(raw.encode()).hexdigest()
    if spelling == "neither":
        manager["actions_hash"] = "00" * 32
    remark = _remark(_read(document).attesters[0], ClaimName.WORKLOAD_COMPLETE)
    assert text in remark.text
    assert not remark.failed


def test_remarks_that_every_report_gets() -> None:
    gateway, model, _ = _read(_gateway()).attesters
    assert {r.claim for r in gateway.remarks} == {ClaimName.KEY_LIFETIME}
    assert {r.claim for r in model.remarks} == {
        ClaimName.KEY_LIFETIME,
        ClaimName.GPU_BINDING,
        ClaimName.GPU_TOPOLOGY,
        ClaimName.MODEL_WEIGHTS,
    }


@pytest.mark.parametrize("models", [[], None])
def test_a_gateway_without_machines_says_so(models: Any) -> None:
    document = _gateway()
    document["model_attestations"] = models
    (gateway,) = _read(document).attesters
    assert "no model machine" in _remark(gateway, ClaimName.WORKLOAD_COMPLETE).text


@pytest.mark.parametrize(
    ("url", "contradicted"),
    [
        ("https://near.invalid/v1/attestation/report?model=simulated/model-8b", False),
        ("https://near.invalid/v1/attestation/report?model=simulated%2Fmodel-8b", False),
        ("https://near.invalid/v1/attestation/report?model=other", True),
        ("https://near.invalid/", False),
        # Two models, or no URL at all: nothing to compare with.
        ("https://near.invalid/?model=a&model=b", False),
        ("https://[near.invalid/?model=a", False),
    ],
)
def test_evidence_of_another_model(url: str, contradicted: bool) -> None:
    attester = NEAR.read(capture(_direct(), url=url)).attesters[0]
    assert (ClaimName.MODEL_WEIGHTS in _failed(attester)) is contradicted


def _set(name: str, value: Any) -> Any:
    def edit(document: Any) -> None:
        *path, last = name.split(".")
        for step in path:
            document = document[step]
        document[last] = value

    return edit


def _remove(name: str) -> Any:
    return lambda document: document.pop(name)


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        (_set("intel_quote", "0x00"), "intel_quote"),
        (_set("intel_quote", "abc"), "intel_quote"),
        (_set("intel_quote", "ab cd"), "intel_quote"),
        (_set("intel_quote", "ab\n"), "intel_quote"),
        (_set("intel_quote", None), "intel_quote"),
        (_remove("intel_quote"), "intel_quote"),
        (_set("signing_algo", "rsa"), "signing_algo"),
        (_set("signing_address", "0x" + "00" * 20), "signing_address"),
        (_set("signing_address", "00" * 31), "signing_address"),
        (_set("signing_public_key", "0x" + "00" * 32), "signing_public_key"),
        (_set("request_nonce", "00" * 31), "request_nonce"),
        (_set("request_nonce", 7), "request_nonce"),
        (_remove("request_nonce"), "request_nonce"),
        (_set("tls_cert_fingerprint", "0" * 63), "tls_cert_fingerprint"),
        (_set("event_log", "not JSON"), "event_log"),
        (_set("event_log", {}), "event_log"),
        (_set("event_log", 3), "event_log"),
        (_remove("event_log"), "event_log"),
        (_set("info", []), "info"),
        (_set("info.tcb_info", '{"app_compose":1,"app_compose":2}'), "tcb_info"),
        (_set("info.tcb_info", {"app_compose": 1}), "app_compose"),
        (_set("info.tcb_info", {"app_compose": ""}), "app_compose"),
        (_set("info.tcb_info", {"app_compose": "x" * 300_000}), "app_compose"),
        (_set("info.vm_config", "[1"), "vm_config"),
        (_set("nvidia_payload", "{}"), "arch"),
        (_set("nvidia_payload", {"arch": "HOPPER", "nonce": "00" * 32}), "evidence_list"),
        (
            _set("nvidia_payload", {"arch": "HOPPER", "nonce": "00" * 32, "evidence_list": []}),
            "evidence_list",
        ),
        (
            _set(
                "nvidia_payload", {"arch": "HOPPER", "nonce": "00" * 32, "evidence_list": [{}] * 17}
            ),
            "evidence_list",
        ),
        (_set("all_attestations", [{}] * 65), "all_attestations"),
        (_set("all_attestations", {}), "all_attestations"),
        (_set("all_attestations", [7]), "all_attestations[0]"),
        (_set("ohttp_key_config", "zz"), "ohttp_key_config"),
        (_set("ohttp_attestation.signature", "00"), "signature"),
        (_set("ohttp_attestation.signing_algo", "ecdsa"), "signing_algo"),
        (_set("compose_manager_attestation", {}), "actions"),
    ],
)
def test_malformed_members_are_refused_where_they_stand(edit: Any, place: str) -> None:
    document = _direct()
    edit(document)
    with pytest.raises(FormatError) as caught:
        _read(document)
    assert caught.value.reason is Reason.SERVICE_FORMAT
    assert place in caught.value.what


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("evidence", "EeA=\n", "evidence"),
        ("evidence", "EeB=", "evidence"),
        ("evidence", "", "evidence"),
        ("evidence", base64.b64encode(b"abc").decode(), "evidence"),
        ("evidence", base64.b64encode(b"\x11" * 0x2001).decode(), "evidence"),
        ("certificate", "", "certificate"),
        ("certificate", "====", "certificate"),
        ("arch", "BLACKWELL", "arch"),
        ("nonce", "0x" + "00" * 32, "nonce"),
    ],
)
def test_malformed_device_entries(name: str, value: str, place: str) -> None:
    document = _direct()
    payload = json.loads(document["nvidia_payload"])
    payload["evidence_list"][1][name] = value
    document["nvidia_payload"] = payload
    with pytest.raises(FormatError, match=place) as caught:
        _read(document)
    assert caught.value.reason is Reason.SERVICE_FORMAT


def test_another_gpu_family_is_not_judged() -> None:
    document = _direct()
    payload = json.loads(document["nvidia_payload"])
    document["nvidia_payload"] = payload | {"arch": "RUBIN"}
    with pytest.raises(Unsupported):
        _read(document)


@pytest.mark.parametrize("pem", ["", "x", "-----BEGIN CERTIFICATE-----\nAA==\n", "é"])
def test_malformed_certificates(pem: str) -> None:
    document = _gateway()
    document["tls_certificate"] = pem
    with pytest.raises(FormatError, match="tls_certificate") as caught:
        _read(document)
    assert caught.value.reason is Reason.SERVICE_FORMAT


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"gateway_attestation":1,"gateway_attestation":2}',
        b'{"intel_quote":' + b"[" * 99 + b"]" * 99 + b',"signing_address":0}',
        b'{"gateway_attestation":NaN}',
        b"\xff{}",
        b" " * ((4 << 20) + 1),
    ],
)
def test_what_is_no_report_at_all(raw: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        _read(raw)
    assert caught.value.reason is Reason.SERVICE_FORMAT


def test_more_attesters_than_are_read() -> None:
    document = _gateway()
    document["model_attestations"] = document["model_attestations"][:1] * 64
    with pytest.raises(FormatError, match="more than 64"):
        _read(document)


def test_recognition_looks_at_names_alone() -> None:
    for document in (_direct(), _gateway()):
        assert NEAR.recognise(encode_report(document))
    assert NEAR.recognise(b'{"intel_quote":1,"signing_address":2}')
    # Broken, and said to be broken by the reader instead of being called unknown.
    assert NEAR.recognise(b'{"gateway_attestation":{},"gateway_attestation":{}}')
    for raw in (
        b"",
        b"[]",
        b"{}",
        b'{"intel_quote":""}',
        b"\x04\x00",
        b'{"a":"gateway_attestation"}',
    ):
        assert not NEAR.recognise(raw)
    assert not NEAR.recognise(b'{"gateway_attestation":1}' + b" " * (4 << 20))


def test_the_plan_asks_for_the_strongest_form() -> None:
    assert NEAR.plan is not None
    report, ohttp = NEAR.plan(NONCE)
    assert report.path == (
        f"/v1/attestation/report?nonce={NONCE.hex()}&include_tls_fingerprint=true"
    )
    assert report.keeps_query
    assert dict(report.defaults) == {"signing_algo": "ed25519"}
    assert ohttp.optional
    assert ohttp.document == "ohttp"
