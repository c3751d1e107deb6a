"""Verifying an agent-run receipt, offline: before, during, after. Pure.

Performs steps receipt/1 to receipt/12 and receipt/14 of docs/protocols/receipt.md §7. Everything in
the file is hostile: the verifier brings roots, time and, where it has one, its own Expectation. The
file's own roots are not read here.

What the caller still must do: decide whether the Expectation is the one it wanted (its digest is
in the result), and read the claims that are `not-proven`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from confide.appraisal.binding import Purpose, closing_nonce
from confide.appraisal.eventlog import run_commitment
from confide.appraisal.known import Known
from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.errors import Reason, ReceiptRejected
from confide.rats import Finding, Status
from confide.receipts.held import appraise_held, require_expectation
from confide.receipts.inference import read_model, require_model, require_signed
from confide.receipts.issue import INFERENCE, session_claim
from confide.receipts.releases import verify_releases
from confide.receipts.statement import RunStatement, parse_run_statement
from confide.receipts.transcript import COMPLETED, Event, transcript_head
from confide.wire.dsse import parse_statement_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation
    from confide.receipts.file import ReceiptFile
    from confide.trust.roots import Roots
    from confide.wire.dsse import Envelope
    from confide.wire.evidence import EvidenceBundle

__all__ = ["VERIFY_STEPS", "VerifiedRun", "verify_receipt"]

_DOC = "docs/protocols/receipt.md#7"


@dataclass(frozen=True, slots=True)
class VerifiedRun:
    """
    A run whose receipt held in every step.

    `agent` and `model` are the nodes as proven after the run. `findings` are in step order, those
    of nested appraisals included. Says nothing about the quality of the outputs.
    """

    expectation: Expectation
    statement: RunStatement
    digest: bytes
    agent: VerifiedNode
    model: VerifiedNode
    findings: tuple[Finding, ...]

    @property
    def simulated(self) -> bool:
        """Whether any root in the chain is a SIMULATED one."""
        return self.agent.result.simulated or self.model.result.simulated


@dataclass(slots=True)
class _State:
    file: ReceiptFile
    roots: Roots
    now: datetime
    wanted: Expectation | None
    nonce: bytes | None
    outputs: Sequence[bytes] | None
    nested: list[Finding] = field(default_factory=list)
    # The four proofs of one receipt mostly hold the same collateral, manifests and chains.
    known: Known = field(default_factory=Known)
    # What earlier steps established; a step that needs one lists that step in `needs`.
    statement: RunStatement | None = None
    expectation: Expectation | None = None
    agent: VerifiedNode | None = None
    model: VerifiedNode | None = None
    model_after: VerifiedNode | None = None


def verify_receipt(
    file: ReceiptFile,
    *,
    roots: Roots,
    now: datetime,
    expectation: Expectation | None,
    nonce: bytes | None,
    outputs: Sequence[bytes] | None,
) -> VerifiedRun:
    """
    Verify `file` against `roots` at `now`.

    `expectation`, `nonce` and `outputs` (SHA-256 of the files at hand, any order) are what the
    verifier knows by itself; None means that it does not know, and the result then only says
    what the receipt is about. Raises `ReceiptRejected` with every finding.
    """
    state = _State(file, roots, now, expectation, nonce, outputs)
    findings = run_steps(VERIFY_STEPS, state, subject="receipt")
    everything = (*findings, *state.nested)
    if any(finding.status is not Status.PASS for finding in findings):
        raise ReceiptRejected(everything)
    if None in (state.statement, state.expectation, state.agent, state.model_after):
        raise RuntimeError("every step passed without establishing what it must")
    return VerifiedRun(
        established(state.expectation),
        established(state.statement),
        file.run.digest,
        established(state.agent),
        established(state.model_after),
        everything,
    )


def _of_kind(statement: RunStatement, kind: str) -> tuple[Event, ...]:
    return tuple(event for event in statement.events if event.kind == kind)


def _step_1(state: _State) -> str:
    state.statement = parse_run_statement(state.file.run.payload)
    return f"{len(state.statement.events)} events"


def _step_2(state: _State) -> str:
    statement = established(state.statement)
    if transcript_head(statement.events) != statement.head:
        raise Refused(Reason.TRANSCRIPT_BROKEN, "the events do not hash to the head")
    if statement.events[-1]["result"] != statement.result:
        raise Refused(Reason.TRANSCRIPT_BROKEN, "the result is not that of the last event")
    outputs = tuple(event.digest("sha256") for event in _of_kind(statement, "output"))
    if outputs != statement.outputs:
        raise Refused(Reason.TRANSCRIPT_BROKEN, "the subjects are not the outputs recorded")
    return statement.head.hex()


def _step_3(state: _State) -> str:
    state.expectation = require_expectation(
        state.file.expectation,
        named=established(state.statement).expectation,
        wanted=state.wanted,
        what="receipt",
    )
    return state.expectation.digest.hex()


def _appraise(
    state: _State,
    bundle: EvidenceBundle,
    *,
    role: Literal["agent", "model"],
    purpose: Purpose,
    nonce: bytes,
    claim: bytes | None,
) -> VerifiedNode:
    moment = "before" if purpose == "channel" else "after"
    return appraise_held(
        state,
        bundle,
        subject=f"{role}-node ({moment})",
        role=role,
        purpose=purpose,
        nonce=nonce,
        claim=claim,
        now=state.now,
    )


def _step_4(state: _State) -> str:
    statement = established(state.statement)
    if state.nonce is not None and state.nonce != statement.nonce:
        raise Refused(Reason.NONCE_MISMATCH, "the receipt answers another nonce")
    state.agent = _appraise(
        state,
        state.file.agent_after,
        role="agent",
        purpose="claim",
        nonce=statement.nonce,
        claim=state.file.run.digest,
    )
    if state.agent.keyset.digest != statement.keyset:
        raise Refused(Reason.KEYSET_MISMATCH, "the receipt names another keyset")
    return statement.keyset.hex()


def _step_5(state: _State) -> str:
    require_signed(state.file.run, established(state.agent).keyset)
    return "Ed25519"


def _step_6(state: _State) -> str:
    before = _appraise(
        state,
        state.file.agent_before,
        role="agent",
        purpose="channel",
        nonce=established(state.statement).nonce,
        claim=None,
    )
    if before.keyset.digest != established(state.agent).keyset.digest:
        raise Refused(Reason.KEYSET_MISMATCH, "another keyset before the run than after it")
    return "same keyset before and after"


def _step_7(state: _State) -> str:
    statement, expectation = established(state.statement), established(state.expectation)
    events = established(state.agent).events
    image = bytes.fromhex(expectation.agent.image)
    for name, digest, reason in (
        ("confide-expectation", expectation.digest, Reason.EXPECTATION_MISMATCH),
        ("confide-agent-image", image, Reason.AGENT_IMAGE_MISMATCH),
    ):
        payload = run_commitment(name, run=statement.run, digest=digest)
        if not events.has_run_event(name, payload):
            raise Refused(reason, f"RTMR3 holds no {name} of this run")
    started = (*_of_kind(statement, "run-started"), *_of_kind(statement, "agent-started"))
    if any(event.digest("image") != image for event in started):
        raise Refused(Reason.AGENT_IMAGE_MISMATCH, "the transcript names another image")
    return image.hex()


def _step_8(state: _State) -> str:
    verified = _of_kind(established(state.statement), "model-verified")
    bundle = state.file.model_before
    if not verified or bundle is None:
        raise Refused(Reason.EVIDENCE_MISSING, "the model node was not proven before the run")
    event = verified[-1]
    if bundle.digest != event.digest("evidence"):
        raise Refused(Reason.STATEMENT_MISMATCH, "other evidence than the transcript names")
    state.model = _appraise(
        state, bundle, role="model", purpose="channel", nonce=event.digest("nonce"), claim=None
    )
    if state.model.keyset.digest != event.digest("keyset"):
        raise Refused(Reason.KEYSET_MISMATCH, "another keyset than the transcript names")
    return state.model.keyset.digest.hex()


def _require_call_receipt(event: Event, envelope: Envelope, state: _State) -> None:
    keyset = established(state.model).keyset
    require_signed(envelope, keyset)
    subjects, predicate = parse_statement_payload(envelope.payload, predicate_type=INFERENCE)
    record = predicate.members("record")
    if predicate.hexes("keyset", 32) != keyset.digest:
        raise Refused(Reason.KEYSET_MISMATCH, "an inference receipt names another keyset")
    if record.has("way"):
        raise Refused(Reason.CLAIM_MISMATCH, "an inference receipt is about a request over a face")
    if (
        record.hexes("request", 32) != event.digest("request")
        or record.hexes("response", 32) != event.digest("response")
        or subjects != (("response", event.digest("response")),)
    ):
        raise Refused(Reason.CLAIM_MISMATCH, "an inference receipt is about other bytes")
    require_model(
        read_model(predicate.members("model")),
        expectation=established(state.expectation),
        measured=established(state.model).events.model,
    )


def _step_9(state: _State) -> str:
    calls = _of_kind(established(state.statement), "model-call")
    by_digest = {envelope.digest: envelope for envelope in state.file.inferences}
    unanswered, accounted = 0, set[bytes]()
    for number, event in enumerate(calls):
        digest = event["receipt"]
        if digest is None and event["response"] is None:
            # Nothing came back, so there is nothing to account for; it is counted and shown.
            unanswered += 1
            continue
        if not isinstance(digest, bytes) or digest not in by_digest or event["response"] is None:
            raise Refused(Reason.RECEIPT_MISSING, f"model call {number} has no receipt")
        if digest in accounted:
            raise Refused(Reason.RECEIPT_MISSING, f"model call {number} names a receipt again")
        accounted.add(digest)
        _require_call_receipt(event, by_digest[digest], state)
    if len(by_digest) != len(state.file.inferences) or set(by_digest) - accounted:
        raise Refused(Reason.RECEIPT_NOT_REFERENCED, "a receipt that the transcript does not name")
    return f"{len(calls)} model calls, {unanswered} unanswered"


def _step_10(state: _State) -> str:
    statement, bundle = established(state.statement), state.file.model_after
    closed = _of_kind(statement, "model-closed")
    if not closed or bundle is None:
        raise Refused(Reason.EVIDENCE_MISSING, "the model node did not close the run")
    event = closed[-1]
    context = transcript_head(statement.events[: statement.events.index(event)])
    calls = (call["receipt"] for call in _of_kind(statement, "model-call"))
    receipts = [receipt for receipt in calls if isinstance(receipt, bytes)]
    claim = session_claim(context=context, receipts=receipts)
    if claim != event.digest("claim") or bundle.digest != event.digest("evidence"):
        raise Refused(Reason.CLAIM_MISMATCH, "the closing is about another run")
    if event["receipts"] != len(receipts):
        raise Refused(Reason.CLAIM_MISMATCH, "the closing counts other receipts")
    state.model_after = _appraise(
        state,
        bundle,
        role="model",
        purpose="claim",
        nonce=closing_nonce(statement.nonce, context),
        claim=claim,
    )
    if state.model_after.keyset.digest != established(state.model).keyset.digest:
        raise Refused(Reason.KEYSET_MISMATCH, "another model node closed than was proven before")
    return claim.hex()


def _step_11(state: _State) -> str:
    recorded = established(state.statement).outputs
    if state.outputs is None:
        return f"{len(recorded)} outputs recorded; no files at hand to compare"
    if sorted(state.outputs) != sorted(recorded):
        raise Refused(Reason.OUTPUT_MISMATCH, "the files at hand are not the outputs of the run")
    return f"{len(recorded)} output files equal"


def _step_12(state: _State) -> str:
    result = established(state.statement).result
    if result != COMPLETED:
        raise Refused(Reason.RUN_FAILED, f"the run ended as {result}")
    return result


def _step_14(state: _State) -> str:
    events = established(state.statement).events
    return verify_releases(events, state.file.releases, established(state.expectation))


def _steps() -> tuple[Step[_State], ...]:
    def step(number: int, run: Callable[[_State], str], *needs: int) -> Step[_State]:
        return Step(f"receipt/{number}", _DOC, run, tuple(f"receipt/{need}" for need in needs))

    return (
        step(1, _step_1),
        step(2, _step_2, 1),
        step(3, _step_3, 1),
        step(4, _step_4, 1, 3),
        step(5, _step_5, 4),
        step(6, _step_6, 4),
        step(7, _step_7, 4),
        step(8, _step_8, 3),
        step(9, _step_9, 8),
        step(10, _step_10, 2, 8, 9),
        step(11, _step_11, 1),
        step(12, _step_12, 1),
        # 13 is that of receipts in a log (docs/protocols/receipt.md §7).
        step(14, _step_14, 1, 3),
    )


VERIFY_STEPS = _steps()
