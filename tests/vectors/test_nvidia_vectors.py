"""Genuine NVIDIA evidence, manifests and OCSP answers, each to the verdict its index states.

Most cases come without the endorsements that a complete appraisal needs, so the production entry
refuses them. A case of kind `device`, `set` or `appraise` therefore goes through `appraise_gpus`
and is judged by its findings: everything but the steps whose inputs the case does not supply (and
what depends on them) must end as the index says. Steps are never skipped in the code under test.

Cases about NVSwitches and token services are out of scope of this verifier and counted below.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from confide.appraisal.nvidia import AllowedVersions, GpuMode, NvidiaPolicy, appraise_gpus
from confide.appraisal.nvidia_chain import SignatureMemory, VerifiedSignatures
from confide.appraisal.nvidia_measurements import compare
from confide.appraisal.nvidia_ocsp import require_good
from confide.appraisal.nvidia_rim import require_identity, require_periods, verify_rim
from confide.appraisal.steps import Refused
from confide.crypto.x509 import Certificate, parse_certificate_der, parse_pem_chain
from confide.crypto.xmldsig import parse_tree, verify_enveloped
from confide.errors import FormatError, Reason, Rejected
from confide.rats import Finding, Status
from confide.trust.nvidia import NVIDIA_ROOTS
from confide.wire.evidence import GpuEvidence, NvidiaEndorsements, RimDocument
from confide.wire.rim import parse_payload, rim_driver_id, rim_vbios_id
from confide.wire.spdm import GPU, encode_report, parse_report, read_gpu_fields

Case = dict[str, Any]

_DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "vectors" / "nvidia" / "index.json"
_ANY_VERSION = AllowedVersions(("anything",))


def _load() -> list[Case]:
    root = os.environ.get("CONFIDE_VECTORS")
    path = Path(root) / "nvidia" / "index.json" if root else _DEFAULT
    return list(json.loads(path.read_text())["cases"]) if path.is_file() else []


CASES = _load()


def _files(case: Case) -> list[str]:
    found: list[str] = []
    for value in case["files"].values():
        if isinstance(value, list):
            found += value
        elif isinstance(value, str):
            found.append(value)
    return found


def _out_of_scope(case: Case) -> str | None:
    """Why this verifier does not claim the case, or None where it does."""
    if case["kind"] == "token":
        return "token service"
    if case["kind"] in {"device", "set", "appraise"}:
        names = _files(case)
        if any("switch" in name or "ls10" in name for name in names):
            return "NVSwitch evidence"
    return None


EXCLUDED = {case["id"]: why for case in CASES if (why := _out_of_scope(case)) is not None}
IN_SCOPE = [case for case in CASES if case["id"] not in EXCLUDED]


def _of(*kinds: str) -> list[Any]:
    return [pytest.param(case, id=case["id"]) for case in IN_SCOPE if case["kind"] in kinds]


@pytest.fixture(scope="session")
def nvidia(vectors: Path) -> Path:
    return vectors / "nvidia"


def _now(case: Case) -> datetime:
    return datetime.fromisoformat(case["now"])


def _patched(raw: bytes, operations: list[Case]) -> bytes:
    data = bytearray(raw)
    for operation in operations:
        if operation["op"] == "xor":
            for at, byte in enumerate(bytes.fromhex(operation["hex"])):
                data[operation["offset"] + at] ^= byte
        elif operation["op"] == "append":
            data += bytes.fromhex(operation["hex"])
        elif operation["op"] == "truncate":
            del data[operation["length"] :]
        else:
            raise AssertionError(operation)
    return bytes(data)


def _evidence(nvidia: Path, name: str) -> list[GpuEvidence]:
    return [
        GpuEvidence(base64.b64decode(entry["evidence"]), base64.b64decode(entry["certificate"]))
        for entry in json.loads((nvidia / name).read_text())
    ]


def _reasons(case: Case) -> set[str]:
    expect = case["expect"]
    listed = expect.get("acceptable_reasons") or [expect["reason"]]
    return {reason.replace("_", "-") for reason in listed}


def _policy(mode: GpuMode, count: int) -> NvidiaPolicy:
    return NvidiaPolicy(
        chips=frozenset({"GH100", "GB100"}),
        mode=mode,
        gpu_count=count,
        driver=_ANY_VERSION,
        vbios=_ANY_VERSION,
        max_ocsp_age=timedelta(hours=24),
    )


def _appraise(
    case: Case, devices: list[GpuEvidence], rims: tuple[RimDocument, ...] = ()
) -> tuple[Finding, ...]:
    mode = next((mode for mode in GpuMode if mode.lower() in case["id"]), GpuMode.SPT)
    with pytest.raises(Rejected) as caught:  # no case has all endorsements
        appraise_gpus(
            tuple(devices),
            NvidiaEndorsements(rims, ()),
            roots=NVIDIA_ROOTS,
            policy=_policy(mode, len(devices)),
            expected_nonce=bytes.fromhex(case["nonce"]),
            now=_now(case),
        )
    return caught.value.findings


# Steps that fail in these runs because the cases lack OCSP answers, the policy of the test names
# no version, or, for 13d, because an old driver is judged by the default policy.
_NO_OCSP = {"nvidia/9", "nvidia/11d"}
_NO_POLICY = {"nvidia/13c", "nvidia/13d"}
_NO_RIM = {"nvidia/11a", "nvidia/11b", "nvidia/11c", "nvidia/12a", "nvidia/12b", "nvidia/12c"}


def _judge(case: Case, findings: tuple[Finding, ...], ignored: set[str]) -> None:
    failures = [f for f in findings if f.failed and f.step not in ignored]
    if case["expect"]["outcome"] == "accept":
        assert failures == []
        quiet = [f for f in findings if f.status is not Status.PASS and f.step not in ignored]
        assert quiet == []
        # What is ignored failed for lack of input, never for a contradiction.
        allowed = {
            Reason.OCSP_UNAVAILABLE,
            Reason.RIM_MISSING,
            Reason.VERSION_NOT_ALLOWED,
            Reason.FWID_MISSING,
        }
        assert {f.reason for f in findings if f.failed} <= allowed
    else:
        assert failures
        assert str(failures[0].reason) in _reasons(case)


@pytest.mark.parametrize("case", _of("device"))
def test_device(case: Case, nvidia: Path) -> None:
    device = _evidence(nvidia, case["files"]["evidence"])[case["index"]]
    device = GpuEvidence(_patched(device.report, case.get("patch", [])), device.chain_pem)
    findings = _appraise(case, [device])
    ignored = _NO_OCSP | _NO_POLICY | _NO_RIM
    if case["expect"]["outcome"] == "reject" and len(device.report) == 0:
        assert str(findings[0].reason) in _reasons(case)
        return
    if case.get("facts", {}).get("mode") == "PPCIE":
        # A member of a protected PCIe set is genuine; on its own it is no acceptable set.
        topology = next(f for f in findings if f.step == "nvidia/15")
        assert topology.reason is Reason.TOPOLOGY_COUNT
        findings = tuple(f for f in findings if f.step != "nvidia/15")
    _judge(case, findings, ignored)


@pytest.mark.parametrize("case", [c for c in _of("device") if "facts" in c.values[0]])
def test_device_facts(case: Case, nvidia: Path) -> None:
    device = _evidence(nvidia, case["files"]["evidence"])[case["index"]]
    facts = case["facts"]
    report = parse_report(device.report, GPU)
    fields = read_gpu_fields(report)
    assert encode_report(report) == device.report
    assert fields.vbios_version == facts["vbios"]
    assert fields.driver_version == facts["driver"]
    assert [field_id for field_id, _ in report.opaque] == facts["report_fields"]
    assert (fields.fwid is not None) is facts["fwid_present"]
    findings = {f.step: f for f in _appraise(case, [device])}
    assert findings["nvidia/6"].detail == facts["chip"]
    assert findings["nvidia/8"].detail == facts["pdi"]
    assert findings["nvidia/10"].detail == facts["mode"]
    chain = parse_pem_chain(
        device.chain_pem, max_certificates=5, what="chain", reason=Reason.CHAIN_MALFORMED
    )
    assert str(chain[0].serial) == facts["ueid"]
    assert chain[1].subject == facts["hwmodel"]


@pytest.mark.parametrize("case", _of("set"))
def test_set(case: Case, nvidia: Path) -> None:
    devices: list[GpuEvidence] = []
    for number, name in enumerate(case["files"]["evidence"]):
        entries = _evidence(nvidia, name)
        wanted = case["select"][number] if "select" in case else range(len(entries))
        devices += [entries[index] for index in wanted]
    _judge(case, _appraise(case, devices), _NO_OCSP | _NO_POLICY | _NO_RIM)


def _rim(case: Case, nvidia: Path) -> bytes:
    xml: bytes = (nvidia / case["files"]["rim"]).read_bytes()
    for patch in case.get("patch_text", []):
        assert patch["find"].encode() in xml
        xml = xml.replace(patch["find"].encode(), patch["replace"].encode(), patch["count"])
    return xml


def _rim_root() -> Certificate:
    return parse_certificate_der(NVIDIA_ROOTS.rim, what="root", reason=Reason.RIM_CHAIN_INVALID)


def _fresh() -> SignatureMemory:
    return SignatureMemory(VerifiedSignatures())


def _outcome(case: Case, refused: BaseException | None) -> None:
    if case["expect"]["outcome"] == "accept":
        assert refused is None
        return
    assert isinstance(refused, Refused | FormatError)
    assert str(refused.reason) in _reasons(case)


@pytest.mark.parametrize("case", _of("rim"))
def test_rim(case: Case, nvidia: Path) -> None:
    refused: BaseException | None = None
    try:
        verified = verify_rim(_rim(case, nvidia), root=_rim_root(), memory=_fresh())
        if "identity" in case:
            require_identity(verified.rim, **case["identity"])
        require_periods(verified, now=_now(case), unsafe_expired_signer=False)
        facts = case.get("facts", {})
        assert len(verified.rim.active) == facts.get("active", len(verified.rim.active))
        assert verified.rim.version == facts.get("version", verified.rim.version)
    except (Refused, FormatError) as error:
        refused = error
    _outcome(case, refused)


@pytest.mark.parametrize("case", _of("rim-payload"))
def test_rim_payload(case: Case, nvidia: Path) -> None:
    refused: BaseException | None = None
    try:
        entries = parse_payload(parse_tree((nvidia / case["files"]["rim"]).read_bytes()))
        assert len(entries) == case["facts"]["entries"]
    except FormatError as error:
        refused = error
    _outcome(case, refused)


def _labelled(case: Case, nvidia: Path, device: GpuEvidence) -> tuple[RimDocument, ...]:
    """File the manifests of the case under the ids that the report asks for."""
    fields = read_gpu_fields(parse_report(device.report, GPU))
    found = []
    if "driver_rim" in case["files"]:
        rim_id = rim_driver_id("GH100", fields.driver_version)
        found.append(RimDocument(rim_id, (nvidia / case["files"]["driver_rim"]).read_bytes()))
    if "vbios_rim" in case["files"]:
        rim_id = rim_vbios_id(
            fields.project, fields.project_sku, fields.chip_sku, fields.vbios_version
        )
        found.append(RimDocument(rim_id, (nvidia / case["files"]["vbios_rim"]).read_bytes()))
    return tuple(found)


@pytest.mark.parametrize("case", _of("appraise"))
def test_appraise(case: Case, nvidia: Path) -> None:
    device = _evidence(nvidia, case["files"]["evidence"])[case["index"]]
    rims = _labelled(case, nvidia, device)
    if case.get("partial"):
        _judge_partial(case, device, rims)
        return
    findings = _appraise(case, [device], rims)
    _judge(case, findings, _NO_OCSP | _NO_POLICY)
    if "facts" in case:
        details = {f.step: f.detail for f in findings}
        assert details["nvidia/12b"] == "32 compared, 1 skipped"
        assert details["nvidia/12a"] == "21 + 12 active"
        assert details["nvidia/12c"] == "0 uncovered"


def _judge_partial(case: Case, device: GpuEvidence, rims: tuple[RimDocument, ...]) -> None:
    """One manifest of the two: the comparison alone, and the whole appraisal must refuse it."""
    (document,) = rims
    report = parse_report(device.report, GPU)
    vbios = verify_rim(document.xml, root=_rim_root(), memory=_fresh()).rim
    found = compare(report, read_gpu_fields(report), driver=None, vbios=vbios)
    assert case["expect"]["reason"] == "measurement_mismatch"
    assert [index for index, _ in found.mismatches] == case["facts"]["mismatch"]
    assert found.compared == case["facts"]["compared"]
    assert Reason.RIM_MISSING in {f.reason for f in _appraise(case, [device], rims)}


def _ocsp_subject(case: Case, nvidia: Path) -> tuple[Certificate, Certificate]:
    subject = case["files"]["subject"]
    number = subject["cert"]
    if "evidence" in subject:
        device = _evidence(nvidia, subject["evidence"])[subject["index"]]
        chain = parse_pem_chain(
            device.chain_pem, max_certificates=5, what="chain", reason=Reason.CHAIN_MALFORMED
        )
    else:
        chain = verify_enveloped((nvidia / subject["rim"]).read_bytes()).certificates
    return chain[number], chain[number + 1]


@pytest.mark.parametrize("case", _of("ocsp"))
def test_ocsp(case: Case, nvidia: Path) -> None:
    der = _patched((nvidia / case["files"]["response"]).read_bytes(), case.get("patch", []))
    certificate, issuer = _ocsp_subject(case, nvidia)
    nonce = bytes.fromhex(case["require_nonce"]) if "require_nonce" in case else None
    refused: BaseException | None = None
    try:
        require_good(
            der,
            certificate,
            issuer,
            now=_now(case),
            max_age=timedelta(hours=24),
            memory=_fresh(),
            nonce=nonce,
        )
    except (Refused, FormatError) as error:
        refused = error
    _outcome(case, refused)


@pytest.mark.usefixtures("nvidia")
def test_every_case_is_run_or_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(CASES) == 107
    ran = {param.id for kinds in _KINDS for param in _of(kinds)}
    assert ran.isdisjoint(EXCLUDED)
    assert ran | EXCLUDED.keys() == {case["id"] for case in CASES}
    with capsys.disabled():
        sys.stdout.write(
            f"\nNVIDIA vectors: {len(ran)} run, {len(EXCLUDED)} OUT OF SCOPE, NOT RUN:\n"
            + "".join(f"  {name}: {why}\n" for name, why in sorted(EXCLUDED.items()))
        )
    assert len(EXCLUDED) == 21


@pytest.mark.parametrize("name", ["ls10-96.10.55.00.01", "h200-570.124.06-ppcie-switches"])
def test_a_switch_is_never_taken_for_a_gpu(name: str, nvidia: Path) -> None:
    device = _evidence(nvidia, f"evidence/{name}.json")[0]
    case = {"id": name, "nonce": "00" * 32, "now": "2026-11-22T00:00:00Z"}
    reasons = {finding.reason for finding in _appraise(case, [device])}
    assert {Reason.REPORT_MALFORMED, Reason.PDI_MISMATCH} <= reasons


_KINDS = ("device", "set", "appraise", "rim", "rim-payload", "ocsp")


def test_roots_are_those_of_the_vectors(nvidia: Path) -> None:
    index = json.loads((nvidia / "index.json").read_text())
    for name, der in (("device", NVIDIA_ROOTS.device), ("rim", NVIDIA_ROOTS.rim)):
        pem = (nvidia / index["roots"][name]).read_bytes()
        (root,) = parse_pem_chain(
            pem, max_certificates=1, what="root", reason=Reason.CHAIN_MALFORMED
        )
        assert root.der == der
    assert NVIDIA_ROOTS.sha256 == (
        "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48",
        "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1",
    )
    assert not NVIDIA_ROOTS.simulated
