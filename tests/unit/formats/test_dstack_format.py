"""The reader of dstack: which documents it takes, what it makes of them, what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from dstack_wire import msgpack, ratls_certificate, v0_envelope, v1_document

from confide.errors import FormatError, Reason, Unsupported
from confide.formats.dstack import FORMAT, ratls_report_data, read_app_compose, read_event_log
from confide.formats.dstack_parts import read_gpu_bundles, read_vm_config
from confide.wire.dstack import RATLS_ATTESTATION, RATLS_EVENT_LOG, RATLS_QUOTE
from confide.wire.service import Attester, Capture

if TYPE_CHECKING:
    from pathlib import Path

QUOTE = b"\x04\x00quote"
NONCE = b"\x09" * 32


def answer(**changed: Any) -> bytes:
    value = {
        "quote": QUOTE.hex(),
        "event_log": "[]",
        "report_data": NONCE.hex(),
        "vm_config": '{"memory_size":1}',
    } | changed
    return json.dumps({name: item for name, item in value.items() if item is not ...}).encode()


def read(quote: bytes, **others: bytes) -> Attester:
    evidence = FORMAT.read(Capture(documents={"quote": quote, **others}, nonce=NONCE))
    assert evidence.format == "dstack"
    assert evidence.nonce == NONCE
    (attester,) = evidence.attesters
    return attester


def test_an_answer_of_getquote() -> None:
    found = read(answer())
    assert found.tdx is not None
    assert found.tdx.quote == QUOTE
    assert found.runtime_log == []
    assert found.vm_config == {"memory_size": 1}
    assert found.binding.expected == NONCE + bytes(32)
    assert found.binding.nonce == NONCE
    assert found.keys == ()
    assert found.launch is None


@pytest.mark.parametrize("data", [b"\x01" * 33, b"\x01" * 64, b"", bytes(64)])
def test_report_data_that_is_no_nonce_is_not_taken_for_one(data: bytes) -> None:
    assert read(answer(report_data=data.hex())).binding.nonce is None


def test_without_report_data_nothing_is_bound() -> None:
    for missing in (answer(report_data=...), answer(report_data="")):
        assert read(missing).binding.expected is None


@pytest.mark.parametrize(
    ("prefix", "key", "algorithm"),
    [
        (b"dip1::ed25519-pk:", b"\x03" * 32, "ed25519"),
        (b"dip1::secp256k1c-pk:", b"\x03" * 33, "secp256k1"),
    ],
)
def test_an_answer_over_the_key_of_the_app_presents_it(
    prefix: bytes, key: bytes, algorithm: str
) -> None:
    data = prefix + base64.urlsafe_b64encode(key).rstrip(b"=")
    found = read(answer(report_data=data.hex()))
    (presented,) = found.keys
    assert (presented.value, presented.algorithm) == (key, algorithm)
    assert found.binding.covers == {"app-key"}
    assert found.binding.nonce is None
    # One character less is no key, and nothing is presented.
    assert read(answer(report_data=data[:-3].hex())).keys == ()


def test_an_envelope_alone_in_hex_and_in_a_certificate_is_the_same_machine() -> None:
    for raw in (v0_envelope(), msgpack(v1_document())):
        plain = read(raw)
        sealed = read(json.dumps({"attestation": raw.hex()}).encode())
        der, _ = ratls_certificate({RATLS_ATTESTATION: raw})
        issued = read(der)
        assert plain == sealed
        assert (issued.tdx, issued.runtime_log) == (plain.tdx, plain.runtime_log)


def test_an_snp_envelope_becomes_a_report_with_its_chain() -> None:
    document = v1_document()
    config = '{"compose_hash":"00"}'
    document["platform"] = {
        "kind": "sev-snp",
        "data": {"report": [1], "cert_chain": [b"\x30leaf", b"\x30ask"], "mr_config": config},
    }
    found = read(msgpack(document))
    assert found.tdx is None
    assert found.snp is not None
    assert found.snp.leaf_der == b"\x30leaf"
    assert found.snp.chain_pem is not None
    assert found.snp.chain_pem.count(b"BEGIN CERTIFICATE") == 1
    assert found.vm_config == {"memory_size": 1, "mr_config": config}


def _pem(der: bytes) -> bytes:
    text = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


def test_a_certificate_is_bound_by_its_key() -> None:
    der, spki = ratls_certificate({RATLS_QUOTE: QUOTE, RATLS_EVENT_LOG: b"[]"})
    for document in (der, _pem(der), _pem(der) + _pem(der)):
        assert FORMAT.recognise(document)
        found = read(document)
        (key,) = found.keys
        assert key.value == hashlib.sha256(spki).digest()
        assert found.binding.expected == ratls_report_data(spki)
        assert found.binding.covers == {"ra-tls"}
        assert found.runtime_log == []
    assert ratls_report_data(b"x") == hashlib.sha512(b"ratls-cert:x").digest()


def test_a_quote_next_to_an_attestation_is_a_mixture() -> None:
    mixed = answer(attestation=v0_envelope().hex())
    with pytest.raises(FormatError) as refused:
        read(mixed)
    assert refused.value.reason is Reason.SERVICE_FORMAT
    der, _ = ratls_certificate({RATLS_QUOTE: QUOTE, RATLS_ATTESTATION: v0_envelope()})
    with pytest.raises(FormatError):
        read(der)
    # An empty member is the writer's way to say that there is none.
    assert read(answer(attestation="")).tdx is not None


def test_the_compose_document_keeps_its_bytes() -> None:
    compose = '{\n  "name": "ü", "x": 1.0}\n'
    for info in (
        {"app_compose": compose},
        {"tcb_info": json.dumps({"app_compose": compose})},
        {"tcb_info": {"app_compose": compose}},
    ):
        raw = json.dumps(info).encode()
        found = read(answer(), info=raw)
        assert found.launch is not None
        assert found.launch.raw == compose.encode()
        assert found.launch.kind == "dstack-compose"
        assert read(answer(), info=raw, app_compose=compose.encode()).launch == found.launch
        with pytest.raises(FormatError):
            read(answer(), info=raw, app_compose=compose.encode() + b"\n")
    assert read_app_compose(json.dumps({"app_compose": compose})) == compose.encode()


@pytest.mark.parametrize("value", [None, "", {}, {"app_compose": ""}, {"tcb_info": ""}])
def test_a_compose_document_that_is_withheld_is_absent(value: Any) -> None:
    assert read_app_compose(value) is None


@pytest.mark.parametrize(
    "value", [[], "[]", "{", {"app_compose": {}}, {"app_compose": "x" * 300_000}, {"tcb_info": 1}]
)
def test_a_compose_document_that_is_malformed_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        read_app_compose(value)


def test_a_log_is_an_array_or_a_string_of_one() -> None:
    assert read_event_log([]) == read_event_log("[]") == []
    malformed: tuple[Any, ...] = (None, {}, "{}", "", "[", 1, "[" * 100)
    for value in malformed:
        with pytest.raises(FormatError) as refused:
            read_event_log(value)
        assert refused.value.reason is Reason.LOG_FORMAT


def test_a_bare_quote_takes_its_log_from_the_information_beside_it() -> None:
    info = json.dumps({"tcb_info": json.dumps({"event_log": [], "app_compose": "{}"})}).encode()
    for quote in (QUOTE, QUOTE.hex().encode() + b"\n"):
        found = read(quote, info=info)
        assert found.runtime_log == []
        assert found.launch is not None
    # A main document with a log of its own keeps it.
    other = json.dumps({"event_log": [1]}).encode()
    assert read(answer(), info=other).runtime_log == []


def test_a_description_is_unwrapped_and_keeps_the_document_of_the_launch_register() -> None:
    inner = json.dumps({"memory_size": 1, "mr_config": "inner"})
    assert read_vm_config(inner) == {"memory_size": 1, "mr_config": "inner"}
    outer = {"vm_config": inner, "mr_config": "outer", "kms_urls": []}
    assert read_vm_config(json.dumps(outer)) == {"memory_size": 1, "mr_config": "outer"}
    assert read_vm_config("") is None
    assert read_vm_config("", mr_config="x") == {"mr_config": "x"}
    malformed: tuple[Any, ...] = ("[]", "{", 1, {"vm_config": []})
    for bad in malformed:
        with pytest.raises(FormatError):
            read_vm_config(bad)


def bundle(evidence: Any, **changed: Any) -> bytes:
    one = {
        "vendor": "nvidia",
        "format": "nvidia-nvattest-collect-evidence-json-v1",
        "evidence": evidence,
    } | changed
    return json.dumps({"bundles": [one]}).encode()


ENTRY = {"arch": "HOPPER", "nonce": "11" * 32, "evidence": "AAAA", "certificate": "AAAA"}


@pytest.mark.parametrize(
    "evidence",
    [
        [ENTRY],
        {"evidences": [ENTRY]},
        json.dumps([ENTRY]),
        json.dumps({"evidences": [ENTRY]}).encode().hex(),
    ],
)
def test_devices_come_in_bundles(evidence: Any) -> None:
    found = read_gpu_bundles(bundle(evidence), nonce=None)
    assert len(found.devices) == 1
    assert found.nonce == b"\x11" * 32
    assert read(answer(), gpu=bundle(evidence)).devices is not None
    assert read_gpu_bundles(bundle(evidence), nonce=NONCE).nonce == NONCE


@pytest.mark.parametrize(
    "document",
    [
        b"{}",
        b'{"bundles":[]}',
        bundle([]),
        bundle([ENTRY, {**ENTRY, "nonce": "22" * 32}]),
        bundle([ENTRY] * 17),
        bundle([ENTRY], format="nvidia-nvattest-boottime-json-v1"),
        bundle([ENTRY], vendor="other"),
        bundle([ENTRY], more=1),
        bundle("zz"),
        bundle({}),
    ],
)
def test_bundles_that_are_not_evidence_are_refused(document: bytes) -> None:
    with pytest.raises(FormatError):
        read_gpu_bundles(document, nonce=None)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"\x00",
        b"\x80",
        b"0400",
        b'{"quote":1,"event_log":[]}',
        answer(quote=...),
        answer(quote="AB"),
        answer(quote="ab" * 70_000),
        answer(report_data="ab" * 65),
        answer(event_log="{}"),
        answer(vm_config="[]"),
        answer() + b"x",
        json.dumps({"attestation": "zz"}).encode(),
        json.dumps({"attestation": {}, "x": 1}).encode(),
        _pem(b"\x30\x00"),
        ratls_certificate({})[0],
        b'{"quote":"' + b"0" * 40,
    ],
)
def test_a_document_that_is_none_is_refused_with_a_reason(document: bytes) -> None:
    if document == b"0400":
        # The shortest thing that starts like a quote; the appraisal refuses it.
        assert read(document).tdx is not None
        return
    with pytest.raises((FormatError, Unsupported)):
        read(document)


def test_recognising_looks_at_bytes_alone(vectors: Path) -> None:
    folder = vectors / "dstack"
    for name in ("quote-report.json", "tdx-lite-getquote.json", "attestation-scale-v0.bin"):
        assert FORMAT.recognise((folder / name).read_bytes())
    for name in ("gpu_attestation_h100.json", "near-mpc-collateral.json", "ccel.bin"):
        assert not FORMAT.recognise((folder / name).read_bytes())
    for document in (b"", b"{}", b"\x00\x00", b"\x80", b'{"quote":1}', b"\x30\x00", b"{" * 99):
        assert not FORMAT.recognise(document)
    near = answer(intel_quote="00", signing_address="0x00")
    assert not FORMAT.recognise(near)


def test_the_plan_asks_the_outer_listener_for_what_it_may_say() -> None:
    assert FORMAT.plan is not None
    asked = FORMAT.plan(NONCE)
    assert [request.document for request in asked] == ["quote", "info"]
    assert all(request.path.startswith("/prpc/Worker.") for request in asked)
