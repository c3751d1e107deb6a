"""The receipt file: one self-contained JSON document. Bytes to value and back; verifies nothing.

Clause: docs/protocols/receipt.md §6. `raw` is hostile.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from confide.wire.tlog_proof import MAX_PROOF_BYTES, TlogProof, parse_tlog_proof

__all__ = [
    "ReceiptFile",
    "RunProof",
    "parse_proof",
    "parse_receipt_file",
]

_TYPE = "confide/receipt/v1"
_REASON = Reason.RECEIPT_FORMAT
_MAX_INFERENCES = 100_000
# Every secret of an Expectation, and its state opened and saved.
_MAX_RELEASES = 66
_AFTER = ("agent_after", "model_before", "model_after")
_PLACES = ("agent_before", *_AFTER)
_PROOF_TYPE = "confide/run-proof/v1"


@dataclass(frozen=True, slots=True)
class RunProof:
    """What the node contributes to a receipt file (docs/protocols/agent-run.md §4.2)."""

    run: Envelope
    inferences: tuple[Envelope, ...]
    releases: tuple[Envelope, ...]
    agent_after: EvidenceBundle
    model_before: EvidenceBundle | None
    model_after: EvidenceBundle | None

    def encode(self) -> bytes:
        """Return the payload of a RECEIPT frame."""
        blobs: dict[str, bytes] = {}
        evidence = _encode_places(self, _AFTER, blobs)
        return jcs(
            {
                "type": _PROOF_TYPE,
                "run": self.run.document(),
                "inferences": [envelope.document() for envelope in self.inferences],
                "releases": [envelope.document() for envelope in self.releases],
                "evidence": evidence,
                "blobs": encode_blobs(blobs),
            }
        )


def parse_proof(raw: bytes) -> RunProof:
    """Parse the payload of a RECEIPT frame. Raises `FormatError`; verifies nothing."""
    top = Members(parse_json(raw, what="proof", reason=_REASON), what="proof", reason=_REASON)
    top.choice("type", (_PROOF_TYPE,))
    run, inferences = _parse_envelopes(top)
    releases = _parse_releases(top)
    found = _parse_places(top, _AFTER)
    top.end()
    after = found["agent_after"]
    if after is None:
        top.refuse("evidence of the agent node is absent")
    before, closing = found["model_before"], found["model_after"]
    return RunProof(run, inferences, releases, after, before, closing)


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """
    A run receipt with everything that is needed to verify it offline.

    `expectation` are canonical bytes, `roots` the issuer's roots file: a hint, used only by a
    verifier that already trusts its digest. `releases` are the broker's receipts. `log` is what is
    said to prove that a log has it, None where nothing is said; it is added after the fact, and no
    part of what the node signed.
    """

    expectation: bytes
    run: Envelope
    inferences: tuple[Envelope, ...]
    releases: tuple[Envelope, ...]
    agent_before: EvidenceBundle
    agent_after: EvidenceBundle
    model_before: EvidenceBundle | None
    model_after: EvidenceBundle | None
    roots: bytes
    log: TlogProof | None

    def encode(self) -> bytes:
        """Return the document as canonical JSON."""
        blobs: dict[str, bytes] = {}
        evidence = _encode_places(self, _PLACES, blobs)
        return jcs(
            {
                "type": _TYPE,
                "expectation": b64encode(self.expectation),
                "run": self.run.document(),
                "inferences": [envelope.document() for envelope in self.inferences],
                "releases": [envelope.document() for envelope in self.releases],
                "evidence": evidence,
                "blobs": encode_blobs(blobs),
                "roots": b64encode(self.roots),
                "log": None if self.log is None else self.log.encode().decode(),
            }
        )


def parse_receipt_file(raw: bytes) -> ReceiptFile:
    """Parse a receipt file. Raises `FormatError`."""
    top = Members(parse_json(raw, what="receipt", reason=_REASON), what="receipt", reason=_REASON)
    top.choice("type", (_TYPE,))
    expectation = top.base64("expectation")
    run, inferences = _parse_envelopes(top)
    releases = _parse_releases(top)
    found = _parse_places(top, _PLACES)
    roots = top.base64("roots")
    log = _parse_log(top)
    top.end()
    before, after = found["agent_before"], found["agent_after"]
    if before is None or after is None:
        top.refuse("evidence of the agent node is absent")
    return ReceiptFile(
        expectation,
        run,
        inferences,
        releases,
        before,
        after,
        found["model_before"],
        found["model_after"],
        roots,
        log,
    )


def _parse_log(top: Members) -> TlogProof | None:
    if top.null("log"):
        return None
    return parse_tlog_proof(top.text("log", max_chars=MAX_PROOF_BYTES).encode())


def _encode_places(
    holder: RunProof | ReceiptFile, names: tuple[str, ...], blobs: dict[str, bytes]
) -> dict[str, JsonValue]:
    evidence: dict[str, JsonValue] = {}
    for place in names:
        bundle: EvidenceBundle | None = getattr(holder, place)
        evidence[place] = None if bundle is None else encode_evidence(bundle, blobs)
    return evidence


def _parse_envelopes(top: Members) -> tuple[Envelope, tuple[Envelope, ...]]:
    run = parse_envelope(top.value("run"))
    items = top.items("inferences", max_items=_MAX_INFERENCES)
    return run, tuple(parse_envelope(item) for item in items)


def _parse_releases(top: Members) -> tuple[Envelope, ...]:
    items = top.items("releases", max_items=_MAX_RELEASES)
    return tuple(parse_envelope(item) for item in items)


def _parse_places(top: Members, names: tuple[str, ...]) -> dict[str, EvidenceBundle | None]:
    blobs = parse_blobs(top.value("blobs"))
    places = top.members("evidence")
    found = {
        name: None if places.null(name) else parse_evidence(places.value(name), blobs)
        for name in names
    }
    places.end()
    return found
