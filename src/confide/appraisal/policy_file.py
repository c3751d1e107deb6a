"""Policies as people write them: TOML, typed, nothing implied.

Clauses: docs/protocols/policy.md §1.

`profile` names what the file starts from; without it every field of every section must be there.
Unknown sections, fields and values are refused, so a misspelt demand is never a dropped one.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from confide.appraisal.policy_rules import ANY, Kind
from confide.appraisal.service_policy import (
    ClaimSection,
    NvidiaSection,
    Policy,
    ProvenanceSection,
    SnpSection,
    TdxSection,
    WorkloadSection,
    rules_of,
)
from confide.appraisal.service_profiles import PROFILES, STRICT
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import FormatError, Reason
from confide.wire.toml import parse_toml

if TYPE_CHECKING:
    from confide.appraisal.policy_rules import Rule
    from confide.wire.json import JsonValue

__all__ = ["MAX_POLICY_CHARS", "parse_policy"]

Section = TypeVar("Section")

MAX_POLICY_CHARS = 1 << 20
_TYPE = "confide/policy/v1"
_CLAUSE = "docs/protocols/policy.md#1"
_NAME = re.compile(r"[ -~]{1,64}")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MAX_VALUES = 4096
_MAX_NUMBER = 1 << 31
_TOP = frozenset({"type", "name", "profile", "unsafe_simulated"})


def _refuse(why: str) -> NoReturn:
    raise FormatError(f"policy: {why}", reason=Reason.POLICY_FORMAT, clause=_CLAUSE)


def parse_policy(text: str) -> Policy:
    """
    Parse one policy file.

    Raises `FormatError` with POLICY_FORMAT, naming the section and the field.
    """
    top = parse_toml(text, what="policy", reason=Reason.POLICY_FORMAT, max_chars=MAX_POLICY_CHARS)
    if top.get("type") != _TYPE:
        _refuse(f"type is not {_TYPE!r}")
    base = _profile(top.get("profile"))
    name = top.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _refuse("name is not 1 to 64 printable characters")
    sections = STRICT.sections()
    for key, value in top.items():
        if key not in _TOP and (key not in sections or not isinstance(value, dict)):
            _refuse(f"{_shown(key)} is no section of a policy")
    given = base.unsafe_simulated if base is not None else None
    simulated = top.get("unsafe_simulated", given)
    if not isinstance(simulated, bool):
        _refuse("unsafe_simulated is not true or false")

    def read(section: str, kind: type[Section]) -> Section:
        start = base.sections()[section] if base is not None else None
        return _section(section, kind, top.get(section, {}), start)

    try:
        return Policy(
            name=name,
            claims=read("claims", ClaimSection),
            tdx=read("tdx", TdxSection),
            snp=read("snp", SnpSection),
            nvidia=read("nvidia", NvidiaSection),
            workload=read("workload", WorkloadSection),
            provenance=read("provenance", ProvenanceSection),
            unsafe_simulated=simulated,
        )
    except ValueError as error:
        _refuse(str(error))


def _profile(name: JsonValue) -> Policy | None:
    if name is None:
        return None
    if not isinstance(name, str) or name not in PROFILES:
        _refuse(f"profile is none of {', '.join(PROFILES)}")
    return PROFILES[name]


def _shown(key: str) -> str:
    """Return a key as it may stand in a message."""
    return repr(key) if _NAME.fullmatch(key) else "a key"


def _section(name: str, kind: type[Section], given: JsonValue, start: object | None) -> Section:
    if not isinstance(given, dict):
        _refuse(f"{name} is not a section")
    rules = rules_of(kind)
    for key in given:
        if key not in rules:
            _refuse(f"{name}: {_shown(key)} is no field of this section")
    values: dict[str, Any] = {}
    for field, rule in rules.items():
        where = f"{name}.{field}"
        if field in given:
            values[field] = _value(given[field], rule, where)
        elif start is not None:
            values[field] = getattr(start, field)
        else:
            _refuse(f"{where} is missing, and the file names no profile to start from")
    return kind(**values)


def _value(value: JsonValue, rule: Rule, where: str) -> object:
    if rule.kind is Kind.ALLOW and value == ANY:
        return UnsafeAny()
    if rule.values is not None:
        return _list(value, rule, where)
    if rule.moment:
        return _moment(value, where)
    if rule.kind in {Kind.NEED, Kind.UNSAFE}:
        if not isinstance(value, bool):
            _refuse(f"{where} is not true or false")
        return value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_NUMBER:
        _refuse(f"{where} is not a number from 0")
    return value


def _list(value: JsonValue, rule: Rule, where: str) -> frozenset[str]:
    form = rule.values
    if form is None or not isinstance(value, list) or len(value) > _MAX_VALUES:
        what = form.what if form is not None else "values"
        _refuse(f"{where} is not a list of {what}")
    found: list[str] = []
    for position, item in enumerate(value):
        if not isinstance(item, str) or not form.accepts(item):
            _refuse(f"{where}[{position}] is not of the form: {form.what}")
        found.append(item)
    if len(set(found)) != len(found):
        _refuse(f"{where} holds a value twice")
    return frozenset(found)


def _moment(value: object, where: str) -> datetime:
    # TOML has times of its own; one without a zone would mean another moment elsewhere.
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    _refuse(f"{where} is not a UTC time like 2026-01-31T00:00:00Z")
