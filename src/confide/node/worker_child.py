"""One worker of a node: what it does for its parent, and asks of it. docs/protocols/workers.md §3.

It was forked from a node that had booted, and has its keys by inheritance. Evidence, and receipts
that another worker issued, it gets from the parent; without the parent it ends.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import Reason, Unavailable
from confide.node.ledger_link import DistantStore
from confide.node.pacing import DistantPace
from confide.node.serve import IdleWatch, Service, serve
from confide.node.worker_link import Ask, WorkerLink
from confide.wire.evidence import decode_evidence
from confide.wire.json import Members, jcs, parse_json
from confide.wire.keyset import parse_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp

    from confide.appraisal.binding import Purpose
    from confide.channel.succession import Succession
    from confide.node.identity import NodeIdentity
    from confide.node.model import ModelNode
    from confide.node.worker_parent import Seat
    from confide.telemetry.metrics import Metrics
    from confide.wire.evidence import EvidenceBundle
    from confide.wire.keyset import Keyset

__all__ = ["DistantAttester", "WorkerChild"]

_TICK_SECONDS = 1.0
# The last numbers of a worker that ends: nobody waits long for them.
_TELL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class DistantAttester:
    """Evidence for `keyset`, of the parent: it alone asks the hardware."""

    keyset: Keyset
    link: WorkerLink

    def for_keyset(self, keyset: Keyset, _succession: Succession | None = None) -> DistantAttester:
        """Return the same for another keyset; the parent knows which one it follows."""
        return DistantAttester(keyset, self.link)

    async def attest(
        self, *, purpose: Purpose, nonce: bytes, expectation: bytes, claim: bytes | None = None
    ) -> EvidenceBundle:
        """Return fresh evidence. Raises `Unavailable` where the parent makes none."""
        asked = {
            "keyset": self.keyset.digest.hex(),
            "purpose": purpose,
            "nonce": nonce.hex(),
            "expectation": expectation.hex(),
            "claim": None if claim is None else claim.hex(),
        }
        return decode_evidence(await self.link.ask(Ask.EVIDENCE, jcs(dict(asked))))


def _end(_talking: asyncio.Task[None]) -> None:
    signal.raise_signal(signal.SIGTERM)


class _Replayed:
    """The randomness that the parent drew, once."""

    def __init__(self, drawn: list[bytes]) -> None:
        self._drawn = drawn

    def token(self, size: int) -> bytes:
        if not self._drawn or len(self._drawn[0]) != size:
            raise Unavailable("the parent drew other randomness than this worker needs")
        return self._drawn.pop(0)


class WorkerChild:
    """
    The worker of `seat`, with the keys of `inherited`. Made in its own loop.

    `pace` and `ledger` are the parent's word on what keys may do and have used, `metrics` what is
    counted here, if anything is.
    """

    def __init__(
        self, seat: Seat, inherited: NodeIdentity, *, metrics: Metrics | None = None
    ) -> None:
        self._seat = seat
        self._link = WorkerLink(self._answer)
        self.identity = inherited.following(
            DistantAttester(inherited.current.keys.keyset, self._link)
        )
        self.pace, self.ledger = DistantPace(self._link), DistantStore(self._link).work
        self._metrics = metrics
        self._node: ModelNode | None = None
        self._watch: IdleWatch | None = None

    @asynccontextmanager
    async def linked(self) -> AsyncIterator[None]:
        """Talk to the parent until the end of the block. Without it this process ends."""
        talking = asyncio.ensure_future(self._link.run(self._seat.end))
        # Without its parent a worker has no evidence, and nobody who would ever stop it.
        talking.add_done_callback(_end)
        try:
            yield
        finally:
            talking.remove_done_callback(_end)
            talking.cancel()
            with suppress(asyncio.CancelledError):
                await talking

    async def elsewhere(self, receipt_id: str) -> bytes | None:
        """Return the envelope of a receipt that another worker issued, if one keeps it."""
        try:
            return await self._link.ask(Ask.RECEIPT, receipt_id.encode()) or None
        except Unavailable:
            return None

    async def serve(
        self,
        node: ModelNode,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        connections: int,
        service: Service,
    ) -> None:
        """Serve until told to stop, or until the parent is gone; within `linked`."""
        self._node, self._watch = node, IdleWatch(app)
        if self._seat.draining:
            node.drain()
        ticking = asyncio.ensure_future(self._tick())
        try:
            await serve(
                self._watch,
                host=host,
                port=port,
                idle_seconds=None,
                connections=connections,
                service=service,
            )
        finally:
            await self._tell()
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking

    async def _tick(self) -> None:
        # Old keys end in time also where nobody asks anything.
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.identity.tick()
            await self._tell()

    async def _tell(self) -> None:
        if self._metrics is None:
            return
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(_TELL_SECONDS):
                await self._link.ask(Ask.COUNTS, self._metrics.encode())

    async def _answer(self, kind: Ask, payload: bytes) -> bytes:
        if self._node is None or self._watch is None:
            raise Unavailable("this worker has not begun")
        match kind:
            case Ask.KEYS:
                return self._take_keys(payload)
            case Ask.RECEIPT:
                found = self._node.find_receipt(payload.decode())
                return b"" if found is None else found.encode()
            case Ask.IDLE:
                return b"%d" % int(self._watch.idle_seconds() * 1000)
            case Ask.DRAIN:
                self._node.drain()
                return b""
            case _:
                raise Unavailable("a parent does not ask for that")

    def _take_keys(self, payload: bytes) -> bytes:
        value = parse_json(payload, what="keys", reason=Reason.KEYSET_MISMATCH)
        members = Members(value, what="keys", reason=Reason.KEYSET_MISMATCH)
        made = parse_time(members.text("made"), what="made", reason=Reason.KEYSET_MISMATCH)
        drawn = [bytes.fromhex(text) for text in members.texts("drawn")]
        self.identity.tick()
        following = self.identity.propose(made, _Replayed(drawn))
        self.identity.adopt(following)
        return following.keys.keyset.digest
