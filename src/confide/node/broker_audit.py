"""Every decision kept before it is answered, every release logged before it is answered.

Clauses: docs/protocols/broker.md 5.3. A decision is first a record of kind `decision-pending`. A
release is answered only when its proof stands in the store (`decision-released`). A refusal is
answered at once and logged by `run`, again and again until it is, also after a restart; a release
that could not be logged was not answered and is kept as what it is, never logged as a release.

Records of releases stay. Of refusals, which strangers can cause, the newest `max_settled` do; their
entries in the log stay. With `max_pending` that wait for the log nothing more is decided.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.errors import ConfideError, FormatError, Reason, Unavailable
from confide.node.broker_store import Edit
from confide.wire.dsse import Envelope, parse_envelope
from confide.wire.json import JsonValue, Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.node.broker_store import SealedStore
    from confide.ports import FinalityLog, Sleeper
    from confide.wire.tlog_proof import TlogProof

__all__ = [
    "PENDING",
    "RELEASED",
    "SETTLED",
    "AuditLimits",
    "BrokerAudit",
    "Kept",
    "parse_kept",
]

PENDING: Final = "decision-pending"
RELEASED: Final = "decision-released"
SETTLED: Final = "decision-settled"
_TYPE: Final = "confide/broker-decision/v1"


@dataclass(frozen=True, slots=True)
class AuditLimits:
    """How many refusals wait and stay, how many are logged at once, how long between attempts."""

    max_pending: int = 65_536
    max_settled: int = 16_384
    batch: int = 16
    retry_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Kept:
    """
    One decision as it is stored. `release` is what it decided, not what became of it.

    `proof` is None while it is not logged, and for ever for a release that was never answered.
    """

    envelope: Envelope
    release: bool
    proof: bytes | None

    def encode(self) -> bytes:
        """Return the record."""
        found: dict[str, JsonValue] = {
            "type": _TYPE,
            "envelope": self.envelope.document(),
            "release": self.release,
            "proof": None if self.proof is None else self.proof.decode(),
        }
        return jcs(found)


def parse_kept(raw: bytes) -> Kept:
    """Parse a record. Raises `FormatError` with VAULT_FORMAT."""
    what, reason = "decision record", Reason.VAULT_FORMAT
    members = Members(parse_json(raw, what=what, reason=reason), what=what, reason=reason)
    members.choice("type", (_TYPE,))
    envelope = parse_envelope(members.value("envelope"))
    release = members.boolean("release")
    proof = None
    if not members.null("proof"):
        proof = members.text("proof", max_chars=1 << 21).encode()
    members.end()
    return Kept(envelope, release, proof)


@dataclass(slots=True)
class BrokerAudit:
    """The audit of one broker process. `open` first; `run` as long as it serves."""

    store: SealedStore
    log: FinalityLog
    sleeper: Sleeper
    limits: AuditLimits = field(default_factory=AuditLimits)
    _pending: deque[str] = field(default_factory=deque)
    _settled: deque[str] = field(default_factory=deque)
    _count: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    # One writer: what is decided is in the order in which it was decided.
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def pending(self) -> int:
        """How many refusals wait for the log."""
        return len(self._pending)

    async def open(self) -> None:
        """
        Find out what an earlier process left: refusals to log, releases that were never answered.

        Raises `Unavailable`, `FormatError`.
        """
        left = await asyncio.to_thread(self.store.entries, PENDING)
        settled = await asyncio.to_thread(self.store.entries, SETTLED)
        self._settled.extend(entry.name for entry in settled)
        for entry in left:
            if parse_kept(entry.value).release:
                # Answered only once its proof stands: this one never was.
                await self._move(entry.name, SETTLED, None)
            else:
                self._pending.append(entry.name)
        self._wake.set()

    async def refuse(self, envelope: Envelope, *, now: datetime) -> None:
        """Keep a refusal, durably; `run` logs it. Raises `Unavailable`: then nothing is said."""
        if len(self._pending) >= self.limits.max_pending:
            raise Unavailable("too many refusals wait for the log")
        self._pending.append(await self._keep(Kept(envelope, release=False, proof=None), now))
        self._wake.set()

    async def release(self, envelope: Envelope, *, now: datetime) -> TlogProof:
        """
        Keep a release and make it final in the log; only then may it be answered.

        Raises `Unavailable`: nothing may be released.
        """
        name = await self._keep(Kept(envelope, release=True, proof=None), now)
        try:
            proof = await self.log.final(envelope.digest)
        except Unavailable:
            await self._move(name, SETTLED, None)
            raise
        await self._move(name, RELEASED, proof.encode())
        return proof

    async def run(self) -> None:
        """Log what waits, as long as there is a log; never returns."""
        while True:
            await self._wake.wait()
            names = [self._pending[at] for at in range(min(len(self._pending), self.limits.batch))]
            if not names:
                self._wake.clear()
                continue
            done = await asyncio.gather(*(self._log(name) for name in names))
            for name, logged in zip(names, done, strict=True):
                self._pending.remove(name)
                if not logged:
                    self._pending.append(name)
            if not all(done):
                await self.sleeper.sleep(self.limits.retry_seconds)

    async def _log(self, name: str) -> bool:
        """Whether the refusal `name` is logged now and kept so."""
        try:
            entry = await asyncio.to_thread(self.store.get, PENDING, name)
            if entry is None:
                return True
            proof = await self.log.final(parse_kept(entry.value).envelope.digest)
            await self._move(name, SETTLED, proof.encode())
        except ConfideError:
            return False
        return True

    async def _keep(self, kept: Kept, now: datetime) -> str:
        # Names sort by time; digest and count tell decisions of one moment apart.
        self._count += 1
        moment, digest = int(now.timestamp() * 1000), kept.envelope.digest.hex()
        name = f"{moment:013d}-{digest}-{self._count}"
        async with self._writing:
            await self._apply([Edit(PENDING, name, 0, kept.encode())])
        return name

    async def _move(self, name: str, kind: str, proof: bytes | None) -> None:
        """Move a pending decision to `kind`, and what is one too many out of the way."""
        async with self._writing:
            entry = await asyncio.to_thread(self.store.get, PENDING, name)
            if entry is None:
                raise FormatError(
                    "broker store: a pending decision is gone",
                    reason=Reason.VAULT_FORMAT,
                    clause="docs/protocols/broker.md#5.3",
                )
            kept = parse_kept(entry.value)
            settled = Kept(kept.envelope, kept.release, proof).encode()
            edits = [Edit(PENDING, name, entry.revision, None), Edit(kind, name, 0, settled)]
            full = kind == SETTLED and len(self._settled) >= self.limits.max_settled
            if full:
                edits.append(Edit(SETTLED, self._settled[0], 1, None))
            await self._apply(edits)
            if full:
                self._settled.popleft()
            if kind == SETTLED:
                self._settled.append(name)

    async def _apply(self, edits: Sequence[Edit]) -> None:
        if not await asyncio.to_thread(self.store.apply, edits):
            raise Unavailable("the store was changed by somebody else")
