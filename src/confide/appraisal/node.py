"""Appraising one node: CPU, logs, keys, software, model and GPUs as one verdict. Pure.

Performs steps node/1 to node/12 of docs/protocols/binding.md §3 over hostile evidence, with the
steps of `tdx`, `nvidia` and `eventlog` inside. Returns the proof (`VerifiedNode`) that the channel
and the receipts demand, or raises with every finding.

What it does not prove is in the result as claims with status `not-proven`; an Expectation has to
name each of them to accept it.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

from confide.appraisal.binding import Statement, devices_digest, parse_statement
from confide.appraisal.eventlog import LOG_STEPS, LogState, NodeEvents
from confide.appraisal.known import Known
from confide.appraisal.node_claims import node_claims
from confide.appraisal.policy import gpu_policy, tdx_policy
from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.appraisal.tdx import TdxResult, appraise_tdx
from confide.errors import EvidenceRejected, PolicyRejected, Reason, Rejected
from confide.rats import AttestationResult, Claim, Finding, Status
from confide.wire.ccel import parse_ccel
from confide.wire.keyset import Keyset, parse_keyset
from confide.wire.rtmr_log import parse_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from confide.appraisal.binding import Purpose
    from confide.appraisal.nvidia import GpuSetResult
    from confide.expectation import Expectation, NodeSpec
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle

__all__ = [
    "NODE_STEPS",
    "Role",
    "VerifiedNode",
    "appraise_node",
]

Role = Literal["agent", "model"]
T = TypeVar("T")
_SEAL = object()
_DOC = "docs/protocols/binding.md#3"


@dataclass(frozen=True, slots=True)
class VerifiedNode:
    """
    A node that was proven. Only `appraise_node` makes one.

    `keyset` are the keys to seal to and to check receipts with, `events` what RTMR3 says,
    `evidence` the SHA-256 of the evidence, `platform` the PPID that its platform certificate
    names, `result` every claim and finding. `known` is the caller's to keep and to pass to the
    next appraisal.
    """

    keyset: Keyset
    statement: Statement
    events: NodeEvents
    evidence: bytes
    platform: bytes
    gpus: GpuSetResult | None
    result: AttestationResult
    known: Known = field(repr=False, compare=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `appraise_node`."""
        if seal is not _SEAL:
            raise TypeError("only appraise_node makes a VerifiedNode")


@dataclass(slots=True)
class _State:
    bundle: EvidenceBundle
    subject: str
    role: Role
    purpose: Purpose
    nonce: bytes
    claim: bytes | None
    expectation: Expectation
    roots: Roots
    now: datetime
    known: Known = field(default_factory=Known)
    nested: list[Finding] = field(default_factory=list)
    policy_refusals: set[str] = field(default_factory=set)
    # What earlier steps established; a step that needs one lists that step in `needs`.
    statement: Statement | None = None
    keyset: Keyset | None = None
    tdx: TdxResult | None = None
    events: NodeEvents | None = None
    gpus: GpuSetResult | None = None
    claims: tuple[Claim, ...] = ()

    @property
    def spec(self) -> NodeSpec:
        if self.role == "agent":
            return self.expectation.agent_node
        return self.expectation.model_node


def appraise_node(
    bundle: EvidenceBundle,
    *,
    subject: str,
    role: Role,
    purpose: Purpose,
    nonce: bytes,
    claim: bytes | None,
    expectation: Expectation,
    roots: Roots,
    now: datetime,
    known: Known | None = None,
) -> VerifiedNode:
    """
    Establish that `bundle` proves a node of `role` as `expectation` wants it, at `now`.

    `nonce` is the one the caller drew for this exchange, `claim` the document digest for purpose
    `claim`. `roots` are the caller's; `known` is what an earlier result of the same caller holds.
    **Does not check** that a GPU sits in this machine, nor physical attacks: both are claims with
    status `not-proven`.

    Raises `EvidenceRejected`, or `PolicyRejected` when everything is authentic, with all findings.
    An Expectation that no evidence can meet is a refusal of that step (EXPECTATION_MISMATCH).
    """
    state = _State(
        bundle, subject, role, purpose, nonce, claim, expectation, roots, now, known or Known()
    )
    findings = run_steps(NODE_STEPS, state, subject=subject)
    everything = (*findings, *state.nested)
    refused = {finding.step for finding in findings if finding.status is not Status.PASS}
    if refused:
        failed = {finding.step for finding in findings if finding.failed}
        if failed and failed <= state.policy_refusals:
            raise PolicyRejected(everything)
        raise EvidenceRejected(everything)
    tdx = established(state.tdx)
    ends = [tdx.claims.not_after, established(state.keyset).not_after]
    if state.gpus is not None:
        ends.append(state.gpus.not_after)
    result = AttestationResult(
        subject=subject,
        simulated=roots.simulated,
        roots=roots.sha256,
        policy_digest=expectation.digest.hex(),
        now=now,
        not_after=min(ends),
        claims=state.claims,
        findings=everything,
    )
    return VerifiedNode(
        established(state.keyset),
        established(state.statement),
        established(state.events),
        bundle.digest,
        tdx.claims.ppid,
        state.gpus,
        result,
        state.known.after(tdx, state.gpus),
        seal=_SEAL,
    )


