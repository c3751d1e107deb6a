"""The agent node as relying party of the model node: proven first, then talked to sealed.

A `ModelLink` exists only for one run and only after the model node was appraised against the
run's Expectation with a fresh nonce; there is no way to send a prompt before that. Clauses:
docs/protocols/agent-run.md §3, docs/protocols/receipt.md §5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.adapters.prove import prove_node
from confide.appraisal.binding import closing_nonce
from confide.errors import Reason, RemoteProtocolError
from confide.wire.evidence import EvidenceBundle, decode_evidence
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx2

    from confide.adapters.sealed_http import SealedClient, SealedResponse
    from confide.appraisal.known import Known
    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation
    from confide.ports import Clock, Entropy
    from confide.trust.roots import Roots

__all__ = ["ModelLink", "ModelNodeAddress", "open_model_link"]

# A closing carries evidence with up to eight GPUs and their manifests.
_MAX_CLOSING_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelNodeAddress:
    """
    Where the model node is, and the roots to believe it under. Nothing here is trusted.

    `api_key` is what it asks this node for, "" for nothing (docs/protocols/tenancy.md §2).
    """

    url: str
    roots: Roots
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ModelLink:
    """A proven model node. `before` is the evidence, `nonce` the one it answers."""

    node: VerifiedNode
    before: EvidenceBundle
    nonce: bytes
    sealed: SealedClient
    api_key: str = field(default="", repr=False, kw_only=True)

    async def request(
        self, method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> SealedResponse:
        """Send one sealed request to the proven keys; `Unavailable` or `RemoteProtocolError`."""
        # The agent does not hold this key: it is put on after the agent has spoken.
        own = (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()
        return await self.sealed.request(method, path, (*headers, *own), body)

    async def close_run(
        self, *, nonce: bytes, context: bytes, receipts: Sequence[bytes]
    ) -> EvidenceBundle:
        """
        Have the model node close the run: fresh CPU and GPU evidence about `receipts`.

        Returns the evidence unverified; the caller's verifier, and ours, appraise it.
        """
        body = jcs(
            {
                "nonce": closing_nonce(nonce, context).hex(),
                "expectation": self.node.statement.expectation.hex(),
                "context": context.hex(),
                "receipts": [receipt.hex() for receipt in receipts],
            }
        )
        headers = (("content-type", "application/json"),)
        async with await self.request("POST", "/confide/v1/closing", headers, body) as answer:
            raw = bytearray()
            async for piece in answer.aiter_bytes():
                raw += piece
                if len(raw) > _MAX_CLOSING_BYTES:
                    raise RemoteProtocolError("closing evidence without end")
        if answer.status != 200:
            raise RemoteProtocolError(
                f"the model node refused to close the run (status {answer.status})",
                reason=Reason.CLAIM_MISMATCH,
            )
        return decode_evidence(bytes(raw))


async def open_model_link(
    address: ModelNodeAddress,
    *,
    expectation: Expectation,
    http: httpx2.AsyncClient,
    clock: Clock,
    entropy: Entropy,
    known: Known | None = None,
) -> ModelLink:
    """
    Prove the model node against `expectation`, then return the sealed link to it.

    Raises `Rejected` with findings when it is not what was expected, `Unavailable` when it does
    not answer.
    """
    proven = await prove_node(
        address.url,
        role="model",
        expectation=expectation,
        roots=address.roots,
        http=http,
        clock=clock,
        entropy=entropy,
        known=known,
    )
    return ModelLink(
        proven.node, proven.evidence, proven.nonce, proven.sealed, api_key=address.api_key
    )
