"""Making a digest final: into the log, and out with a proof that holds. log.md §1.5, §5, §9.2.

The log's word is not taken: what comes back is verified against the caller's own policy. Where the
log is down or its witnesses are slow, what is left to do is a `PendingEntry`: keep it, and try
again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from confide.adapters.log_http import Pending
from confide.errors import FormatError, LogRejected, Reason, RemoteProtocolError, Unavailable
from confide.tlog.verify import VerifiedInclusion, verify_head, verify_logged

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from confide.adapters.log_http import HttpLog
    from confide.ports import Clock
    from confide.tlog.leaf import PendingEntry
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = ["Logged", "Waiting", "settle_entry", "wait_until_final"]

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
# One try is always made, also by who does not want to wait.
_ONE_TRY_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Logged:
    """A digest that is final. `proof` holds the blinding: with it anyone verifies offline."""

    proof: TlogProof
    inclusion: VerifiedInclusion


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry that is not final, and why."""

    entry: PendingEntry
    why: str


async def settle_entry(
    log: HttpLog,
    entry: PendingEntry,
    *,
    made: datetime | None,
    policy: LogPolicy,
    now: datetime,
) -> Logged | Waiting:
    """
    Try once to make `entry` final; what is left comes back, maybe with its index.

    `made` is when that which is logged claims to be made. Raises `LogRejected` for a log that
    answers with a proof that does not hold.
    """
    try:
        if entry.index is not None:
            return await _proven(log, entry, entry.index, made=made, policy=policy, now=now)
        answer = await log.add(entry.opening.entry)
        if isinstance(answer, Pending):
            return _too_few(replace(entry, index=answer.index))
        return _verified(answer, entry, made=made, policy=policy, now=now)
    except Unavailable as error:
        return Waiting(entry, f"the log does not take it now: {error}")
    except (FormatError, RemoteProtocolError) as error:
        return Waiting(entry, f"the log answered something else: {error}")


async def _proven(
    log: HttpLog,
    entry: PendingEntry,
    index: int,
    *,
    made: datetime | None,
    policy: LogPolicy,
    now: datetime,
) -> Logged | Waiting:
    checkpoint = await log.checkpoint()
    try:
        head = verify_head(checkpoint, policy=policy, now=now)
    except LogRejected as error:
        if _only_witnesses(error):
            return _too_few(entry)
        raise
    if head.size <= index:
        return _too_few(entry)
    proof = await log.prove(index, checkpoint)
    return _verified(proof, entry, made=made, policy=policy, now=now)


def _verified(
    proof: TlogProof,
    entry: PendingEntry,
    *,
    made: datetime | None,
    policy: LogPolicy,
    now: datetime,
) -> Logged | Waiting:
    whole = replace(proof, extra=entry.opening.blinding)
    digest = entry.opening.digest
    try:
        found = verify_logged(whole, digest=digest, made=made, policy=policy, now=now)
    except LogRejected as error:
        if _only_witnesses(error):
            return _too_few(replace(entry, index=proof.index))
        raise
    return Logged(whole, found)


def _only_witnesses(error: LogRejected) -> bool:
    return {finding.reason for finding in error.failures} == {Reason.TLOG_WITNESSES}


def _too_few(entry: PendingEntry) -> Waiting:
    return Waiting(entry, "too few witnesses have seen it yet")


async def wait_until_final(
    log: HttpLog,
    entry: PendingEntry,
    *,
    made: datetime | None,
    policy: LogPolicy,
    clock: Clock,
    wait_seconds: float,
    keep: Callable[[PendingEntry], None],
) -> Logged | Waiting:
    """
    Try until `entry` is final or `wait_seconds` are over; once in any case.

    `keep` is called with what is left to do, each time that more is known. Raises `LogRejected`.
    """
    found: Logged | Waiting = Waiting(entry, "the log did not answer in time")
    pause, waited = _FIRST_PAUSE, 0.0
    try:
        async with asyncio.timeout(max(wait_seconds, _ONE_TRY_SECONDS)):
            while True:
                now = clock.now()
                found = await settle_entry(log, entry, made=made, policy=policy, now=now)
                if isinstance(found, Logged):
                    return found
                if found.entry != entry:
                    entry = found.entry
                    keep(entry)
                if waited >= wait_seconds:
                    return found
                await asyncio.sleep(pause)
                waited += pause
                pause = min(2 * pause, _LONGEST_PAUSE)
    except TimeoutError:
        return found
