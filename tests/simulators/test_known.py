"""What a relying party keeps between appraisals spares work and decides nothing."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Literal

import pytest
from nodes import NOW, evidence, fitting_expectation, roots

from confide.appraisal.node import VerifiedNode, appraise_node
from confide.errors import Rejected
from confide.simulator.machine import simulated_roots

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.known import Known
    from confide.rats import Finding
    from confide.trust.roots import Roots

# Faults of the collateral, of the quote under honest collateral, of the GPU, and of the log.
_FAULTS = (
    "altered-tcb-info",
    "forged-root-crl",
    "revoked-pck",
    "expired-collateral",
    "forged-quote",
    "debug-td",
    "log-payload-edited",
    "wrong-measurement",
)


@cache
def _appraise(
    fault: str = "",
    *,
    role: Literal["agent", "model"] = "model",
    known: Known | None = None,
    now: datetime = NOW,
    under: Roots | None = None,
) -> VerifiedNode | tuple[Finding, ...]:
    try:
        return appraise_node(
            evidence(role, fault=fault),
            subject="node",
            role=role,
            purpose="channel",
            nonce=b"n" * 32,
            claim=None,
            expectation=fitting_expectation(roots()),
            roots=under or roots(),
            now=now,
            known=known,
        )
    except Rejected as error:
        return error.findings


def _proven(found: VerifiedNode | tuple[Finding, ...]) -> VerifiedNode:
    assert isinstance(found, VerifiedNode)
    return found


def _known() -> Known:
    return _proven(_appraise()).known


def _verdict(found: VerifiedNode | tuple[Finding, ...]) -> object:
    findings = found.result.findings if isinstance(found, VerifiedNode) else found
    return [(each.step, each.subject, each.status, each.reason) for each in findings]


def test_a_second_appraisal_says_the_same() -> None:
    first, second = _proven(_appraise()), _proven(_appraise(known=_known()))
    assert second.result.claims == first.result.claims
    assert second.result.not_after == first.result.not_after
    assert _verdict(second) == _verdict(first)


def test_what_is_known_is_used() -> None:
    known, again = _known(), _proven(_appraise(known=_known())).known
    assert again.rims[0] is known.rims[0]
    assert again.collateral[0].tcb_info is known.collateral[0].tcb_info


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_fault_is_refused_all_the_same(fault: str) -> None:
    cold = _appraise(fault)
    assert not isinstance(cold, VerifiedNode)
    assert _verdict(_appraise(fault, known=_known())) == _verdict(cold)


def test_known_collateral_ages() -> None:
    later = NOW + timedelta(days=365)
    cold, warm = _appraise(now=later), _appraise(known=_known(), now=later)
    assert not isinstance(warm, VerifiedNode)
    assert _verdict(warm) == _verdict(cold)


def test_what_was_known_under_other_roots_does_not_count() -> None:
    other = simulated_roots(b"another seed", NOW)
    cold, warm = _appraise(under=other), _appraise(known=_known(), under=other)
    assert not isinstance(warm, VerifiedNode)
    assert _verdict(warm) == _verdict(cold)


def test_an_agent_node_leaves_what_is_known_of_gpus() -> None:
    known = _known()
    after = _proven(_appraise(role="agent", known=known)).known
    assert after.rims == known.rims
    assert after.signatures == known.signatures
    assert len(after.collateral) == 1
