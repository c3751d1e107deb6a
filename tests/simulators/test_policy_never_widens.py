"""Two policies combined accept nothing that either refuses: over fields, and over evidence."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from services import LATER, near_case, near_policy

import confide
from confide.appraisal.claim_names import ClaimName
from confide.appraisal.policy_rules import Kind, combine
from confide.appraisal.service_policy import Policy, rules_of
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import Rejected

CASE = cache(near_case)
BASE = cache(lambda: near_policy(CASE()))
# Values that some field of the simulated service has, and values that it has not.
_FIELDS: dict[str, dict[str, list[Any]]] = {
    "claims": {
        "require": [
            frozenset({"hardware"}),
            frozenset({"gpu", "keys"}),
            frozenset({"launch", "workload-expected"}),
        ],
        "unsafe_tolerate": [frozenset[str](), frozenset({"tcb", "launch"}), UnsafeAny()],
    },
    "tdx": {
        "tcb_status": [frozenset({"UpToDate"}), frozenset({"OutOfDate"}), UnsafeAny()],
        "rtmr0": [frozenset[str](), UnsafeAny()],
        "rtmr3": [frozenset[str](), frozenset({"00" * 48}), frozenset({"11" * 48}), UnsafeAny()],
        "mrconfigid": [frozenset({"00" * 48}), UnsafeAny()],
        "mrseam": [frozenset[str](), UnsafeAny()],
        "min_tcb_evaluation": [0, 10_000],
        "max_collateral_days": [0, 30],
        "platform_flags": [frozenset[str](), frozenset({"dynamic", "smt", "cached-keys"})],
    },
    "nvidia": {
        "chips": [frozenset({"GH100"}), frozenset({"GB100"}), UnsafeAny()],
        "min_driver": [frozenset[str](), frozenset({"999.0"})],
        "max_ocsp_hours": [0, 1, 24],
    },
    "workload": {"documents": [frozenset[str](), UnsafeAny()]},
}


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """The policy of the simulated service with a few fields changed."""
    changes = {
        (section, name): draw(st.sampled_from(values))
        for section, fields in _FIELDS.items()
        for name, values in fields.items()
        if draw(st.integers(0, 4)) == 0
    }
    policy = changed(changes)
    assume(policy is not None)
    assert policy is not None
    return replace(policy, unsafe_simulated=draw(st.integers(0, 9)) > 0)


def changed(changes: dict[tuple[str, str], Any]) -> Policy | None:
    """The policy of the simulated service with these fields; None where that is no policy."""
    sections: dict[str, Any] = dict(BASE().sections())
    for (section, name), value in changes.items():
        sections[section] = replace(sections[section], **{name: value})
    try:
        return replace(BASE(), **sections)
    except ValueError:
        return None


def accepts(policy: Policy) -> bool:
    case = CASE()
    try:
        confide.verify(case.capture, case.endorsements, policy, now=LATER, roots=case.roots)
    except Rejected:
        return False
    return True


@given(one=policies(), other=policies())
@settings(max_examples=25)
def test_both_accepts_only_what_each_accepts(one: Policy, other: Policy) -> None:
    if accepts(one.both(other)):
        assert accepts(one)
        assert accepts(other)


@pytest.mark.slow
def test_no_pair_of_single_changes_widens() -> None:
    singles = [
        policy
        for section, fields in _FIELDS.items()
        for name, values in fields.items()
        for value in values
        if (policy := changed({(section, name): value})) is not None
    ]
    assert len(singles) > 20
    alone = [accepts(policy) for policy in singles]
    assert any(alone)
    assert not all(alone)
    for at, one in enumerate(singles):
        for other in range(at, len(singles)):
            if accepts(one.both(singles[other])):
                assert alone[at], (one, singles[other])
                assert alone[other], (one, singles[other])


def test_a_policy_does_not_require_what_it_leaves_open() -> None:
    open_register = {("tdx", "rtmr0"): UnsafeAny()}
    assert changed(open_register) is None
    assert changed({("workload", "documents"): UnsafeAny()}) is None
    modest = {("claims", "require"): frozenset({"hardware"})}
    assert changed(open_register | modest) is not None


@given(one=policies(), other=policies())
@settings(max_examples=100)
def test_combining_does_not_depend_on_the_order_and_changes_nothing_twice(
    one: Policy, other: Policy
) -> None:
    def same(left: Policy, right: Policy) -> bool:
        return left.sections() == right.sections()

    assert same(one.both(other), other.both(one))
    assert same(one.both(one), one)
    assert same(one.both(other).both(other), one.both(other))


def test_every_kind_of_rule_combines_to_the_stricter_value() -> None:
    listed, open_ = frozenset({"a", "b"}), UnsafeAny()
    rules = {
        rule.kind: rule
        for section in BASE().sections().values()
        for rule in rules_of(section).values()
    }
    assert rules.keys() == set(Kind)
    assert combine(rules[Kind.ALLOW], listed, frozenset({"b"})) == {"b"}
    assert combine(rules[Kind.ALLOW], listed, open_) == listed
    assert combine(rules[Kind.ALLOW], open_, open_) == open_
    assert combine(rules[Kind.ALSO], listed, frozenset({"c"})) == {"a", "b", "c"}
    assert combine(rules[Kind.FLOOR], 1, 2) == 2
    assert combine(rules[Kind.CEILING], 1, 2) == 1
    assert combine(rules[Kind.NEED], True, False) is True
    assert combine(rules[Kind.UNSAFE], True, False) is False


def test_the_vocabulary_of_claims_and_of_policies_is_one() -> None:
    assert BASE().claims.require <= {name.value for name in ClaimName}
