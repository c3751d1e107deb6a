"""NVIDIA cases: genuine evidence, manifests and OCSP answers, each to the verdict its index states.

Format: the README beside the index. Cases of kind `device`, `set` and `appraise` go through the
public `appraise_gpus`. Most of them come without OCSP answers, without manifests or without any
policy, so the production entry refuses them all; what a case does not supply is left out of the
judgement by the number of the step, never in the code that is judged.
"""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING

from confide.appraisal.nvidia import (
    NONCE_BYTES,
    AllowedVersions,
    GpuMode,
    NvidiaPolicy,
    appraise_gpus,
)
from confide.appraisal.nvidia_chain import SignatureMemory, VerifiedSignatures
from confide.appraisal.nvidia_ocsp import require_good
from confide.appraisal.nvidia_rim import require_identity, require_periods, verify_rim
from confide.appraisal.steps import Refused
from confide.crypto.ocsp import OcspStatus, is_about, parse_ocsp
from confide.crypto.x509 import Certificate, parse_certificate_der
from confide.crypto.xmldsig import parse_tree
from confide.errors import FormatError, Reason, Rejected
from confide.rats import Status
from confide.wire.evidence import NvidiaEndorsements, RimDocument
from confide.wire.rim import parse_payload, rim_driver_id, rim_switch_id, rim_vbios_id
from confide.wire.spdm import GPU, parse_report, read_gpu_fields
from confide.wire.spdm_switch import SWITCH, read_switch_fields
from conformance.stages.nvidia_facts import comparison_facts, device_facts, differences, rim_facts
from conformance.stages.nvidia_inputs import (
    Case,
    devices_of,
    instant,
    one_device,
    patched,
    pem_chain,
    replaced,
    roots,
    subject_chain,
)
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from confide.appraisal.nvidia_rim import VerifiedRim
    from confide.crypto.ocsp import OcspResponse
    from confide.rats import Finding
    from confide.wire.evidence import GpuEvidence

__all__ = ["judge"]

# An answer holds for as long as it says: no case has a policy about its age.
_MAX_AGE = timedelta(days=36500)
_ALL_CHIPS = frozenset({"GH100", "GB100", "LS10"})
# What a case cannot supply: OCSP answers of devices and manifests, and a relying party's wishes.
_NO_OCSP = frozenset({"nvidia/9", "nvidia/11d"})
_NO_POLICY = frozenset({"nvidia/13c", "nvidia/13d", "nvidia/16"})
_NO_RIM = frozenset(f"nvidia/{step}" for step in ("11a", "11b", "11c", "12a", "12b", "12c"))
_NO_MODE = frozenset({"nvidia/13b"})
_NO_SET = frozenset({"nvidia/15a", "nvidia/15b", "nvidia/15c", "nvidia/15d"})
# The only reasons for which a step may fail that is left out.
_LACKING = frozenset(
    {
        Reason.OCSP_UNAVAILABLE,
        Reason.RIM_MISSING,
        Reason.VERSION_NOT_ALLOWED,
        Reason.FWID_MISSING,
        Reason.MODE_MISMATCH,
        Reason.GPU_MISSING,
        Reason.TOPOLOGY_COUNT,
        Reason.TOPOLOGY_PDI_MISMATCH,
    }
)


def judge(case: Case, folder: Path) -> Verdict:
    """Judge one case; files are relative to `folder`, the folder of the index."""
    kind = case["kind"]
    if kind == "token":
        # Imported here: tokens are another verifier's business.
        verdict: Verdict = import_module("conformance.stages.nras").judge(case, folder)
        return verdict
    judges = {
        "device": _judge_device,
        "set": _judge_set,
        "appraise": _judge_appraisal,
        "rim": _judge_rim,
        "rim-payload": _judge_payload,
        "ocsp": _judge_ocsp,
    }
    if kind not in judges:
        raise Unclear(f"a kind that is not defined: {kind}")
    try:
        return judges[kind](case, folder)
    except (Refused, FormatError) as error:
        return _rejected(error)


