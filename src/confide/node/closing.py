"""The closing of a run at its model node: evidence made after, and about, the receipts it names.

Clause: docs/protocols/receipt.md §5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.errors import Reason
from confide.receipts.issue import session_claim
from confide.wire.evidence import encode_evidence_file
from confide.wire.json import JsonLimits, Members, is_hex, parse_json

if TYPE_CHECKING:
    from confide.node.attester import Attests
    from confide.node.receipt_store import IssuedDigests

__all__ = ["MAX_CLOSING_BYTES", "closing_evidence"]

MAX_CLOSING_BYTES = 16 * 1024 * 1024
_LIMITS = JsonLimits(max_bytes=MAX_CLOSING_BYTES, max_depth=4)
_MAX_RECEIPTS = 100_000


async def closing_evidence(body: bytes, *, issued: IssuedDigests, attester: Attests) -> bytes:
    """
    Return the evidence file that `body` asks for; `issued` are the digests of this node's receipts.

    Raises `FormatError` for a request that is none or names a receipt of nobody here, and what
    `attester` raises.
    """
    reason = Reason.CLAIM_MISMATCH
    value = parse_json(body, what="closing", reason=reason, limits=_LIMITS)
    members = Members(value, what="closing", reason=reason)
    nonce, expectation, context = (
        members.hexes(name, 32) for name in ("nonce", "expectation", "context")
    )
    listed = members.texts("receipts", max_items=_MAX_RECEIPTS)
    members.end()
    receipts: list[bytes] = []
    for text in listed:
        if not is_hex(text, 32):
            members.refuse("a receipt is not named by 32 bytes of hex")
        receipts.append(bytes.fromhex(text))
    if not all(digest in issued for digest in receipts):
        members.refuse("a receipt that this node did not issue")
    bundle = await attester.attest(
        purpose="claim",
        nonce=nonce,
        expectation=expectation,
        claim=session_claim(context=context, receipts=receipts),
    )
    return encode_evidence_file(bundle)
