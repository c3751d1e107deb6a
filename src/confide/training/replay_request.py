"""What an owner asks of a node that is to replay a training, strictly read. Pure.

Clauses: docs/protocols/training-record.md 7.9. `raw` is what came out of the sealed channel. It
names files that were sent before; nothing is ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.errors import Reason
from confide.training.record import MAX_CHECKPOINTS
from confide.training.replay_result import (
    MAX_DRAWN,
    MAX_NOTE_CHARS,
    fraction_text,
    read_fraction,
    read_tolerance,
    tolerance_value,
)
from confide.wire.json import JsonLimits, JsonValue, Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

    from confide.training.replay import Tolerance

__all__ = ["ReplayRequest", "parse_replay_request"]

_WHAT: Final = "replay request"
_REASON: Final = Reason.REQUEST_FORMAT
_LIMITS: Final = JsonLimits(max_bytes=1 << 20, max_depth=8)
_STEP: Final = re.compile(r"[1-9][0-9]{0,8}\Z")
_MAX_ID: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """
    One replay as it is asked for. Files are named by their ids, `checkpoints` by step.

    `nonce` is for the result, `challenge` and `note` (a log checkpoint, or None) for the draw of
    `count` steps. With `elsewhere` a machine of the record is refused.
    """

    record: str
    owner_log: str
    training_file: str
    validation_file: str | None
    checkpoints: Mapping[int, str]
    checkpoint_key: bytes = field(repr=False)
    nonce: bytes
    expectation: bytes = field(repr=False)
    challenge: bytes
    note: bytes | None
    count: int
    fraction: Fraction
    tolerance: Tolerance | None
    elsewhere: bool

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value, for the node alone: it holds the key of the checkpoints."""
        expectation = parse_json(self.expectation, what=_WHAT, reason=_REASON)
        return {
            "record": self.record,
            "owner_log": self.owner_log,
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "checkpoints": {str(step): file for step, file in self.checkpoints.items()},
            "checkpoint_key": self.checkpoint_key.hex(),
            "nonce": self.nonce.hex(),
            "expectation": expectation,
            "challenge": self.challenge.hex(),
            "log_checkpoint": None if self.note is None else self.note.decode(),
            "steps": self.count,
            "fraction": fraction_text(self.fraction),
            "tolerance": tolerance_value(self.tolerance),
            "another_machine": self.elsewhere,
        }


def parse_replay_request(raw: bytes) -> ReplayRequest:
    """Read a request. Raises `FormatError`; does not look at files or evidence."""
    value = parse_json(raw, what=_WHAT, reason=_REASON, limits=_LIMITS)
    top = Members(value, what=_WHAT, reason=_REASON)
    request = ReplayRequest(
        record=top.text("record", max_chars=_MAX_ID),
        owner_log=top.text("owner_log", max_chars=_MAX_ID),
        training_file=top.text("training_file", max_chars=_MAX_ID),
        validation_file=None
        if top.null("validation_file")
        else top.text("validation_file", max_chars=_MAX_ID),
        checkpoints=_checkpoints(top),
        checkpoint_key=top.hexes("checkpoint_key", 32),
        nonce=top.hexes("nonce", 32),
        expectation=jcs(top.value("expectation")),
        challenge=top.hexes("challenge", 32),
        note=None
        if top.null("log_checkpoint")
        else top.text("log_checkpoint", max_chars=MAX_NOTE_CHARS).encode(),
        count=top.integer("steps", low=1, high=MAX_DRAWN),
        fraction=read_fraction(top, "fraction"),
        tolerance=read_tolerance(top),
        elsewhere=top.boolean("another_machine"),
    )
    top.end()
    return request


def _checkpoints(top: Members) -> dict[int, str]:
    value = top.value("checkpoints")
    if not isinstance(value, dict) or len(value) > MAX_CHECKPOINTS:
        top.refuse(f"checkpoints is not an object of at most {MAX_CHECKPOINTS} members")
    found: dict[int, str] = {}
    for step, file in value.items():
        if not _STEP.match(step) or not isinstance(file, str) or not 0 < len(file) <= _MAX_ID:
            top.refuse("checkpoints holds something that is no step with the id of a file")
        found[int(step)] = file
    return found
