"""What the verifiers of receipts and of training records do alike: Expectation and appraisals.

Clauses: docs/protocols/receipt.md §7 (receipt/3, /4), docs/protocols/training-record.md §6
(record/3, /4). Pure; a step that uses these is the one that refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from confide.appraisal.node import Role, VerifiedNode, appraise_node
from confide.appraisal.steps import Refused, established
from confide.errors import Reason, Rejected
from confide.expectation import Expectation, parse_expectation

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.binding import Purpose
    from confide.appraisal.known import Known
    from confide.rats import Finding
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle

__all__ = ["appraise_held", "require_expectation"]


class _Verifying(Protocol):
    roots: Roots
    expectation: Expectation | None
    known: Known
    nested: list[Finding]


def require_expectation(
    raw: bytes, *, named: bytes, wanted: Expectation | None, what: str
) -> Expectation:
    """
    Return the Expectation of a file: the one that `what` names, and the verifier holds if any.

    Raises `Refused`, and `FormatError` where `raw` is none.
    """
    expectation = parse_expectation(raw)
    if expectation.digest != named:
        raise Refused(Reason.EXPECTATION_MISMATCH, f"the {what} names another Expectation")
    if wanted is not None and wanted.digest != expectation.digest:
        raise Refused(Reason.EXPECTATION_MISMATCH, "the verifier holds another Expectation")
    return expectation


def appraise_held(
    state: _Verifying,
    bundle: EvidenceBundle,
    *,
    subject: str,
    role: Role,
    purpose: Purpose,
    nonce: bytes,
    claim: bytes | None,
    now: datetime,
) -> VerifiedNode:
    """
    Appraise evidence that came in a file; findings and what is known go into `state`.

    Raises `Refused` with the first reason of the appraisal.
    """
    try:
        node = appraise_node(
            bundle,
            subject=subject,
            role=role,
            purpose=purpose,
            nonce=nonce,
            claim=claim,
            expectation=established(state.expectation),
            roots=state.roots,
            now=now,
            known=state.known,
        )
    except Rejected as error:
        state.nested.extend(error.findings)
        raise Refused(error.reason, str(error.failures[0])) from error
    state.nested.extend(node.result.findings)
    state.known = node.known
    return node
