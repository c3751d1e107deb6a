"""What a node says of a replay that it executed: value, canonical statement, file. Pure.

Clauses: docs/protocols/training-record.md 7.11 and 7.12. `raw` is hostile; verifies nothing (that
is `training/replay_verify.py`). Digests and numbers of steps alone: no loss, no row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from confide.errors import FormatError, Reason
from confide.training.draw import Sample
from confide.training.record_parse import read_texts
from confide.training.replay import Divergence, Tolerance
from confide.training.replay_end import MADE_PARTS
from confide.wire.dsse import Envelope, encode_statement, parse_envelope, parse_typed_payload
from confide.wire.evidence import (
    EvidenceBundle,
    encode_blobs,
    encode_evidence,
    parse_blobs,
    parse_evidence,
)
from confide.wire.json import Members, b64encode, jcs, parse_json
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from confide.wire.json import JsonValue

__all__ = [
    "MAX_DRAWN",
    "MAX_NOTE_CHARS",
    "REPLAY",
    "ReplayFile",
    "ReplayResult",
    "fraction_text",
    "parse_replay_file",
    "parse_replay_result",
    "read_fraction",
    "read_tolerance",
    "tolerance_value",
]

REPLAY: Final = "confide:training-replay/v1"
# From: docs/protocols/training-record.md 7.9.
MAX_DRAWN: Final = 10_000
MAX_NOTE_CHARS: Final = 64 * 1024
_MAX_STEPS: Final = 10_000_000
_TYPE: Final = "confide/training-replay/v1"
_REASON: Final = Reason.TRAINING_FORMAT
_CLAUSE: Final = "docs/protocols/training-record.md#7.11"
_WHAT: Final = "replay result"
_SUBJECT: Final = "record"
_FRACTION: Final = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})\Z")
_MEMBERS: Final = (
    *("batch", "learning rate", "tokens"),
    *("loss", "gradient norm", "state"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """
    One replay, in the words of the node that executed it.

    `record` is the digest of the record's payload, `plan` of its plan, `head` that of its step
    chain. `challenge` and `note` (a log checkpoint, verbatim, or None) made the beacon of `sample`.
    `windows` are the stretches that the drawn steps ask for, first and last step each. Of
    `divergence`, `located` says whether it is the first one. `made` are the parts of the end that
    were made again (7.14), and whether each is what was recorded; None where none was.
    """

    record: bytes
    nonce: bytes
    keyset: bytes
    expectation: bytes
    software: bytes
    plan: bytes
    base: bytes
    head: bytes
    challenge: bytes
    note: bytes | None
    sample: Sample
    tolerance: Tolerance | None
    windows: tuple[tuple[int, int], ...]
    executed: int
    states: int
    divergence: Divergence | None
    located: bool
    made: Mapping[str, bool] | None
    environment: Mapping[str, str]
    machine: bytes
    same_machine: bool
    at: datetime

    @property
    def covered(self) -> tuple[tuple[int, int], ...]:
        """The windows as stretches that neither overlap nor touch, in order."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted(self.windows):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return tuple(merged)

    @property
    def agrees(self) -> bool:
        """Whether everything that was computed again is what was recorded."""
        return self.divergence is None and all((self.made or {}).values())

    def payload(self) -> bytes:
        """Return the canonical in-toto Statement."""
        sample, found = self.sample, self.divergence
        predicate: dict[str, JsonValue] = {
            "nonce": self.nonce.hex(),
            "keyset": self.keyset.hex(),
            "expectation": self.expectation.hex(),
            "software": self.software.hex(),
            "plan": self.plan.hex(),
            "base": self.base.hex(),
            "head": self.head.hex(),
            "beacon": sample.beacon.hex(),
            "challenge": self.challenge.hex(),
            "checkpoint": None if self.note is None else self.note.decode(),
            "steps": sample.steps,
            "drawn": list(sample.drawn),
            "tolerance": tolerance_value(self.tolerance),
            "verdict": "agrees" if self.agrees else "diverges",
            "divergence": None
            if found is None
            else {"step": found.step, "members": list(found.members), "first": self.located},
            "made": None if self.made is None else dict(self.made),
            "windows": [list(each) for each in self.windows],
            "executed": self.executed,
            "states": self.states,
            "fraction": fraction_text(sample.fraction),
            "missed": float(sample.missed),
            "environment": dict(self.environment),
            "machine": self.machine.hex(),
            "same_machine": self.same_machine,
            "at": format_time(self.at),
        }
        return encode_statement(REPLAY, ((_SUBJECT, self.record),), predicate)


def tolerance_value(tolerance: Tolerance | None) -> JsonValue:
    """Return the JSON value; null is an exact replay."""
    return None if tolerance is None else {"abs": tolerance.abs, "rel": tolerance.rel}


def fraction_text(fraction: Fraction) -> str:
    """Return `1/20`: exactly, in lowest terms."""
    return f"{fraction.numerator}/{fraction.denominator}"


def read_fraction(members: Members, name: str) -> Fraction:
    """Return the fraction `name`, above 0 and not above 1. Raises `FormatError`."""
    text = members.text(name, max_chars=32)
    found = _FRACTION.match(text)
    if found is None or int(found[1]) > int(found[2]):
        members.refuse(f"{name} is no fraction above 0 and not above 1")
    fraction = Fraction(int(found[1]), int(found[2]))
    if fraction_text(fraction) != text:
        members.refuse(f"{name} is not in lowest terms")
    return fraction


