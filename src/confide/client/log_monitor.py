"""Following a log from outside: one look at it, next to what was believed before. log.md §7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import LogRejected, Unavailable
from confide.tlog.monitor import compare_heads, judge_age
from confide.tlog.verify import VerifiedHead, verify_head

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from confide.adapters.log_http import HttpLog
    from confide.rats import Finding
    from confide.wire.checkpoint import SignedCheckpoint
    from confide.wire.tlog_policy import LogPolicy

__all__ = ["Look", "look_at_log"]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a log found; `findings` may hold failures: read them."""

    seen: VerifiedHead
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """Whether nothing failed; only then does `seen` take the place of what was believed."""
        return not any(finding.failed for finding in self.findings)


async def look_at_log(
    log: HttpLog,
    *,
    known: SignedCheckpoint | None,
    policy: LogPolicy,
    now: datetime,
    max_age: timedelta,
) -> Look:
    """
    Fetch the checkpoint of `log` and compare it with `known`, the last one believed.

    Raises `LogRejected` for a checkpoint that the policy does not accept or tiles that do not fit
    it, `FormatError`, `Unavailable`.
    """
    seen = verify_head(await log.checkpoint(), policy=policy, now=now)
    age = judge_age(seen, now=now, max_age=max_age)
    if known is None:
        return Look(seen, (*seen.findings, age))
    before = verify_head(known, policy=policy, now=now)
    if before.origin != seen.origin:
        raise Unavailable("another log of the policy answers than the one followed before")
    compared = compare_heads(before, seen, await _proof(log, before, seen))
    return Look(seen, (*seen.findings, *compared, age))


async def _proof(
    log: HttpLog, before: VerifiedHead, seen: VerifiedHead
) -> tuple[bytes, ...] | None:
    if seen.size >= before.size:
        return await log.consistency(before.size, seen.checkpoint)
    try:
        # A server that lags behind may have the tiles of the larger head all the same.
        return await log.consistency(seen.size, before.checkpoint)
    except (Unavailable, LogRejected):
        return None
