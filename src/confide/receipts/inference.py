"""Verifying one inference receipt against the exchange it travelled with. Pure.

Performs steps inference/1 to inference/6 of docs/protocols/client.md §3 over a hostile envelope.
Everything that it is held against comes from the caller's own side of the exchange: digests of the
bytes that it sent and received, the keyset that it proved, the Expectation that it holds.

A receipt that holds says which proven node answered these bytes with those, under which model. It
says nothing about whether the answer is right.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.errors import Reason, ReceiptRejected
from confide.rats import Finding, Status
from confide.receipts.issue import INFERENCE
from confide.wire.dsse import Envelope, pae, parse_statement_payload
from confide.wire.faces import Way
from confide.wire.keyset import parse_time
from confide.wire.quantisation import Quantisation, read_quantisation

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from confide.appraisal.eventlog import ModelEvent
    from confide.expectation import Expectation
    from confide.wire.json import Members
    from confide.wire.keyset import Keyset

__all__ = [
    "INFERENCE_STEPS",
    "ExchangeFacts",
    "InferenceStatement",
    "StatedModel",
    "VerifiedInference",
    "missing_receipt",
    "parse_inference_statement",
    "read_model",
    "require_model",
    "require_signed",
    "verify_inference_receipt",
]

_DOC = "docs/protocols/client.md#3"
_REASON = Reason.RECEIPT_FORMAT
_SEAL = object()


@dataclass(frozen=True, slots=True)
class ExchangeFacts:
    """
    One exchange as the caller saw it. Digests are SHA-256.

    `request` is over the body that was sealed, `response` over the body that was opened, without
    an inline receipt, `sealed_request` over the request as it went out. `path` has no query.
    """

    path: str
    status: int
    streamed: bool
    request: bytes
    response: bytes
    sealed_request: bytes


@dataclass(frozen=True, slots=True)
class InferenceStatement:
    """What an inference receipt states, parsed; believed only inside a `VerifiedInference`."""

    id: str
    keyset: bytes
    model: StatedModel
    served: datetime
    sequence: int
    sealed_request: bytes
    subject: bytes
    endpoint: str
    request: bytes
    response: bytes
    status: int
    streamed: bool
    finish: str
    input_tokens: int | None
    output_tokens: int | None
    way: Way | None = None


@dataclass(frozen=True, slots=True)
class VerifiedInference:
    """A receipt that held in every step. Only `verify_inference_receipt` makes one."""

    statement: InferenceStatement
    envelope: Envelope
    facts: ExchangeFacts
    findings: tuple[Finding, ...] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `verify_inference_receipt`."""
        if seal is not _SEAL:
            raise TypeError("only verify_inference_receipt makes a VerifiedInference")


def parse_inference_statement(payload: bytes) -> InferenceStatement:
    """Parse the payload of an inference receipt. Raises `FormatError`; believes nothing."""
    subjects, predicate = parse_statement_payload(payload, predicate_type=INFERENCE)
    model, record = predicate.members("model"), predicate.members("record")
    if len(subjects) != 1 or subjects[0][0] != "response":
        predicate.refuse("the subject is not one response")
    usage = None if record.null("usage") else record.members("usage")
    return InferenceStatement(
        id=predicate.text("id", max_chars=128),
        keyset=predicate.hexes("keyset", 32),
        model=read_model(model),
        served=parse_time(predicate.text("served"), what="served", reason=_REASON),
        sequence=predicate.integer("sequence"),
        sealed_request=predicate.hexes("sealed_request", 32),
        subject=subjects[0][1],
        endpoint=record.text("endpoint", max_chars=256),
        request=record.hexes("request", 32),
        response=record.hexes("response", 32),
        status=record.integer("status", low=100, high=599),
        streamed=record.boolean("streamed"),
        finish=record.text("finish", max_chars=64),
        input_tokens=None if usage is None else usage.integer("input_tokens"),
        output_tokens=None if usage is None else usage.integer("output_tokens"),
        way=record.choice("way", tuple(Way)) if record.has("way") else None,
    )


def require_signed(envelope: Envelope, keyset: Keyset) -> None:
    """Require that every signature of `envelope` is by a receipt key of `keyset`, and one is."""
    keys = {str(key.id): key.public_key for key in keyset.for_purpose("sign-receipt")}
    if not envelope.signatures:
        raise Refused(Reason.RECEIPT_SIGNATURE, "no signature")
    for keyid, signature in envelope.signatures:
        if keyid not in keys:
            raise Refused(Reason.RECEIPT_SIGNATURE, "signed with a key outside the proven keyset")
        try:
            verify_ed25519(keys[keyid], signature, pae(envelope.payload))
        except BadSignature as error:
            raise Refused(Reason.RECEIPT_SIGNATURE, error.what) from error


