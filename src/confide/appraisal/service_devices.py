"""The NVIDIA devices of one attester: genuine, measured, fresh, complete, bound to the processor.

Clauses: docs/protocols/services.md §5, step 9. The checks are docs/protocols/nvidia.md; here their
findings become claims. A policy may accept several modes and counts; the report in hand only
picks among those, and then has to meet the one that was picked.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.nvidia import NONCE_BYTES, appraise_gpus
from confide.appraisal.nvidia_chips import CHIPS
from confide.appraisal.nvidia_policy import (
    AllowedVersions,
    GpuMode,
    MinimumVersion,
    NvidiaPolicy,
    VersionDemand,
)
from confide.appraisal.policy_rules import allows
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import FormatError, Rejected
from confide.rats import Status
from confide.reasons import Reason
from confide.wire.evidence import NvidiaEndorsements
from confide.wire.spdm import GPU, FeatureFlag, Switchable, parse_report, read_gpu_fields

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from confide.appraisal.nvidia import GpuSetResult
    from confide.appraisal.policy_rules import Allowed
    from confide.appraisal.service_ledger import Ledger
    from confide.appraisal.service_policy import NvidiaSection, Policy
    from confide.rats import Finding
    from confide.trust.nvidia import NvidiaRoots
    from confide.wire.evidence import GpuEvidence
    from confide.wire.service import Attester, Devices, Evidence

__all__ = ["judge_devices"]

_STEP: Final = "service/9"
# Which claim a step of nvidia.md speaks about; the letters after the number do not matter.
_CLAIMS: Final = {
    1: ClaimName.GPU,
    2: ClaimName.GPU,
    3: ClaimName.GPU,
    4: ClaimName.GPU,
    5: ClaimName.GPU_FRESHNESS,
    6: ClaimName.GPU,
    7: ClaimName.GPU,
    8: ClaimName.GPU,
    9: ClaimName.GPU,
    10: ClaimName.GPU,
    11: ClaimName.GPU_FIRMWARE,
    12: ClaimName.GPU_FIRMWARE,
    13: ClaimName.GPU_FIRMWARE,
    14: ClaimName.GPU,
    15: ClaimName.GPU_TOPOLOGY,
    16: ClaimName.GPU_TOPOLOGY,
}
# What is said in reports that have to be genuine.
_RESTING: Final = (ClaimName.GPU_FIRMWARE, ClaimName.GPU_FRESHNESS, ClaimName.GPU_TOPOLOGY)
# Nobody answered: says nothing about the device, and is never acceptance.
_UNAVAILABLE: Final = frozenset({Reason.RIM_MISSING, Reason.OCSP_UNAVAILABLE})
_SWITCH_CHIP: Final = "LS10"
_PPCIE_SWITCHES: Final = 4
# Schemes in which the nonce of the devices is a hash over the caller's, or a part of it. Elsewhere
# the one says nothing about the other.
_DERIVING: Final = frozenset({"confide/v1", "kbs/0.4.0", "attestation-agent"})


@dataclass(frozen=True, slots=True)
class _Hints:
    """What the evidence says it is; decides only which accepted alternative it is held to."""

    mode: GpuMode
    gpus: int
    nonce: bytes


def _hints(devices: tuple[GpuEvidence, ...]) -> _Hints:
    """Read the first GPU. Raises `FormatError` where it is no report at all."""
    gpus = [device for device in devices if device.kind == "gpu"]
    if not gpus:
        return _Hints(GpuMode.PPCIE, 0, bytes(NONCE_BYTES))
    report = parse_report(gpus[0].report, GPU)
    fields = read_gpu_fields(report)
    if fields.feature_flag is FeatureFlag.MPT:
        mode = GpuMode.MPT
    elif fields.protected_pcie is Switchable.ON:
        mode = GpuMode.PPCIE
    else:
        mode = GpuMode.SPT
    return _Hints(mode, len(gpus), report.nonce)


def _versions(allowed: Allowed, minimums: Iterable[str]) -> VersionDemand:
    listed = None if isinstance(allowed, UnsafeAny) else AllowedVersions(tuple(sorted(allowed)))
    return VersionDemand(listed, tuple(MinimumVersion(item) for item in sorted(minimums)))


def _policy(section: NvidiaSection, hints: _Hints) -> NvidiaPolicy | str:
    """Return what the devices are held to, or why no alternative of the section fits."""
    if not allows(section.modes, hints.mode.value):
        return f"mode {hints.mode} is not accepted"
    if not allows(section.counts, str(hints.gpus)):
        return f"{hints.gpus} GPU(s) in one machine are not accepted"
    listed = {
        "chips": section.chips,
        "drivers": section.drivers,
        "vbios": section.vbios,
        "switch_bios": section.switch_bios,
    }
    if empty := [name for name, values in listed.items() if values == frozenset()]:
        return f"the policy lists no {empty[0]}"
    if section.max_ocsp_hours == 0:
        return "the policy accepts OCSP answers of no age"
    chips = frozenset(CHIPS) if isinstance(section.chips, UnsafeAny) else section.chips
    bridged = hints.mode is GpuMode.PPCIE
    if bridged:
        chips |= {_SWITCH_CHIP}
    return NvidiaPolicy(
        chips=chips,
        mode=hints.mode,
        gpu_count=max(hints.gpus, 1),
        driver=_versions(section.drivers, section.min_driver),
        vbios=_versions(section.vbios, section.min_vbios),
        switch_count=_PPCIE_SWITCHES if bridged else 0,
        switch_bios=_versions(section.switch_bios, ()) if bridged else None,
        max_ocsp_age=timedelta(hours=section.max_ocsp_hours),
        unsafe_tolerate_rim_hold=section.unsafe_rim_hold,
        unsafe_tolerate_expired_rim_signer=section.unsafe_expired_rim,
        unsafe_allow_missing_fwid=section.unsafe_missing_fwid,
    )


def judge_devices(
    attester: Attester,
    evidence: Evidence,
    offered: NvidiaEndorsements,
    *,
    key_sets: tuple[bytes, ...],
    roots: NvidiaRoots,
    policy: Policy,
    now: datetime,
    ledger: Ledger,
) -> GpuSetResult | None:
    """
    Record the claims about devices. Returns the accepted set, None where there is none.

    A token of NVIDIA's remote service, where one was presented and one of `key_sets` has its key,
    must agree: it can refuse, and it proves nothing that the reports themselves do not.
    """
    presented = attester.devices
    if presented is None or not presented.devices:
        return None
    ledger.open(ClaimName.GPU_COLOCATION, _STEP, "no TDISP: the devices may be in another machine")
    if roots.simulated and not policy.unsafe_simulated:
        why = "the root of the devices is a simulated one"
        ledger.contradicted(ClaimName.GPU, _STEP, Reason.SIMULATED_NOT_ALLOWED, why)
    try:
        hints = _hints(presented.devices)
    except FormatError as error:
        ledger.contradicted(ClaimName.GPU, _STEP, error.reason, error.what)
        return None
    wanted = _policy(policy.nvidia, hints)
    if isinstance(wanted, str):
        ledger.contradicted(ClaimName.GPU, _STEP, Reason.VERSION_NOT_ALLOWED, wanted)
        return None
    nonce = presented.nonce
    if nonce is not None and len(nonce) != NONCE_BYTES:
        # In a bundle stands what its maker liked.
        why = f"a nonce of {len(nonce)} bytes, which no device signs"
        ledger.contradicted(ClaimName.GPU_FRESHNESS, _STEP, Reason.NONCE_MISMATCH, why)
        nonce = None
    result: GpuSetResult | None = None
    try:
        result = appraise_gpus(
            presented.devices,
            _joined(offered, presented.endorsements),
            roots=roots,
            policy=wanted,
            # Without a nonce of the scheme, the reports are only compared with each other.
            expected_nonce=nonce or hints.nonce,
            now=now,
            subject=f"{ledger.subject}/devices",
        )
    except Rejected as error:
        findings = error.findings
    else:
        findings = result.findings
    ledger.add(findings)
    _check_token(presented, key_sets, now, ledger)
    _claim(findings, result, presented, ledger)
    _claim_freshness(presented, attester, evidence, ledger)
    _claim_binding(attester, ledger)
    return result


def _check_token(
    presented: Devices, key_sets: tuple[bytes, ...], now: datetime, ledger: Ledger
) -> None:
    nonce = presented.nonce
    if presented.token is None or nonce is None or len(nonce) != NONCE_BYTES:
        return
    # The verifier of tokens: for evidence that has one.
    from confide.appraisal.nras import appraise_nras  # noqa: PLC0415
    from confide.appraisal.nras_policy import NrasPolicy  # noqa: PLC0415

    # Versions and counts are judged from the reports.
    policy = NrasPolicy(
        device_count=UnsafeAny(), driver=UnsafeAny(), vbios=UnsafeAny(), accept_warnings=True
    )
    for jwks in key_sets:
        try:
            found = appraise_nras(
                presented.token,
                jwks=jwks,
                expected_nonce=nonce,
                policy=policy,
                now=now,
                subject=f"{ledger.subject}/nras",
            ).findings
        except Rejected as error:
            ledger.add(error.findings)
            if error.reason is not Reason.TOKEN_KID_UNKNOWN:
                why = f"NVIDIA's token: {error.failures[0].detail}"
                ledger.contradicted(ClaimName.GPU, _STEP, error.reason, why)
        else:
            ledger.add(found)


def _joined(own: NvidiaEndorsements, passed: NvidiaEndorsements | None) -> NvidiaEndorsements:
    """Return both, the relying party's first; one name counts once."""
    if passed is None:
        return own
    rims = {item.id: item for item in (*passed.rims, *own.rims)}
    ocsp = {item.certificate_sha256: item for item in (*passed.ocsp, *own.ocsp)}
    return NvidiaEndorsements(tuple(rims.values()), tuple(ocsp.values()))


