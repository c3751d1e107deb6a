"""Policy files: which logs, which witnesses, which quorum. Bytes to value; verifies nothing.

Sources: C2SP tlog-policy; docs/protocols/log.md §5.1. The file is the verifier's own; it is read as
strictly as if it were hostile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, NoReturn

from confide.errors import FormatError, Reason
from confide.wire.note import SignatureType, VerifierKey, parse_verifier_key

__all__ = ["LogEntry", "LogPolicy", "Quorum", "WitnessEntry", "parse_log_policy"]

_CLAUSE: Final = "docs/protocols/log.md#5.1"
_REASON: Final = Reason.POLICY_FORMAT
_MAX_BYTES: Final = 256 * 1024
# From: tlog-policy, implementation limits: at least 32 of each.
_MAX_LINES: Final = 256
_MAX_DEPTH: Final = 16
_ALLOWED: Final = re.compile(rb"[\x09\x0a\x20-\x7e\x80-\xff]*\Z")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,2}\Z", re.ASCII)
_LOG_TYPES: Final = frozenset({SignatureType.ED25519})
_WITNESS_TYPES: Final = frozenset({SignatureType.COSIGNATURE, SignatureType.ML_DSA_44})


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A log that is believed; the name of its key is its origin."""

    key: VerifierKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class WitnessEntry:
    """A witness, under a name that means something in this policy only."""

    name: str
    key: VerifierKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class Quorum:
    """At least `threshold` of `members`, each a witness or a quorum of its own; 0 asks for none."""

    threshold: int
    members: tuple[WitnessEntry | Quorum, ...]

    def reached(self, seen: frozenset[str]) -> bool:
        """Whether the witnesses named in `seen` are enough."""
        return self.threshold <= sum(
            member.reached(seen) if isinstance(member, Quorum) else member.name in seen
            for member in self.members
        )


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """What a verifier believes. `ValueError` where two roles share a key."""

    logs: tuple[LogEntry, ...]
    witnesses: tuple[WitnessEntry, ...]
    quorum: Quorum

    def __post_init__(self) -> None:
        keys = [log.key.key for log in self.logs] + [each.key.key for each in self.witnesses]
        if len(set(keys)) != len(keys):
            raise ValueError("two of its logs and witnesses share a key")
        if not self.logs:
            raise ValueError("it names no log")


@dataclass(slots=True)
class _Draft:
    logs: list[LogEntry] = field(default_factory=list)
    witnesses: list[WitnessEntry] = field(default_factory=list)
    names: dict[str, tuple[WitnessEntry | Quorum, int]] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)
    quorum: Quorum | None = None


def parse_log_policy(raw: bytes) -> LogPolicy:
    """Parse a policy file. Raises `FormatError` with `policy-format`."""
    if len(raw) > _MAX_BYTES or not _ALLOWED.match(raw):
        _refuse("too large, or a control character")
    draft = _Draft()
    # Names are opaque octets to the format; surrogates keep two of them apart.
    lines = raw.decode("utf-8", "surrogateescape").split("\n")
    used = 0
    for line in lines:
        words = re.split(r"[ \t]+", line.strip(" \t"))
        if words == [""] or words[0].startswith("#"):
            continue
        used += 1
        if used > _MAX_LINES:
            _refuse(f"more than {_MAX_LINES} lines")
        _read_line(draft, words)
    if draft.quorum is None:
        _refuse("no quorum line")
    try:
        return LogPolicy(tuple(draft.logs), tuple(draft.witnesses), draft.quorum)
    except ValueError as error:
        raise FormatError(f"log policy: {error}", reason=_REASON, clause=_CLAUSE) from error


def _refuse(what: str) -> NoReturn:
    raise FormatError(f"log policy: {what}", reason=_REASON, clause=_CLAUSE)


def _read_line(draft: _Draft, words: list[str]) -> None:
    match words:
        case ["log", key] | ["log", key, _]:
            draft.logs.append(LogEntry(_key(key, _LOG_TYPES), *words[2:]))
        case ["witness", name, key] | ["witness", name, key, _]:
            witness = WitnessEntry(name, _key(key, _WITNESS_TYPES), *words[3:])
            _define(draft, name, witness, 0)
            draft.witnesses.append(witness)
        case ["group", name, count, _, *_]:
            _group(draft, name, count, words[3:])
        case ["quorum", name]:
            if draft.quorum is not None:
                _refuse("two quorum lines")
            draft.quorum = _quorum(draft, name)
        case _:
            _refuse("a line that is none of log, witness, group, quorum")


def _key(text: str, types: frozenset[SignatureType]) -> VerifierKey:
    try:
        key = parse_verifier_key(text)
    except FormatError as error:
        raise FormatError(
            f"log policy: {error.what}", reason=_REASON, clause=error.clause
        ) from error
    if key.kind not in types:
        _refuse("a key of the wrong type for its role")
    return key


def _define(draft: _Draft, name: str, what: WitnessEntry | Quorum, depth: int) -> None:
    if name == "none" or name in draft.names:
        _refuse("a name twice, or the name none")
    draft.names[name] = (what, depth)


def _group(draft: _Draft, name: str, count: str, members: list[str]) -> None:
    found: list[WitnessEntry | Quorum] = []
    depth = 0
    for member in members:
        if member not in draft.names or member in draft.members:
            _refuse("a group member that is not defined before, or is in a group already")
        draft.members.add(member)
        what, below = draft.names[member]
        found.append(what)
        depth = max(depth, below + 1)
    if depth > _MAX_DEPTH:
        _refuse(f"groups nested deeper than {_MAX_DEPTH}")
    if count not in ("any", "all") and not _NUMBER.match(count):
        _refuse("a group threshold that is none of all, any and a number")
    threshold = {"any": 1, "all": len(found)}.get(count) or int(count)
    if threshold > len(found):
        _refuse("a group threshold above the number of members")
    _define(draft, name, Quorum(threshold, tuple(found)), depth)


def _quorum(draft: _Draft, name: str) -> Quorum:
    if name == "none":
        return Quorum(0, ())
    if name not in draft.names:
        _refuse("the quorum is not defined before")
    what, _ = draft.names[name]
    return what if isinstance(what, Quorum) else Quorum(1, (what,))
