"""One inference receipt against one exchange: every step of client.md §3 carries weight."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from nodes import NOW, SOFTWARE, WEIGHTS, CountingEntropy, fitting_expectation, roots

from confide.errors import Reason, ReceiptRejected
from confide.node.keys import make_node_keys
from confide.receipts.inference import (
    INFERENCE_STEPS,
    ExchangeFacts,
    VerifiedInference,
    verify_inference_receipt,
)
from confide.receipts.issue import issue_inference_receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.wire.dsse import Envelope

KEYS = make_node_keys(
    role="model",
    software=SOFTWARE,
    now=NOW,
    lifetime=timedelta(days=1),
    entropy=CountingEntropy(b"receipt"),
)
OTHER = make_node_keys(
    role="model",
    software=SOFTWARE,
    now=NOW,
    lifetime=timedelta(days=1),
    entropy=CountingEntropy(b"another node"),
)
EXPECTATION = fitting_expectation(roots())


def _sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


FACTS = ExchangeFacts(
    path="/v1/chat/completions",
    status=200,
    streamed=False,
    request=_sha("request"),
    response=_sha("response"),
    sealed_request=_sha("sealed"),
)


@dataclass
class Case:
    """What the node says, and who signs it."""

    model: str = "support-notes"
    weights: bytes | None = WEIGHTS
    keyset: bytes = KEYS.keyset.digest
    signer: Any = KEYS.signer
    finish: str = "complete"
    endpoint: str = FACTS.path
    way: str | None = None

    def envelope(self) -> Envelope:
        return issue_inference_receipt(
            self.signer,
            receipt_id="rcpt-1",
            keyset=self.keyset,
            model=self.model,
            weights=self.weights,
            served=NOW,
            sequence=0,
            sealed_request=FACTS.sealed_request,
            response=FACTS.response,
            record={
                "endpoint": self.endpoint,
                "request": FACTS.request.hex(),
                "response": FACTS.response.hex(),
                "status": 200,
                "streamed": False,
                "usage": {"input_tokens": 1, "output_tokens": 2},
                "finish": self.finish,
                **({} if self.way is None else {"way": self.way}),
            },
        )


def verify(envelope: Envelope, facts: ExchangeFacts = FACTS) -> VerifiedInference:
    return verify_inference_receipt(
        envelope, keyset=KEYS.keyset, measured=None, expectation=EXPECTATION, facts=facts
    )


def refused(envelope: Envelope, facts: ExchangeFacts = FACTS) -> tuple[str, Reason]:
    with pytest.raises(ReceiptRejected) as refusal:
        verify(envelope, facts)
    first = refusal.value.failures[0]
    assert first.reason is not None
    return first.step, first.reason


def test_an_honest_receipt_holds_in_every_step() -> None:
    found = verify(Case().envelope())
    assert [finding.step for finding in found.findings] == [step.id for step in INFERENCE_STEPS]
    assert (found.statement.input_tokens, found.statement.output_tokens) == (1, 2)
    with pytest.raises(TypeError):
        replace(found, seal=object())


def _unsigned(envelope: Envelope) -> Envelope:
    return replace(envelope, signatures=())


def _resigned(envelope: Envelope) -> Envelope:
    # Somebody else's key under the id of the node's.
    signed = OTHER.signer.seal(envelope.payload).signatures[0][1]
    return replace(envelope, signatures=((str(KEYS.signer.key_id), signed),))


def _edited(envelope: Envelope) -> Envelope:
    return replace(envelope, payload=envelope.payload.replace(b"rcpt-1", b"rcpt-2"))


@pytest.mark.parametrize("edit", [_unsigned, _resigned, _edited])
def test_step_2_wants_the_signature_of_the_proven_keys(
    edit: Callable[[Envelope], Envelope],
) -> None:
    assert refused(edit(Case().envelope())) == ("inference/2", Reason.RECEIPT_SIGNATURE)


@pytest.mark.parametrize(
    ("case", "step", "reason"),
    [
        (Case(keyset=OTHER.keyset.digest), 3, Reason.KEYSET_MISMATCH),
        (Case(endpoint="/v1/completions"), 5, Reason.CLAIM_MISMATCH),
        (Case(finish="client-cancelled"), 5, Reason.CLAIM_MISMATCH),
        (Case(way="near/tls"), 5, Reason.CLAIM_MISMATCH),
        (Case(way="by pigeon"), 1, Reason.RECEIPT_FORMAT),
        (Case(model="another"), 6, Reason.MODEL_MISMATCH),
        (Case(weights=bytes(32)), 6, Reason.MODEL_MISMATCH),
        (Case(weights=None), 6, Reason.MODEL_MISMATCH),
    ],
)
def test_what_a_node_says_is_held_against_what_was_proven(
    case: Case, step: int, reason: Reason
) -> None:
    assert refused(case.envelope()) == (f"inference/{step}", reason)


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        (replace(FACTS, request=bytes(32)), 4),
        (replace(FACTS, response=bytes(32)), 4),
        (replace(FACTS, sealed_request=bytes(32)), 4),
        (replace(FACTS, path="/v1/responses"), 5),
        (replace(FACTS, status=201), 5),
        (replace(FACTS, streamed=True), 5),
    ],
)
def test_what_a_receipt_says_is_held_against_what_passed(facts: ExchangeFacts, step: int) -> None:
    assert refused(Case().envelope(), facts) == (f"inference/{step}", Reason.CLAIM_MISMATCH)


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff", b'{"_type": 1}'])
def test_what_is_no_receipt_is_malformed(payload: bytes) -> None:
    assert refused(KEYS.signer.seal(payload)) == ("inference/1", Reason.RECEIPT_FORMAT)


def test_a_receipt_of_another_kind_is_none() -> None:
    envelope = Case().envelope()
    other = envelope.payload.replace(b"confide:inference/v1", b"confide:agent-run/v1")
    assert refused(KEYS.signer.seal(other)) == ("inference/1", Reason.RECEIPT_FORMAT)


def test_two_subjects_are_refused() -> None:
    payload = Case().envelope().payload
    start = payload.index(b'"subject":[') + len(b'"subject":[')
    end = payload.index(b"]", start)
    doubled = payload[:end] + b"," + payload[start:end] + payload[end:]
    assert refused(KEYS.signer.seal(doubled)) == ("inference/1", Reason.RECEIPT_FORMAT)
