"""Receipts on their way into the log: what is kept beside them until they are final.

docs/protocols/receipt.md §6.2. `RECEIPT.tlog-pending` holds what opens the entry and is written
before the log hears of it; it goes when the proof is in its place. Whoever is cut off in between
finds both files, and goes on from there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from confide.adapters.files import write_atomically
from confide.adapters.log_entry import Logged, Waiting, wait_until_final
from confide.adapters.log_http import HttpLog, log_client
from confide.errors import ConfideError, ConfigurationError, FormatError
from confide.receipts.file import ReceiptFile, parse_receipt_file
from confide.receipts.statement import parse_run_statement
from confide.tlog.leaf import BLINDING_BYTES, LeafOpening, PendingEntry, parse_pending
from confide.training.any_record import parse_any_record
from confide.training.record_file import RecordFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from confide.ports import Clock, Entropy
    from confide.wire.dsse import Envelope
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = ["LeftOver", "LogChoice", "finalise", "pending_path", "settle_left_over", "store_inside"]

_SUFFIX: Final = ".tlog-pending"
# A new run does not wait long for old ones: so many of them, for so long.
_MAX_LEFT_OVER: Final = 8
_LEFT_OVER_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class LogChoice:
    """Which log, where it is reached, and who counts; `policy_digest` is SHA-256 of the file."""

    url: str
    policy: LogPolicy
    policy_digest: bytes
    policy_file: Path


@dataclass(frozen=True, slots=True)
class LeftOver:
    """What became of a receipt that an earlier run left pending; `trouble` is empty when final."""

    receipt: Path
    trouble: str


def pending_path(receipt: Path) -> Path:
    """Return where the pending entry of the receipt at `receipt` is kept."""
    return receipt.with_name(f"{receipt.name}{_SUFFIX}")


def store_inside(path: Path, receipt: ReceiptFile | RecordFile) -> Callable[[TlogProof], None]:
    """Return what writes the receipt file at `path` anew, with the proof inside."""

    def store(proof: TlogProof) -> None:
        write_atomically(path, replace(receipt, log=proof).encode(), mode=0o644)

    return store


async def finalise(
    path: Path,
    receipt: ReceiptFile | RecordFile,
    choice: LogChoice,
    *,
    clock: Clock,
    entropy: Entropy,
    wait_seconds: float,
    store: Callable[[TlogProof], None],
) -> Logged | Waiting:
    """
    Make the receipt or training record that is kept at `path` final.

    `store` puts its proof where it belongs.

    A receipt that did not verify is logged like any other: it must not be deniable either. What is
    pending stays beside `path`. Raises `LogRejected` for a proof that does not hold,
    `ConfigurationError` where the pending entry is about another receipt, `Unavailable` where a
    file cannot be written.
    """
    kept = pending_path(path)
    entry = _entry(kept, _envelope(receipt).digest, choice, entropy)

    def keep(entry: PendingEntry) -> None:
        write_atomically(kept, entry.encode())

    # Before the log hears of it: who loses the blinding can never open this entry.
    keep(entry)
    async with log_client() as client:
        found = await wait_until_final(
            HttpLog(client, choice.url),
            entry,
            made=_finished(receipt),
            policy=choice.policy,
            clock=clock,
            wait_seconds=wait_seconds,
            keep=keep,
        )
    if isinstance(found, Logged):
        store(found.proof)
        kept.unlink(missing_ok=True)
    return found


def _entry(kept: Path, digest: bytes, choice: LogChoice, entropy: Entropy) -> PendingEntry:
    if not kept.exists():
        opening = LeafOpening(entropy.token(BLINDING_BYTES), digest)
        return PendingEntry(opening, choice.policy_digest)
    entry = parse_pending(kept.read_bytes())
    if entry.opening.digest != digest:
        raise ConfigurationError(f"{kept} is about another receipt")
    if entry.policy != choice.policy_digest:
        raise ConfigurationError(
            f"{kept} waits for a log under another policy: finish it with that policy, or delete "
            "the file to start anew"
        )
    return entry


def _envelope(receipt: ReceiptFile | RecordFile) -> Envelope:
    return receipt.run if isinstance(receipt, ReceiptFile) else receipt.record


def _finished(receipt: ReceiptFile | RecordFile) -> datetime | None:
    try:
        if isinstance(receipt, RecordFile):
            return parse_any_record(receipt.record.payload).finished
        return parse_run_statement(receipt.run.payload).finished
    except FormatError:
        return None


async def settle_left_over(
    runs: Path, choice: LogChoice, *, clock: Clock, entropy: Entropy
) -> tuple[LeftOver, ...]:
    """
    Try again, for two seconds, what earlier runs below `runs` left pending for this policy.

    The newest first, and a few at a time. Never raises for what is wrong with one of them: a new
    run does not fail because of an old one.
    """

    async def settle(path: Path) -> LeftOver:
        try:
            receipt = _read(path)
            left = await finalise(
                path,
                receipt,
                choice,
                clock=clock,
                entropy=entropy,
                wait_seconds=_LEFT_OVER_SECONDS,
                store=store_inside(path, receipt),
            )
        except (ConfideError, OSError) as error:
            return LeftOver(path, str(error))
        return LeftOver(path, left.why if isinstance(left, Waiting) else "")

    return tuple(await asyncio.gather(*(settle(path) for path in _left_over(runs, choice))))


def _read(path: Path) -> ReceiptFile:
    return parse_receipt_file(path.read_bytes())


def _left_over(runs: Path, choice: LogChoice) -> list[Path]:
    found: list[Path] = []
    for kept in sorted(runs.glob(f"*/*{_SUFFIX}"), reverse=True):
        if len(found) < _MAX_LEFT_OVER and _is_for(kept, choice):
            found.append(kept.with_name(kept.name.removesuffix(_SUFFIX)))
    return found


def _is_for(kept: Path, choice: LogChoice) -> bool:
    try:
        return parse_pending(kept.read_bytes()).policy == choice.policy_digest
    except (FormatError, OSError):
        return False
