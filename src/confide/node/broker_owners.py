"""The owners' desk: takes what owners signed, and says what holds now.

Clauses: docs/protocols/release.md. A statement is verified, then everything that it changes is
written at once, durably, and only then it is answered. What has to be in the log is sent there
after that, and again until it is: a release holds from then on, a revocation held all along.

`value`, `require_release` and `policies` block; they read the store anew each time. Several desks
over one store are safe: each change is made for the revision that was read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

from confide.broker.beside import parse_submission
from confide.broker.ledger import Logged, Repository
from confide.broker.release import policies_in_force, release_in_force
from confide.broker.statement import verify_statement
from confide.broker.statement_kinds import Accept
from confide.errors import (
    ConfigurationError,
    LogRejected,
    Reason,
    ReleaseRefused,
    Unavailable,
)
from confide.node.owner_ledger import OwnerLedger
from confide.node.owner_statements import TakenStatement, prepare
from confide.rats import Finding, Status
from confide.tlog.verify import verify_logged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from confide.broker.beside import Submission
    from confide.broker.holdings import Held
    from confide.broker.keys import BrokerKeys
    from confide.broker.owners import Owners
    from confide.node.broker_store import Edit, SealedStore
    from confide.node.owner_ledger import Unlogged
    from confide.ports import Clock, FinalityLog, Sleeper
    from confide.wire.json import JsonValue
    from confide.wire.tlog_policy import LogPolicy

__all__ = ["OwnerDesk"]

# Each attempt loses only to a statement of the same repository that was taken meanwhile.
_ATTEMPTS: Final = 16
_LOG_SECONDS: Final = 20.0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


def _quiet(_line: str) -> None:
    """Say nothing."""


class OwnerDesk:
    """
    What owners decide, over one store.

    `log_policy` says whose word about the log counts; `log` itself is not believed. Opening it
    checks the configuration against the store (1.2, 1.3): `ReleaseRefused` (`owners-mismatch`),
    `ConfigurationError` without any owners.
    """

    def __init__(
        self,
        store: SealedStore,
        *,
        keys: BrokerKeys,
        configured: Sequence[Owners],
        log: FinalityLog,
        log_policy: LogPolicy,
        clock: Clock,
        report: Callable[[str], None] = _quiet,
    ) -> None:
        self._ledger = OwnerLedger(store)
        self._broker = keys.key
        self._opener = keys.opener
        self._log = log
        self._log_policy = log_policy
        self._clock = clock
        self._report = report
        _require_configured(self._ledger, configured)

    # What owners sign.

    async def take(self, body: bytes) -> dict[str, JsonValue]:
        """
        Take one statement (2.8) and return the answer, durable before it is returned.

        Raises `FormatError` for a body that is none, `ReleaseRefused` for a statement that is not
        taken, `Unavailable` where the store fails: then nothing of it was taken, or all of it.
        """
        submission = parse_submission(body)
        taken = await asyncio.to_thread(self._take, submission, self._clock.now())
        answer: dict[str, JsonValue] = {
            "statement": submission.envelope.digest.hex(),
            **taken.answer,
        }
        if taken.unlogged is None:
            return answer
        if await self._settle(taken.unlogged):
            answer["log"] = await asyncio.to_thread(self._ledger.proof, taken.unlogged)
        if taken.standing is not None:
            answer["state"] = await asyncio.to_thread(taken.standing, self._clock.now())
        return answer

    def _take(self, submission: Submission, now: datetime) -> TakenStatement:
        for _ in range(_ATTEMPTS):
            # First of all reads: whatever changes in the repository from here on is noticed.
            repositories = self._ledger.repositories()
            owners = {name: each.current for name, each in repositories.items()}
            verified = verify_statement(
                submission.envelope, broker=self._broker, owners=owners, now=now
            )
            if self._ledger.seen(verified.digest):
                raise _refused("owner/9", "2.2", Reason.REPLAYED, "it was taken before")
            name = verified.statement.to.repository
            taken = prepare(
                verified,
                submission,
                repository=repositories[name],
                ledger=self._ledger,
                opener=self._opener,
                now=now,
            )
            if self._apply(name, repositories[name], taken, self._ledger.put_seen(verified.digest)):
                return taken
        raise Unavailable("too many statements at once: send it again")

    def _apply(self, name: str, read: Repository, taken: TakenStatement, seen: Edit) -> bool:
        found = self._ledger.repository(name)
        if found is None or found[0] != read:
            return False
        counted = self._ledger.put_repository(taken.repository, expected=found[1])
        return self._ledger.apply([counted, seen, *taken.edits])

    # The log.

    async def settle(self) -> int:
        """Send everything to the log that is not there yet; return how much still is not."""
        waiting = await asyncio.to_thread(self._ledger.unlogged)
        return sum([not await self._settle(each) for each in waiting])

    async def keep_settling(self, sleeper: Sleeper) -> None:
        """Settle for ever: at once after a start, then at growing pauses while the log is down."""
        pause = _FIRST_PAUSE
        while True:
            try:
                left = await self.settle()
            except Unavailable as error:
                self._report(f"broker store: {error}")
                left = 1
            pause = min(2 * pause, _LONGEST_PAUSE) if left else _FIRST_PAUSE
            await sleeper.sleep(pause)

    async def _settle(self, what: Unlogged) -> bool:
        """Whether `what` is in the log now, and the store knows it."""
        try:
            async with asyncio.timeout(_LOG_SECONDS):
                proof = await self._log.final(what.digest)
            now = self._clock.now()
            found = verify_logged(
                proof, digest=what.digest, made=None, policy=self._log_policy, now=now
            )
            return await self._keep(what, Logged(found.time, proof.encode().decode()))
        except (Unavailable, TimeoutError):
            self._report(f"log: a {what.kind} is not logged yet, it will be tried again")
        except LogRejected as error:
            self._report(f"log: its proof of a {what.kind} does not hold: {error}")
        return False

    async def _keep(self, what: Unlogged, logged: Logged) -> bool:
        for _ in range(_ATTEMPTS):
            if await asyncio.to_thread(self._ledger.mark_logged, what, logged):
                return True
        return False

    # What the service of secrets reads.

    def value(self, resource: str) -> Held | None:
        """Return the value of `resource`, None where there is none. Says nothing about who may."""
        found = self._ledger.secret(resource)
        return None if found is None else found.held

    def require_release(
        self,
        resource: str,
        *,
        accepts: Literal["expectation", "policy"],
        digest: bytes,
        now: datetime,
    ) -> bytes:
        """
        Return the digest of the release that lets `resource` out to `digest` at `now`.

        Raises `ReleaseRefused` (3.2, 3.3). A state (`<repository>/state/<tag>`) needs no value to
        be released. **Does not check** the evidence of whoever asks.
        """
        return release_in_force(
            self._ledger.releases_of(resource),
            resource=resource,
            accept=Accept(accepts, digest),
            now=now,
        ).digest

    def policies(self, resource: str, *, now: datetime) -> Sequence[tuple[bytes, bytes]]:
        """Return (digest, TOML) of every policy that `resource` is released to at `now`."""
        return policies_in_force(self._ledger.releases_of(resource), resource=resource, now=now)

    def repositories(self) -> dict[str, bytes]:
        """Return by repository the digest of the set of owners that decides (broker.md 1.3)."""
        return {name: each.current.digest for name, each in self._ledger.repositories().items()}


def _require_configured(ledger: OwnerLedger, configured: Sequence[Owners]) -> None:
    if not configured:
        raise ConfigurationError(
            "a broker does not start without owners: name those of each repository in its file"
        )
    known = ledger.repositories()
    edits = []
    for owners in configured:
        kept = known.pop(owners.repository, None)
        if kept is None:
            edits.append(ledger.put_repository(Repository(owners, owners, 0), expected=0))
        elif owners not in (kept.began, kept.current):
            raise _mismatch("other owners of a repository than the store has")
    if known:
        raise _mismatch(f"nothing about {len(known)} repositories that the store has")
    if edits and not ledger.apply(edits):
        raise Unavailable("the store changed while it was opened")


def _mismatch(what: str) -> ReleaseRefused:
    detail = f"the configuration names {what}"
    return _refused("owners/1", "1.2", Reason.OWNERS_MISMATCH, detail)


def _refused(step: str, clause: str, reason: Reason, detail: str) -> ReleaseRefused:
    where = f"docs/protocols/release.md#{clause}"
    return ReleaseRefused((Finding(Status.FAIL, step, where, "statement", detail, reason),))
