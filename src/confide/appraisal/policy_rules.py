"""What one field of a policy means: how it is read, how two of them combine, how it is said.

Clauses: docs/protocols/policy.md §2. Seven kinds of rules cover every field, so that parsing,
combining, printing and explaining a policy each exist once. Combining never widens: the result
accepts nothing that either of the two refuses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from confide.appraisal.tdx_policy import UnsafeAny

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.wire.json import JsonValue

__all__ = [
    "ANY",
    "Allowed",
    "Kind",
    "Rule",
    "Values",
    "allows",
    "combine",
    "rule_of",
    "ruled",
    "to_json",
]

# How a policy file spells the absence of a limit.
ANY = "unsafe-any"
Allowed = frozenset[str] | UnsafeAny


class Kind(StrEnum):
    """The seven kinds of rules (docs/protocols/policy.md §2)."""

    ALLOW = "allow"  # a value must be on the list; the empty list accepts nothing
    GRANT = "grant"  # a list that proves something; the empty list grants nothing
    ALSO = "also"  # a list that only adds demands: required claims, blocked platforms
    FLOOR = "floor"  # at least
    CEILING = "ceiling"  # at most
    NEED = "need"  # true asks for more
    UNSAFE = "unsafe"  # true asks for less, and is named in every result


@dataclass(frozen=True, slots=True)
class Values:
    """What may stand in a list: a pattern, or a closed set of words."""

    what: str
    pattern: str = ""
    words: tuple[str, ...] = ()

    def accepts(self, text: str) -> bool:
        """Whether `text` is a value of this form."""
        if self.words:
            return text in self.words
        return re.fullmatch(self.pattern, text) is not None


@dataclass(frozen=True, slots=True)
class Rule:
    """One field: its kind, the form of its values, and the sentence that says it."""

    kind: Kind
    says: str
    values: Values | None = None
    moment: bool = False


def allows(allowed: Allowed, value: str) -> bool:
    """Whether `value` is on the list, or everything is."""
    return isinstance(allowed, UnsafeAny) or value in allowed


def ruled(rule: Rule) -> Any:
    """Return a required dataclass field that carries `rule`."""
    return field(metadata={"rule": rule})


def rule_of(metadata: Any) -> Rule:
    """Return the rule a field carries; `TypeError` where a field of a policy has none."""
    rule = metadata.get("rule")
    if not isinstance(rule, Rule):
        raise TypeError("a field of a policy without a rule")
    return rule


def _allow(one: Allowed, other: Allowed) -> Allowed:
    if isinstance(one, UnsafeAny):
        return other
    return one if isinstance(other, UnsafeAny) else one & other


_COMBINE: dict[Kind, Callable[[Any, Any], Any]] = {
    Kind.ALLOW: _allow,
    Kind.GRANT: lambda one, other: one & other,
    Kind.ALSO: lambda one, other: one | other,
    Kind.FLOOR: max,
    Kind.CEILING: min,
    Kind.NEED: lambda one, other: one or other,
    Kind.UNSAFE: lambda one, other: one and other,
}


def combine(rule: Rule, one: Any, other: Any) -> Any:
    """Return the value that accepts only what both `one` and `other` accept."""
    return _COMBINE[rule.kind](one, other)


def to_json(value: object) -> JsonValue:
    """Return the JSON form of the value of a field."""
    match value:
        case UnsafeAny():
            return ANY
        case frozenset():
            return [*sorted(str(item) for item in value)]
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case bool() | int():
            return value
    raise TypeError("a policy field of an unknown type")