def _number(step: str) -> int:
    return int("".join(char for char in step.removeprefix("nvidia/") if char.isdigit()))


def _claim(
    findings: tuple[Finding, ...],
    result: GpuSetResult | None,
    presented: Devices,
    ledger: Ledger,
) -> None:
    unproven: dict[ClaimName, Finding] = {}
    for finding in findings:
        name = _CLAIMS[_number(finding.step)]
        if finding.reason is not None and finding.reason not in _UNAVAILABLE:
            why = f"{finding.subject}: {finding.detail or finding.reason}"
            ledger.contradicted(name, _STEP, finding.reason, why)
        elif finding.status is not Status.PASS:
            known = unproven.get(name)
            if known is None or (known.reason is None and finding.reason is not None):
                unproven[name] = finding
    for name, finding in unproven.items():
        ledger.open(name, _STEP, f"{finding.subject}: {finding.reason or finding.detail}")
    _lower_resting(findings, ledger)
    what = f"{len(presented.devices)} device(s)"
    if result is not None:
        what = f"{len(result.devices)} {result.chip}, {result.mode} mode"
        if result.switches:
            what += f", {len(result.switches)} switches"
    ledger.proven(ClaimName.GPU, _STEP, "NVIDIA", what)
    ledger.proven(ClaimName.GPU_FIRMWARE, _STEP, "NVIDIA", _firmware(result))
    ledger.proven(ClaimName.GPU_TOPOLOGY, _STEP, "NVIDIA", what)