def _nest(state: _State, step: str, run: Callable[[], T]) -> T:
    """Run a nested appraisal; its findings become part of ours, its refusal our step's."""
    try:
        return run()
    except Rejected as error:
        state.nested.extend(error.findings)
        if isinstance(error, PolicyRejected):
            state.policy_refusals.add(step)
        raise Refused(error.reason, str(error.failures[0])) from error


def _step_1(state: _State) -> str:
    """Roots: a name in the Expectation against the name of what the caller passed."""
    wanted = state.expectation.hardware.roots
    if wanted != state.roots.name:
        reason = Reason.SIMULATED_NOT_ALLOWED if state.roots.simulated else Reason.ROOT_MISMATCH
        raise Refused(reason, f"the Expectation names {wanted}")
    return state.roots.name


def _step_2(state: _State) -> str:
    """Purpose, nonce and claim of the statement."""
    statement = parse_statement(state.bundle.statement)
    if statement.purpose != state.purpose:
        raise Refused(Reason.STATEMENT_MISMATCH, f"made for purpose {statement.purpose}")
    if statement.nonce != state.nonce:
        raise Refused(Reason.NONCE_MISMATCH, "the statement answers another nonce")
    if statement.claim != state.claim:
        raise Refused(Reason.CLAIM_MISMATCH, "the statement claims another document")
    state.statement = statement
    return statement.purpose


def _step_3(state: _State) -> str:
    digest = state.expectation.digest
    if established(state.statement).expectation != digest:
        raise Refused(Reason.EXPECTATION_MISMATCH, "the statement names another Expectation")
    return digest.hex()


def _step_4(state: _State) -> str:
    keyset = parse_keyset(state.bundle.keyset)
    if keyset.digest != established(state.statement).keyset:
        raise Refused(Reason.KEYSET_MISMATCH, "the statement names another keyset")
    if keyset.role != state.role:
        raise Refused(Reason.NODE_ROLE_MISMATCH, f"a keyset of a {keyset.role} node")
    if not keyset.not_before <= state.now <= keyset.not_after:
        raise Refused(Reason.KEYSET_EXPIRED, "outside the validity of the keyset")
    state.keyset = keyset
    return keyset.digest.hex()


def _step_5(state: _State) -> str:
    policy = tdx_policy(state.expectation, state.spec, roots=state.roots)
    state.tdx = _nest(
        state,
        "node/5",
        lambda: appraise_tdx(
            state.bundle.quote,
            state.bundle.collateral,
            roots=(state.roots.tdx,),
            policy=policy,
            report_data=established(state.statement).report_data,
            now=state.now,
            subject=f"{state.subject}/tdx",
            known=state.known.collateral,
        ),
    )
    state.nested.extend(state.tdx.findings)
    return f"TDX, {state.tdx.claims.tcb_status}"


def _step_6(state: _State) -> str:
    log = LogState(
        quoted=established(state.tdx).claims.rtmr,
        firmware=parse_ccel(state.bundle.firmware_log),
        runtime=parse_log(state.bundle.runtime_log),
    )
    findings = run_steps(LOG_STEPS, log, subject=f"{state.subject}/log")
    state.nested.extend(findings)
    failed = [finding for finding in findings if finding.failed]
    if failed and failed[0].reason is not None:
        raise Refused(failed[0].reason, str(failed[0]))
    state.events = established(log.events)
    return f"{len(log.firmware)} firmware and {len(log.runtime)} runtime events"


def _step_7(state: _State) -> str:
    node, keyset = established(state.events).node, established(state.keyset)
    if node.role != state.role:
        raise Refused(Reason.NODE_ROLE_MISMATCH, f"RTMR3 says {node.role}")
    if node.software.hex() not in state.spec.software:
        raise Refused(Reason.NODE_SOFTWARE_MISMATCH, f"software {node.software.hex()}")
    if node.software != keyset.software:
        raise Refused(Reason.NODE_SOFTWARE_MISMATCH, "the keyset names other software than RTMR3")
    with_keys = {key.face for key in keyset.keys if key.face is not None}
    if not with_keys <= set(established(state.events).faces):
        raise Refused(Reason.KEYSET_MISMATCH, "a key of a face that RTMR3 does not name")
    _require_compose(state)
    return node.software.hex()


