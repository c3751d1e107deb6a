"""A handover: how far a training came, in words that another node can hold to proof. Pure.

Clauses: docs/protocols/training-node.md §7. What a node signs is small; steps and events stand in
the owner's log so far, which it names by digest. `raw` is hostile; verifies nothing (that is
`training/handover_verify.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.errors import FormatError, Reason
from confide.training.boots import Turn, read_turn
from confide.training.checkpoints import CheckpointEntry, parse_checkpoint_entry
from confide.training.plan import TrainingPlan, parse_plan
from confide.training.predicates import HardwareOfBoot
from confide.training.record_parse import read_texts
from confide.wire.dsse import Envelope, encode_statement, parse_envelope, parse_typed_payload
from confide.wire.evidence import (
    EvidenceBundle,
    encode_blobs,
    encode_evidence,
    parse_blobs,
    parse_evidence,
)
from confide.wire.json import JsonLimits, Members, b64encode, jcs, parse_json
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from confide.wire.json import JsonValue

__all__ = [
    "HANDOVER",
    "MAX_CHECKPOINT_BYTES",
    "MAX_HANDOVER_BYTES",
    "Handover",
    "HandoverFile",
    "parse_handover",
    "parse_handover_file",
]

HANDOVER: Final = "confide:training-handover/v1"
# From: docs/protocols/training-node.md 7.3.
MAX_HANDOVER_BYTES: Final = 64 * 1024 * 1024
# From: docs/protocols/training-node.md 7.5. Sealed, of a job that is to go on elsewhere.
MAX_CHECKPOINT_BYTES: Final = 32 * 1024 * 1024 * 1024
_TYPE: Final = "confide/training-handover/v1"
_REASON: Final = Reason.TRAINING_FORMAT
_CLAUSE: Final = "docs/protocols/training-node.md#7.3"
_WHAT: Final = "training handover"
_SUBJECT: Final = "checkpoint"
# From: docs/protocols/training-record.md 2.4.
_MAX_BOOTS: Final = 16
_MAX_TURNS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """
    What the node of the last boot says of a job that is not at its end.

    `keyset` and `software` are that node's, `log` is the digest of the owner's log so far, `events`
    the head of the event chain, `checkpoint` the newest; `at` is the time by that node's clock.
    """

    job: bytes
    nonce: bytes
    keyset: bytes
    expectation: bytes
    software: bytes
    plan: TrainingPlan
    root: bytes
    planned: int
    environment: Mapping[str, str]
    turns: tuple[Turn, ...]
    boots: tuple[HardwareOfBoot, ...]
    log: bytes
    events: bytes
    checkpoint: CheckpointEntry
    at: datetime

    def payload(self) -> bytes:
        """Return the canonical in-toto Statement."""
        predicate: dict[str, JsonValue] = {
            "job": self.job.hex(),
            "nonce": self.nonce.hex(),
            "keyset": self.keyset.hex(),
            "expectation": self.expectation.hex(),
            "software": self.software.hex(),
            "plan": self.plan.value(),
            "root": self.root.hex(),
            "planned": self.planned,
            "environment": dict(self.environment),
            "turns": [turn.document() for turn in self.turns],
            "boots": [_boot_value(boot) for boot in self.boots],
            "log": self.log.hex(),
            "events": self.events.hex(),
            "checkpoint": self.checkpoint.value(),
            "at": format_time(self.at),
        }
        return encode_statement(HANDOVER, ((_SUBJECT, self.checkpoint.sealed),), predicate)


def _boot_value(boot: HardwareOfBoot) -> dict[str, JsonValue]:
    return {
        "keyset": boot.keyset.hex(),
        "machine": boot.machine.hex(),
        "evidence": boot.evidence.hex(),
        "gpus": boot.gpus,
    }


def parse_handover(payload: bytes) -> Handover:
    """Parse the payload of a handover; believes nothing. Raises `FormatError`."""
    _, _, top = parse_typed_payload(payload, predicate_types=(HANDOVER,), reason=_REASON)
    handover = Handover(
        job=top.hexes("job", 32),
        nonce=top.hexes("nonce", 32),
        keyset=top.hexes("keyset", 32),
        expectation=top.hexes("expectation", 32),
        software=top.hexes("software", 32),
        plan=parse_plan(top.value("plan")),
        root=top.hexes("root", 32),
        planned=top.integer("planned", low=1),
        environment=read_texts(top, "environment"),
        turns=tuple(
            read_turn(Members(item, what="turn", reason=_REASON))
            for item in top.items("turns", max_items=_MAX_TURNS)
        ),
        boots=tuple(_read_boot(item) for item in top.items("boots", max_items=_MAX_BOOTS)),
        log=top.hexes("log", 32),
        events=top.hexes("events", 32),
        checkpoint=parse_checkpoint_entry(top.value("checkpoint")),
        at=parse_time(top.text("at"), what="at", reason=_REASON),
    )
    top.end()
    # The subject, and whatever else we would have written otherwise.
    if handover.payload() != payload:
        raise FormatError(
            f"{_WHAT}: not the one form of what it says", reason=_REASON, clause=_CLAUSE
        )
    return handover


def _read_boot(value: JsonValue) -> HardwareOfBoot:
    members = Members(value, what=f"{_WHAT}: boot", reason=_REASON)
    boot = HardwareOfBoot(
        members.hexes("keyset", 32),
        members.hexes("machine", 32),
        members.hexes("evidence", 32),
        members.integer("gpus", low=1, high=16),
    )
    members.end()
    return boot


@dataclass(frozen=True, slots=True)
class HandoverFile:
    """
    A handover with what is needed to hold it to proof, and the owner's log so far.

    `expectation` are canonical bytes, `boots` the evidence of each boot. The owner's alone: `log`
    tells losses, and the rows of steps by number.
    """

    envelope: Envelope
    log: bytes = field(repr=False)
    expectation: bytes
    boots: tuple[EvidenceBundle, ...]

    @property
    def log_digest(self) -> bytes:
        """What the handover has to name."""
        return hashlib.sha256(self.log).digest()

    def encode(self) -> bytes:
        """Return the document as canonical JSON."""
        blobs: dict[str, bytes] = {}
        evidence: list[JsonValue] = [encode_evidence(boot, blobs) for boot in self.boots]
        return jcs(
            {
                "type": _TYPE,
                "handover": self.envelope.document(),
                "log": b64encode(self.log),
                "expectation": b64encode(self.expectation),
                "evidence": evidence,
                "blobs": encode_blobs(blobs),
            }
        )


def parse_handover_file(raw: bytes) -> HandoverFile:
    """Parse the document of a handover; believes nothing. Raises `FormatError`."""
    limits = JsonLimits(max_bytes=MAX_HANDOVER_BYTES)
    value = parse_json(raw, what=_WHAT, reason=_REASON, limits=limits)
    top = Members(value, what=_WHAT, reason=_REASON)
    top.choice("type", (_TYPE,))
    envelope = parse_envelope(top.value("handover"), reason=_REASON)
    log, expectation = top.base64("log"), top.base64("expectation")
    blobs = parse_blobs(top.value("blobs"))
    boots = tuple(
        parse_evidence(item, blobs) for item in top.items("evidence", max_items=_MAX_BOOTS)
    )
    top.end()
    return HandoverFile(envelope, log, expectation, boots)
