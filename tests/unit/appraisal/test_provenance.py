"""From proofs to a claim about a whole workload: digests are compared, absence is no pass."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.provenance import (
    SigstoreIdentity,
    SigstoreProof,
    appraise_provenance,
)
from confide.appraisal.workload_types import Image, Workload
from confide.rats import Finding, Status
from confide.reasons import Reason

ISSUER, WHO = (
    "https://issuer.example",
    "https://github.com/o/r/.github/workflows/b.yml@refs/tags/v1",
)
SIGNER = SigstoreIdentity(issuer=ISSUER, identity=WHO)
ONE, TWO = b"\1" * 32, b"\2" * 32


def workload(*digests: bytes | None) -> Workload:
    images = tuple(
        Image(str(number), "reference", "repository", digest, f"services.{number}.image")
        for number, digest in enumerate(digests)
    )
    return Workload("docker-compose", bytes(32), images, (), frozenset())


def proof(sha256: bytes, **changed: Any) -> SigstoreProof:
    members: dict[str, Any] = {
        "issuer": ISSUER,
        "identity": WHO,
        "predicate_type": "",
        "payload": b"",
        "integrated_time": datetime(2026, 11, 22, tzinfo=UTC),
        "log_index": 1,
        "root_sha256": "0" * 64,
        "public_good": True,
    }
    return SigstoreProof(sha256=sha256, **{**members, **changed})


BAD = Finding(Status.FAIL, "provenance/2", "c", "s", "does not verify", Reason.PROVENANCE_INVALID)


@pytest.mark.parametrize(
    ("digests", "proofs", "refused", "status", "reasons"),
    [
        ((ONE, TWO), (proof(TWO), proof(ONE)), {}, Status.PASS, [None, None]),
        ((ONE, ONE), (proof(ONE),), {}, Status.PASS, [None, None]),
        ((), (proof(ONE),), {}, Status.NOT_PROVEN, []),
        ((ONE,), (), {}, Status.NOT_PROVEN, [Reason.PROVENANCE_MISSING]),
        ((ONE, TWO), (proof(ONE),), {}, Status.NOT_PROVEN, [None, Reason.PROVENANCE_MISSING]),
        ((None,), (proof(ONE),), {}, Status.NOT_PROVEN, [Reason.PROVENANCE_MISSING]),
        ((ONE,), (), {ONE: BAD}, Status.FAIL, [Reason.PROVENANCE_INVALID]),
        ((ONE,), (proof(ONE),), {ONE: BAD}, Status.PASS, [None]),
        ((ONE,), (proof(ONE, identity="x"),), {}, Status.FAIL, [Reason.PROVENANCE_INVALID]),
        ((ONE,), (proof(ONE, issuer="x"),), {}, Status.FAIL, [Reason.PROVENANCE_INVALID]),
        ((ONE,), (proof(ONE, issuer="x"), proof(ONE)), {}, Status.PASS, [None]),
    ],
)
def test_every_image_needs_a_proof_by_an_accepted_builder(
    digests: tuple[bytes | None, ...],
    proofs: tuple[SigstoreProof, ...],
    refused: dict[bytes, Finding],
    status: Status,
    reasons: list[Reason | None],
) -> None:
    result = appraise_provenance(workload(*digests), proofs, identities=(SIGNER,), refused=refused)
    assert result.claim.name == ClaimName.IMAGE_PROVENANCE
    assert result.claim.status is status
    assert [finding.reason for finding in result.findings] == reasons


def test_nobody_accepted_is_nobody() -> None:
    result = appraise_provenance(workload(ONE), (proof(ONE),), identities=())
    assert result.claim.status is Status.FAIL


def test_an_identity_is_exact_or_a_workflow_at_a_kind_of_ref() -> None:
    assert SIGNER.accepts(ISSUER, WHO)
    assert not SIGNER.accepts(ISSUER, WHO + "0")
    workflow = SigstoreIdentity(
        issuer=ISSUER,
        repository="https://github.com/o/r",
        workflow=".github/workflows/b.yml",
        ref_prefix="refs/tags/",
    )
    assert workflow.accepts(ISSUER, WHO)
    assert not workflow.accepts(ISSUER + "/", WHO)
    assert not workflow.accepts(ISSUER, WHO.replace("tags", "heads"))
    assert not workflow.accepts(ISSUER, WHO.replace("/r/", "/r2/"))
    assert SigstoreIdentity.parse(f"{ISSUER} {WHO}") == SIGNER


@pytest.mark.parametrize(
    "members",
    [
        {"issuer": ISSUER},
        {"issuer": "", "identity": WHO},
        {"issuer": ISSUER, "repository": "r"},
        {"issuer": ISSUER, "repository": "r", "workflow": "w"},
        {"issuer": ISSUER, "identity": WHO, "repository": "r", "workflow": "w", "ref_prefix": "x"},
    ],
)
def test_there_is_no_anyone(members: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a signer is"):
        SigstoreIdentity(**members)


@pytest.mark.parametrize(
    "text", ["", ISSUER, f"{ISSUER}  {WHO}", f"http://x {WHO}", f" {ISSUER} a"]
)
def test_an_identity_is_written_in_one_way(text: str) -> None:
    with pytest.raises(ValueError, match="ISSUER IDENTITY"):
        SigstoreIdentity.parse(text)