@dataclass(frozen=True, slots=True)
class StatedModel:
    """Which model a receipt says answered: name, weights, and how they are quantised."""

    name: str
    weights: bytes | None
    quantisation: Quantisation | None


def read_model(model: Members) -> StatedModel:
    """Read the member `model` of a receipt. Raises `FormatError`; believes nothing."""
    weights = None if model.null("weights") else model.hexes("weights", 32)
    return StatedModel(model.text("name", max_chars=256), weights, read_quantisation(model))


def require_model(
    stated: StatedModel, *, expectation: Expectation, measured: ModelEvent | None
) -> None:
    """Require the model and weights wanted, quantised as the node `measured` them at boot."""
    if stated.quantisation != (None if measured is None else measured.quantisation):
        raise Refused(Reason.MODEL_MISMATCH, "an inference receipt names another quantisation")
    found = "" if stated.weights is None else stated.weights.hex()
    if (stated.name, found) != (expectation.model.name, expectation.model.weights):
        raise Refused(Reason.MODEL_MISMATCH, "an inference receipt names another model")


@dataclass(slots=True)
class _State:
    envelope: Envelope
    keyset: Keyset
    measured: ModelEvent | None
    expectation: Expectation
    facts: ExchangeFacts
    statement: InferenceStatement | None = None


def verify_inference_receipt(
    envelope: Envelope,
    *,
    keyset: Keyset,
    measured: ModelEvent | None,
    expectation: Expectation,
    facts: ExchangeFacts,
) -> VerifiedInference:
    """
    Establish that `envelope` is the receipt of exactly this exchange by the node of `keyset`.

    `keyset` and `measured` must be those of a `VerifiedNode` that was appraised against
    `expectation` (what RTMR3 says about its model); the exchange must have been sealed to it.
    Raises `ReceiptRejected` with one finding for each step.
    **Does not check** what the node reports about its engine: usage, time, transformations.
    """
    state = _State(envelope, keyset, measured, expectation, facts)
    findings = run_steps(INFERENCE_STEPS, state, subject="receipt")
    if any(finding.status is not Status.PASS for finding in findings):
        raise ReceiptRejected(findings)
    return VerifiedInference(established(state.statement), envelope, facts, findings, seal=_SEAL)


def missing_receipt(detail: str) -> ReceiptRejected:
    """Return the refusal of an answer that came without a receipt that can be read."""
    finding = Finding(Status.FAIL, "inference/1", _DOC, "receipt", detail, Reason.RECEIPT_MISSING)
    return ReceiptRejected((finding,))


def _step_1(state: _State) -> str:
    state.statement = parse_inference_statement(state.envelope.payload)
    return state.statement.id


def _step_2(state: _State) -> str:
    require_signed(state.envelope, state.keyset)
    return "Ed25519"


def _step_3(state: _State) -> str:
    named, proven = established(state.statement).keyset, state.keyset.digest
    if named != proven:
        raise Refused(Reason.KEYSET_MISMATCH, "the receipt names another keyset")
    return proven.hex()


def _step_4(state: _State) -> str:
    statement, facts = established(state.statement), state.facts
    for what, stated, seen in (
        ("sealed request", statement.sealed_request, facts.sealed_request),
        ("request", statement.request, facts.request),
        ("response", statement.response, facts.response),
        ("response", statement.subject, facts.response),
    ):
        if stated != seen:
            raise Refused(Reason.CLAIM_MISMATCH, f"the receipt is about another {what}")
    return facts.response.hex()


def _step_5(state: _State) -> str:
    statement, facts = established(state.statement), state.facts
    if statement.endpoint != facts.path:
        raise Refused(Reason.CLAIM_MISMATCH, "the receipt is about another endpoint")
    if (statement.status, statement.streamed) != (facts.status, facts.streamed):
        raise Refused(Reason.CLAIM_MISMATCH, "the receipt is about another kind of answer")
    if statement.way is not None:
        raise Refused(Reason.CLAIM_MISMATCH, "the receipt is about a request over a face")
    if statement.finish == "client-cancelled":
        raise Refused(Reason.CLAIM_MISMATCH, "the receipt is about an answer that was not taken")
    return f"{statement.endpoint}, {statement.status}"


def _step_6(state: _State) -> str:
    stated = established(state.statement).model
    require_model(stated, expectation=state.expectation, measured=state.measured)
    return stated.name


def _steps() -> tuple[Step[_State], ...]:
    def step(number: int, run: Callable[[_State], str], *needs: int) -> Step[_State]:
        return Step(f"inference/{number}", _DOC, run, tuple(f"inference/{need}" for need in needs))

    return (
        step(1, _step_1),
        step(2, _step_2),
        step(3, _step_3, 1),
        step(4, _step_4, 1),
        step(5, _step_5, 1),
        step(6, _step_6, 1),
    )


INFERENCE_STEPS = _steps()
