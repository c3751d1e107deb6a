"""The boots of one training job: what each proves before its first step, and how they follow. Pure.

Clauses: docs/protocols/training-record.md §1. Turns are the public account of what interrupted a
job; the law over them is what makes a silent change of machine, or a step back, visible.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from confide.appraisal.steps import Refused
from confide.errors import Reason
from confide.wire.json import jcs
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from confide.wire.json import JsonValue, Members

__all__ = [
    "RUN_EVENT",
    "TURN_KINDS",
    "Turn",
    "TurnKind",
    "boot_claim",
    "boot_nonce",
    "introductions",
    "machine_digest",
    "read_turn",
    "require_lawful",
    "turns_head",
]

RUN_EVENT: Final = "confide-training"
TurnKind = Literal["started", "paused", "resumed", "restarted", "moved"]
TURN_KINDS: Final[tuple[TurnKind, ...]] = ("started", "paused", "resumed", "restarted", "moved")
# Turns that bring in the next boot.
_INTRODUCING: Final = frozenset({"started", "restarted", "moved"})
_MACHINE: Final = b"confide/machine/v1\0"
_NONCE: Final = b"confide/training-boot-nonce/v1\0"
_LINK: Final = b"confide/training-turn/v1\0"
_BOOT_TYPE: Final = "confide/training-boot/v1"


@dataclass(frozen=True, slots=True)
class Turn:
    """
    What happened between two steps, and where the step chain stood: after `step`, `chain`.

    `at` is the time by the node's own clock.
    """

    kind: TurnKind
    boot: int
    step: int
    chain: bytes
    at: datetime

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document that is hashed."""
        return {
            "kind": self.kind,
            "boot": self.boot,
            "step": self.step,
            "chain": self.chain.hex(),
            "at": format_time(self.at),
        }


def read_turn(members: Members) -> Turn:
    """Read the document of a turn. Raises the `FormatError` of `members`."""
    turn = Turn(
        members.choice("kind", TURN_KINDS),
        members.integer("boot"),
        members.integer("step"),
        members.hexes("chain", 32),
        parse_time(members.text("at"), what="at", reason=Reason.TRAINING_FORMAT),
    )
    members.end()
    return turn


def turns_head(start: bytes, turns: Sequence[Turn]) -> bytes:
    """Return the head of `turns`; `start` is c₀ of the step chain."""
    head = start
    for turn in turns:
        head = hashlib.sha256(_LINK + head + jcs(turn.document())).digest()
    return head


def machine_digest(platform: bytes, serials: Sequence[str]) -> bytes:
    """Return the digest of one machine: PPID and serial numbers of its GPUs, in order."""
    return hashlib.sha256(_MACHINE + platform + jcs(list(serials))).digest()


def boot_nonce(nonce: bytes, boot: int) -> bytes:
    """Return the nonce of the evidence of boot number `boot`; `nonce` is the owner's."""
    return hashlib.sha256(_NONCE + nonce + boot.to_bytes(8, "big")).digest()


def boot_claim(*, job: bytes, plan: bytes, turn: Turn, turns: bytes) -> bytes:
    """
    Return the claim with which a boot is proven before its first step.

    `turn` introduces the boot, `turns` is the head of the turns after it.
    """
    document: JsonValue = {
        "type": _BOOT_TYPE,
        "job": job.hex(),
        "plan": plan.hex(),
        "boot": turn.boot,
        "step": turn.step,
        "chain": turn.chain.hex(),
        "at": format_time(turn.at),
        "turns": turns.hex(),
    }
    return hashlib.sha256(jcs(document)).digest()


def introductions(turns: Sequence[Turn]) -> tuple[int, ...]:
    """Return the index of the turn that introduces each boot: once each, in order, or refuse."""
    found = tuple(i for i, turn in enumerate(turns) if turn.kind in _INTRODUCING)
    if [turns[i].boot for i in found] != list(range(len(found))):
        raise Refused(Reason.TRAINING_MACHINE, "the boots are not introduced once each, in order")
    if not found or found[0] != 0 or turns[0].kind != "started":
        raise Refused(Reason.TRAINING_MACHINE, "the first turn is not the start")
    if any(turns[i].kind == "started" for i in found[1:]):
        raise Refused(Reason.TRAINING_MACHINE, "the job started twice")
    return found


def require_lawful(
    turns: Sequence[Turn], machines: Sequence[bytes], standing: Mapping[int, bytes]
) -> str:
    """
    Require that `turns` tell of `machines` (one digest a boot) as they were, and never go back.

    `standing` are the places where training can be taken up: step to chain value, step 0 included.
    Raises `Refused`: TRAINING_MACHINE, CHECKPOINT_MISMATCH, CHECKPOINT_ROLLBACK.
    """
    if len(introductions(turns)) != len(machines):
        raise Refused(Reason.TRAINING_MACHINE, "other boots were proven than the turns tell of")
    boot, step, paused = -1, 0, False
    for turn in turns:
        if turn.kind in _INTRODUCING:
            _require_machine(turn, machines)
            boot, paused = turn.boot, False
        else:
            _require_pair(turn, boot, paused=paused)
            paused = turn.kind == "paused"
        if standing.get(turn.step) != turn.chain:
            raise Refused(Reason.CHECKPOINT_MISMATCH, "a turn stands where no checkpoint is")
        if turn.step < step:
            raise Refused(Reason.CHECKPOINT_ROLLBACK, "training went back behind an earlier turn")
        step = turn.step
    return f"{len(turns)} turns, {len(machines)} boots, {len(set(machines))} machines"


def _require_machine(turn: Turn, machines: Sequence[bytes]) -> None:
    if turn.kind == "started":
        if turn.step:
            raise Refused(Reason.CHECKPOINT_ROLLBACK, "the job did not start at step 0")
        return
    same = machines[turn.boot] == machines[turn.boot - 1]
    if same != (turn.kind == "restarted"):
        what = "the same" if same else "another"
        raise Refused(Reason.TRAINING_MACHINE, f"{what} machine came in as {turn.kind}")


def _require_pair(turn: Turn, boot: int, *, paused: bool) -> None:
    if turn.boot != boot:
        raise Refused(Reason.TRAINING_MACHINE, "a turn of a boot that was not at work")
    if (turn.kind == "resumed") != paused:
        raise Refused(Reason.CHECKPOINT_MISMATCH, "pause and resume do not take turns")
