"""The boots of one training job: what each proves before its first step, and how they follow. Pure.

Clauses: docs/protocols/training-record.md §1. Events are the only account of what interrupted a
job; the law over them is what makes a silent change of machine, or a step back, visible.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from confide.appraisal.steps import Refused
from confide.errors import Reason
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confide.wire.json import JsonValue, Members

__all__ = [
    "EVENT_KINDS",
    "RUN_EVENT",
    "TrainingEvent",
    "boot_claim",
    "boot_nonce",
    "event_head",
    "introductions",
    "machine_digest",
    "read_event",
    "require_lawful",
]

RUN_EVENT: Final = "confide-training"
Kind = Literal["started", "paused", "resumed", "restarted", "machine"]
EVENT_KINDS: Final[tuple[Kind, ...]] = ("started", "paused", "resumed", "restarted", "machine")
# Events that bring in the next boot.
_INTRODUCING: Final = frozenset({"started", "restarted", "machine"})
_MACHINE: Final = b"confide/machine/v1\0"
_NONCE: Final = b"confide/training-boot-nonce/v1\0"
_LINK: Final = b"confide/chain-event/v1\0"
_BOOT_TYPE: Final = "confide/training-boot/v1"


@dataclass(frozen=True, slots=True)
class TrainingEvent:
    """What happened between two steps, and where the step chain stood: after `step`, `chain`."""

    kind: Kind
    boot: int
    step: int
    chain: bytes

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document that is hashed."""
        return {
            "kind": self.kind,
            "boot": self.boot,
            "step": self.step,
            "chain": self.chain.hex(),
        }


def read_event(members: Members) -> TrainingEvent:
    """Read the document of an event. Raises the `FormatError` of `members`."""
    event = TrainingEvent(
        members.choice("kind", EVENT_KINDS),
        members.integer("boot"),
        members.integer("step"),
        members.hexes("chain", 32),
    )
    members.end()
    return event


def event_head(start: bytes, events: Sequence[TrainingEvent]) -> bytes:
    """Return the head of the event chain after `events`; `start` is c₀ of the step chain."""
    head = start
    for event in events:
        head = hashlib.sha256(_LINK + head + jcs(event.document())).digest()
    return head


def machine_digest(platform: bytes, serials: Sequence[str]) -> bytes:
    """Return the digest of one machine: PPID and serial numbers of its GPUs, in order."""
    return hashlib.sha256(_MACHINE + platform + jcs(list(serials))).digest()


def boot_nonce(nonce: bytes, boot: int) -> bytes:
    """Return the nonce of the evidence of boot number `boot`; `nonce` is the owner's."""
    return hashlib.sha256(_NONCE + nonce + boot.to_bytes(8, "big")).digest()


def boot_claim(*, job: bytes, plan: bytes, event: TrainingEvent, events: bytes) -> bytes:
    """
    Return the claim with which a boot is proven before its first step.

    `event` introduces the boot, `events` is the head of the event chain after it.
    """
    document: JsonValue = {
        "type": _BOOT_TYPE,
        "job": job.hex(),
        "plan": plan.hex(),
        "boot": event.boot,
        "step": event.step,
        "chain": event.chain.hex(),
        "events": events.hex(),
    }
    return hashlib.sha256(jcs(document)).digest()


def introductions(events: Sequence[TrainingEvent]) -> tuple[int, ...]:
    """Return the index of the event that introduces each boot: once each, in order, or refuse."""
    found = tuple(i for i, event in enumerate(events) if event.kind in _INTRODUCING)
    if [events[i].boot for i in found] != list(range(len(found))):
        raise Refused(Reason.TRAINING_MACHINE, "the boots are not introduced once each, in order")
    if not found or found[0] != 0 or events[0].kind != "started":
        raise Refused(Reason.TRAINING_MACHINE, "the first event is not the start")
    if any(events[i].kind == "started" for i in found[1:]):
        raise Refused(Reason.TRAINING_MACHINE, "the job started twice")
    return found


def require_lawful(
    events: Sequence[TrainingEvent], machines: Sequence[bytes], standing: Mapping[int, bytes]
) -> str:
    """
    Require that `events` tell of `machines` (one digest a boot) as they were, and never go back.

    `standing` are the places where training can be taken up: step to chain value, step 0 included.
    Raises `Refused`: TRAINING_MACHINE, CHECKPOINT_MISMATCH, CHECKPOINT_ROLLBACK.
    """
    if len(introductions(events)) != len(machines):
        raise Refused(Reason.TRAINING_MACHINE, "other boots were proven than the events tell of")
    boot, step, paused = -1, 0, False
    for event in events:
        if event.kind in _INTRODUCING:
            _require_machine(event, machines)
            boot, paused = event.boot, False
        else:
            _require_turn(event, boot, paused=paused)
            paused = event.kind == "paused"
        if standing.get(event.step) != event.chain:
            raise Refused(Reason.CHECKPOINT_MISMATCH, "an event stands where no checkpoint is")
        if event.step < step:
            raise Refused(Reason.CHECKPOINT_ROLLBACK, "training went back behind an earlier event")
        step = event.step
    if paused:
        raise Refused(Reason.CHECKPOINT_MISMATCH, "the job ended while it was paused")
    return f"{len(events)} events, {len(machines)} boots, {len(set(machines))} machines"


def _require_machine(event: TrainingEvent, machines: Sequence[bytes]) -> None:
    if event.kind == "started":
        if event.step:
            raise Refused(Reason.CHECKPOINT_ROLLBACK, "the job did not start at step 0")
        return
    same = machines[event.boot] == machines[event.boot - 1]
    if same != (event.kind == "restarted"):
        what = "the same" if same else "another"
        raise Refused(Reason.TRAINING_MACHINE, f"{what} machine came in as {event.kind}")


def _require_turn(event: TrainingEvent, boot: int, *, paused: bool) -> None:
    if event.boot != boot:
        raise Refused(Reason.TRAINING_MACHINE, "an event of a boot that was not at work")
    if (event.kind == "resumed") != paused:
        raise Refused(Reason.CHECKPOINT_MISMATCH, "pause and resume do not take turns")
