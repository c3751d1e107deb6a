"""Reading a training record: canonical bytes to value, closed and strict. Pure.

Clauses: docs/protocols/training-record.md §2. `payload` is hostile; nothing is believed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.errors import Reason
from confide.training.boots import Turn, read_turn
from confide.training.checkpoints import CheckpointEntry
from confide.training.image_record import IMAGE_BUILD_TYPE
from confide.training.plan import TrainingPlan
from confide.training.privacy_texts import read_privacy
from confide.training.record import (
    BUILD_TYPE,
    MAX_CHECKPOINTS,
    TrainingRecord,
)
from confide.training.record_core import OpenedRecord, open_record
from confide.wire.json import Members

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["parse_training_record", "read_texts"]

_REASON = Reason.TRAINING_FORMAT
# From: docs/protocols/training-record.md 2.4 and §3, and a few more of what is handed over.
_MAX_TURNS: Final = 128
_MAX_BYPRODUCTS: Final = MAX_CHECKPOINTS + 32
_MAX_TEXTS: Final = 32
_MAX_TEXT_CHARS: Final = 256
_NEEDED: Final = frozenset({"base", "dataset", "dataset-root", "software", "tokenizer"})
_OPTIONAL: Final = frozenset({"template", "validation"})
_OTHERS: Final = {
    IMAGE_BUILD_TYPE: "it is artefact-level (an image of the owner's trained): it has no step "
    "chain and no owner's log, so that nothing of it can be audited or replayed"
}


def parse_training_record(payload: bytes) -> TrainingRecord:
    """
    Parse the payload of a training record; the plan digest has to follow from its parts.

    Raises `FormatError`: TRAINING_FORMAT, TRAINING_PLAN for a plan digest of something else,
    TRAINING_GRANULARITY for an artefact-level record.
    """
    opened = open_record(
        payload,
        BUILD_TYPE,
        others=_OTHERS,
        needed=_NEEDED,
        optional=_OPTIONAL,
        max_byproducts=_MAX_BYPRODUCTS,
    )
    internal, named, made = opened.internal, opened.dependencies, _Byproducts(opened)
    record = TrainingRecord(
        **opened.core,
        plan=TrainingPlan(
            recipe=opened.external.hexes("recipe", 32),
            dataset=named["dataset"],
            validation=named.get("validation"),
            base=named["base"],
            tokenizer=named["tokenizer"],
            template=named.get("template"),
            world=internal.integer("world", low=1, high=1 << 16),
        ),
        environment=read_texts(internal, "environment"),
        privacy=read_privacy(internal, "privacy"),
        steps=made.steps,
        planned=made.planned,
        head=made.head,
        events_head=made.events_head,
        turns=made.turns,
        turns_head=made.turns_head,
        checkpoints=made.checkpoints,
        owner_log=made.owner_log,
        sealed=made.sealed,
        statements=made.statements,
    )
    opened.finish(record)
    return record


def read_texts(members: Members, name: str) -> Mapping[str, str]:
    """Return the object `name`: text to text, at most 32, printable. Raises `FormatError`."""
    value = members.value(name)
    if not isinstance(value, dict) or len(value) > _MAX_TEXTS:
        members.refuse(f"{name} is not an object of at most {_MAX_TEXTS} members")
    found: dict[str, str] = {}
    for key, text in value.items():
        if not isinstance(text, str) or len(key) + len(text) > _MAX_TEXT_CHARS:
            members.refuse(f"{name} holds something that is not a short text")
        if not (key.isprintable() and text.isprintable()):
            members.refuse(f"{name} holds a text that is not printable")
        found[key] = text
    return found


class _Byproducts:
    """The byproducts of a record, by what they are."""

    def __init__(self, opened: OpenedRecord) -> None:
        details = opened.details
        self.sealed: dict[str, bytes] = {}
        self.statements: dict[str, bytes] = {}
        single: dict[str, tuple[bytes, Members]] = {}
        checkpoints: list[CheckpointEntry] = []
        for name, digest, notes in opened.byproducts:
            kind, _, rest = name.partition("/")
            match kind:
                case "sealed":
                    self.sealed[rest] = digest
                case "statement":
                    self.statements[rest] = digest
                case "checkpoint":
                    checkpoints.append(_checkpoint(details, rest, digest, notes))
                case _:
                    single[name] = (digest, notes)
                    continue
            notes.end()
        if single.keys() != {"step-chain", "event-chain", "turns", "owner-log"}:
            details.refuse("the byproducts are not those of a training")
        self.head, chain = single["step-chain"]
        self.steps, self.planned = chain.integer("steps"), chain.integer("planned", low=1)
        self.events_head, events = single["event-chain"]
        self.turns_head, turns = single["turns"]
        self.turns: tuple[Turn, ...] = tuple(
            read_turn(Members(item, what="turn", reason=_REASON))
            for item in turns.items("turns", max_items=_MAX_TURNS)
        )
        self.owner_log, log = single["owner-log"]
        for members in (chain, events, turns, log):
            members.end()
        self.checkpoints = tuple(checkpoints)
        if len(checkpoints) > MAX_CHECKPOINTS:
            details.refuse(f"more than {MAX_CHECKPOINTS} checkpoints")


def _checkpoint(details: Members, step: str, sealed: bytes, notes: Members) -> CheckpointEntry:
    if not step.isascii() or not step.isdigit() or len(step) > 15:
        details.refuse("a checkpoint is not named by its step")
    return CheckpointEntry(int(step), notes.hexes("chain", 32), notes.hexes("state", 32), sealed)
