"""Which state a training was in, and which checkpoints hold it. Pure.

docs/protocols/training.md §7. A state digest names every trained parameter and optimizer tensor by
name, type, shape and bytes; it can be computed from a checkpoint by any reader of safetensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from confide.errors import Reason, ReceiptRejected
from confide.rats import Finding, Status
from confide.training.chain import chain_start, event_link, event_start
from confide.wire.json import Members, jcs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from confide.training.chain import TrainingEvent
    from confide.wire.json import JsonValue

__all__ = [
    "CheckpointEntry",
    "StateTensor",
    "checkpoint_of",
    "parse_checkpoint_entry",
    "state_digest",
    "verify_events",
]

_STATE = b"confide/training-state/v1\0"


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One tensor: `dtype` as safetensors writes it (`F32`), `sha256` over its bytes there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: bytes


def state_digest(tensors: Iterable[StateTensor]) -> bytes:
    """Return the digest of a state (7.1). `ValueError` where a name occurs twice."""
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    if any(before.name == after.name for before, after in pairwise(ordered)):
        raise ValueError("a state holds each name once")
    rows = [[t.name, t.dtype, list(t.shape), t.sha256.hex()] for t in ordered]
    return hashlib.sha256(_STATE + jcs(rows)).digest()


@dataclass(frozen=True, slots=True)
class CheckpointEntry:
    """A checkpoint (7.2): after `step`, at link `chain`, in `state`; `sealed` names the blob."""

    step: int
    chain: bytes
    state: bytes
    sealed: bytes

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value."""
        return {
            "step": self.step,
            "chain": self.chain.hex(),
            "state": self.state.hex(),
            "sealed": self.sealed.hex(),
        }


def parse_checkpoint_entry(value: JsonValue) -> CheckpointEntry:
    """Read an entry; `FormatError` with TRAINING_FORMAT."""
    members = Members(value, what="checkpoint entry", reason=Reason.TRAINING_FORMAT)
    entry = CheckpointEntry(
        step=members.integer("step"),
        chain=members.hexes("chain", 32),
        state=members.hexes("state", 32),
        sealed=members.hexes("sealed", 32),
    )
    members.end()
    return entry


def checkpoint_of(event: TrainingEvent) -> CheckpointEntry:
    """Return the entry that an event of kind `checkpoint` tells of. Raises `FormatError`."""
    return parse_checkpoint_entry({**event.facts, "step": event.step, "chain": event.chain.hex()})


def verify_events(plan: bytes, events: Sequence[TrainingEvent], *, head: bytes) -> None:
    """
    Establish that `events` are those of `head`, and that no resume went back (7.4).

    A job goes on from the newest checkpoint before it, at the step and link of that checkpoint, or
    from the beginning where there is none. Raises `ReceiptRejected`.
    """
    link = event_start(plan)
    newest = (0, chain_start(plan))
    for event in events:
        link = event_link(link, event)
        at = (event.step, event.chain)
        if event.kind == "checkpoint":
            if event.step <= newest[0]:
                raise _rollback("training/events/1", "7.3", "a checkpoint went back", event.step)
            newest = at
        elif event.kind in {"resumed", "restarted"} and at != newest:
            raise _rollback("training/events/2", "7.4", "not the newest checkpoint", event.step)
    if link != head:
        detail = "the events are not those of the head"
        raise _rejected("training/events/3", "6.4", detail, Reason.TRAINING_CHAIN)


def _rollback(step: str, clause: str, what: str, at: int) -> ReceiptRejected:
    return _rejected(step, clause, f"{what}, at step {at}", Reason.CHECKPOINT_ROLLBACK)


def _rejected(step: str, clause: str, detail: str, reason: Reason) -> ReceiptRejected:
    return ReceiptRejected(
        (Finding(Status.FAIL, step, f"training.md {clause}", "events", detail, reason),)
    )
