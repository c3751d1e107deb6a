"""Verify the Sigstore bundles among the endorsements, for the builders that a policy lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.appraisal.provenance import Proofs, SigstoreIdentity
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import EvidenceRejected

if TYPE_CHECKING:
    from confide.appraisal.provenance import SigstoreProof
    from confide.appraisal.service_policy import Policy
    from confide.rats import Finding
    from confide.wire.endorsements import Endorsements

__all__ = ["verify_bundles"]


def verify_bundles(
    endorsements: Endorsements, policy: Policy, *, trusted_root: bytes | None = None
) -> Proofs:
    """
    Return which of the bundles in `endorsements` verify, offline (docs/protocols/provenance.md).

    Nothing is looked at where the policy lists nobody: `sigstore` is then not needed. Raises
    `ConfigurationError` where it is needed and not installed.
    """
    allowed = policy.provenance.identities
    if isinstance(allowed, UnsafeAny) or not allowed or not endorsements.sigstore:
        return Proofs()
    from confide.adapters.sigstore_bundles import SigstoreVerifier  # noqa: PLC0415 - an extra

    identities = tuple(SigstoreIdentity.parse(text) for text in sorted(allowed))
    verifier = SigstoreVerifier(trusted_root)
    proven: list[SigstoreProof] = []
    refused: dict[bytes, Finding] = {}
    for offered in endorsements.sigstore:
        try:
            proven.append(verifier.verify(offered.bundle, sha256=offered.sha256, policy=identities))
        except EvidenceRejected as error:
            refused[offered.sha256] = error.failures[0]
    return Proofs(tuple(proven), refused)