def _require_compose(state: _State) -> None:
    """On dstack, who may extend RTMR3 is what the compose document starts: it has to be known."""
    launched, accepted = established(state.events).dstack, state.spec.compose
    if launched is None:
        if accepted:
            raise Refused(Reason.EVENT_MISSING, "nothing of dstack in RTMR3")
    elif not accepted:
        raise Refused(Reason.EVENT_UNKNOWN, "launched by dstack; the Expectation names no compose")
    elif launched.compose_hash.hex() not in accepted:
        raise Refused(
            Reason.COMPOSE_HASH_MISMATCH, f"compose document {launched.compose_hash.hex()}"
        )


def _step_8(state: _State) -> str:
    model, wanted = established(state.events).model, state.expectation.model
    if state.role == "agent":
        return "no model on an agent node"
    measured = established(model)
    if measured.name != wanted.name:
        raise Refused(Reason.MODEL_MISMATCH, "RTMR3 names another model")
    if measured.weights is None:
        if wanted.weights:
            raise Refused(Reason.CLAIM_NOT_PROVEN, "the weights lie outside the node")
        return "weights outside the node: not measured"
    if measured.weights.hex() != wanted.weights:
        raise Refused(Reason.MODEL_MISMATCH, f"weights {measured.weights.hex()}")
    return measured.weights.hex()


def _step_9(state: _State) -> str:
    statement, devices = established(state.statement), state.bundle.devices
    if state.role == "agent":
        if devices or statement.devices is not None:
            raise Refused(Reason.STATEMENT_MISMATCH, "device evidence on an agent node")
        return "no devices on an agent node"
    if not devices or statement.devices is None:
        raise Refused(Reason.GPU_MISSING, "no GPU evidence")
    if devices_digest(devices) != statement.devices:
        raise Refused(Reason.STATEMENT_MISMATCH, "other devices than the statement names")
    return f"{len(devices)} device(s)"


def _step_10(state: _State) -> str:
    if state.role == "agent":
        return "no devices on an agent node"
    # Loaded for model nodes: half of the code of an appraisal, and an agent node has no GPU.
    from confide.appraisal.nvidia import appraise_gpus  # noqa: PLC0415

    state.gpus = _nest(
        state,
        "node/10",
        lambda: appraise_gpus(
            state.bundle.devices,
            state.bundle.endorsements,
            roots=state.roots.nvidia,
            policy=gpu_policy(state.expectation.gpu),
            expected_nonce=established(state.statement).gpu_nonce,
            now=state.now,
            known_rims=state.known.rims,
            known_signatures=state.known.signatures,
            subject=f"{state.subject}/gpu",
        ),
    )
    state.nested.extend(state.gpus.findings)
    return f"{len(state.gpus.devices)} GPU(s), {state.gpus.chip}, {state.gpus.mode}"


def _step_11(state: _State) -> str:
    if state.role == "agent":
        return "no devices on an agent node"
    boot = established(established(state.events).gpu)
    now = tuple(device.ueid for device in established(state.gpus).devices)
    if boot.serials != now:
        raise Refused(Reason.GPU_MISSING, "other devices answered than the node appraised at boot")
    return f"{len(now)} serial number(s) equal"


def _step_12(state: _State) -> str:
    state.claims = _claims(state)
    accepted = set(state.expectation.hardware.accept_not_proven)
    missing = [
        claim.name
        for claim in state.claims
        if claim.status is not Status.PASS and claim.name not in accepted
    ]
    if missing:
        state.policy_refusals.add("node/12")
        raise Refused(Reason.CLAIM_NOT_PROVEN, ", ".join(missing))
    return f"{len(state.claims)} claims"


def _claims(state: _State) -> tuple[Claim, ...]:
    return node_claims(
        established(state.keyset),
        established(state.tdx).claims,
        established(state.events),
        state.gpus,
        allow_listed=bool(state.expectation.hardware.platforms),
        simulated=state.roots.simulated,
    )


def _step(number: int, run: Callable[[_State], str], *needs: int) -> Step[_State]:
    return Step(f"node/{number}", _DOC, run, tuple(f"node/{need}" for need in needs))


NODE_STEPS: tuple[Step[_State], ...] = (
    _step(1, _step_1),
    _step(2, _step_2),
    _step(3, _step_3, 2),
    _step(4, _step_4, 2),
    _step(5, _step_5, 1, 2),
    _step(6, _step_6, 5),
    _step(7, _step_7, 4, 6),
    _step(8, _step_8, 6, 7),
    _step(9, _step_9, 2),
    _step(10, _step_10, 1, 9),
    _step(11, _step_11, 7, 10),
    _step(12, _step_12, 4, 7, 8, 11),
)
