"""Appraise a set of NVIDIA GPUs: evidence, endorsements, policy and time in, claims out.

The procedure is docs/protocols/nvidia.md; `BOUND_STEPS` is its step 1, `DEVICE_STEPS` are 2 to
13 for each device, `SET_STEPS` are 14 to 16. Every step that still makes sense runs, for every
device, also after another one failed; one failed device fails the set.

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
from confide.appraisal.nvidia_state import Context, DeviceState
from confide.appraisal.steps import Refused, Step, run_steps
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
_MAX_MPT_GPUS = 8


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
class GpuSetResult:
    """
    An accepted set. Everything that was assumed is named: roots, policy, time.

    `not_after` is the earliest instant at which an input expires. `verified_rims` and
    `verified_signatures` are the caller's to keep and to pass to the next appraisal; they speed
    it up and decide nothing.
    """

    simulated: bool
    roots: tuple[str, ...]
    policy_digest: str
    now: datetime
    not_after: datetime
    mode: GpuMode
    chip: str
    devices: tuple[GpuClaims, ...]
    findings: tuple[Finding, ...]
    verified_rims: tuple[VerifiedRim, ...]
    verified_signatures: VerifiedSignatures


@dataclass(frozen=True, slots=True)
class _Inputs:
    devices: tuple[GpuEvidence, ...]
    endorsements: NvidiaEndorsements


@dataclass(frozen=True, slots=True)
class _Set:
    states: tuple[DeviceState, ...]
    policy: NvidiaPolicy


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


def _require_distinct(whole: _Set) -> str:
    """14a: no device stands for two."""
    ueids = [state.ueid for state in whole.states if state.ueid is not None]
    pdis = [state.pdi for state in whole.states if state.pdi is not None]
    if len(set(ueids)) != len(ueids) or len(set(pdis)) != len(pdis):
        raise Refused(Reason.DUPLICATE_DEVICE, "one device appears twice")
    return ""


def _require_uniform(whole: _Set) -> str:
    """14b: one mode, one chip."""
    if len({state.mode for state in whole.states}) != 1:
        raise Refused(Reason.MODE_MISMATCH, "the set mixes modes")
    if len({state.chip for state in whole.states}) != 1:
        raise Refused(Reason.ARCH_MISMATCH, "the set mixes chips")
    return ""


def _require_topology(whole: _Set) -> str:
    """15: the set is complete for its mode."""
    modes = {state.mode for state in whole.states}
    count = len(whole.states)
    if GpuMode.PPCIE in modes:
        raise Refused(
            Reason.TOPOLOGY_COUNT, "protected PCIe without switch evidence: links are unproven"
        )
    limit = _MAX_MPT_GPUS if modes == {GpuMode.MPT} else 1
    if count > limit:
        raise Refused(Reason.TOPOLOGY_COUNT, f"{count} GPUs, at most {limit} in this mode")
    return f"{count} GPU(s)"


def _require_count(whole: _Set) -> str:
    """16: as many GPUs as the policy asks for."""
    count, wanted = len(whole.states), whole.policy.gpu_count
    if count != wanted:
        reason = Reason.GPU_MISSING if count < wanted else Reason.TOPOLOGY_COUNT
        raise Refused(reason, f"{count} GPU(s), the policy asks for {wanted}")
    return f"{count} GPU(s)"


BOUND_STEPS: tuple[Step[_Inputs], ...] = (Step("nvidia/1", f"{_DOC}#1", _require_bounds),)
DEVICE_STEPS: tuple[Step[DeviceState], ...] = GENUINE_STEPS + MEASUREMENT_STEPS
SET_STEPS: tuple[Step[_Set], ...] = (
    Step("nvidia/14a", f"{_DOC}#14", _require_distinct),
    Step("nvidia/14b", f"{_DOC}#14", _require_uniform),
    Step("nvidia/15", f"{_DOC}#15", _require_topology),
    Step("nvidia/16", f"{_DOC}#16", _require_count),
)


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
    Establish that `devices` are genuine GPUs in the state that `policy` asks for, at `now`.

    Performs steps 1 to 16 of docs/protocols/nvidia.md. `devices` and `endorsements` are hostile.
    `known_rims` and `known_signatures` are what an earlier result of the same caller holds; a
    manifest is reused only for the same bytes and the same root. `subject` names the set
    in findings.

    **Does not check** that a GPU is attached to the machine that presented it, nor anything
    about NVSwitches: a set in protected PCIe mode is refused.

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
    findings += run_steps(SET_STEPS, _Set(states, policy), subject=subject)
    _raise_if_refused(findings)
    return GpuSetResult(
        simulated=roots.simulated,
        roots=roots.sha256,
        policy_digest=policy.digest(),
        now=now,
        not_after=min(end for state in states for end in state.expiries),
        mode=policy.mode,
        chip=states[0].chip or "",
        devices=tuple(_claims(state) for state in states),
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


def _claims(state: DeviceState) -> GpuClaims:
    """Return the claims of a device of an accepted set: every step passed, so all is there."""
    if state.chip is None or state.mode is None or state.ueid is None or state.pdi is None:
        raise RuntimeError("claims of a device that was not accepted")
    return GpuClaims(
        ueid=state.ueid,
        pdi=state.pdi.hex(),
        hwmodel=state.chain[1].subject,
        chip=state.chip,
        mode=state.mode,
        driver_version=state.fields.driver_version,
        vbios_version=state.fields.vbios_version,
        fwid_present=state.fields.fwid is not None,
        compared=state.comparison.compared,
        skipped=state.comparison.skipped,
        uncovered=state.comparison.uncovered,
        report_sha256=hashlib.sha256(state.evidence.report).hexdigest(),
        driver_rim_sha256=state.driver_rim.sha256,
        vbios_rim_sha256=state.vbios_rim.sha256,
    )