def _rejected(
    error: Refused | FormatError, found: Sequence[str] = (), also: Sequence[Reason] = ()
) -> Verdict:
    detail = error.detail if isinstance(error, Refused) else error.what
    reasons = tuple(dict.fromkeys(map(str, (error.reason, *also))))
    return Verdict("reject", reasons[0], reasons, detail, tuple(found))


def _appraise(
    case: Case,
    folder: Path,
    devices: Sequence[GpuEvidence],
    chips: frozenset[str],
    *,
    mode: GpuMode = GpuMode.SPT,
    rims: tuple[RimDocument, ...] = (),
) -> tuple[Finding, ...]:
    nonce = bytes.fromhex(case["nonce"])
    if len(nonce) != NONCE_BYTES:
        raise Refused(Reason.NONCE_MISMATCH, "no report has a nonce of this length")
    switches = sum(device.kind == "switch" for device in devices)
    policy = NvidiaPolicy(
        chips=chips,
        mode=mode,
        gpu_count=max(1, len(devices) - switches),
        driver=AllowedVersions(("any",)),
        vbios=AllowedVersions(("any",)),
        max_ocsp_age=_MAX_AGE,
        switch_count=switches,
        switch_bios=AllowedVersions(("any",)) if switches else None,
        # Judged by the facts of a case.
        uncovered_allowed=tuple(range(64)),
    )
    try:
        appraise_gpus(
            tuple(devices),
            NvidiaEndorsements(rims, ()),
            roots=roots(case, folder),
            policy=policy,
            expected_nonce=nonce,
            now=instant(case),
        )
    except Rejected as refused:
        return refused.findings
    raise ValueError("a set without revocation answers was accepted")


def _verdict(
    findings: Sequence[Finding],
    left_out: frozenset[str],
    found: Sequence[str] = (),
    also: Sequence[Reason] = (),
) -> Verdict:
    judged = [finding for finding in findings if finding.step not in left_out]
    failed = [finding for finding in judged if finding.failed]
    if failed:
        reasons = [str(finding.reason) for finding in failed] + [*map(str, also)]
        if Reason.GPU_MISSING in reasons:
            # The reference has one word for evidence that is not there, and we one for GPUs.
            reasons.append("evidence-unavailable")
        return Verdict(
            "reject",
            reasons[0],
            tuple(reasons),
            f"{failed[0].subject} {failed[0].step}: {failed[0].detail}",
            tuple(found),
        )
    open_steps = {finding.step for finding in judged if finding.status is not Status.PASS}
    odd = {finding.reason for finding in findings if finding.failed} - _LACKING
    if open_steps or odd:
        found = (*found, f"steps {sorted(open_steps)} did not run, or {odd}")
    return Verdict("accept", differences=tuple(found))


def _judge_device(case: Case, folder: Path) -> Verdict:
    device, chips = one_device(case, folder)
    findings = _appraise(case, folder, [device], chips)
    facts = case.get("facts", {})
    found = differences(facts, device_facts(device, findings)) if facts else ()
    return _verdict(findings, _NO_OCSP | _NO_POLICY | _NO_RIM | _NO_MODE | _NO_SET, found)


def _judge_set(case: Case, folder: Path) -> Verdict:
    files = devices_of(case, folder)
    chosen = case.get("select") or [range(len(entries)) for entries in files]
    devices, chips = [], frozenset[str]()
    for entries, indexes in zip(files, chosen, strict=True):
        for index in indexes:
            devices.append(entries[index][0])
            chips |= entries[index][1]
    mode = GpuMode(case["mode"].upper()) if "mode" in case else GpuMode.SPT
    findings = _appraise(case, folder, devices, chips or _ALL_CHIPS, mode=mode)
    left_out = _NO_OCSP | _NO_POLICY | _NO_RIM
    switches = sum(device.kind == "switch" for device in devices)
    seen = {
        "mode": _only(f.detail for f in findings if f.step == "nvidia/10" and "gpu" in f.subject),
        "gpus": len(devices) - switches,
        "switches": switches,
        "devices": len(devices),
    }
    found = differences(case.get("facts", {}), seen)
    return _verdict(findings, left_out if "mode" in case else left_out | _NO_MODE, found)


