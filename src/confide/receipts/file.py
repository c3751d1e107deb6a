"""The receipt file: one self-contained JSON document. Bytes to value and back; verifies nothing.

Clause: docs/protocols/receipt.md §6. `raw` is hostile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import Reason
from confide.wire.dsse import Envelope, parse_envelope
from confide.wire.evidence import (
    EvidenceBundle,
    encode_blobs,
    encode_evidence,
    parse_blobs,
    parse_evidence,
)
from confide.wire.json import JsonValue, Members, b64encode, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ReceiptFile", "parse_receipt_file"]

_TYPE = "confide/receipt/v1"
_REASON = Reason.RECEIPT_FORMAT
_MAX_INFERENCES = 100_000
_PLACES = ("agent_before", "agent_after", "model_before", "model_after")


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """
    A run receipt with everything that is needed to verify it offline.

    `expectation` are canonical bytes, `roots` the issuer's roots file: a hint, used only by a
    verifier that already trusts its digest.
    """

    expectation: bytes
    run: Envelope
    inferences: tuple[Envelope, ...]
    agent_before: EvidenceBundle
    agent_after: EvidenceBundle
    model_before: EvidenceBundle | None
    model_after: EvidenceBundle | None
    roots: bytes

    def encode(self) -> bytes:
        """Return the document as canonical JSON."""
        blobs: dict[str, bytes] = {}
        evidence: dict[str, JsonValue] = {}
        for place in _PLACES:
            bundle: EvidenceBundle | None = getattr(self, place)
            evidence[place] = None if bundle is None else encode_evidence(bundle, blobs)
        return jcs(
            {
                "type": _TYPE,
                "expectation": b64encode(self.expectation),
                "run": self.run.document(),
                "inferences": [envelope.document() for envelope in self.inferences],
                "evidence": evidence,
                "blobs": encode_blobs(blobs),
                "roots": b64encode(self.roots),
            }
        )


def parse_receipt_file(raw: bytes) -> ReceiptFile:
    """Parse a receipt file. Raises `FormatError`."""
    top = Members(parse_json(raw, what="receipt", reason=_REASON), what="receipt", reason=_REASON)
    top.choice("type", (_TYPE,))
    expectation = top.base64("expectation")
    run = parse_envelope(top.value("run"))
    inferences = tuple(
        parse_envelope(item) for item in top.items("inferences", max_items=_MAX_INFERENCES)
    )
    blobs = parse_blobs(top.value("blobs"))
    places = top.members("evidence")
    found = {place: _parse_place(places, place, blobs) for place in _PLACES}
    places.end()
    roots = top.base64("roots")
    top.end()
    before, after = found["agent_before"], found["agent_after"]
    if before is None or after is None:
        top.refuse("evidence of the agent node is absent")
    return ReceiptFile(
        expectation,
        run,
        inferences,
        before,
        after,
        found["model_before"],
        found["model_after"],
        roots,
    )


def _parse_place(places: Members, name: str, blobs: Mapping[str, bytes]) -> EvidenceBundle | None:
    return None if places.null(name) else parse_evidence(places.value(name), blobs)
