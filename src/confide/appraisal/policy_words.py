"""A policy in words: what it accepts, sentence by sentence (docs/protocols/policy.md §6)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from confide.appraisal.policy_rules import Kind
from confide.appraisal.service_policy import rules_of
from confide.appraisal.tdx_policy import UnsafeAny

if TYPE_CHECKING:
    from confide.appraisal.policy_rules import Rule
    from confide.appraisal.service_policy import Policy

__all__ = ["Sentence", "explain"]

_TITLES = {
    "claims": "Claims",
    "tdx": "Intel TDX",
    "snp": "AMD SEV-SNP",
    "nvidia": "NVIDIA devices",
    "workload": "What was started",
    "provenance": "Who built it",
}
# What an empty list refuses, and how such a demand can be met all the same (policy.md §4).
_FOLLOWS = {
    "tdx.mrtd": "met only by a launch that is known in another way",
    "tdx.rtmr0": "met only by a launch that is known in another way",
    "tdx.rtmr1": "met only by a launch that is known in another way",
    "tdx.rtmr2": "met only by a launch that is known in another way",
    "tdx.rtmr3": "met only by an event log that replays",
    "tdx.mrconfigid": "met only by a launch document that is bound to it",
    "snp.measurements": "met only by a launch that is known in another way",
    "snp.host_data": "met only by a launch document that is bound to it",
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """
    One sentence of an explanation.

    `section` is its heading, `field` the name in the file, `tone` is `open` where the policy
    leaves something out, `closed` where nothing can satisfy it as written, else `plain`.
    """

    section: str
    field: str
    text: str
    tone: str


def explain(policy: Policy) -> tuple[Sentence, ...]:
    """Return what `policy` accepts, one sentence for each field that says something."""
    found: list[Sentence] = []
    for name, section in policy.sections().items():
        for field, rule in rules_of(section).items():
            text, tone = _say(f"{name}.{field}", rule, getattr(section, field))
            if text:
                found.append(Sentence(_TITLES[name], f"{name}.{field}", text, tone))
    roots = "simulated roots are accepted" if policy.unsafe_simulated else "no simulated roots"
    tone = "open" if policy.unsafe_simulated else "plain"
    found.append(Sentence("Roots", "unsafe_simulated", roots, tone))
    return tuple(found)


def _say(where: str, rule: Rule, value: object) -> tuple[str, str]:
    match value:
        case UnsafeAny():
            subject = rule.says.removesuffix(" is one of")
            return (
                f"{subject} is not checked" if subject != rule.says else f"{rule.says} anything"
            ), "open"
        case frozenset():
            return _say_list(where, rule, sorted(str(item) for item in value))
        case bool():
            if rule.kind is Kind.UNSAFE:
                return (rule.says, "open") if value else ("", "plain")
            return (rule.says, "plain") if value else ("", "plain")
        case datetime():
            return f"{rule.says} {value:%Y-%m-%d}", "plain"
    return f"{rule.says} {value}", "plain"


def _say_list(where: str, rule: Rule, values: list[str]) -> tuple[str, str]:
    if values:
        tone = "open" if where == "claims.unsafe_tolerate" else "plain"
        return f"{rule.says} {', '.join(_short(value) for value in values)}", tone
    if rule.kind in {Kind.ALSO, Kind.GRANT} or where in {
        "claims.unsafe_tolerate",
        "tdx.attributes",
    }:
        return "", "plain"
    follows = _FOLLOWS.get(where)
    if follows is None:
        return f"{_subject(rule)}: none is listed, so none is accepted", "closed"
    return f"{_subject(rule)}: none is listed; {follows}", "plain"


def _subject(rule: Rule) -> str:
    return rule.says.removesuffix(" is one of").removesuffix(",")


def _short(value: str) -> str:
    return f"{value[:16]}…" if len(value) >= 64 and " " not in value else value