def _only(values: Iterable[str]) -> str:
    distinct = {value for value in values if value in set(GpuMode)}
    return distinct.pop() if len(distinct) == 1 else f"{sorted(distinct)}"


_RIMS = ("driver_rim", "vbios_rim", "bios_rim")


def _labelled(case: Case, folder: Path, device: GpuEvidence) -> dict[str, RimDocument]:
    """File the manifests of the case under the ids that the report asks for."""
    try:
        ids = _rim_ids(device)
    except FormatError:
        return {}
    return {
        name: RimDocument(ids[name], _edited_rim(case, folder, name))
        for name in _RIMS
        if name in case["files"] and name in ids
    }


def _edited_rim(case: Case, folder: Path, name: str) -> bytes:
    raw = (folder / case["files"][name]).read_bytes()
    return replaced(raw, case.get("patch_text", []))


def _rim_ids(device: GpuEvidence) -> dict[str, str]:
    if device.kind == "switch":
        switch = read_switch_fields(parse_report(device.report, SWITCH))
        return {"bios_rim": rim_switch_id(switch.bios_version)}
    fields = read_gpu_fields(parse_report(device.report, GPU))
    parts = pem_chain(device.chain_pem)[0].subject.split(" ")
    return {
        "driver_rim": rim_driver_id(fields.chip_info or parts[0], fields.driver_version),
        "vbios_rim": rim_vbios_id(
            fields.project, fields.project_sku, fields.chip_sku, fields.vbios_version
        ),
    }


def _judge_appraisal(case: Case, folder: Path) -> Verdict:
    device, chips = one_device(case, folder)
    rims = _labelled(case, folder, device)
    findings = _appraise(case, folder, [device], chips, rims=tuple(rims.values()))
    left_out = _NO_OCSP | _NO_POLICY | _NO_MODE | _NO_SET
    partial = bool(case.get("partial"))
    if partial:
        named = {"nvidia/11a"} if "driver_rim" in case["files"] else set[str]()
        if {"vbios_rim", "bios_rim"} & case["files"].keys():
            named.add("nvidia/11b")
        left_out |= _NO_RIM - named
    seen, alone = _each_manifest(case, folder, device, rims)
    found = differences(case.get("facts", {}), seen)
    verdict = _verdict(findings, left_out, found, alone)
    if verdict.outcome == "reject" or not partial:
        return verdict
    # No complete appraisal, and none is claimed: the manifests named, compared alone.
    if alone or not seen.get("compared"):
        failed = alone[0] if alone else Reason.MEASUREMENT_MISMATCH
        detail = f"indexes {seen.get('mismatch')}"
        return Verdict(
            "reject", str(failed), tuple(map(str, alone)) or (str(failed),), detail, found
        )
    return Verdict("accept", differences=found)


def _each_manifest(
    case: Case, folder: Path, device: GpuEvidence, rims: Mapping[str, RimDocument]
) -> tuple[dict[str, Any], list[Reason]]:
    """
    Return what is read from each manifest on its own, and for what reasons each would be refused.

    The appraisal stops at a manifest that it cannot open, and then says nothing about the other.
    """
    opened: dict[str, VerifiedRim] = {}
    alone: list[Reason] = []
    for name, document in rims.items():
        try:
            opened[name] = verify_rim(document.xml, root=_rim_root(case, folder), memory=_fresh())
            require_periods(opened[name], now=instant(case), unsafe_expired_signer=False)
        except (Refused, FormatError) as error:
            alone.append(error.reason)
    try:
        seen = comparison_facts(device, opened) if opened else {}
    except FormatError as error:
        return {}, [*alone, error.reason]
    if seen.get("mismatch"):
        alone.append(Reason.MEASUREMENT_MISMATCH)
    return seen, alone


