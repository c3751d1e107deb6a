"""Receipts of two real runs, cut, edited and mixed: what a dishonest relay could hand on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from confide.errors import Reason, ReceiptRejected
from confide.receipts.file import ReceiptFile, parse_receipt_file
from confide.receipts.transcript import parse_events, transcript_head
from confide.receipts.verify import verify_receipt
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable

    from deployment import Deployment

pytestmark = pytest.mark.container


@dataclass(frozen=True, slots=True)
class Two:
    """Two runs of the same agent on the same nodes, with different inputs."""

    first: ReceiptFile
    second: ReceiptFile
    nonces: tuple[bytes, bytes]
    outputs: tuple[list[bytes], list[bytes]]


@pytest.fixture(scope="module")
def two(deployment: Deployment) -> Two:
    receipts, nonces, outputs = [], [], []
    for text in (b"first", b"second"):
        outcome = deployment.run(
            [{"do": "copy"}, {"do": "call", "text": text.decode()}], files={"note": text}
        )
        assert outcome.verified is not None, outcome.failure
        receipts.append(parse_receipt_file(outcome.receipt.encode()))
        nonces.append(outcome.verified.statement.nonce)
        outputs.append([hashlib.sha256(text).digest()])
    return Two(receipts[0], receipts[1], (nonces[0], nonces[1]), (outputs[0], outputs[1]))


def refused(deployment: Deployment, file: ReceiptFile, **known: Any) -> set[Reason | None]:
    """Verify as the owner's other machine does; the reasons of every failure."""
    facts: dict[str, Any] = {"expectation": None, "nonce": None, "outputs": None, **known}
    with pytest.raises(ReceiptRejected) as refusal:
        verify_receipt(file, roots=deployment.installation.roots, now=datetime.now(UTC), **facts)
    return {finding.reason for finding in refusal.value.failures}


def test_both_verify_as_they_are(deployment: Deployment, two: Two) -> None:
    for number, file in enumerate((two.first, two.second)):
        run = verify_receipt(
            file,
            roots=deployment.installation.roots,
            now=datetime.now(UTC),
            expectation=deployment.expectation(),
            nonce=two.nonces[number],
            outputs=two.outputs[number],
        )
        assert run.simulated


def test_the_receipt_of_another_run_is_refused(deployment: Deployment, two: Two) -> None:
    assert Reason.NONCE_MISMATCH in refused(deployment, two.second, nonce=two.nonces[0])
    assert refused(deployment, two.second, outputs=two.outputs[0]) == {Reason.OUTPUT_MISMATCH}
    other = deployment.expectation(limits={"pids": 31})
    assert Reason.EXPECTATION_MISMATCH in refused(deployment, two.second, expectation=other)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("run", Reason.NONCE_MISMATCH),
        ("inferences", Reason.RECEIPT_MISSING),
        ("agent_before", Reason.NONCE_MISMATCH),
        ("agent_after", Reason.NONCE_MISMATCH),
        ("model_before", Reason.STATEMENT_MISMATCH),
        ("model_after", Reason.CLAIM_MISMATCH),
    ],
)
def test_a_part_of_another_run_does_not_fit(
    deployment: Deployment, two: Two, part: str, reason: Reason
) -> None:
    mixed = replace(two.first, **{part: getattr(two.second, part)})
    assert reason in refused(deployment, mixed)


def _edited(
    file: ReceiptFile, edit: Callable[[list[dict[str, Any]]], object], *, honest_head: bool
) -> ReceiptFile:
    """Edit the transcript; `honest_head` recomputes the head as a forger would."""
    statement = json.loads(file.run.payload)
    predicate = statement["predicate"]
    edit(predicate["transcript"])
    for number, event in enumerate(predicate["transcript"]):
        event["seq"] = number
    if honest_head:
        head = transcript_head(parse_events(predicate["transcript"])).hex()
        predicate["head"] = head
    return replace(file, run=replace(file.run, payload=jcs(statement)))


def _drop(kind: str) -> Callable[[list[dict[str, Any]]], object]:
    def work(events: list[dict[str, Any]]) -> None:
        del events[next(i for i, event in enumerate(events) if event["kind"] == kind)]

    return work


@pytest.mark.parametrize("kind", ["input", "model-call", "output", "console", "model-verified"])
def test_a_transcript_with_one_line_removed_is_refused(
    deployment: Deployment, two: Two, kind: str
) -> None:
    if kind == "console":
        # Both streams are always there; one of them is the line that goes.
        assert two.first.run.payload.count(b'"console"') == 2
    broken = _edited(two.first, _drop(kind), honest_head=False)
    assert Reason.TRANSCRIPT_BROKEN in refused(deployment, broken)


@pytest.mark.parametrize("kind", ["input", "model-call"])
def test_a_forger_who_mends_the_head_does_not_mend_the_claim(
    deployment: Deployment, two: Two, kind: str
) -> None:
    mended = _edited(two.first, _drop(kind), honest_head=True)
    found = refused(deployment, mended)
    # The hardware quoted another receipt, and no key of the forger's is in the keyset.
    assert Reason.CLAIM_MISMATCH in found
    assert Reason.TRANSCRIPT_BROKEN not in found


def test_a_call_without_its_receipt_is_refused(deployment: Deployment, two: Two) -> None:
    assert Reason.RECEIPT_MISSING in refused(deployment, replace(two.first, inferences=()))
    twice = replace(two.first, inferences=two.first.inferences + two.second.inferences)
    assert Reason.RECEIPT_NOT_REFERENCED in refused(deployment, twice)


def test_a_run_that_the_model_node_did_not_close_is_refused(
    deployment: Deployment, two: Two
) -> None:
    assert Reason.EVIDENCE_MISSING in refused(deployment, replace(two.first, model_after=None))
    assert Reason.EVIDENCE_MISSING in refused(deployment, replace(two.first, model_before=None))


def test_a_signature_of_somebody_else_is_refused(deployment: Deployment, two: Two) -> None:
    signatures = two.second.run.signatures
    forged = replace(two.first, run=replace(two.first.run, signatures=signatures))
    assert refused(deployment, forged) == {Reason.RECEIPT_SIGNATURE}
    bare = replace(two.first, run=replace(two.first.run, signatures=()))
    assert refused(deployment, bare) == {Reason.RECEIPT_SIGNATURE}
