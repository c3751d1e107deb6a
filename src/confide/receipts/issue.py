"""Issuing receipts: what an enclave says it executed, signed with a key its evidence binds. Pure.

Clauses: docs/protocols/receipt.md §1 (envelope), §3 (inference), §4 (agent run), §5 (session).
A receipt proves execution integrity and provenance, never correctness of what was answered.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from confide.wire.dsse import Envelope, encode_statement, pae
from confide.wire.json import JsonValue, jcs
from confide.wire.keyset import format_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from confide.receipts.transcript import Transcript
    from confide.wire.quantisation import Quantisation

__all__ = [
    "AGENT_RUN",
    "INFERENCE",
    "LIMITS",
    "ReceiptSigner",
    "RunFacts",
    "Signer",
    "issue_inference_receipt",
    "issue_run_receipt",
    "session_claim",
]

INFERENCE = "confide:inference/v1"
AGENT_RUN = "confide:agent-run/v1"
_SESSION_TYPE = "confide/session/v1"

# From: docs/protocols/receipt.md §4.4: every agent-run receipt carries these.
LIMITS = (
    "correctness of the agent's reasoning or of the model's answers",
    "that the GPU sits in the same machine as the CPU (no TDISP)",
    "absence of physical attacks that extract attestation keys",
    "the time of the run beyond the node's own clock (a log only bounds when it had ended)",
)


class Signer(Protocol):
    """Something that signs bytes."""

    def sign(self, message: bytes) -> bytes:
        """Return a signature over `message`."""
        ...


@dataclass(frozen=True, slots=True)
class ReceiptSigner:
    """A signing key together with its id in the keyset."""

    key_id: int
    signer: Signer

    def seal(self, payload: bytes) -> Envelope:
        """Return the DSSE envelope of an in-toto payload."""
        return Envelope(payload, ((str(self.key_id), self.signer.sign(pae(payload))),))


def issue_inference_receipt(
    signer: ReceiptSigner,
    *,
    receipt_id: str,
    keyset: bytes,
    model: str,
    weights: bytes | None,
    served: datetime,
    sequence: int,
    sealed_request: bytes,
    response: bytes,
    record: Mapping[str, JsonValue],
    quantisation: Quantisation | None = None,
    worker: int | None = None,
) -> Envelope:
    """
    Return the receipt of one model response.

    `response` is the SHA-256 of the bytes returned, `sealed_request` that of the request
    ciphertext, `record` the digests and transformations of `inference.digest.InferenceRecord`,
    `sequence` this keyset's running number, `quantisation` that of the model event, `worker` whose
    running number it is where there are several. Does not say the answer is right.
    """
    named: dict[str, JsonValue] = {"name": model, "weights": weights.hex() if weights else None}
    if quantisation is not None:
        named["quantisation"] = quantisation.as_json()
    predicate: dict[str, JsonValue] = {
        "id": receipt_id,
        "keyset": keyset.hex(),
        "model": named,
        "served": format_time(served),
        "sequence": sequence,
        "sealed_request": sealed_request.hex(),
        "record": dict(record),
    }
    if worker is not None:
        predicate["worker"] = worker
    return signer.seal(encode_statement(INFERENCE, (("response", response),), predicate))


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Identity of a run: secret id, owner's nonce, what it ran under, when, how it ended."""

    run: bytes
    nonce: bytes
    keyset: bytes
    expectation: bytes
    started: datetime
    finished: datetime
    result: str


def issue_run_receipt(
    signer: ReceiptSigner,
    facts: RunFacts,
    *,
    transcript: Transcript,
    outputs: Sequence[bytes],
) -> Envelope:
    """
    Return the receipt of an agent run over its complete `transcript`.

    `outputs` are the SHA-256 digests of the output files in transcript order: the subjects. Its
    `Envelope.digest` is what the node must have quoted (purpose `claim`) for it to count.
    """
    predicate: dict[str, JsonValue] = {
        "run": facts.run.hex(),
        "nonce": facts.nonce.hex(),
        "keyset": facts.keyset.hex(),
        "expectation": facts.expectation.hex(),
        "started": format_time(facts.started),
        "finished": format_time(facts.finished),
        "result": facts.result,
        "transcript": transcript.documents(),
        "head": transcript.head.hex(),
        "not_proven": list(LIMITS),
    }
    subjects = [(f"output/{index}", digest) for index, digest in enumerate(outputs)]
    return signer.seal(encode_statement(AGENT_RUN, subjects, predicate))


def session_claim(*, context: bytes, receipts: Sequence[bytes]) -> bytes:
    """
    Return the claim digest with which a model node closes a run.

    SHA-256 over the canonical list of the inference receipts it issued for that run, in order,
    and `context`, the head of the run's transcript before the closing.
    """
    document: JsonValue = {
        "type": _SESSION_TYPE,
        "context": context.hex(),
        "receipts": [receipt.hex() for receipt in receipts],
    }
    return hashlib.sha256(jcs(document)).digest()
