"""Tinfoil documents: what they bind is recomputed, what contradicts itself is said aloud."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from reader_cases import (
    HPKE,
    NONCE,
    TLS,
    capture,
    edited,
    enclave,
    failed,
    gpus,
    platform,
    remarks,
    unsigned_report,
)

from confide.appraisal.claim_names import ClaimName
from confide.errors import FormatError, Reason, Unsupported
from confide.formats.tinfoil import FORMAT
from confide.simulator.tinfoil import gzip_bytes
from confide.wire.collateral import parse_collateral
from confide.wire.json import jcs
from confide.wire.tdx import parse_quote


def v3(**options: Any) -> bytes:
    return jcs(enclave().v3(NONCE, **options))


def quoted(evidence: Any) -> bytes:
    return parse_quote(evidence.attesters[0].tdx.quote).body.report_data


def section(document: Any, name: str, edit: Any) -> None:
    """Edit an endorsed section and write it back, leaving what the document says of it."""
    value = json.loads(base64.b64decode(document[name]))
    edit(value)
    document[name] = base64.b64encode(jcs(value)).decode()


def test_version_2_presents_the_keys_that_the_hardware_signed_and_no_nonce() -> None:
    evidence = FORMAT.read(capture(jcs(enclave().v2()), nonce=NONCE, tls_spki_sha256=TLS))
    attester = evidence.attesters[0]
    assert attester.binding.expected == quoted(evidence) == TLS + HPKE
    assert attester.binding.nonce is None
    assert [(key.use, key.value) for key in attester.keys] == [("tls", TLS), ("hpke", HPKE)]
    assert attester.binding.covers == {"tls", "hpke"}
    assert (evidence.nonce, evidence.tls_spki_sha256) == (NONCE, TLS)
    assert ClaimName.FRESHNESS in {remark.claim for remark in attester.remarks}
    assert not failed(evidence)


def test_a_report_of_snp_in_version_2_and_no_hpke_key() -> None:
    report = unsigned_report(report_data=TLS + bytes(32))
    document = {
        "format": "https://tinfoil.sh/predicate/sev-snp-guest/v2",
        "body": base64.b64encode(gzip_bytes(report)).decode(),
    }
    attester = FORMAT.read(capture(jcs(document))).attesters[0]
    assert attester.tdx is None
    assert attester.snp is not None
    assert attester.snp.report == report
    assert attester.binding.covers == {"tls"}
    assert attester.binding.expected == TLS + bytes(32)


def test_version_3_binds_nonce_keys_and_devices() -> None:
    evidence = FORMAT.read(capture(v3(gpus=gpus())))
    attester = evidence.attesters[0]
    assert attester.binding.expected == quoted(evidence)
    assert attester.binding.nonce == NONCE
    assert attester.binding.covers == {"tls", "hpke", "gpu-evidence"}
    assert attester.devices is not None
    assert attester.devices.devices == gpus()
    assert attester.devices.nonce == NONCE
    assert not failed(evidence)


def test_version_3_without_devices_says_so() -> None:
    attester = FORMAT.read(capture(v3())).attesters[0]
    assert attester.devices is None
    assert "gpu-evidence" not in attester.binding.covers
    assert ClaimName.GPU_BINDING in {remark.claim for remark in attester.remarks}


def test_intels_responses_become_the_collateral_they_were() -> None:
    attester = FORMAT.read(capture(v3())).attesters[0]
    assert attester.tdx is not None
    assert attester.tdx.collateral is not None
    given = parse_collateral(platform().collateral())
    found = parse_collateral(attester.tdx.collateral)
    assert (found.tcb_info, found.tcb_info_signature) == (given.tcb_info, given.tcb_info_signature)
    assert (found.qe_identity, found.root_crl) == (given.qe_identity, given.root_crl)
    assert (found.pck_crl_chain, found.tcb_info_chain) == (
        given.pck_crl_chain,
        given.tcb_info_chain,
    )


def test_the_signed_statement_names_registers_and_not_the_hardware() -> None:
    references = FORMAT.read(capture(v3())).attesters[0].references
    assert references is not None
    launch = enclave().launch()
    assert references.registers == {
        "rtmr1": launch.rtmr[1],
        "rtmr2": launch.rtmr[2],
        "rtmr3": bytes(48),
    }
    assert references.bundle is not None
    assert base64.b64encode(references.statement) in references.bundle


def test_the_bundle_of_the_attestation_service() -> None:
    evidence = FORMAT.read(capture(jcs(enclave().bundle())))
    assert evidence.attesters[0].references is not None
    assert evidence.attesters[0].binding.expected == quoted(evidence)
    assert not failed(evidence)


def test_a_statement_that_the_relying_party_brings_goes_first() -> None:
    statement = jcs(enclave().statement())
    documents = {"attestation": jcs(enclave().v2()), "sigstore": statement, "config": b"x: 1\n"}
    attester = FORMAT.read(capture(documents)).attesters[0]
    assert attester.references is not None
    assert attester.references.bundle == statement
    assert attester.launch is not None
    assert (attester.launch.kind, attester.launch.raw) == ("tinfoil-config", b"x: 1\n")


def _other_key(document: Any) -> None:
    section(document, "crypto_material", lambda value: value["items"][0].update(data="ab" * 32))


def _other_device(document: Any) -> None:
    section(document, "device_evidence", lambda value: value["items"].pop())


def _other_nonce(document: Any) -> None:
    document["challenge"]["nonce"] = "ff" * 32


@pytest.mark.parametrize(
    ("edit", "claims"),
    [
        (_other_key, {ClaimName.KEYS}),
        (_other_device, {ClaimName.KEYS, ClaimName.GPU_BINDING}),
        (_other_nonce, {ClaimName.KEYS, ClaimName.GPU_FRESHNESS}),
    ],
)
def test_what_was_exchanged_afterwards_is_not_what_the_hardware_signed(
    edit: Any, claims: set[str]
) -> None:
    evidence = FORMAT.read(capture(edited(v3(gpus=gpus()), edit)))
    assert evidence.attesters[0].binding.expected != quoted(evidence)
    assert failed(evidence) == claims


def test_a_statement_about_another_release_is_a_contradiction() -> None:
    def edit(document: Any) -> None:
        document["collateral"][1]["data"]["digest"] = "00" * 32

    assert failed(FORMAT.read(capture(edited(v3(), edit)))) == {ClaimName.LAUNCH}


def test_a_device_in_a_format_of_its_own_is_named_and_not_counted() -> None:
    def edit(document: Any) -> None:
        def rename(value: Any) -> None:
            value["items"][0]["format"] = "https://tinfoil.sh/format/tpu/v1"

        section(document, "device_evidence", rename)

    evidence = FORMAT.read(capture(edited(v3(gpus=gpus()), edit)))
    assert any(remark.claim == ClaimName.GPU for remark in remarks(evidence))
    assert evidence.attesters[0].devices is not None
    assert len(evidence.attesters[0].devices.devices) == len(gpus()) - 1


@pytest.mark.parametrize(
    "predicate", ["tdx-guest/v1", "sev-snp-guest/v3", "aws-nitro-enclave/v1", "attestation/v4"]
)
def test_another_predicate_is_unsupported(predicate: str) -> None:
    document = jcs({"format": f"https://tinfoil.sh/predicate/{predicate}", "body": "AAAA"})
    assert FORMAT.recognise(document)
    with pytest.raises(Unsupported):
        FORMAT.read(capture(document))


def test_a_processor_of_another_kind_is_unsupported() -> None:
    def edit(document: Any) -> None:
        document["cpu_evidence"]["format"] = "https://tinfoil.sh/format/cca-token/v1"

    with pytest.raises(Unsupported):
        FORMAT.read(capture(edited(v3(), edit)))


def _body(raw: bytes) -> bytes:
    return jcs({**enclave().v2(), "body": base64.b64encode(raw).decode()})


_GOOD = base64.b64decode(str(enclave().v2()["body"]))
_BAD_BODIES = {
    "bomb": gzip_bytes(bytes(1 << 26)),
    "cut": _GOOD[:-9],
    "checksum": _GOOD[:-8] + bytes(8),
    "trailing": _GOOD + b"\0",
    "second member": _GOOD + _GOOD,
    "raw deflate": _GOOD[10:-8],
    "not compressed": platform().quote(enclave().launch(), report_data=bytes(64)),
    "empty": b"",
    "empty inside": gzip_bytes(b""),
    "short quote": gzip_bytes(b"\4\0\2\0\x81\0\0\0"),
}


@pytest.mark.parametrize("name", _BAD_BODIES)
def test_a_body_that_is_not_one_honest_gzip_of_a_quote_is_refused(name: str) -> None:
    with pytest.raises(FormatError):
        FORMAT.read(capture(_body(_BAD_BODIES[name])))


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value.update(extra=1),
        lambda value: value.pop("collateral"),
        lambda value: value["challenge"].update(nonce="00" * 31),
        lambda value: value["challenge"].update(nonce="AB" * 32),
        lambda value: value["challenge"].update(report_data_algorithm="other"),
        lambda value: value["cpu_evidence"].update(report_base64="AB="),
        lambda value: value.update(crypto_material=""),
        lambda value: value.update(device_evidence=base64.b64encode(b"{}").decode()),
        lambda value: value["collateral"].append(value["collateral"][0]),
        lambda value: value["collateral"][0].update(role="friend"),
        lambda value: value["collateral"][0]["data"]["responses"].append(
            value["collateral"][0]["data"]["responses"][0]
        ),
        lambda value: section(value, "crypto_material", lambda keys: keys["items"].append(1)),
        lambda value: section(
            value, "crypto_material", lambda keys: keys["items"][0].update(id="hpke")
        ),
        lambda value: section(
            value, "crypto_material", lambda keys: keys["items"][0].update(data="ab")
        ),
        lambda value: section(value, "crypto_material", lambda keys: keys.update(format="other")),
    ],
)
def test_a_document_of_another_shape_is_refused(edit: Any) -> None:
    def run(value: Any) -> None:
        edit(value)

    with pytest.raises(FormatError) as caught:
        FORMAT.read(capture(edited(v3(), run)))
    assert caught.value.reason in {Reason.SERVICE_FORMAT, Reason.COLLATERAL_FORMAT}


def test_a_live_capture_asks_with_the_nonce() -> None:
    assert FORMAT.plan is not None
    (request,) = FORMAT.plan(NONCE)
    assert request.path == f"/.well-known/tinfoil-attestation?nonce={NONCE.hex()}"
    assert request.document in capture({"attestation": b""}).documents


def _with_statement(edit: Any) -> Any:
    """A document of version 3 whose signed statement was made otherwise."""

    def run(document: Any) -> None:
        envelope = document["collateral"][1]["data"]["sigstore_bundle"]["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        edit(statement)
        envelope["payload"] = base64.b64encode(jcs(statement)).decode()

    return FORMAT.read(capture(edited(v3(), run)))


def test_a_statement_about_something_else_names_no_registers() -> None:
    for edit in (
        lambda value: value.update(predicateType="https://tinfoil.sh/predicate/other/v1"),
        lambda value: value.update(predicate=[]),
    ):
        assert _with_statement(edit).attesters[0].references is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value.update(subject=[]),
        lambda value: value.update(subject=1),
        lambda value: value["subject"][0].pop("digest"),
        lambda value: value["subject"][0]["digest"].update(sha256="00"),
    ],
)
def test_a_statement_without_a_subject_is_about_another_release(edit: Any) -> None:
    assert failed(_with_statement(edit)) == {ClaimName.LAUNCH}


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value["predicate"].pop("tdx_measurement"),
        lambda value: value["predicate"]["tdx_measurement"].pop("rtmr1"),
        lambda value: value["predicate"]["tdx_measurement"].update(rtmr2="00"),
    ],
)
def test_a_statement_without_its_registers_is_refused(edit: Any) -> None:
    with pytest.raises(FormatError):
        _with_statement(edit)


def _responses(edit: Any) -> Any:
    def run(document: Any) -> None:
        edit(document["collateral"][0]["data"]["responses"])

    return FORMAT.read(capture(edited(v3(), run))).attesters[0].tdx


def test_collateral_that_is_not_whole_is_left_out() -> None:
    for index in range(4):
        assert _responses(lambda value, at=index: value.pop(at)).collateral is None
    renamed = _responses(lambda value: value[0].update(url="https://elsewhere.example/tcb"))
    assert renamed.collateral is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value[0].update(headers=[]),
        lambda value: value[0].update(headers={"Tcb-Info-Issuer-Chain": []}),
        lambda value: value[0].update(headers={}),
        lambda value: value[0].update(body_base64=base64.b64encode(b"{}").decode()),
        lambda value: value[0].update(body_base64=base64.b64encode(b"\xff").decode()),
    ],
)
def test_responses_that_are_not_intels_are_refused(edit: Any) -> None:
    with pytest.raises(FormatError):
        _responses(edit)


def _snp_v3(document: Any) -> None:
    document["cpu_evidence"]["format"] = "https://tinfoil.sh/format/sev-snp-report/v1"
    document["cpu_evidence"]["report_base64"] = base64.b64encode(unsigned_report()).decode()
    document["collateral"][0] = {
        "id": "amd",
        "role": "endorsement",
        "format": "https://tinfoil.sh/collateral/amd-vcek/v1",
        "subjects": None,
        "data": {"vcek_der_base64": base64.b64encode(b"leaf").decode(), "cert_chain_pem": "pem"},
    }


def test_version_3_over_snp() -> None:
    attester = FORMAT.read(capture(edited(v3(), _snp_v3))).attesters[0]
    assert attester.tdx is None
    assert attester.snp is not None
    assert attester.snp.report == unsigned_report()
    assert (attester.snp.leaf_der, attester.snp.chain_pem) == (b"leaf", b"pem")
    assert attester.references is not None
    assert attester.references.registers == {"measurement": bytes(48)}


def test_version_3_over_a_report_of_another_length() -> None:
    def edit(document: Any) -> None:
        _snp_v3(document)
        document["cpu_evidence"]["report_base64"] = "AAAA"

    with pytest.raises(FormatError):
        FORMAT.read(capture(edited(v3(), edit)))


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value["collateral"][1]["data"].update(sigstore_bundle="x"),
        lambda value: value["collateral"][1]["data"].update(sigstore_bundle={}),
        lambda value: section(
            value, "device_evidence", lambda found: found["items"].append(found["items"][0])
        ),
        lambda value: section(
            value,
            "crypto_material",
            lambda keys: keys["items"][0].update(format="https://tinfoil.sh/key/x25519-hpke/v1"),
        ),
        lambda value: section(
            value, "device_evidence", lambda found: found.update(items=_many(found["items"][0]))
        ),
    ],
)
def test_more_documents_of_another_shape_are_refused(edit: Any) -> None:
    def run(value: Any) -> None:
        edit(value)

    with pytest.raises(FormatError):
        FORMAT.read(capture(edited(v3(gpus=gpus()), run)))


def _many(item: Any) -> list[Any]:
    return [{**item, "id": f"gpu{index}"} for index in range(17)]


def test_other_keys_are_hashed_and_not_presented() -> None:
    def edit(document: Any) -> None:
        def add(keys: Any) -> None:
            item = {"id": "db", "format": "https://tinfoil.sh/key/spki/v1", "data": "00"}
            keys["items"].append(item)

        section(document, "crypto_material", add)

    evidence = FORMAT.read(capture(edited(v3(), edit)))
    assert {key.name for key in evidence.attesters[0].keys} == {"tls", "hpke"}


def _bundle(**changed: Any) -> bytes:
    return jcs({**enclave().bundle(), **changed})


def test_a_bundle_over_snp_brings_its_leaf() -> None:
    report = {
        "format": "https://tinfoil.sh/predicate/sev-snp-guest/v2",
        "body": base64.b64encode(gzip_bytes(unsigned_report())).decode(),
    }
    raw = _bundle(enclaveAttestationReport=report, vcek=base64.b64encode(b"leaf").decode())
    part = FORMAT.read(capture(raw)).attesters[0].snp
    assert part is not None
    assert part.leaf_der == b"leaf"
    assert failed(FORMAT.read(capture(_bundle(digest="00" * 32)))) == {ClaimName.LAUNCH}
    with pytest.raises(FormatError):
        FORMAT.read(capture(_bundle(sigstoreBundle=[])))


def test_a_short_report_and_a_foreign_predicate_are_refused() -> None:
    short = {
        "format": "https://tinfoil.sh/predicate/sev-snp-guest/v2",
        "body": base64.b64encode(gzip_bytes(bytes(1183))).decode(),
    }
    foreign = {"format": "https://other.example/predicate/tdx-guest/v2", "body": "AAAA"}
    for document in (short, foreign):
        with pytest.raises(FormatError):
            FORMAT.read(capture(jcs(document)))


@pytest.mark.parametrize("raw", [b'{"tinfoil.sh"', b'{"format":"tinfoil.sh"}', b"{}"])
def test_other_documents_are_not_recognised(raw: bytes) -> None:
    assert not FORMAT.recognise(raw)


def test_several_documents_of_which_none_is_named_are_refused() -> None:
    with pytest.raises(FormatError):
        FORMAT.read(capture({"a": v3(), "b": v3()}))
