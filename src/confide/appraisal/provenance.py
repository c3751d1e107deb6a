"""Who built the images of a launch document: from verified Sigstore proofs to a claim. Pure.

Clauses: docs/protocols/provenance.md. Proofs come from `adapters/sigstore_bundles.py`, which alone
makes them; here digests are compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.rats import Claim, Finding, Status
from confide.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from confide.appraisal.workload_types import Workload

__all__ = [
    "DOC",
    "Proofs",
    "ProvenanceResult",
    "SigstoreIdentity",
    "SigstoreProof",
    "appraise_provenance",
]

DOC: Final = "docs/protocols/provenance.md"
_STEP: Final = "provenance/5"
_PAIR: Final = re.compile(r"(https://\S{1,256}) (\S{1,512})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigstoreIdentity:
    """
    A signer that the caller accepts: an OIDC `issuer`, and who it says signed.

    Either `identity`, exact (an address, or the URI of a workflow with its ref); or `repository`
    (`https://github.com/owner/name`), `workflow` (`.github/workflows/build.yml`) and `ref_prefix`
    (`refs/tags/`), for a workflow at any ref that begins so. There is no "anyone".
    """

    issuer: str
    identity: str = ""
    repository: str = ""
    workflow: str = ""
    ref_prefix: str = ""

    def __post_init__(self) -> None:
        workflow = (self.repository, self.workflow, self.ref_prefix)
        if (
            not self.issuer
            or bool(self.identity) == any(workflow)
            or any(workflow) != all(workflow)
        ):
            raise ValueError(
                "a signer is an issuer with an identity, or with repository, workflow and ref"
            )

    @classmethod
    def parse(cls, text: str) -> SigstoreIdentity:
        """Return the identity in `ISSUER IDENTITY`, as policies write it; `ValueError` else."""
        found = _PAIR.match(text)
        if found is None:
            raise ValueError("an identity is written ISSUER IDENTITY, with one space between")
        return cls(issuer=found.group(1), identity=found.group(2))

    def accepts(self, issuer: str, identity: str) -> bool:
        """Whether a certificate with this issuer and identity is the signer."""
        if issuer != self.issuer:
            return False
        if self.identity:
            return identity == self.identity
        return identity.startswith(f"{self.repository}/{self.workflow}@{self.ref_prefix}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigstoreProof:
    """
    One verified bundle: `identity`, by the word of `issuer`, signed the artifact `sha256`.

    Issuer and identity are the certificate's, exact. `predicate_type` and `payload` (exact bytes
    of the in-toto Statement) are empty for a message signature; the predicate is unread.
    `integrated_time` is None where the log gave no signed time. `root_sha256` (hex) names the
    trusted root; `public_good` says that it is the one of the public instance.
    """

    sha256: bytes
    issuer: str
    identity: str
    predicate_type: str
    payload: bytes = field(repr=False)
    integrated_time: datetime | None
    log_index: int
    root_sha256: str
    public_good: bool


@dataclass(frozen=True, slots=True)
class Proofs:
    """
    Every bundle that was offered, after verification.

    `refused` maps digests (32 bytes) to why a bundle for them did not verify.
    """

    proven: tuple[SigstoreProof, ...] = ()
    refused: Mapping[bytes, Finding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProvenanceResult:
    """The claim about a whole workload, with one finding for each of its images."""

    claim: Claim
    findings: tuple[Finding, ...]


def appraise_provenance(
    workload: Workload,
    proofs: tuple[SigstoreProof, ...],
    *,
    identities: tuple[SigstoreIdentity, ...],
    refused: Mapping[bytes, Finding] | None = None,
) -> ProvenanceResult:
    """
    Say whether accepted builders signed every image of `workload` (clause 5).

    `refused` maps digests (32 bytes) to why a bundle for them did not verify. Returns a claim:
    PASS, FAIL where a bundle did not verify or somebody else signed, else NOT_PROVEN. Never raises.
    """
    because = refused or {}
    findings: list[Finding] = []
    for image in workload.images:
        signers = [proof for proof in proofs if proof.sha256 == image.digest]
        accepted = [
            proof
            for proof in signers
            if any(identity.accepts(proof.issuer, proof.identity) for identity in identities)
        ]
        reason: Reason | None = None
        detail = "signed by an accepted builder"
        if image.digest is None:
            reason, detail = Reason.PROVENANCE_MISSING, "no digest that could be signed"
        elif not accepted and (signers or image.digest in because):
            reason = Reason.PROVENANCE_INVALID
            detail = "signed by somebody else" if signers else because[image.digest].detail
        elif not accepted:
            reason, detail = Reason.PROVENANCE_MISSING, "no bundle for this image"
        status = Status.PASS if reason is None else Status.FAIL
        findings.append(Finding(status, _STEP, f"{DOC}#5", image.place, detail, reason))
    return ProvenanceResult(_claim(findings), tuple(findings))


def _claim(findings: list[Finding]) -> Claim:
    invalid = any(finding.reason is Reason.PROVENANCE_INVALID for finding in findings)
    passed = sum(finding.status is Status.PASS for finding in findings)
    status = Status.FAIL if invalid else Status.NOT_PROVEN
    if findings and passed == len(findings):
        status = Status.PASS
    source = "Sigstore" if status is Status.PASS else "nobody"
    value = f"{passed} of {len(findings)} image(s)"
    return Claim(ClaimName.IMAGE_PROVENANCE, status, source, _STEP, f"{DOC}#5", value)
