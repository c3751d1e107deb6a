"""Making a digest final: into the log, and out with a proof that holds. log.md §1.5, §5, §9.2.

The log's word is not taken: what comes back is verified against the caller's own policy. Where the
log is down or its witnesses are slow, what is left to do is a `PendingEntry`: keep it, and try
again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from confide.adapters.log_http import Pending
from confide.errors import LogRejected, Reason, Unavailable
from confide.tlog.leaf import LeafOpening, PendingEntry
from confide.tlog.verify import VerifiedInclusion, verify_head, verify_logged

if TYPE_CHECKING:
    from datetime import datetime

    from confide.adapters.log_http import HttpLog
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = ["Logged", "log_digest", "settle_entry"]


@dataclass(frozen=True, slots=True)
class Logged:
    """A digest that is final. `proof` holds the blinding: with it anyone verifies offline."""

    proof: TlogProof
    inclusion: VerifiedInclusion


async def log_digest(
    log: HttpLog, *, digest: bytes, blinding: bytes, policy: LogPolicy, now: datetime
) -> Logged | PendingEntry:
    """
    Log `digest` (32 bytes) under `blinding` (32 fresh random bytes).

    Raises `LogRejected` for a log that answers with a proof that does not hold.
    """
    return await settle_entry(
        log, PendingEntry(LeafOpening(blinding, digest)), policy=policy, now=now
    )


async def settle_entry(
    log: HttpLog, entry: PendingEntry, *, policy: LogPolicy, now: datetime
) -> Logged | PendingEntry:
    """Try again to make `entry` final; return it, maybe with its index, where that fails."""
    try:
        if entry.index is not None:
            return await _proven(log, entry, entry.index, policy=policy, now=now)
        answer = await log.add(entry.opening.entry)
    except Unavailable:
        return entry
    if isinstance(answer, Pending):
        return replace(entry, index=answer.index)
    return _verified(answer, entry, policy=policy, now=now)


async def _proven(
    log: HttpLog, entry: PendingEntry, index: int, *, policy: LogPolicy, now: datetime
) -> Logged | PendingEntry:
    checkpoint = await log.checkpoint()
    try:
        head = verify_head(checkpoint, policy=policy, now=now)
    except LogRejected as error:
        if {finding.reason for finding in error.failures} == {Reason.TLOG_WITNESSES}:
            return entry
        raise
    if head.size <= index:
        return entry
    return _verified(await log.prove(index, checkpoint), entry, policy=policy, now=now)


def _verified(proof: TlogProof, entry: PendingEntry, *, policy: LogPolicy, now: datetime) -> Logged:
    whole = replace(proof, extra=entry.opening.blinding)
    found = verify_logged(whole, digest=entry.opening.digest, policy=policy, now=now)
    return Logged(whole, found)
