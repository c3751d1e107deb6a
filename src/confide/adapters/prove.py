"""Proving a node over the network, and the sealed way to it: before anything else is sent.

Clauses: docs/protocols/evidence.md §2, binding.md §3. What is sent is a fresh nonce and a digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from confide.adapters.evidence_http import fetch_evidence
from confide.adapters.sealed_http import SealedClient
from confide.appraisal.node import VerifiedNode, appraise_node
from confide.channel.keys import key_config

if TYPE_CHECKING:
    import httpx2

    from confide.adapters.carrier import Carrier
    from confide.appraisal.known import Known
    from confide.expectation import Expectation
    from confide.ports import Clock, Entropy
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle

__all__ = ["SealedNode", "prove_node"]


@dataclass(frozen=True, slots=True)
class SealedNode:
    """A proven node: `node` as appraised from `evidence` over `nonce`, and the channel to it."""

    node: VerifiedNode
    evidence: EvidenceBundle
    nonce: bytes
    sealed: SealedClient


async def prove_node(
    url: str,
    *,
    role: Literal["agent", "model"],
    expectation: Expectation,
    roots: Roots,
    http: httpx2.AsyncClient,
    clock: Clock,
    entropy: Entropy,
    known: Known | None = None,
    carrier: Carrier | None = None,
) -> SealedNode:
    """
    Fetch evidence of the node at `url` over a fresh nonce and appraise it against `expectation`.

    The channel seals to the first `seal` key of the keyset that was proven. `known` is the caller's
    own memory of earlier appraisals; what there is now is in `node.known`. `carrier` takes what is
    sealed, in the place of `http`. Raises `EvidenceRejected` or `PolicyRejected` with findings,
    `FormatError` for what is not evidence, `Unavailable` when the node does not answer.
    """
    nonce = entropy.token(32)
    evidence = await fetch_evidence(http, url, nonce=nonce, expectation=expectation.digest)
    node = appraise_node(
        evidence,
        subject=f"{role}-node (before)",
        role=role,
        purpose="channel",
        nonce=nonce,
        claim=None,
        expectation=expectation,
        roots=roots,
        now=clock.now(),
        known=known,
    )
    preferred = key_config(node.keyset.for_purpose("seal")[0])
    sealed = SealedClient(url, preferred, http=http, clock=clock, entropy=entropy, carrier=carrier)
    return SealedNode(node, evidence, nonce, sealed)