def _fresh() -> SignatureMemory:
    return SignatureMemory(VerifiedSignatures())


def _rim_root(case: Case, folder: Path) -> Certificate:
    der = roots(case, folder).rim
    return parse_certificate_der(der, what="manifest root", reason=Reason.RIM_CHAIN_INVALID)


def _judge_rim(case: Case, folder: Path) -> Verdict:
    xml = _edited_rim(case, folder, "rim")
    xml = patched(xml, case.get("patch", []))
    verified = verify_rim(xml, root=_rim_root(case, folder), memory=_fresh())
    found = differences(case.get("facts", {}), rim_facts(verified))
    wanted, rim = case.get("identity", {}), verified.rim
    failed: list[Refused] = []
    try:
        require_identity(
            rim,
            version=wanted.get("version", rim.version),
            edition=wanted.get("edition", rim.edition),
            product=wanted.get("product", rim.product),
        )
    except Refused as error:
        failed.append(error)
    try:
        require_periods(verified, now=instant(case), unsafe_expired_signer=False)
    except Refused as error:
        failed.append(error)
    if failed:
        return _rejected(failed[0], found, [error.reason for error in failed])
    return Verdict("accept", differences=found)


def _judge_payload(case: Case, folder: Path) -> Verdict:
    xml = patched(_edited_rim(case, folder, "rim"), case.get("patch", []))
    entries = parse_payload(parse_tree(xml))
    seen = {"entries": len(entries), "active": sum(entry.active for entry in entries)}
    return Verdict("accept", differences=differences(case.get("facts", {}), seen))


def _judge_ocsp(case: Case, folder: Path) -> Verdict:
    der = patched((folder / case["files"]["response"]).read_bytes(), case.get("patch", []))
    subject = case["files"]["subject"]
    chain = subject_chain(subject, folder)
    number = subject["cert"]
    # A root is its own issuer.
    certificate, issuer = chain[number], chain[min(number + 1, len(chain) - 1)]
    nonce = bytes.fromhex(case["require_nonce"]) if case.get("require_nonce") else None
    try:
        require_good(
            der,
            certificate,
            issuer,
            now=instant(case),
            max_age=_MAX_AGE,
            memory=_fresh(),
            nonce=nonce,
        )
    except Refused as error:
        # The check ends at the first failure; what else the answer says is told beside it.
        return _rejected(error, (), _all_of(parse_ocsp(der), certificate, issuer, case, nonce))
    response = parse_ocsp(der)
    seen = {
        "status": str(response.status),
        "this_update": response.this_update.isoformat(),
        "next_update": response.next_update.isoformat() if response.next_update else None,
        "nonce": response.nonce.hex() if response.nonce else None,
    }
    return Verdict("accept", differences=differences(case.get("facts", {}), seen))


def _all_of(
    response: OcspResponse,
    certificate: Certificate,
    issuer: Certificate,
    case: Case,
    nonce: bytes | None,
) -> list[Reason]:
    now, end = instant(case), response.next_update
    held = {
        Reason.OCSP_CERTID_MISMATCH: is_about(response, certificate, issuer),
        Reason.OCSP_STALE: end is not None and response.this_update <= now <= end,
        Reason.OCSP_NONCE_MISMATCH: nonce in {None, response.nonce},
        Reason.OCSP_REVOKED: response.status is not OcspStatus.REVOKED,
        Reason.OCSP_HOLD: response.status is not OcspStatus.HOLD,
        Reason.OCSP_UNKNOWN: response.status is not OcspStatus.UNKNOWN,
    }
    return [reason for reason, holds in held.items() if not holds]
