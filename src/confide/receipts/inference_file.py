"""The inference receipt file: one self-contained JSON document, and its offline verification. Pure.

Clauses: docs/protocols/client.md §5. `raw` is hostile. The file holds what the client knew when it
took the answer: the envelope, the evidence of the node before the request with the nonce it
answers, the Expectation, and digests of request and response. No prompt and no answer is in it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.appraisal.node import VerifiedNode, appraise_node
from confide.errors import Reason, ReceiptRejected
from confide.expectation import Expectation, parse_expectation
from confide.rats import Finding, Status
from confide.receipts.inference import (
    ExchangeFacts,
    VerifiedInference,
    verify_inference_receipt,
)
from confide.wire.dsse import Envelope, parse_envelope
from confide.wire.evidence import (
    EvidenceBundle,
    encode_blobs,
    encode_evidence,
    parse_blobs,
    parse_evidence,
)
from confide.wire.json import JsonValue, Members, b64encode, jcs, parse_json
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from datetime import datetime

    from confide.trust.roots import Roots

__all__ = [
    "InferenceFile",
    "VerifiedInferenceFile",
    "encode_facts",
    "parse_facts",
    "parse_inference_file",
    "verify_inference_file",
]

_TYPE = "confide/inference-receipt/v1"
_REASON = Reason.RECEIPT_FORMAT
_CLAUSE = "docs/protocols/client.md#5"


@dataclass(frozen=True, slots=True)
class InferenceFile:
    """
    One inference receipt with everything that is needed to verify it offline.

    `proven_at` is when the client appraised `evidence` over `nonce`; `roots` is the name of the
    roots it used, a hint; `expectation` are canonical bytes.
    """

    envelope: Envelope
    facts: ExchangeFacts
    expectation: bytes
    evidence: EvidenceBundle
    nonce: bytes
    proven_at: datetime
    roots: str

    @property
    def expectation_digest(self) -> bytes:
        """SHA-256 of the canonical Expectation: its name."""
        return hashlib.sha256(self.expectation).digest()

    def encode(self) -> bytes:
        """Return the document as canonical JSON."""
        blobs: dict[str, bytes] = {}
        evidence = encode_evidence(self.evidence, blobs)
        return jcs(
            {
                "type": _TYPE,
                "envelope": self.envelope.document(),
                "exchange": encode_facts(self.facts),
                "expectation": b64encode(self.expectation),
                "evidence": evidence,
                "blobs": encode_blobs(blobs),
                "nonce": self.nonce.hex(),
                "proven_at": format_time(self.proven_at),
                "roots": self.roots,
            }
        )


def encode_facts(facts: ExchangeFacts) -> dict[str, JsonValue]:
    """Return the JSON document of `facts`."""
    return {
        "path": facts.path,
        "status": facts.status,
        "streamed": facts.streamed,
        "request": facts.request.hex(),
        "response": facts.response.hex(),
        "sealed_request": facts.sealed_request.hex(),
    }


def parse_facts(members: Members) -> ExchangeFacts:
    """Parse what `encode_facts` made. Raises the `FormatError` of `members`."""
    facts = ExchangeFacts(
        path=members.text("path"),
        status=members.integer("status", low=100, high=599),
        streamed=members.boolean("streamed"),
        request=members.hexes("request", 32),
        response=members.hexes("response", 32),
        sealed_request=members.hexes("sealed_request", 32),
    )
    members.end()
    return facts


def parse_inference_file(raw: bytes) -> InferenceFile:
    """Parse an inference receipt file. Raises `FormatError`; verifies nothing."""
    value = parse_json(raw, what="inference receipt", reason=_REASON)
    top = Members(value, what="inference receipt", reason=_REASON)
    top.choice("type", (_TYPE,))
    file = InferenceFile(
        envelope=parse_envelope(top.value("envelope")),
        facts=parse_facts(top.members("exchange")),
        expectation=top.base64("expectation"),
        evidence=parse_evidence(top.value("evidence"), parse_blobs(top.value("blobs"))),
        nonce=top.hexes("nonce", 32),
        proven_at=parse_time(top.text("proven_at"), what="proven_at", reason=_REASON),
        roots=top.text("roots", max_chars=128),
    )
    top.end()
    return file


@dataclass(frozen=True, slots=True)
class VerifiedInferenceFile:
    """An inference receipt whose node was proven again, from the file alone."""

    inference: VerifiedInference
    node: VerifiedNode
    expectation: Expectation

    @property
    def simulated(self) -> bool:
        """Whether any root in the chain is a SIMULATED one."""
        return self.node.result.simulated


def verify_inference_file(
    file: InferenceFile,
    *,
    roots: Roots,
    now: datetime,
    expectation: Expectation | None,
) -> VerifiedInferenceFile:
    """
    Prove the node of `file` at `now` under `roots`, then its receipt.

    `expectation` is what the verifier holds by itself; None means that the file's own is used and
    the result only says what the receipt is about. **Does not check** that the nonce was fresh
    (only who drew it knows), nor that the digests are those of bytes at hand.

    Raises `ReceiptRejected`, `EvidenceRejected`, `PolicyRejected` or `FormatError`.
    """
    wanted = parse_expectation(file.expectation)
    if expectation is not None and expectation.digest != wanted.digest:
        detail = "the verifier holds another Expectation"
        reason = Reason.EXPECTATION_MISMATCH
        finding = Finding(Status.FAIL, "inference/0", _CLAUSE, "receipt", detail, reason)
        raise ReceiptRejected((finding,))
    node = appraise_node(
        file.evidence,
        subject="model-node (before)",
        role="model",
        purpose="channel",
        nonce=file.nonce,
        claim=None,
        expectation=wanted,
        roots=roots,
        now=now,
    )
    inference = verify_inference_receipt(
        file.envelope,
        keyset=node.keyset,
        measured=node.events.model,
        expectation=wanted,
        facts=file.facts,
    )
    return VerifiedInferenceFile(inference, node, wanted)
