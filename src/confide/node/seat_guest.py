"""One other node at seat 0's table: proven, invited, introduced, given its rows, let go.

docs/protocols/training-ranks.md 4.7, 4.8. What it says is hostile; what breaks is told as a
`SeatFault` that names the seat.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.adapters.prove import prove_node
from confide.errors import FormatError, ProtocolError, Reason, Rejected, Unavailable
from confide.node.seat_messages import SEATS, SeatFault, parse_taken_seat
from confide.node.seat_rows import sent_order
from confide.training.rank_certificates import key_digest
from confide.training.ranks import SeatOffer
from confide.wire.json import Members, parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

    from confide.adapters.prove import SealedNode
    from confide.adapters.sealed_http import Body
    from confide.expectation import Expectation
    from confide.node.seat_messages import SeatAdmission, SeatInvitation, TakenSeat
    from confide.node.seat_places import SeatTimes
    from confide.ports import Clock, Entropy
    from confide.training.job import TrainingJob
    from confide.training.shares import Engine
    from confide.trust.roots import Roots

__all__ = ["Guest", "why"]

_CODE: Final = re.compile(r"[a-z_]{1,64}\Z")
_MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_END: Final = "end of a seat"


@dataclass(slots=True)
class Guest:
    """
    The node at `url`, for seat `number` with `ranks` ranks from `first` on.

    `token` is what the seat belongs to there, as files and jobs do.
    """

    number: int
    url: str
    first: int
    ranks: int
    token: str = field(repr=False)
    http: httpx2.AsyncClient
    times: SeatTimes
    engine: Engine
    _proven: SealedNode | None = None
    _taken: TakenSeat | None = None

    @property
    def taken(self) -> TakenSeat:
        """What it answered to its invitation."""
        if self._taken is None:
            raise RuntimeError("a seat that was not taken")
        return self._taken

    @property
    def offer(self) -> SeatOffer:
        """What it offers; its evidence says whether it is for this engine."""
        digest = key_digest(self.taken.point)
        return SeatOffer(self.ranks, digest, self.engine, self.taken.evidence)

    async def prove(
        self, expectation: Expectation, roots: Roots, *, clock: Clock, entropy: Entropy
    ) -> None:
        """Prove the node as any client does, before it is told anything. Raises `SeatFault`."""
        async with self._bounded(self.times.talk):
            self._proven = await prove_node(
                self.url,
                role="model",
                expectation=expectation,
                roots=roots,
                http=self.http,
                clock=clock,
                entropy=entropy,
            )

    async def invite(self, invitation: SeatInvitation) -> None:
        """Offer it the seat. Raises `SeatFault`."""
        async with self._bounded(self.times.talk):
            self._taken = parse_taken_seat(await self._ask("POST", "", invitation.encode()))

    def require_keyset(self, keyset: bytes) -> None:
        """Require that what was admitted is what rows are sealed to (4.4). Raises `SeatFault`."""
        if self._proven is None or self._proven.node.keyset.digest != keyset:
            words = f"seat {self.number} has other keys than the node that was asked"
            raise SeatFault("seat_refused", words)

    async def introduce(self, admission: SeatAdmission) -> None:
        """Show it all seats, and give it its certificate. Raises `SeatFault`."""
        async with self._bounded(self.times.talk):
            await self._ask("POST", f"/{self.taken.id}/admission", admission.encode())

    async def hand_over(self, job: TrainingJob) -> None:
        """Give it the rows; its ranks start. Raises `SeatFault`."""
        async with self._bounded(self.times.rows):
            await self._ask("POST", f"/{self.taken.id}/rows", sent_order(job))

    async def part(self) -> str:
        """Let it go; return how its ranks ended, in words."""
        if self._taken is None:
            return "was not taken"
        try:
            async with self._bounded(self.times.talk):
                raw = await self._ask("DELETE", f"/{self._taken.id}", b"")
                value = parse_json(raw, what=_END, reason=Reason.TRAINING_FORMAT)
                return Members(value, what=_END, reason=Reason.TRAINING_FORMAT).text("told")
        except SeatFault:
            return "is gone"

    async def _ask(self, method: str, path: str, body: Body) -> bytes:
        if self._proven is None:
            raise RuntimeError("a node that was not proven")
        headers = (("authorization", f"Bearer {self.token}"), ("content-type", "application/json"))
        raw = bytearray()
        async with await self._proven.sealed.request(
            method, f"{SEATS}{path}", headers, body
        ) as answer:
            async for piece in answer.aiter_bytes():
                raw += piece
                if len(raw) > _MAX_ANSWER_BYTES:
                    raise SeatFault("seat_refused", f"seat {self.number} answers without end")
        if answer.status != 200:
            raise SeatFault("seat_refused", f"seat {self.number} refuses: {_code(bytes(raw))}")
        return bytes(raw)

    @asynccontextmanager
    async def _bounded(self, seconds: float) -> AsyncIterator[None]:
        """Bound one exchange in time, and say of what breaks in it which seat it was."""
        seat = f"seat {self.number}"
        try:
            async with asyncio.timeout(seconds):
                yield
        except SeatFault:
            raise
        except Rejected as error:
            raise SeatFault("seat_refused", why(f"{seat} is not proven", error)) from error
        except (FormatError, ProtocolError) as error:
            raise SeatFault("seat_refused", f"{seat} gives no answer of a seat") from error
        except (TimeoutError, Unavailable) as error:
            raise SeatFault("seat_lost", f"{seat} does not answer") from error


def why(what: str, error: Rejected) -> str:
    """Say `what`, and the first step that refused."""
    first = error.failures[0]
    return f"{what}: {first.step}: {first.detail}"


def _code(raw: bytes) -> str:
    """Return the code of an error as nodes answer it."""
    with suppress(FormatError):
        value = parse_json(raw, what="refusal of a seat", reason=Reason.TRAINING_FORMAT)
        error = value.get("error") if isinstance(value, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        if isinstance(code, str) and _CODE.match(code):
            return code
    return "without a reason"
