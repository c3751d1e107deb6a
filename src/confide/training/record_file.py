"""The training record file: one self-contained JSON document. Bytes to value and back.

Clause: docs/protocols/training-record.md §5. `raw` is hostile; verifies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.errors import Reason
from confide.training.shares import MAX_SEATS
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

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RecordFile", "parse_record_file"]

_TYPE: Final = "confide/training-record/v1"
_REASON = Reason.TRAINING_FORMAT
_MAX_BOOTS: Final = 16
# From: docs/protocols/training-record.md §3, docs/protocols/training-image.md 4.4.
_STATEMENTS: Final = (
    "hardware",
    "ranks",
    "weights/merged",
    "weights/adapter",
    "weights/output",
    "evaluation/base",
    "evaluation/tuned",
)


@dataclass(frozen=True, slots=True)
class RecordFile:
    """
    A training record with everything that is needed to verify it offline.

    `expectation` are canonical bytes, `roots` the issuer's roots file: a hint, used only by a
    verifier that already trusts its digest. `boots` is the evidence of each boot before its first
    step, `after` that over the record, `seats` that of the seats of each boot where there are
    several ranks. `log` is what is said to prove that a log has it, added
    after the fact.
    """

    expectation: bytes
    record: Envelope
    statements: Mapping[str, Envelope]
    boots: tuple[EvidenceBundle, ...]
    after: EvidenceBundle
    roots: bytes
    log: TlogProof | None
    seats: tuple[tuple[EvidenceBundle, ...], ...] = ()

    def encode(self) -> bytes:
        """Return the document as canonical JSON."""
        blobs: dict[str, bytes] = {}
        evidence: dict[str, JsonValue] = {
            "boots": [encode_evidence(boot, blobs) for boot in self.boots],
            "after": encode_evidence(self.after, blobs),
        }
        if self.seats:
            evidence["seats"] = [
                [encode_evidence(seat, blobs) for seat in boot] for boot in self.seats
            ]
        return jcs(
            {
                "type": _TYPE,
                "expectation": b64encode(self.expectation),
                **self.signed(),
                "evidence": evidence,
                "blobs": encode_blobs(blobs),
                "roots": b64encode(self.roots),
                "log": None if self.log is None else self.log.encode().decode(),
            }
        )

    def signed(self) -> dict[str, JsonValue]:
        """Return the members that the node signed: the public record itself."""
        return {
            "record": self.record.document(),
            "statements": {name: each.document() for name, each in self.statements.items()},
        }


def parse_record_file(raw: bytes) -> RecordFile:
    """Parse a training record file. Raises `FormatError`."""
    what = "training record file"
    top = Members(parse_json(raw, what=what, reason=_REASON), what=what, reason=_REASON)
    top.choice("type", (_TYPE,))
    expectation = top.base64("expectation")
    record = parse_envelope(top.value("record"), reason=_REASON)
    statements = _parse_statements(top.members("statements"))
    blobs = parse_blobs(top.value("blobs"))
    evidence = top.members("evidence")
    boots = tuple(
        parse_evidence(item, blobs) for item in evidence.items("boots", max_items=_MAX_BOOTS)
    )
    after = parse_evidence(evidence.value("after"), blobs)
    seats = _parse_seats(evidence, blobs) if evidence.has("seats") else ()
    evidence.end()
    roots = top.base64("roots")
    log = None
    if not top.null("log"):
        log = parse_tlog_proof(top.text("log", max_chars=MAX_PROOF_BYTES).encode())
    top.end()
    return RecordFile(expectation, record, statements, boots, after, roots, log, seats)


def _parse_seats(
    evidence: Members, blobs: Mapping[str, bytes]
) -> tuple[tuple[EvidenceBundle, ...], ...]:
    boots = []
    for boot in evidence.items("seats", max_items=_MAX_BOOTS):
        if not isinstance(boot, list) or not 1 <= len(boot) <= MAX_SEATS:
            evidence.refuse(f"seats holds a boot that has not 1 to {MAX_SEATS} of them")
        boots.append(tuple(parse_evidence(seat, blobs) for seat in boot))
    if not boots:
        evidence.refuse("seats is empty")
    return tuple(boots)


def _parse_statements(members: Members) -> dict[str, Envelope]:
    found = {
        name: parse_envelope(members.value(name), reason=_REASON)
        for name in _STATEMENTS
        if members.has(name)
    }
    members.end()
    return found