def _lower_resting(findings: tuple[Finding, ...], ledger: Ledger) -> None:
    """Leave open what no step established, or what only refused devices say of themselves."""
    looked = {_CLAIMS[_number(item.step)] for item in findings if item.status is Status.PASS}
    for name in _RESTING:
        if name not in looked:
            ledger.open(name, _STEP, "no step about it was run")
        elif ledger.status(ClaimName.GPU) is Status.FAIL:
            ledger.open(name, _STEP, "the devices themselves are refused")


def _firmware(result: GpuSetResult | None) -> str:
    if result is None:
        return "every measurement is a reference value"
    drivers = ", ".join(sorted({device.driver_version for device in result.devices}))
    vbios = ", ".join(sorted({device.vbios_version for device in result.devices}))
    return f"driver {drivers}, VBIOS {vbios}"


def _claim_freshness(
    presented: Devices, attester: Attester, evidence: Evidence, ledger: Ledger
) -> None:
    name = ClaimName.GPU_FRESHNESS
    if presented.nonce is None:
        ledger.open(name, _STEP, "the service does not say which nonce the devices signed")
    elif evidence.nonce is not None and hmac.compare_digest(presented.nonce, evidence.nonce):
        ledger.proven(name, _STEP, "NVIDIA", "your nonce")
    elif attester.binding.scheme in _DERIVING and ledger.holds(ClaimName.FRESHNESS):
        ledger.proven(name, _STEP, "NVIDIA", "a nonce made from yours")
    else:
        ledger.open(name, _STEP, "the nonce is not yours")


def _claim_binding(attester: Attester, ledger: Ledger) -> None:
    name = ClaimName.GPU_BINDING
    if "gpu-evidence" not in attester.binding.covers:
        ledger.open(name, _STEP, "the processor's report data does not cover the devices")
    elif not ledger.holds(ClaimName.KEYS):
        ledger.open(name, _STEP, "the report data itself is not proven")
    else:
        ledger.proven(name, _STEP, "hardware", "report data covers the evidence of the devices")
