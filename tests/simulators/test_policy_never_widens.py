"""Two policies combined accept nothing that either refuses: over fields, and over evidence."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import given, settings
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
        "require": [frozenset({"hardware"}), frozenset({"gpu", "keys"}), frozenset({"platform"})],
        "unsafe_tolerate": [frozenset[str](), frozenset({"tcb", "launch"}), UnsafeAny()],
    },
    "tdx": {
        "tcb_status": [frozenset({"UpToDate"}), frozenset({"OutOfDate"}), UnsafeAny()],
        "rtmr0": [frozenset[str](), UnsafeAny()],
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
    policy = BASE()
    for section, fields in _FIELDS.items():
        changes = {
            name: draw(st.sampled_from(values))
            for name, values in fields.items()
            if draw(st.integers(0, 4)) == 0
        }
        if changes:
            part: Any = replace(policy.sections()[section], **changes)  # type: ignore[type-var]
            policy = replace(policy, **{section: part})
    return replace(policy, unsafe_simulated=draw(st.integers(0, 9)) > 0)


def accepts(policy: Policy) -> bool:
    case = CASE()
    try:
        confide.verify(case.capture, case.endorsements, policy, now=LATER, roots=case.roots)
    except Rejected:
        return False
    return True


@given(one=policies(), other=policies())
@settings(max_examples=25, deadline=None)
def test_both_accepts_only_what_each_accepts(one: Policy, other: Policy) -> None:
    if accepts(one.both(other)):
        assert accepts(one)
        assert accepts(other)


@given(one=policies(), other=policies())
@settings(max_examples=100, deadline=None)
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
