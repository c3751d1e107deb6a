"""Verify the Sigstore bundles among the endorsements, for the builders that a policy lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.appraisal.provenance import Proofs, SigstoreIdentity
from confide.errors import EvidenceRejected, FormatError
from confide.reasons import Reason
from confide.wire.json import Members, parse_json

if TYPE_CHECKING:
    from confide.appraisal.provenance import SigstoreProof
    from confide.appraisal.service_policy import Policy
    from confide.rats import Finding
    from confide.wire.endorsements import Endorsements
    from confide.wire.service import Evidence

__all__ = ["verify_bundles"]

_MAX_SUBJECTS = 16


def verify_bundles(
    evidence: Evidence,
    endorsements: Endorsements,
    policy: Policy,
    *,
    trusted_root: bytes | None = None,
) -> Proofs:
    """
    Return which of the bundles at hand verify, offline (docs/protocols/provenance.md).

    Those of `endorsements`, and those that machines passed along with a statement about their
    own registers.

    Nothing is looked at where the policy lists nobody: `sigstore` is then not needed. Raises
    `ConfigurationError` where it is needed and not installed.
    """
    allowed = policy.provenance.identities
    offered = [(item.sha256, item.bundle) for item in endorsements.sigstore]
    offered += [
        (digest, attester.references.bundle)
        for attester in evidence.attesters
        if attester.references is not None and attester.references.bundle is not None
        for digest in _subjects(attester.references.statement)
    ]
    if not allowed or not offered:
        return Proofs()
    from confide.adapters.sigstore_bundles import SigstoreVerifier  # noqa: PLC0415 - an extra

    identities = tuple(SigstoreIdentity.parse(text) for text in sorted(allowed))
    verifier = SigstoreVerifier(trusted_root)
    proven: list[SigstoreProof] = []
    refused: dict[bytes, Finding] = {}
    for digest, bundle in offered:
        try:
            proven.append(verifier.verify(bundle, sha256=digest, policy=identities))
        except EvidenceRejected as error:
            refused[digest] = error.failures[0]
    return Proofs(tuple(proven), refused)


def _subjects(statement: bytes) -> list[bytes]:
    """Return the digests that an in-toto Statement is about; none where it is not one."""
    try:
        value = parse_json(statement, what="statement", reason=Reason.PROVENANCE_INVALID)
        top = Members(value, what="statement", reason=Reason.PROVENANCE_INVALID)
        return [
            Members(item, what="subject", reason=Reason.PROVENANCE_INVALID)
            .members("digest")
            .hexes("sha256", 32)
            for item in top.items("subject", max_items=_MAX_SUBJECTS)
        ]
    except FormatError:
        return []