def read_tolerance(members: Members) -> Tolerance | None:
    """Return the member `tolerance`. Raises `FormatError`."""
    if members.null("tolerance"):
        return None
    both = members.members("tolerance")
    numbers = [both.number(name) for name in ("abs", "rel")]
    both.end()
    try:
        return Tolerance(*numbers)
    except ValueError:
        members.refuse("a tolerance lies from 0 to below 1")


def parse_replay_result(payload: bytes) -> ReplayResult:
    """Parse the payload of a result; believes nothing. Raises `FormatError`."""
    _, subjects, top = parse_typed_payload(payload, predicate_types=(REPLAY,), reason=_REASON)
    if len(subjects) != 1:
        top.refuse("it is not about one record")
    steps = top.integer("steps", low=1, high=_MAX_STEPS)
    divergence, located = _read_divergence(top, steps)
    result = ReplayResult(
        record=subjects[0][1],
        nonce=top.hexes("nonce", 32),
        keyset=top.hexes("keyset", 32),
        expectation=top.hexes("expectation", 32),
        software=top.hexes("software", 32),
        plan=top.hexes("plan", 32),
        base=top.hexes("base", 32),
        head=top.hexes("head", 32),
        challenge=top.hexes("challenge", 32),
        note=None
        if top.null("checkpoint")
        else top.text("checkpoint", max_chars=MAX_NOTE_CHARS).encode(),
        sample=Sample(
            top.hexes("beacon", 32), steps, _read_drawn(top, steps), read_fraction(top, "fraction")
        ),
        tolerance=read_tolerance(top),
        windows=_read_windows(top, steps),
        executed=top.integer("executed", high=steps),
        states=top.integer("states", high=steps),
        divergence=divergence,
        located=located,
        made=_read_made(top),
        environment=read_texts(top, "environment"),
        machine=top.hexes("machine", 32),
        same_machine=top.boolean("same_machine"),
        at=parse_time(top.text("at"), what="at", reason=_REASON),
    )
    # Both follow from the rest: compared below, where the payload has to be the one form.
    top.number("missed")
    top.choice("verdict", ("agrees", "diverges"))
    top.end()
    if result.payload() != payload:
        raise FormatError(
            f"{_WHAT}: not the one form of what it says", reason=_REASON, clause=_CLAUSE
        )
    return result


def _read_drawn(top: Members, steps: int) -> tuple[int, ...]:
    values = top.items("drawn", max_items=MAX_DRAWN)
    drawn = tuple(each for each in values if type(each) is int and 1 <= each <= steps)
    if not drawn or len(drawn) != len(values) or sorted(set(drawn)) != list(drawn):
        top.refuse("drawn does not ascend from 1 to the number of steps")
    return drawn


def _read_divergence(top: Members, steps: int) -> tuple[Divergence | None, bool]:
    if top.null("divergence"):
        return None, False
    found = top.members("divergence")
    step, members = found.integer("step", low=1, high=steps), found.texts("members", max_items=8)
    first = found.boolean("first")
    found.end()
    if not members or set(members) - set(_MEMBERS) or len(set(members)) < len(members):
        top.refuse("members names what no step has")
    return Divergence(step, members), first


def _read_made(top: Members) -> dict[str, bool] | None:
    if top.null("made"):
        return None
    parts = top.members("made")
    made = {name: parts.boolean(name) for name in MADE_PARTS if parts.has(name)}
    parts.end()
    if not made:
        top.refuse("made names nothing")
    return made


def _read_windows(top: Members, steps: int) -> tuple[tuple[int, int], ...]:
    windows: list[tuple[int, int]] = []
    for value in top.items("windows", max_items=MAX_DRAWN):
        pair = value if isinstance(value, list) else []
        first, last = (each for each in (*pair, 0, 0)[:2])
        if len(pair) != 2 or type(first) is not int or type(last) is not int:
            top.refuse("a window is not [first, last]")
        if not 1 <= first <= last <= steps:
            top.refuse("a window lies outside of the steps")
        windows.append((first, last))
    return tuple(windows)


@dataclass(frozen=True, slots=True)
class ReplayFile:
    """
    The result of a replay with everything that is needed to verify it offline.

    `expectation` are canonical bytes, `evidence` is that over the result; `roots` as in a
    `RecordFile`: a hint, used only by a verifier that already trusts its digest.
    """

    expectation: bytes
    result: Envelope
    evidence: EvidenceBundle
    roots: bytes

    def encode(self) -> bytes:
        """Return the document as canonical JSON."""
        blobs: dict[str, bytes] = {}
        evidence = encode_evidence(self.evidence, blobs)
        return jcs(
            {
                "type": _TYPE,
                "expectation": b64encode(self.expectation),
                "result": self.result.document(),
                "evidence": evidence,
                "blobs": encode_blobs(blobs),
                "roots": b64encode(self.roots),
            }
        )


def parse_replay_file(raw: bytes) -> ReplayFile:
    """Parse the file of a result; believes nothing. Raises `FormatError`."""
    top = Members(parse_json(raw, what=_WHAT, reason=_REASON), what=_WHAT, reason=_REASON)
    top.choice("type", (_TYPE,))
    expectation = top.base64("expectation")
    result = parse_envelope(top.value("result"), reason=_REASON)
    evidence = parse_evidence(top.value("evidence"), parse_blobs(top.value("blobs")))
    roots = top.base64("roots")
    top.end()
    return ReplayFile(expectation, result, evidence, roots)
