"""Appraise a set of NVIDIA GPUs and NVSwitches: evidence, policy and time in, claims out.

The procedure is docs/protocols/nvidia.md; `BOUND_STEPS` is its step 1, `DEVICE_STEPS` are 2 to
13 for each device, `SET_STEPS` are 14 to 16. One GPU and a system of twelve devices take the same
path. Every step that still makes sense runs, for every device, also after another one failed; one
failed device fails the set.

What the caller still must do: verify that the CPU's evidence covers the same nonce, and remember
that nothing here shows which machine a GPU is attached to.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.appraisal.nvidia_chain import SignatureMemory, VerifiedSignatures
from confide.appraisal.nvidia_device import GENUINE_STEPS
from confide.appraisal.nvidia_measurements import MEASUREMENT_STEPS, POLICY_STEP_IDS
from confide.appraisal.nvidia_policy import (
    AllowedVersions,
    GpuMode,
    MinimumVersion,
    NvidiaPolicy,
)
from confide.appraisal.nvidia_rim import VerifiedRim
from confide.appraisal.nvidia_set import SET_STEPS, DeviceSet
from confide.appraisal.nvidia_state import Context, DeviceState
from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.errors import EvidenceRejected, PolicyRejected, Reason
from confide.rats import Finding, Status
from confide.wire.spdm import MAX_REPORT_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.trust.nvidia import NvidiaRoots
    from confide.wire.evidence import GpuEvidence, NvidiaEndorsements

__all__ = [
    "BOUND_STEPS",
    "DEVICE_STEPS",
    "NONCE_BYTES",
    "SET_STEPS",
    "AllowedVersions",
    "GpuClaims",
    "GpuMode",
    "GpuSetResult",
    "MinimumVersion",
    "NvidiaPolicy",
    "SwitchClaims",
    "VerifiedRim",
    "VerifiedSignatures",
    "appraise_gpus",
]

_DOC = "docs/protocols/nvidia.md"
NONCE_BYTES = 32
# From: docs/protocols/nvidia.md 1.
_MAX_DEVICES = 16
_MAX_CHAIN_BYTES = 0x4000
_MAX_RIMS = 64
_MAX_OCSP = 256


@dataclass(frozen=True, slots=True)
class GpuClaims:
    """
    What is proven about one GPU of an accepted set.

    `ueid` is the leaf's serial number in decimal, `pdi` the device identifier in hex, `hwmodel`
    the name of its boot ROM certificate. `compared` counts golden values met; `skipped` and
    `uncovered` are manifest indexes. Digests are SHA-256 hex over exact bytes.
    """

    ueid: str
    pdi: str
    hwmodel: str
    chip: str
    mode: GpuMode
    driver_version: str
    vbios_version: str
    fwid_present: bool
    compared: int
    skipped: tuple[int, ...]
    uncovered: tuple[int, ...]
    report_sha256: str
    driver_rim_sha256: str
    vbios_rim_sha256: str


@dataclass(frozen=True, slots=True)
class SwitchClaims:
    """
    What is proven about one NVSwitch of an accepted set, in the terms of `GpuClaims`.

    `gpu_pdis` are the GPUs at its ports: exactly those of the set. It was locked.
    """

    ueid: str
    pdi: str
    hwmodel: str
    chip: str
    bios_version: str
    gpu_pdis: tuple[str, ...]
    compared: int
    uncovered: tuple[int, ...]
    report_sha256: str
    bios_rim_sha256: str


@dataclass(frozen=True, slots=True)
class GpuSetResult:
    """
    An accepted set. Everything that was assumed is named: roots, policy, time.

    `mode` and `chip` are those of all GPUs; `devices` are the GPUs and `switches` the NVSwitches,
    each in the order given. `not_after` is the earliest instant at which an input expires.
    `verified_rims` and `verified_signatures` are the caller's to keep and to pass to the next
    appraisal; they speed it up and decide nothing.
    """

    simulated: bool
    roots: tuple[str, ...]
    policy_digest: str
    now: datetime
    not_after: datetime
    mode: GpuMode
    chip: str
    devices: tuple[GpuClaims, ...]
    switches: tuple[SwitchClaims, ...]
    findings: tuple[Finding, ...]
    verified_rims: tuple[VerifiedRim, ...]
    verified_signatures: VerifiedSignatures


@dataclass(frozen=True, slots=True)
class _Inputs:
    devices: tuple[GpuEvidence, ...]
    endorsements: NvidiaEndorsements


def _require_bounds(inputs: _Inputs) -> str:
    """1: nothing is empty, oversize or ambiguous."""
    devices, endorsements = inputs.devices, inputs.endorsements
    if not devices:
        raise Refused(Reason.GPU_MISSING, "no GPU evidence")
    if len(devices) > _MAX_DEVICES:
        raise Refused(Reason.TOPOLOGY_COUNT, f"{len(devices)} devices, at most {_MAX_DEVICES}")
    for number, device in enumerate(devices):
        if not 0 < len(device.report) <= MAX_REPORT_BYTES:
            raise Refused(
                Reason.REPORT_MALFORMED, f"gpu[{number}]: report of {len(device.report)} bytes"
            )
        if not 0 < len(device.chain_pem) <= _MAX_CHAIN_BYTES:
            raise Refused(
                Reason.CHAIN_MALFORMED, f"gpu[{number}]: chain of {len(device.chain_pem)} bytes"
            )
    rim_ids = {document.id for document in endorsements.rims}
    if len(rim_ids) != len(endorsements.rims) or len(rim_ids) > _MAX_RIMS:
        raise Refused(Reason.RIM_MALFORMED, "too many manifests, or one id twice")
    labels = {answer.certificate_sha256 for answer in endorsements.ocsp}
    if len(labels) != len(endorsements.ocsp) or len(labels) > _MAX_OCSP:
        raise Refused(Reason.OCSP_MALFORMED, "too many OCSP answers, or one certificate twice")
    return f"{len(devices)} device(s)"


BOUND_STEPS: tuple[Step[_Inputs], ...] = (Step("nvidia/1", f"{_DOC}#1", _require_bounds),)
DEVICE_STEPS: tuple[Step[DeviceState], ...] = GENUINE_STEPS + MEASUREMENT_STEPS


def appraise_gpus(
    devices: tuple[GpuEvidence, ...],
    endorsements: NvidiaEndorsements,
    *,
    roots: NvidiaRoots,
    policy: NvidiaPolicy,
    expected_nonce: bytes,
    now: datetime,
    known_rims: tuple[VerifiedRim, ...] = (),
    known_signatures: VerifiedSignatures | None = None,
    subject: str = "gpus",
) -> GpuSetResult:
    """
    Establish that `devices` are a genuine set in the state that `policy` asks for, at `now`.

    Performs steps 1 to 16 of docs/protocols/nvidia.md. `devices` and `endorsements` are hostile.
    `known_rims` and `known_signatures` are what an earlier result of the same caller holds; a
    manifest is reused only for the same bytes and the same root. `subject` names the set
    in findings.

    **Does not check** that a device is attached to the machine that presented it.

    Raises `EvidenceRejected`, or `PolicyRejected` when the evidence is authentic and only the
    policy is not met, with every finding; `ValueError` for an expected nonce that is not 32
    bytes or a `now` without a time zone.
    """
    if len(expected_nonce) != NONCE_BYTES or now.tzinfo is None:
        raise ValueError("the nonce has 32 bytes and the time has a zone")
    findings = run_steps(BOUND_STEPS, _Inputs(devices, endorsements), subject=subject)
    if any(finding.failed for finding in findings):
        raise EvidenceRejected(findings)
    memory = SignatureMemory(known_signatures or VerifiedSignatures())
    context = Context(
        endorsements,
        roots=roots,
        policy=policy,
        expected_nonce=expected_nonce,
        now=now,
        memory=memory,
        known_rims=known_rims,
    )
    states = tuple(DeviceState(device, context) for device in devices)
    per_device = tuple(
        run_steps(DEVICE_STEPS, state, subject=f"{subject}[{number}]")
        for number, state in enumerate(states)
    )
    findings += tuple(finding for found in per_device for finding in found)
    whole = DeviceSet(states, policy)
    findings += run_steps(SET_STEPS, whole, subject=subject)
    _raise_if_refused(findings)
    return GpuSetResult(
        simulated=roots.simulated,
        roots=roots.sha256,
        policy_digest=policy.digest(),
        now=now,
        not_after=min(end for state in states for end in state.expiries),
        mode=policy.mode,
        chip=established(whole.gpus[0].chip),
        devices=tuple(_gpu_claims(state) for state in whole.gpus),
        switches=tuple(_switch_claims(state) for state in whole.switches),
        findings=findings,
        verified_rims=context.verified_rims(),
        verified_signatures=memory.freeze(),
    )


def _raise_if_refused(findings: Sequence[Finding]) -> None:
    """Accept only when every finding of every device and of the set is a pass."""
    bad = {finding.step for finding in findings if finding.status is not Status.PASS}
    if not bad:
        return
    if bad <= POLICY_STEP_IDS:
        raise PolicyRejected(tuple(findings))
    raise EvidenceRejected(tuple(findings))


def _gpu_claims(state: DeviceState) -> GpuClaims:
    """Return the claims of a GPU of an accepted set: every step passed, so all is there."""
    fields = established(state.gpu)
    return GpuClaims(
        ueid=established(state.ueid),
        pdi=established(state.pdi).hex(),
        hwmodel=state.chain[1].subject,
        chip=established(state.chip),
        mode=established(state.mode),
        driver_version=fields.driver_version,
        vbios_version=fields.vbios_version,
        fwid_present=fields.fwid is not None,
        compared=state.comparison.compared,
        skipped=state.comparison.skipped,
        uncovered=state.comparison.uncovered,
        report_sha256=hashlib.sha256(state.evidence.report).hexdigest(),
        driver_rim_sha256=established(state.driver_rim).sha256,
        vbios_rim_sha256=established(state.firmware_rim).sha256,
    )


def _switch_claims(state: DeviceState) -> SwitchClaims:
    """Return the claims of a switch of an accepted set."""
    fields = established(state.switch)
    return SwitchClaims(
        ueid=established(state.ueid),
        pdi=established(state.pdi).hex(),
        hwmodel=state.chain[1].subject,
        chip=established(state.chip),
        bios_version=fields.bios_version,
        gpu_pdis=tuple(pdi.hex() for pdi in fields.gpu_pdis),
        compared=state.comparison.compared,
        uncovered=state.comparison.uncovered,
        report_sha256=hashlib.sha256(state.evidence.report).hexdigest(),
        bios_rim_sha256=established(state.firmware_rim).sha256,
    )
