"""Confidential Containers: report data recomputed, init-data compared, tokens turned away."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from reader_cases import (
    INIT_DATA,
    NONCE,
    capture,
    cards,
    edited,
    failed,
    pod,
    quote,
    remarks,
    unsigned_report,
)

from confide.appraisal.claim_names import ClaimName
from confide.errors import EvidenceRejected, FormatError, Reason, Unsupported
from confide.formats.trustee import FORMAT, composite_report_data, device_report_data
from confide.simulator.trustee import SimulatedPod, snp_report_json
from confide.wire.init_data import parse_init_data
from confide.wire.json import b64encode, jcs
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from pathlib import Path

_LEAF, _ASK, _ARK = b"leaf der", b"ask der", b"ark der"
_CHAIN = [
    {"cert_type": "VCEK", "data": list(_LEAF)},
    {"cert_type": "ASK", "data": list(_ASK)},
    {"cert_type": "ARK", "data": list(_ARK)},
    {"cert_type": {"OTHER": "00000000-0000-0000-0000-000000000001"}, "data": [1]},
]


def quoted(evidence: Any) -> bytes:
    return parse_quote(evidence.attesters[0].tdx.quote).body.report_data


def attestation(**changed: Any) -> bytes:
    return pod(**changed).exchange(NONCE)["attestation"]


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("told", [True, False])
def test_the_processor_commits_to_nonce_key_and_devices(algorithm: str, told: bool) -> None:
    documents = pod().exchange(NONCE, algorithm=algorithm)
    if not told:
        documents = {"saved.json": documents["attestation"]}
    evidence = FORMAT.read(capture(documents, nonce=NONCE))
    attester = evidence.attesters[0]
    assert attester.binding.expected == quoted(evidence)
    assert attester.binding.nonce == NONCE
    assert attester.binding.covers == {"tee-pubkey", "gpu-evidence"}
    assert attester.devices is not None
    assert attester.devices.nonce is not None
    assert attester.devices.devices == cards(attester.devices.nonce)
    assert attester.firmware_log == b"log"
    assert attester.launch is not None
    assert (attester.launch.kind, attester.launch.raw) == ("init-data", INIT_DATA)
    assert not failed(evidence)


def test_the_hashes_are_those_of_the_protocol() -> None:
    key: Any = {"kty": "EC", "b": 1}
    both = b'{"nonce":"bg==","tee-pubkey":{"b":1,"kty":"EC"}}'
    assert device_report_data("sha256", nonce="bg==", tee_pubkey=key) == (
        hashlib.sha256(both).digest()
    )
    whole = b'{"additional-evidence":"x",' + both[1:]
    assert composite_report_data(
        "sha384", nonce="bg==", tee_pubkey=key, additional_evidence="x"
    ) == hashlib.sha384(whole).digest() + bytes(16)


def test_without_devices_the_empty_string_is_bound_too() -> None:
    evidence = FORMAT.read(capture(attestation(devices=False)))
    assert evidence.attesters[0].binding.expected == quoted(evidence)
    assert evidence.attesters[0].binding.covers == {"tee-pubkey"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value["runtime-data"].update(nonce=b64encode(bytes(32))),
        lambda value: value["runtime-data"]["tee-pubkey"].update(x="other"),
        lambda value: value["tee-evidence"].update(additional_evidence=""),
        lambda value: value["tee-evidence"].update(
            additional_evidence=value["tee-evidence"]["additional_evidence"] + " "
        ),
    ],
)
def test_what_was_exchanged_afterwards_is_not_what_the_hardware_signed(edit: Any) -> None:
    def run(value: Any) -> None:
        edit(value)

    evidence = FORMAT.read(capture(edited(attestation(), run)))
    assert evidence.attesters[0].binding.expected != quoted(evidence)


def test_a_challenge_that_selected_another_hash_is_believed_over_the_quote() -> None:
    documents = pod().exchange(NONCE)
    documents["challenge"] = edited(
        documents["challenge"],
        lambda value: value["extra-params"].update({"selected-hash-algorithm": "sha256"}),
    )
    evidence = FORMAT.read(capture(documents))
    assert evidence.attesters[0].binding.expected != quoted(evidence)
    documents["challenge"] = edited(
        documents["challenge"],
        lambda value: value["extra-params"].update({"selected-hash-algorithm": "sm3"}),
    )
    with pytest.raises(Unsupported):
        FORMAT.read(capture(documents))


def test_another_nonce_than_the_challenge_is_a_contradiction() -> None:
    documents = pod().exchange(NONCE)
    documents["challenge"] = pod().exchange(bytes(32))["challenge"]
    assert failed(FORMAT.read(capture(documents))) == {ClaimName.FRESHNESS}


def test_other_init_data_than_the_hardware_holds_is_a_contradiction() -> None:
    def edit(value: Any) -> None:
        value["init-data"]["body"] += "# one comment more\n"

    assert failed(FORMAT.read(capture(edited(attestation(), edit)))) == {ClaimName.WORKLOAD}


def test_rsa_pkcs1_is_a_contradiction_and_other_keys_are_unsupported() -> None:
    def weak(value: Any) -> None:
        key = {"kty": "RSA", "alg": "RSA1_5", "n": "bg", "e": "AQAB"}
        value["runtime-data"]["tee-pubkey"] = key

    assert ClaimName.KEYS in failed(FORMAT.read(capture(edited(attestation(), weak))))

    def strange(value: Any) -> None:
        value["runtime-data"]["tee-pubkey"] = {"kty": "oct", "alg": "dir"}

    with pytest.raises(Unsupported):
        FORMAT.read(capture(edited(attestation(), strange)))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_an_snp_report_is_put_together_again_byte_for_byte(legacy: bool, bare: bool) -> None:
    report = unsigned_report(host_data=hashlib.sha384(INIT_DATA).digest()[:32])
    machine = {"attestation_report": snp_report_json(report, legacy=legacy), "cert_chain": _CHAIN}
    document = jcs(machine)
    if not bare:

        def edit(value: Any) -> None:
            value["tee-evidence"]["primary_evidence"] = machine

        document = edited(attestation(), edit)
    evidence = FORMAT.read(capture(document))
    part = evidence.attesters[0].snp
    assert part is not None
    assert part.report == report
    assert part.leaf_der == _LEAF
    assert part.chain_pem is not None
    assert base64.b64encode(_ASK) in part.chain_pem
    assert part.chain_pem.count(b"BEGIN CERTIFICATE") == 2
    assert not failed(evidence)


def test_genuine_snp_reports_survive_their_json(vectors: Path) -> None:
    for path in sorted((vectors / "snp").glob("report-milan*.bin")):
        report = path.read_bytes()
        for legacy in (True, False):
            value = {
                "attestation_report": snp_report_json(report, legacy=legacy),
                "cert_chain": None,
            }
            part = FORMAT.read(capture(jcs(value))).attesters[0].snp
            assert part is not None
            assert part.report == report, path.name


def test_reports_of_version_3_and_of_turin_keep_their_places() -> None:
    raw = bytearray(unsigned_report())
    raw[0] = 5
    raw[392:395] = (26, 2, 1)
    raw[504:520] = bytes(range(1, 7)) + bytes(2) + bytes(range(7, 13)) + bytes(2)
    value: dict[str, Any] = dict(snp_report_json(bytes(raw)))
    value["launch_mit_vector"] = int.from_bytes(raw[504:512], "little")
    value["current_mit_vector"] = int.from_bytes(raw[512:520], "little")
    for name, at in (
        ("current_tcb", 56),
        ("reported_tcb", 384),
        ("committed_tcb", 480),
        ("launch_tcb", 496),
    ):
        raw[at : at + 8] = bytes((9, 8, 7, 6, 0, 0, 0, 5))
        value[name] = {"fmc": 9, "bootloader": 8, "tee": 7, "snp": 6, "microcode": 5}
    document = jcs({"attestation_report": value, "cert_chain": []})
    part = FORMAT.read(capture(document)).attesters[0].snp
    assert part is not None
    assert part.report == bytes(raw)


@pytest.mark.parametrize(
    "edit",
    [
        lambda report: report.update(extra=1),
        lambda report: report.pop("chip_id"),
        lambda report: report.update(version=-1),
        lambda report: report.update(version=1 << 32),
        lambda report: report["family_id"].append(0),
        lambda report: report["family_id"].__setitem__(0, 256),
        lambda report: report["family_id"].__setitem__(0, True),
        lambda report: report["family_id"].__setitem__(0, "1"),
        lambda report: report["current_tcb"].update(snp=256),
        lambda report: report["signature"].pop("s"),
        lambda report: report.update(policy=1.5),
    ],
)
def test_a_report_with_another_member_or_number_is_refused(edit: Any) -> None:
    def run(value: Any) -> None:
        edit(value["attestation_report"])

    document = jcs({"attestation_report": snp_report_json(unsigned_report()), "cert_chain": None})
    with pytest.raises(FormatError):
        FORMAT.read(capture(edited(document, run)))


def test_sample_evidence_is_refused_wherever_it_stands() -> None:
    sample = {"svn": "1", "report_data": b64encode(NONCE)}
    assert FORMAT.recognise(jcs(sample))

    def edit(value: Any) -> None:
        value["tee-evidence"]["primary_evidence"] = sample

    for document in (jcs(sample), edited(attestation(), edit)):
        with pytest.raises(EvidenceRejected) as caught:
            FORMAT.read(capture(document))
        assert caught.value.reason == Reason.TEE_TYPE
    documents = pod().exchange(NONCE)
    documents["request"] = edited(documents["request"], lambda value: value.update(tee="sample"))
    with pytest.raises(EvidenceRejected):
        FORMAT.read(capture(documents))


@pytest.mark.parametrize("tee", ["sgx", "cca", "csv", "se", "tpm", "hygondcu"])
def test_other_machines_are_unsupported(tee: str) -> None:
    documents = pod().exchange(NONCE)
    documents["request"] = edited(documents["request"], lambda value: value.update(tee=tee))
    with pytest.raises(Unsupported):
        FORMAT.read(capture(documents))


@pytest.mark.parametrize(
    "primary",
    [
        {"token": "x"},
        {"attestation_report": {}, "cert_chain": {}, "serial_number": []},
        {"quote": b64encode(b"\3\0\2\0\0\0\0\0" + bytes(60)), "cc_eventlog": None},
        [],
    ],
)
def test_machines_of_other_shapes_are_unsupported(primary: Any) -> None:
    def edit(value: Any) -> None:
        value["tee-evidence"]["primary_evidence"] = primary

    with pytest.raises(Unsupported):
        FORMAT.read(capture(edited(attestation(), edit)))


def test_a_request_that_names_another_machine_is_refused() -> None:
    documents = pod().exchange(NONCE)
    documents["request"] = edited(documents["request"], lambda value: value.update(tee="snp"))
    with pytest.raises(FormatError):
        FORMAT.read(capture(documents))


def hcl(kind: int, hardware: bytes, runtime: bytes) -> bytes:
    head = b"HCLA" + bytes(28) + hardware.ljust(1184, b"\0")
    sizes = (20 + len(runtime), 1, kind, 1, len(runtime))
    return head + b"".join(number.to_bytes(4, "little") for number in sizes) + runtime


RUNTIME = b'{"keys":[]}'
BOUND = hashlib.sha256(RUNTIME).digest() + bytes(32)


def url64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tee", ["az-snp-vtpm", "az-tdx-vtpm"])
def test_azure_evidence_is_the_paravisors(tee: str, version: int) -> None:
    write: Any = url64 if version else list
    value: dict[str, Any] = {"tpm_quote": {"signature": "", "message": "", "pcrs": []}}
    if tee == "az-snp-vtpm":
        value["hcl_report"] = write(hcl(2, unsigned_report(report_data=BOUND), RUNTIME))
        value["vcek"] = write(_LEAF)
    else:
        report = bytes(128) + BOUND + bytes(1024 - 192)
        value["hcl_report"] = write(hcl(4, report, RUNTIME))
        value["td_quote"] = write(quote(BOUND))
    if version:
        value["version"] = version
    evidence = FORMAT.read(capture(jcs(value), nonce=NONCE))
    attester = evidence.attesters[0]
    assert attester.paravisor
    assert attester.binding.expected == BOUND
    assert attester.binding.nonce is None
    assert not attester.binding.covers
    claims = {remark.claim for remark in attester.remarks}
    assert {ClaimName.KEYS, ClaimName.FRESHNESS, ClaimName.LAUNCH, ClaimName.WORKLOAD} <= claims


def test_the_agent_alone_binds_the_runtime_data_that_it_was_asked_with() -> None:
    assert FORMAT.plan is not None
    requests = {request.document: request.path for request in FORMAT.plan(NONCE)}
    assert requests["evidence"] == f"/aa/evidence?runtime_data={NONCE.hex()}"
    for report_data in (NONCE.hex().encode(), NONCE):
        documents = {"evidence": jcs(pod().evidence(report_data)), "init-data": INIT_DATA}
        evidence = FORMAT.read(capture(documents, nonce=NONCE))
        assert evidence.attesters[0].binding.expected == quoted(evidence)
        assert evidence.attesters[0].binding.nonce == NONCE
        assert not failed(evidence)
    other = FORMAT.read(capture(jcs(pod().evidence(b"\1" * 32)), nonce=NONCE))
    assert other.attesters[0].binding.nonce == b"\1" * 32
    for strange in (b"no nonce" * 8, bytes(64), b"F" * 64):
        found = FORMAT.read(capture(jcs(pod().evidence(strange)), nonce=NONCE))
        assert found.attesters[0].binding.expected is None
        assert found.attesters[0].binding.nonce is None


def test_devices_of_the_agent_are_asked_apart_and_bound_by_nothing() -> None:
    asked = NONCE.hex().encode()[:32]
    documents = {
        "evidence": jcs(pod().evidence(NONCE.hex().encode())),
        "additional-evidence": pod().additional(asked).encode(),
    }
    evidence = FORMAT.read(capture(documents, nonce=NONCE))
    devices = evidence.attesters[0].devices
    assert devices is not None
    assert devices.nonce == asked
    assert "gpu-evidence" not in evidence.attesters[0].binding.covers
    assert ClaimName.GPU_BINDING in {remark.claim for remark in remarks(evidence)}


def token(payload: Any) -> bytes:
    parts = (json.dumps({"alg": "ES256", "typ": "JWT"}).encode(), json.dumps(payload).encode())
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (*parts, b"sig"))


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_token_is_a_verdict_and_no_evidence(wrapped: bool) -> None:
    profile = "tag:github.com,2024:confidential-containers/Trustee"
    raw = token({"eat_profile": profile, "submods": {"cpu0": {}}})
    document = jcs({"token": raw.decode()}) if wrapped else raw
    assert FORMAT.recognise(document)
    with pytest.raises(Unsupported, match="verdict"):
        FORMAT.read(capture(document))


@pytest.mark.parametrize(
    "raw", [b"eyJ", b"eyJ.x.y", token({"eat_profile": 1}), token({}), b'{"token":1}', b'{"token":']
)
def test_other_tokens_are_not_recognised(raw: bytes) -> None:
    assert not FORMAT.recognise(raw)


def test_a_body_before_0_4_0_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        FORMAT.read(capture(jcs({"tee-pubkey": {}, "tee-evidence": {}})))


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value.update(extra=1),
        lambda value: value["runtime-data"].update(extra=1),
        lambda value: value["runtime-data"].update(nonce="not base64"),
        lambda value: value["runtime-data"].update(nonce=""),
        lambda value: value["tee-evidence"].pop("additional_evidence"),
        lambda value: value["tee-evidence"].update(additional_evidence="{"),
        lambda value: value["tee-evidence"].update(additional_evidence='{"nvidia":{}}'),
        lambda value: value["tee-evidence"].update(
            additional_evidence='{"nvidia":{"device_evidence_list":[]}}'
        ),
        lambda value: value["tee-evidence"]["primary_evidence"].update(quote="AA=="),
        lambda value: value["tee-evidence"]["primary_evidence"].update(cc_eventlog="?"),
        lambda value: value["init-data"].update(body="not = toml = at all"),
        lambda value: value["init-data"].update(body='version = "9"\nalgorithm = "sha384"'),
    ],
)
def test_a_body_of_another_shape_is_refused(edit: Any) -> None:
    def run(value: Any) -> None:
        edit(value)

    with pytest.raises(FormatError):
        FORMAT.read(capture(edited(attestation(), run)))


def test_init_data_that_is_not_toml_is_unsupported() -> None:
    def edit(value: Any) -> None:
        value["init-data"]["format"] = "json"

    with pytest.raises(Unsupported):
        FORMAT.read(capture(edited(attestation(), edit)))


def test_init_data_says_its_algorithm_and_its_files() -> None:
    found = parse_init_data(INIT_DATA)
    assert (found.version, found.algorithm, found.files) == ("0.1.0", "sha384", ("aa.toml",))
    for raw in (b"\xff", b"", b'algorithm = "md5"', INIT_DATA + b"[data.x]\n"):
        with pytest.raises(FormatError):
            parse_init_data(raw)


def test_a_pod_without_a_log_is_read() -> None:
    plain = SimulatedPod(platform=pod().platform, init_data=INIT_DATA)
    attester = FORMAT.read(capture(plain.exchange(NONCE))).attesters[0]
    assert attester.firmware_log is None


def snp(**changed: Any) -> Any:
    value = {"attestation_report": snp_report_json(unsigned_report()), "cert_chain": None}
    part = FORMAT.read(capture(jcs({**value, **changed}))).attesters[0].snp
    assert part is not None
    return part


@pytest.mark.parametrize(
    "write",
    [lambda raw: raw.hex(), b64encode, list],
    ids=["hex", "base64", "list"],
)
def test_a_report_may_be_written_plainly(write: Any) -> None:
    assert snp(attestation_report=write(unsigned_report())).report == unsigned_report()


def test_a_leaf_in_pem_becomes_der_and_pem_stays_pem() -> None:
    pem = (
        b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(_LEAF) + b"\n-----END CERTIFICATE-----"
    )
    chain = [
        {"cert_type": "vcek", "data": list(pem + b"\n")},
        {"cert_type": "ARK", "data": b64encode(pem)},
    ]
    part = snp(cert_chain=chain)
    assert part.leaf_der == _LEAF
    assert part.chain_pem == pem + b"\n"


@pytest.mark.parametrize(
    "changed",
    [
        {"attestation_report": b64encode(bytes(1183))},
        {"attestation_report": [0] * 1183},
        {"attestation_report": 1},
        {"cert_chain": 1},
        {"cert_chain": [1]},
        {"cert_chain": [{"cert_type": 1, "data": [1]}]},
        {"cert_chain": [{"cert_type": "VCEK", "data": 1}]},
        {"cert_chain": [{"cert_type": "VCEK", "data": [256]}]},
        {"cert_chain": [_CHAIN[0], _CHAIN[0]]},
        {"cert_chain": [{"cert_type": "OTHER", "data": [1]}] * 17},
    ],
)
def test_a_report_or_list_of_another_shape_is_refused(changed: Any) -> None:
    with pytest.raises(FormatError):
        snp(**changed)


def azure(**changed: Any) -> bytes:
    value: dict[str, Any] = {
        "tpm_quote": {},
        "hcl_report": url64(hcl(2, unsigned_report(report_data=BOUND), RUNTIME)),
        "vcek": url64(_LEAF),
        "version": 1,
    }
    return jcs({name: item for name, item in {**value, **changed}.items() if item is not None})


_TD_BLOB = url64(hcl(4, bytes(128) + BOUND + bytes(1024 - 192), RUNTIME))


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 3},
        {"hcl_report": "?"},
        {"hcl_report": "é"},
        {"hcl_report": "AB=="},
        {"hcl_report": [256]},
        {"hcl_report": 1},
        {"hcl_report": _TD_BLOB},
        {"vcek": None, "td_quote": url64(quote(BOUND))},
    ],
)
def test_azure_evidence_of_another_shape_is_refused(changed: Any) -> None:
    assert FORMAT.recognise(azure(**changed))
    with pytest.raises(FormatError):
        FORMAT.read(capture(azure(**changed)))


def test_azure_evidence_before_versions_has_its_leaf_in_pem() -> None:
    pem = "-----BEGIN CERTIFICATE-----\n" + b64encode(_LEAF) + "\n-----END CERTIFICATE-----\n"
    report = list(hcl(2, unsigned_report(report_data=BOUND), RUNTIME))
    document = jcs({"quote": {}, "report": report, "vcek": pem})
    part = FORMAT.read(capture({"e": document, "init-data": INIT_DATA})).attesters[0].snp
    assert part is not None
    assert part.leaf_der == _LEAF


def test_a_quote_alone_and_the_older_log_of_the_agent() -> None:
    raw = b64encode(quote())
    evidence = FORMAT.read(capture(jcs({"quote": raw})))
    assert evidence.attesters[0].firmware_log is None
    older = {"quote": raw, "cc_eventlog": None, "aa_eventlog": "x y z"}
    assert ClaimName.EVENT_LOG in {item.claim for item in remarks(FORMAT.read(capture(jcs(older))))}
    with pytest.raises(FormatError):
        FORMAT.read(capture(jcs({"quote": raw, "cc_eventlog": b64encode(bytes((4 << 20) + 1))})))
    with pytest.raises(FormatError):
        FORMAT.read(capture(jcs({"other": raw})))


def test_devices_of_other_kinds_are_named_and_not_judged() -> None:
    def edit(value: Any) -> None:
        value["tee-evidence"]["additional_evidence"] = '{"sampledevice":{}}'

    evidence = FORMAT.read(capture(edited(attestation(), edit)))
    assert evidence.attesters[0].devices is None
    assert ClaimName.GPU in {remark.claim for remark in remarks(evidence)}


def test_a_challenge_that_selects_nothing_means_the_default() -> None:
    documents = pod().exchange(NONCE)
    selected: tuple[Any, ...] = ({}, None)
    for extra in selected:
        changed = edited(
            documents["challenge"], lambda value, new=extra: value.update({"extra-params": new})
        )
        evidence = FORMAT.read(capture({**documents, "challenge": changed}))
        assert evidence.attesters[0].binding.expected == quoted(evidence)


def test_broken_json_is_not_recognised() -> None:
    assert not FORMAT.recognise(b'{"tee-evidence"')
