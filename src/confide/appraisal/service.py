"""The verifier for evidence of any service: evidence, endorsements, policy, roots and time in.

The procedure is docs/protocols/services.md §5 and §6: for each attester its processor, level,
report data, TLS key, logs, launch document, operating system, workload and devices; then the
remarks of the reader, which only lower; then one decision. The same named claims for every
service, so that two can be compared.

**What this does not show** stands in every result: an extracted attestation key passes every step,
and nothing shows that a GPU is attached to the machine that presented it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.provenance import Proofs
from confide.appraisal.service_binding import judge_binding, judge_tls
from confide.appraisal.service_ledger import Ledger
from confide.appraisal.service_references import judge_references, tdx_registers
from confide.appraisal.service_shared import judge_shared
from confide.appraisal.service_verdict import AUTHENTICITY, DEVICE_CLAIMS, Judged, decide
from confide.appraisal.service_workload import judge_workload
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import EvidenceRejected, PolicyRejected
from confide.rats import Status
from confide.reasons import Reason
from confide.wire.endorsements import SnpEndorsement

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.nvidia import GpuSetResult
    from confide.appraisal.service_launch import KnownLaunch
    from confide.appraisal.service_policy import Policy
    from confide.appraisal.tdx_policy import TdxPolicy
    from confide.rats import AttestationResult, Finding
    from confide.trust.roots import Roots
    from confide.wire.endorsements import Endorsements
    from confide.wire.service import Attester, Evidence, SnpPart
    from confide.wire.tdx import TdBody10

__all__ = ["LIMITS", "appraise_service"]

# What no step can show, whatever the service (docs/threat-model.md).
LIMITS: Final = (
    "an attestation key extracted from a processor (WireTap, TEE.fail) passes every check",
    "nothing shows which machine a GPU is attached to: there is no TDISP yet",
)
_UNKNOWN_SOFTWARE: Final = (
    "the launch document is bound, and launch is not proven: software that nobody knows may have "
    "recorded it and started something else"
)
_LAUNCH: Final = "service/7"
_REMARK: Final = "service/9"
_STEP: Final = "service/1"
# What a reader contradicts, from documents that do not agree with each other.
_REMARKED: Final = {
    ClaimName.KEYS: Reason.KEY_MISMATCH,
    ClaimName.TLS: Reason.KEY_MISMATCH,
    ClaimName.FRESHNESS: Reason.NONCE_MISMATCH,
    ClaimName.GPU_FRESHNESS: Reason.NONCE_MISMATCH,
    ClaimName.MODEL_WEIGHTS: Reason.MODEL_MISMATCH,
    ClaimName.KEY_LIFETIME: Reason.KEYSET_EXPIRED,
    ClaimName.WORKLOAD: Reason.COMPOSE_HASH_MISMATCH,
}
# What only a processor that was established can say.
_SIGNED_CLAIMS: Final = (
    ClaimName.TCB,
    ClaimName.DEBUG_OFF,
    ClaimName.PLATFORM,
    ClaimName.LAUNCH,
    ClaimName.EVENT_LOG,
    ClaimName.WORKLOAD,
    ClaimName.WORKLOAD_EXPECTED,
)
# Steps of tdx.md about registers: the claim they speak about, and what was compared.
_REGISTERS: Final = {
    "tdx/30.1": (ClaimName.LAUNCH, "MRTD"),
    "tdx/30.2": (ClaimName.LAUNCH, "RTMR0"),
    "tdx/30.3": (ClaimName.LAUNCH, "RTMR1"),
    "tdx/30.4": (ClaimName.LAUNCH, "RTMR2"),
    "tdx/30.5": (ClaimName.EVENT_LOG, "RTMR3"),
    "tdx/30.6": (ClaimName.LAUNCH, "MRSEAM"),
    "tdx/30.7": (ClaimName.WORKLOAD, "MRCONFIGID"),
    "tdx/30.8": (ClaimName.LAUNCH, "MROWNER or MROWNERCONFIG"),
    "tdx/30.11": (ClaimName.HARDWARE, "the simulated root"),
}


@dataclass(slots=True)
class _Work:
    """Everything that judging one attester needs, and what it leaves."""

    attester: Attester
    evidence: Evidence
    endorsements: Endorsements
    policy: Policy
    roots: Roots
    now: datetime
    ledger: Ledger
    used: list[str]
    ends: list[datetime]


def appraise_service(
    evidence: Evidence,
    endorsements: Endorsements,
    *,
    policy: Policy,
    roots: Roots,
    now: datetime,
    provenance: Proofs | None = None,
    answer: Finding | None = None,
    subject: str = "service",
) -> AttestationResult:
    """
    Establish what `evidence` proves and whether `policy` accepts it, at `now`.

    `evidence` and `endorsements` are hostile; `policy`, `roots` and `now` are the caller's own.
    `provenance` are Sigstore proofs that were verified (docs/protocols/services.md §2), `answer`
    what the reader found about a signed answer. Pure: contacts nobody.

    Raises `EvidenceRejected` where something is not what it says it is, `PolicyRejected` where the
    policy asks for more; both carry the whole `result`. Raises `FormatError` for evidence that
    cannot be read at all, `ValueError` for a `now` without a time zone, no attester, or two of one
    name: a claim is about one of them.
    """
    names = {attester.name for attester in evidence.attesters}
    if now.tzinfo is None or not names or len(names) != len(evidence.attesters):
        raise ValueError("now needs a time zone, and evidence attesters, each with its own name")
    judged = tuple(
        _judge(
            _Work(
                attester=attester,
                evidence=evidence,
                endorsements=endorsements,
                policy=policy,
                roots=roots,
                now=now,
                ledger=Ledger(attester.name, "SIMULATED " if roots.simulated else ""),
                used=[],
                ends=[],
            ),
            provenance or Proofs(),
            answer,
        )
        for attester in evidence.attesters
    )
    limits = (*LIMITS, *evidence.limits, *judge_shared(evidence.attesters, judged))
    limits += tuple(dict.fromkeys(found for item in judged for found in item.limits))
    result, refusals = decide(judged, subject=subject, policy=policy, now=now, limits=limits)
    if not refusals:
        return result
    contradicted = any(
        item.reason is not Reason.CLAIM_NOT_PROVEN
        and item.subject.rpartition("/")[2] in AUTHENTICITY
        for item in refusals
    )
    kind = EvidenceRejected if contradicted else PolicyRejected
    raise kind(result.findings, result=result)


def _judge(work: _Work, provenance: Proofs, answer: Finding | None) -> Judged:
    attester, ledger = work.attester, work.ledger
    signed = _processor(work, provenance)
    judge_binding(attester, work.evidence, signed=signed, ledger=ledger)
    if attester.valid_until is not None and work.now > attester.valid_until:
        why = f"the keys were valid until {attester.valid_until:%Y-%m-%d %H:%M:%S} UTC"
        ledger.contradicted(ClaimName.KEYS, "service/3", Reason.KEYSET_EXPIRED, why)
    elif attester.valid_until is not None:
        work.ends.append(attester.valid_until)
    judge_tls(attester, work.evidence, ledger=ledger)
    limits = judge_workload(attester.launch, provenance, policy=work.policy, ledger=ledger)
    devices = _devices(work)
    if devices is not None:
        work.used.extend(devices.roots)
        work.ends.append(devices.not_after)
    if answer is not None and answer.subject == attester.name:
        _answer(answer, ledger)
    for remark in attester.remarks:
        name = ClaimName(remark.claim)
        if remark.failed:
            reason = _REMARKED.get(name, Reason.STATEMENT_MISMATCH)
            ledger.contradicted(name, _REMARK, reason, remark.text)
        else:
            ledger.open(name, _REMARK, remark.text)
    ledger.open(ClaimName.PHYSICAL_ATTACK, _STEP, "an extracted key signs anything")
    if ledger.holds(ClaimName.WORKLOAD) and not ledger.holds(ClaimName.LAUNCH):
        limits += (f"{ledger.subject}: {_UNKNOWN_SOFTWARE}",)
    return Judged(
        name=attester.name,
        inapplicable=_elsewhere(work, answer),
        ledger=ledger,
        roots=tuple(dict.fromkeys(work.used)),
        simulated=work.roots.simulated,
        not_after=min(work.ends, default=work.now),
        signed=signed,
        limits=limits,
    )


# A verifier of one family of hardware is loaded where evidence of that family is there: each is
# dozens of modules, and most evidence is of one.


def _devices(work: _Work) -> GpuSetResult | None:
    if work.attester.devices is None:
        return None
    from confide.appraisal.service_devices import judge_devices  # noqa: PLC0415

    return judge_devices(
        work.attester,
        work.evidence,
        work.endorsements.nvidia,
        key_sets=work.endorsements.nras_keys,
        roots=work.roots.nvidia,
        policy=work.policy,
        now=work.now,
        ledger=work.ledger,
    )


def _elsewhere(work: _Work, answer: Finding | None) -> frozenset[ClaimName]:
    """Return the claims that another machine of the service has to make."""
    attesters, own = work.evidence.attesters, work.attester
    found = DEVICE_CLAIMS if own.role == "gateway" else frozenset()
    # One connection ends in one machine, one answer is signed by one.
    ending = [each for each in attesters if any(key.use == "tls" for key in each.keys)]
    if own not in (ending or attesters):
        found |= {ClaimName.TLS}
    signer = answer.subject if answer is not None else ""
    signing = [each for each in attesters if each.name == signer] or list(attesters[:1])
    if own not in signing:
        found |= {ClaimName.RESPONSE_SIGNATURE}
    return found


def _processor(work: _Work, proofs: Proofs) -> bytes | None:
    """Judge the processor; return the 64 bytes of report data that it signed."""
    signed = None
    if work.attester.tdx is not None:
        signed = _tdx(work, proofs)
    elif work.attester.snp is not None:
        signed = _snp(work, work.attester.snp, proofs)
    else:
        work.ledger.open(ClaimName.HARDWARE, _STEP, "no evidence of a processor was presented")
    if signed is None:
        for name in _SIGNED_CLAIMS:
            work.ledger.open(name, _STEP, "no hardware vouches for it")
    return signed


def _tdx(work: _Work, proofs: Proofs) -> bytes | None:
    from confide.appraisal.service_launch import judge_tdx_launch  # noqa: PLC0415
    from confide.appraisal.service_map import tdx_policy_of  # noqa: PLC0415
    from confide.appraisal.service_tdx import claim_tdx, verify_tdx  # noqa: PLC0415

    part, ledger = work.attester.tdx, work.ledger
    if part is None:
        return None
    offered = (*work.endorsements.tdx, *((part.collateral,) if part.collateral else ()))
    verified = verify_tdx(part.quote, offered, roots=(work.roots.tdx,), now=work.now, ledger=ledger)
    if verified is None:
        return None
    work.used.append(work.roots.tdx.sha256)
    work.ends.append(verified.not_after)
    body = verified.quote.body
    known = judge_tdx_launch(work.attester, body, policy=work.policy, ledger=ledger)
    if not work.attester.paravisor:
        names = judge_references(
            work.attester, tdx_registers(body), proofs, policy=work.policy, ledger=ledger
        )
        known = replace(known, signed=names)
    wanted = _with_known(tdx_policy_of(work.policy), body, known)
    findings = claim_tdx(
        verified,
        wanted,
        # What the report data must be is judged with the keys it covers (service/3).
        report_data=body.report_data,
        now=work.now,
        ledger=ledger,
    )
    _launch(findings, wanted, known, ledger)
    return body.report_data


def _snp(work: _Work, part: SnpPart, proofs: Proofs) -> bytes | None:
    from confide.appraisal.service_launch import judge_snp_launch  # noqa: PLC0415
    from confide.appraisal.service_map_snp import snp_policy_of  # noqa: PLC0415
    from confide.appraisal.service_snp import claim_snp, verify_snp  # noqa: PLC0415

    ledger = work.ledger
    passed = (
        (SnpEndorsement(leaf_der=part.leaf_der, chain_pem=part.chain_pem),)
        if part.leaf_der is not None and part.chain_pem is not None
        else ()
    )
    offered = (*work.endorsements.snp, *passed)
    verified = verify_snp(part.report, offered, roots=work.roots.amd, now=work.now, ledger=ledger)
    if verified is None:
        return None
    work.used.append(verified.anchor.sha256)
    work.ends.append(verified.not_after)
    report = verified.report
    known = judge_snp_launch(work.attester, report.host_data, policy=work.policy, ledger=ledger)
    measured = {"measurement": report.measurement}
    names = judge_references(work.attester, measured, proofs, policy=work.policy, ledger=ledger)
    claim_snp(
        verified,
        snp_policy_of(work.policy),
        bound=known.document,
        signed=bool(names) and not work.attester.paravisor,
        now=work.now,
        ledger=ledger,
    )
    return report.report_data


def _with_known(policy: TdxPolicy, body: TdBody10, known: KnownLaunch) -> TdxPolicy:
    """
    Return `policy` with every register that follows from something judged set to that value.

    A list that names values is kept to: that a register follows from something does not make it one
    of them.
    """
    follows: dict[str, bytes] = {}
    if known.image:
        follows["mr_td"] = body.mr_td
        follows |= {f"rtmr{index}": body.rtmr[index] for index in range(3)}
    registers = tdx_registers(body)
    for name in known.signed:
        follows["mr_td" if name == "mrtd" else name] = registers[name]
    if known.log:
        follows["rtmr3"] = body.rtmr[3]
    if known.document:
        follows["mr_config_id"] = body.mr_config_id
    changes = {
        name: frozenset({value})
        for name, value in follows.items()
        if isinstance(listed := getattr(policy, name), UnsafeAny) or not listed
    }
    return replace(policy, **changes)  # type: ignore[arg-type]


def _launch(
    findings: tuple[Finding, ...], policy: TdxPolicy, known: KnownLaunch, ledger: Ledger
) -> None:
    for claim in (ClaimName.LAUNCH, ClaimName.EVENT_LOG, ClaimName.WORKLOAD, ClaimName.HARDWARE):
        refused = [
            finding
            for finding in findings
            if finding.failed and _REGISTERS.get(finding.step, (None,))[0] is claim
        ]
        if refused and refused[0].reason is not None:
            names = ", ".join(_REGISTERS[finding.step][1] for finding in refused)
            why = f"not on your list: {names}"
            if claim is ClaimName.LAUNCH and known.why_not:
                why += f"; {known.why_not}"
            ledger.contradicted(claim, _LAUNCH, refused[0].reason, why)
    if known.image:
        return
    listed = {
        "MRTD": policy.mr_td,
        "RTMR0": policy.rtmr0,
        "RTMR1": policy.rtmr1,
        "RTMR2": policy.rtmr2,
    }
    loose = [name for name, values in listed.items() if isinstance(values, UnsafeAny)]
    if loose:
        why = f"the policy does not say which {', '.join(loose)} it expects"
        if known.why_not:
            why += f"; {known.why_not}"
        ledger.open(ClaimName.LAUNCH, _LAUNCH, why)
    else:
        signed = ", ".join(sorted(known.signed))
        value = f"registers listed{f', or signed by the publisher: {signed}' if signed else ''}"
        ledger.proven(ClaimName.LAUNCH, _LAUNCH, "your policy", value)


def _answer(answer: Finding, ledger: Ledger) -> None:
    name = ClaimName.RESPONSE_SIGNATURE
    if answer.status is Status.FAIL:
        reason = answer.reason or Reason.RESPONSE_SIGNATURE
        ledger.contradicted(name, "service/3", reason, answer.detail)
    elif answer.status is Status.PASS and ledger.holds(ClaimName.KEYS):
        ledger.proven(name, "service/3", "attested key", answer.detail)
    else:
        ledger.open(name, "service/3", answer.detail or "the key that signed is not proven")
