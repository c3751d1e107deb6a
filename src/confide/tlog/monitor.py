"""Comparing heads of one log: fork, rollback, stale, and who vouched for two. log.md §7. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.crypto.errors import BadProof
from confide.crypto.merkle import verify_consistency
from confide.errors import Reason
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from confide.tlog.verify import VerifiedHead

__all__ = ["compare_heads", "judge_age"]

_DOC: Final = "docs/protocols/log.md#7"
_SUBJECT: Final = "log head"


def compare_heads(
    known: VerifiedHead, seen: VerifiedHead, proof: Sequence[bytes] | None
) -> tuple[Finding, ...]:
    """
    Return what `seen` is next to `known`, a head of the same log that was believed before.

    `proof` is the consistency proof from the smaller to the larger of both, empty between equal
    sizes, None where nobody has one: then a fork is neither shown nor excluded. Findings:
    log-monitor/1 fork, /2 rollback, /3 witnesses of both. `ValueError` for heads of two logs.
    """
    if known.origin != seen.origin:
        raise ValueError("heads of two different logs")
    findings = [_extends(known, seen, proof)]
    if seen.size < known.size:
        findings.append(
            _fail(
                "log-monitor/2", "7.1", f"{known.size} entries before, {seen.size} now",
                Reason.TLOG_ROLLBACK,
            )
        )  # fmt: skip
    else:
        findings.append(Finding(Status.PASS, "log-monitor/2", f"{_DOC}.1", _SUBJECT))
    return (*findings, *_two_faced(known, seen))


def _extends(known: VerifiedHead, seen: VerifiedHead, proof: Sequence[bytes] | None) -> Finding:
    small, large = sorted((known, seen), key=lambda head: head.size)
    step, detail = "log-monitor/1", f"sizes {known.size} and {seen.size}"
    if proof is None:
        return Finding(Status.NOT_PROVEN, step, f"{_DOC}.1", _SUBJECT, f"{detail}: no proof")
    try:
        verify_consistency(small.size, large.size, proof, old_root=small.root, new_root=large.root)
    except BadProof as error:
        return _fail(step, "7.1", f"{detail}: {error.what}", Reason.TLOG_FORK)
    return Finding(Status.PASS, step, f"{_DOC}.1", _SUBJECT, detail)


def _two_faced(known: VerifiedHead, seen: VerifiedHead) -> tuple[Finding, ...]:
    """Return a finding for each witness that cosigned both of two heads of one size (7.4)."""
    if known.size != seen.size or known.root == seen.root:
        return ()
    before = {each.witness for each in known.cosigned}
    both = [each.witness for each in seen.cosigned if each.witness in before]
    return tuple(
        Finding(
            Status.FAIL, "log-monitor/3", f"{_DOC}.4", witness,
            f"it cosigned two roots of size {seen.size}", Reason.TLOG_WITNESS_FORK,
        )
        for witness in both
    )  # fmt: skip


def judge_age(seen: VerifiedHead, *, now: datetime, max_age: timedelta) -> Finding:
    """Return whether the witnesses confirmed `seen` lately: log-monitor/4."""
    clause = f"{_DOC}.1"
    if seen.confirmed_at is None:
        detail = "no witness vouches for a time"
        return Finding(Status.NOT_PROVEN, "log-monitor/4", clause, _SUBJECT, detail)
    age = now - seen.confirmed_at
    detail = f"confirmed {int(age.total_seconds())} s ago"
    if age > max_age:
        return _fail("log-monitor/4", "7.1", detail, Reason.TLOG_STALE)
    return Finding(Status.PASS, "log-monitor/4", clause, _SUBJECT, detail)


def _fail(step: str, clause: str, detail: str, reason: Reason) -> Finding:
    return Finding(Status.FAIL, step, f"docs/protocols/log.md#{clause}", _SUBJECT, detail, reason)
