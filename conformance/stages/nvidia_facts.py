"""What was read from NVIDIA evidence and manifests, under the names that cases use for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confide.appraisal.nvidia_measurements import compare
from confide.crypto.x509 import parse_pem_chain
from confide.errors import FormatError, Reason
from confide.wire.spdm import GPU, Switchable, parse_report, read_gpu_fields
from confide.wire.spdm_switch import SWITCH, read_switch_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confide.appraisal.nvidia_rim import VerifiedRim
    from confide.rats import Finding
    from confide.wire.evidence import GpuEvidence
    from confide.wire.spdm import GpuFields

__all__ = ["comparison_facts", "device_facts", "differences", "rim_facts"]


def differences(stated: Mapping[str, Any], seen: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line for each fact that a case states and that was not what was read."""
    return tuple(
        f"{name}: stated {value}, read {seen.get(name, 'nothing of that name')}"
        for name, value in stated.items()
        if name not in seen or seen[name] != value
    )


def device_facts(device: GpuEvidence, findings: Sequence[Finding]) -> dict[str, Any]:
    """
    Return what `device` says.

    `chip`, `pdi` and `mode` are what the appraisal established, and of a device that failed what
    stands in its bytes.
    """
    steps = {finding.step: finding.detail for finding in findings if not finding.failed}
    established = {
        name: steps[step]
        for name, step in (("chip", "nvidia/6"), ("pdi", "nvidia/8a"), ("mode", "nvidia/10"))
        if steps.get(step) and not steps[step].startswith("not run")
    }
    seen: dict[str, Any] = {}
    try:
        chain = parse_pem_chain(
            device.chain_pem, max_certificates=5, what="chain", reason=Reason.CHAIN_MALFORMED
        )
        seen |= {"ueid": str(chain[0].serial), "hwmodel": chain[1].subject}
        seen |= {"chip": chain[0].subject.split(" ")[0].replace("_", "")}
        seen |= {"pdi": f"{chain[1].serial % (1 << 64):016x}"}
        seen |= _switch_facts(device) if device.kind == "switch" else _gpu_facts(device)
    except (FormatError, IndexError):
        return {**seen, **established}
    return {**established, **seen} if device.kind == "switch" else {**seen, **established}


def _gpu_facts(device: GpuEvidence) -> dict[str, Any]:
    report = parse_report(device.report, GPU)
    fields = read_gpu_fields(report)
    return {
        "nonce": report.nonce.hex(),
        "report_fields": [field_id for field_id, _ in report.opaque],
        "blocks": len(report.blocks),
        "driver": fields.driver_version,
        "vbios": fields.vbios_version,
        "fwid_present": fields.fwid is not None,
        "fwid": fields.fwid.hex() if fields.fwid is not None else None,
        "project": fields.project,
        "project_sku": fields.project_sku,
        "chip_sku": fields.chip_sku,
        "opaque_version": fields.opaque_version,
        "chip_info": fields.chip_info,
        "nvdec0": f"{fields.nvdec0:02x}",
        "feature_flag": fields.feature_flag,
        "protected_pcie": f"{fields.protected_pcie:02x}" if fields.protected_pcie else None,
        "switch_pdis": sorted(pdi.hex() for pdi in fields.switch_pdis),
        "mode": _mode(fields),
    }


def _mode(fields: GpuFields) -> str:
    if fields.opaque_version == 1 and fields.feature_flag is not None:
        return fields.feature_flag.name
    return "PPCIE" if fields.protected_pcie is Switchable.ON else "SPT"


def _switch_facts(device: GpuEvidence) -> dict[str, Any]:
    report = parse_report(device.report, SWITCH)
    fields = read_switch_fields(report)
    return {
        "nonce": report.nonce.hex(),
        "report_fields": [field_id for field_id, _ in report.opaque],
        "blocks": len(report.blocks),
        "mode": "SWITCH",
        "vbios": fields.bios_version,
        "bios": fields.bios_version,
        "fwid_present": False,
        "locked": fields.locked,
        "gpu_pdis": [pdi.hex() for pdi in fields.gpu_pdis],
    }


def comparison_facts(device: GpuEvidence, opened: Mapping[str, VerifiedRim]) -> dict[str, Any]:
    """Return what the comparison of `device` with the manifests named finds."""
    decoder_off = False
    if device.kind == "switch":
        report = parse_report(device.report, SWITCH)
    else:
        report = parse_report(device.report, GPU)
        decoder_off = read_gpu_fields(report).nvdec0 is Switchable.OFF
    driver = opened.get("driver_rim")
    firmware = opened.get("vbios_rim") or opened.get("bios_rim")
    found = compare(
        report.blocks,
        decoder_off=decoder_off,
        driver=driver.rim if driver else None,
        firmware=firmware.rim if firmware else None,
    )
    seen: dict[str, Any] = {
        "compared": found.compared,
        "skipped": list(found.skipped),
        "mismatch": [index for index, _ in found.mismatches],
        "uncovered_nonzero": list(found.uncovered),
    }
    for name, verified in opened.items():
        seen[f"active_{name.removesuffix('_rim')}"] = len(verified.rim.active)
    return seen


def rim_facts(verified: VerifiedRim) -> dict[str, Any]:
    """Return what a manifest says, and until when its signer and the signer's issuer are valid."""
    signer, issuer = verified.chain[0], verified.chain[1]
    return {
        "version": verified.rim.version,
        "edition": verified.rim.edition,
        "product": verified.rim.product,
        "entries": len(verified.rim.measurements),
        "active": len(verified.rim.active),
        "sha256": verified.sha256,
        "signer_not_before": signer.not_before.isoformat(),
        "signer_not_after": signer.not_after.isoformat(),
        "issuer_not_before": issuer.not_before.isoformat(),
        "issuer_not_after": issuer.not_after.isoformat(),
    }
