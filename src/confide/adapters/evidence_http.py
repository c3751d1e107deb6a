"""Fetching evidence from a node over plain HTTP. Nothing secret is sent; nothing is believed.

Clause: docs/protocols/evidence.md §2. The request carries a fresh nonce and a digest; what comes
back is hostile bytes for `appraisal.node`.
"""

from __future__ import annotations

import httpx2

from confide.errors import Unavailable
from confide.wire.evidence import EvidenceBundle, decode_evidence
from confide.wire.json import JsonLimits, jcs

__all__ = ["EVIDENCE_PATH", "fetch_evidence"]

EVIDENCE_PATH = "/confide/v1/evidence"
_MAX_BYTES = JsonLimits().max_bytes


async def fetch_evidence(
    client: httpx2.AsyncClient, url: str, *, nonce: bytes, expectation: bytes
) -> EvidenceBundle:
    """
    Ask the node at `url` for evidence of purpose `channel` over `nonce` (32 bytes).

    Raises `Unavailable` when there is no answer, `FormatError` when it is not evidence.
    """
    body = jcs({"nonce": nonce.hex(), "expectation": expectation.hex()})
    headers = {"content-type": "application/json"}
    try:
        async with client.stream(
            "POST", url.rstrip("/") + EVIDENCE_PATH, content=body, headers=headers
        ) as answer:
            raw = bytearray()
            async for chunk in answer.aiter_bytes():
                raw += chunk
                if len(raw) > _MAX_BYTES:
                    raise Unavailable(f"evidence of more than {_MAX_BYTES} bytes")
            status = answer.status_code
    except httpx2.HTTPError as error:
        raise Unavailable(f"no evidence from the node: {type(error).__name__}") from error
    if status != 200:
        raise Unavailable(f"the node answered {status} instead of evidence")
    return decode_evidence(bytes(raw))
