"""NVIDIA cases: genuine evidence, manifests and OCSP answers, each to the verdict its index states.

Format: the README beside the index. Cases of kind `device`, `set` and `appraise` go through the
public `appraise_gpus`. Most of them come without OCSP answers, without manifests or without any
policy, so the production entry refuses them all; what a case does not supply is left out of the
judgement by the number of the step, never in the code that is judged.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

from confide.appraisal.nvidia import AllowedVersions, GpuMode, NvidiaPolicy, appraise_gpus
from confide.appraisal.nvidia_chain import SignatureMemory, VerifiedSignatures
from confide.appraisal.nvidia_ocsp import require_good
from confide.appraisal.nvidia_rim import require_identity, require_periods, verify_rim
from confide.appraisal.steps import Refused
from confide.crypto.ocsp import parse_ocsp
from confide.crypto.x509 import Certificate, parse_certificate_der, parse_pem_chain
from confide.crypto.xmldsig import parse_tree, verify_enveloped
from confide.errors import FormatError, Reason, Rejected
from confide.rats import Status
from confide.trust.nvidia import NVIDIA_ROOTS, NvidiaRoots
from confide.wire.evidence import GpuEvidence, NvidiaEndorsements, RimDocument
from confide.wire.rim import parse_payload, rim_driver_id, rim_switch_id, rim_vbios_id
from confide.wire.spdm import GPU, parse_report, read_gpu_fields
from confide.wire.spdm_switch import SWITCH, read_switch_fields
from conformance.stages.nvidia_facts import comparison_facts, device_facts, differences, rim_facts
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from confide.appraisal.nvidia_rim import VerifiedRim
    from confide.rats import Finding

__all__ = ["judge"]

Case = dict[str, Any]

_MAX_AGE = timedelta(hours=24)
_ALL_CHIPS = frozenset({"GH100", "GB100", "LS10"})
# What the collector says it is; the certificates decide (step 13a).
_ARCHITECTURES = {
    "HOPPER": ("gpu", frozenset({"GH100"})),
    "BLACKWELL": ("gpu", frozenset({"GB100"})),
    "LS10": ("switch", frozenset({"LS10"})),
}
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


def _rejected(error: Refused | FormatError, found: Sequence[str] = ()) -> Verdict:
    detail = error.detail if isinstance(error, Refused) else error.what
    return Verdict("reject", str(error.reason), (str(error.reason),), detail, tuple(found))


def _now(case: Case) -> datetime:
    return datetime.fromisoformat(case["now"])


def _roots(case: Case, folder: Path) -> NvidiaRoots:
    named = case.get("_index", {}).get("roots")
    if not named:
        return NVIDIA_ROOTS
    ders = []
    for name in ("device", "rim"):
        pem = (folder / named[name]).read_bytes()
        ders.append(_chain(pem, at_most=1)[0].der)
    pinned = (NVIDIA_ROOTS.device, NVIDIA_ROOTS.rim)
    return NvidiaRoots(device=ders[0], rim=ders[1], simulated=tuple(ders) != pinned)


def _chain(pem: bytes, *, at_most: int = 5) -> tuple[Certificate, ...]:
    return parse_pem_chain(
        pem, max_certificates=at_most, what="chain", reason=Reason.CHAIN_MALFORMED
    )


def _patched(raw: bytes, operations: Iterable[Case]) -> bytes:
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
            raise Unclear(f"an operation that is not defined: {operation['op']}")
    return bytes(data)


def _replaced(text: bytes, case: Case) -> bytes:
    text = _patched(text, case.get("patch", ()))
    for edit in case.get("patch_text", ()):
        count = edit.get("count", -1)
        text = text.replace(edit["find"].encode(), edit["replace"].encode(), count)
    return text


def _entry(item: Case) -> tuple[GpuEvidence, frozenset[str]]:
    try:
        kind, chips = _ARCHITECTURES[item.get("arch", "HOPPER").upper()]
    except KeyError as error:
        raise Refused(Reason.ARCH_MISMATCH, "an architecture that is not known") from error
    try:
        report = base64.b64decode(item["evidence"], validate=True)
        chain = base64.b64decode(item["certificate"], validate=True)
    except (binascii.Error, KeyError) as error:
        raise Refused(Reason.REPORT_MALFORMED, "not base64") from error
    return GpuEvidence(report, chain, "switch" if kind == "switch" else "gpu"), chips


def _entries(case: Case, folder: Path) -> list[list[tuple[GpuEvidence, frozenset[str]]]]:
    """Return the devices of each evidence file, with the edits that the case asks for."""
    names = case["files"]["evidence"]
    names = [names] if isinstance(names, str) else names
    found = [
        [_entry(item) for item in json.loads((folder / name).read_text("utf-8"))] for name in names
    ]
    edits = case.get("patch_device", [])
    for edit in edits if isinstance(edits, list) else [edits]:
        device, chips = found[edit.get("file", 0)][edit["index"]]
        report = _patched(device.report, edit["patch"])
        edited = GpuEvidence(report, device.chain_pem, device.kind)
        found[edit.get("file", 0)][edit["index"]] = (edited, chips)
    return found


def _one_device(case: Case, folder: Path) -> tuple[GpuEvidence, frozenset[str]]:
    device, chips = _entries(case, folder)[0][case.get("index", 0)]
    report = _patched(device.report, case.get("patch", ()))
    return GpuEvidence(report, device.chain_pem, device.kind), chips


def _appraise(
    case: Case,
    folder: Path,
    devices: Sequence[GpuEvidence],
    chips: frozenset[str],
    *,
    mode: GpuMode = GpuMode.SPT,
    rims: tuple[RimDocument, ...] = (),
) -> tuple[Finding, ...]:
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
            roots=_roots(case, folder),
            policy=policy,
            expected_nonce=bytes.fromhex(case["nonce"]),
            now=_now(case),
        )
    except Rejected as refused:
        return refused.findings
    raise ValueError("a set without revocation answers was accepted")


def _verdict(
    findings: Sequence[Finding], left_out: frozenset[str], found: Sequence[str] = ()
) -> Verdict:
    judged = [finding for finding in findings if finding.step not in left_out]
    failed = [finding for finding in judged if finding.failed]
    if failed:
        return Verdict(
            "reject",
            str(failed[0].reason),
            tuple(str(finding.reason) for finding in failed),
            f"{failed[0].subject} {failed[0].step}: {failed[0].detail}",
            tuple(found),
        )
    open_steps = {finding.step for finding in judged if finding.status is not Status.PASS}
    odd = {finding.reason for finding in findings if finding.failed} - _LACKING
    if open_steps or odd:
        found = (*found, f"steps {sorted(open_steps)} did not run, or {odd}")
    return Verdict("accept", differences=tuple(found))


def _judge_device(case: Case, folder: Path) -> Verdict:
    device, chips = _one_device(case, folder)
    findings = _appraise(case, folder, [device], chips)
    facts = case.get("facts", {})
    found = differences(facts, device_facts(device, findings)) if facts else ()
    return _verdict(findings, _NO_OCSP | _NO_POLICY | _NO_RIM | _NO_MODE | _NO_SET, found)


def _judge_set(case: Case, folder: Path) -> Verdict:
    files = _entries(case, folder)
    chosen = case.get("select") or [range(len(entries)) for entries in files]
    devices, chips = [], frozenset[str]()
    for entries, indexes in zip(files, chosen, strict=True):
        for index in indexes:
            devices.append(entries[index][0])
            chips |= entries[index][1]
    mode = GpuMode(case["mode"]) if "mode" in case else GpuMode.SPT
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


def _labelled(case: Case, folder: Path, device: GpuEvidence) -> tuple[RimDocument, ...]:
    """File the manifests of the case under the ids that the report asks for."""
    try:
        ids = _rim_ids(device)
    except FormatError:
        return ()
    return tuple(
        RimDocument(ids[name], _replaced((folder / case["files"][name]).read_bytes(), {}))
        for name in ("driver_rim", "vbios_rim", "bios_rim")
        if name in case["files"] and name in ids
    )


def _rim_ids(device: GpuEvidence) -> dict[str, str]:
    if device.kind == "switch":
        switch = read_switch_fields(parse_report(device.report, SWITCH))
        return {"bios_rim": rim_switch_id(switch.bios_version)}
    fields = read_gpu_fields(parse_report(device.report, GPU))
    parts = _chain(device.chain_pem)[0].subject.split(" ")
    return {
        "driver_rim": rim_driver_id(fields.chip_info or parts[0], fields.driver_version),
        "vbios_rim": rim_vbios_id(
            fields.project, fields.project_sku, fields.chip_sku, fields.vbios_version
        ),
    }


def _judge_appraisal(case: Case, folder: Path) -> Verdict:
    device, chips = _one_device(case, folder)
    rims = _labelled(case, folder, device)
    findings = _appraise(case, folder, [device], chips, rims=rims)
    left_out = _NO_OCSP | _NO_POLICY | _NO_MODE | _NO_SET
    if case.get("partial"):
        named = {"nvidia/11a"} if "driver_rim" in case["files"] else set[str]()
        if {"vbios_rim", "bios_rim"} & case["files"].keys():
            named.add("nvidia/11b")
        verdict = _verdict(findings, left_out | (_NO_RIM - named))
        return verdict if verdict.outcome == "reject" else _compare(case, folder, device, rims)
    opened = _opened(case, folder, rims) if case.get("facts") else {}
    seen = comparison_facts(device, opened) if opened else {}
    return _verdict(findings, left_out, differences(case.get("facts", {}), seen))


def _opened(case: Case, folder: Path, rims: tuple[RimDocument, ...]) -> dict[str, VerifiedRim]:
    root = _rim_root(case, folder)
    names = [n for n in ("driver_rim", "vbios_rim", "bios_rim") if n in case["files"]]
    return {
        name: verify_rim(document.xml, root=root, memory=_fresh())
        for name, document in zip(names, rims, strict=True)
    }


def _compare(
    case: Case, folder: Path, device: GpuEvidence, rims: tuple[RimDocument, ...]
) -> Verdict:
    """Compare with the manifests named alone: no complete appraisal, and none is claimed."""
    opened = _opened(case, folder, rims)
    for verified in opened.values():
        require_periods(verified, now=_now(case), unsafe_expired_signer=False)
    seen = comparison_facts(device, opened)
    found = differences(case.get("facts", {}), seen)
    if seen["mismatch"] or not seen["compared"]:
        reason = str(Reason.MEASUREMENT_MISMATCH)
        return Verdict("reject", reason, (reason,), f"indexes {seen['mismatch']}", found)
    return Verdict("accept", differences=found)


def _fresh() -> SignatureMemory:
    return SignatureMemory(VerifiedSignatures())


def _rim_root(case: Case, folder: Path) -> Certificate:
    der = _roots(case, folder).rim
    return parse_certificate_der(der, what="manifest root", reason=Reason.RIM_CHAIN_INVALID)


def _judge_rim(case: Case, folder: Path) -> Verdict:
    xml = _replaced((folder / case["files"]["rim"]).read_bytes(), case)
    verified = verify_rim(xml, root=_rim_root(case, folder), memory=_fresh())
    found = differences(case.get("facts", {}), rim_facts(verified))
    try:
        if "identity" in case:
            wanted, rim = case["identity"], verified.rim
            require_identity(
                rim,
                version=wanted.get("version", rim.version),
                edition=wanted.get("edition", rim.edition),
                product=wanted.get("product", rim.product),
            )
        require_periods(verified, now=_now(case), unsafe_expired_signer=False)
    except (Refused, FormatError) as error:
        return _rejected(error, found)
    return Verdict("accept", differences=found)


def _judge_payload(case: Case, folder: Path) -> Verdict:
    xml = _replaced((folder / case["files"]["rim"]).read_bytes(), case)
    entries = parse_payload(parse_tree(xml))
    seen = {"entries": len(entries), "active": sum(entry.active for entry in entries)}
    return Verdict("accept", differences=differences(case.get("facts", {}), seen))


def _judge_ocsp(case: Case, folder: Path) -> Verdict:
    der = _patched((folder / case["files"]["response"]).read_bytes(), case.get("patch", ()))
    subject = case["files"]["subject"]
    if "evidence" in subject:
        items = json.loads((folder / subject["evidence"]).read_text("utf-8"))
        chain = _chain(_entry(items[subject.get("index", 0)])[0].chain_pem)
    else:
        chain = verify_enveloped((folder / subject["rim"]).read_bytes()).certificates
    number = subject["cert"]
    nonce = case.get("require_nonce")
    require_good(
        der,
        chain[number],
        # A root is its own issuer.
        chain[min(number + 1, len(chain) - 1)],
        now=_now(case),
        max_age=_MAX_AGE,
        memory=_fresh(),
        nonce=None if nonce is None else bytes.fromhex(nonce),
    )
    response = parse_ocsp(der)
    seen = {
        "status": str(response.status),
        "this_update": response.this_update.isoformat(),
        "next_update": response.next_update.isoformat() if response.next_update else None,
        "nonce": response.nonce.hex() if response.nonce else None,
    }
    return Verdict("accept", differences=differences(case.get("facts", {}), seen))
