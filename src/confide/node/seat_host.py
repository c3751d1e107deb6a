"""A node that takes a seat in another node's job: proven to it, proving it, then training for it.

docs/protocols/training-ranks.md 4.4, 4.7, 4.8. One seat at a time, and none while a job or a replay
of its own is at work. Rows and key are in memory alone and go with the seat. Who invites is
hostile until its evidence was admitted here as it admitted ours.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from starlette.responses import JSONResponse, Response

from confide.adapters.crash import say_crash
from confide.adapters.rank_tls import Beside, SeatIdentity
from confide.appraisal.eventlog import run_commitment
from confide.errors import ConfideError, FormatError, Overloaded, Rejected
from confide.inference.plan import refuse
from confide.node.request_body import read_body
from confide.node.seat_links import LinkOrder, open_links
from confide.node.seat_messages import (
    MAX_MESSAGE_BYTES,
    SEATS,
    SeatAdmission,
    TakenSeat,
    parse_admission,
    parse_invitation,
)
from confide.node.seat_places import SeatTimes
from confide.node.seat_rows import read_order, training_job
from confide.node.train_attempt import read_failed
from confide.node.train_data import seat_form
from confide.node.train_proof import prove_met
from confide.trainer.frames import Frame, read_json
from confide.training.boots import RUN_EVENT
from confide.training.rank_certificates import key_digest, key_point, seat_key
from confide.training.ranks import Seating, admit_seats, seat_claim, seat_nonce
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from starlette.requests import Request

    from confide.crypto.ecdsa import SigningKey
    from confide.expectation import Expectation
    from confide.node.seat_messages import SeatInvitation
    from confide.node.seat_places import LinkPlace
    from confide.node.train_attempt import TrainingRun
    from confide.node.train_entry import TrainPorts
    from confide.trainer.order_form import OrderForm
    from confide.training.job import TrainingJob

__all__ = ["SeatHost"]

_NO_KEY: Final = bytes(32)
_RETRY_SECONDS: Final = 30
_MAX_INVITATION_BYTES: Final = 1 << 20


@dataclass(slots=True)
class _Seat:
    """The one seat; whose it is, and how far it came."""

    id: str
    owner: str
    invitation: SeatInvitation
    expectation: Expectation | None = None
    key: SigningKey | None = field(default=None, repr=False)
    listener: socket.socket | None = None
    taken: TakenSeat | None = None
    admission: SeatAdmission | None = None
    run: TrainingRun | None = None
    work: asyncio.Future[str] | None = None
    over: bool = False

    def end(self) -> None:
        """Kill what trains here, and open nothing any more. From any thread."""
        self.over = True
        if self.run is not None:
            self.run.kill()

    def forget(self) -> None:
        """Close what waits for a neighbour; the key goes."""
        self.over, self.key = True, None
        if self.listener is not None:
            self.listener.close()


class SeatHost:
    """
    The seat that this node has in somebody's job, if any. Belongs to the event loop.

    `pool` is the one thread that starts processes; `busy` whether this node has work of its own.
    """

    def __init__(
        self,
        ports: TrainPorts,
        pool: Executor,
        link: LinkPlace,
        *,
        occupied: Callable[[], bool],
        times: SeatTimes | None = None,
    ) -> None:
        self._ports = ports
        self._pool = pool
        self._link = link
        self._occupied = occupied
        self._times = times or SeatTimes()
        self._seat: _Seat | None = None
        self._draining = False

    @property
    def busy(self) -> bool:
        """Whether a seat is taken."""
        return self._seat is not None

    def drain(self) -> None:
        """Take no seat any more; end the one there is: its job goes on without this node."""
        self._draining = True
        if self._seat is not None:
            self._seat.end()

    async def close(self) -> None:
        """End everything."""
        self.drain()
        if self._seat is not None:
            await self._leave(self._seat)

    def routes(self) -> list[tuple[str, str, Callable[[Request, str], Awaitable[Response]]]]:
        """Return path, method and handler of every route (4.7)."""
        one = f"{SEATS}/{{id}}"
        return [
            (SEATS, "POST", self._invited),
            (f"{one}/admission", "POST", self._admitted),
            (f"{one}/rows", "POST", self._rows),
            (one, "DELETE", self._ended),
        ]

    # --- the routes -------------------------------------------------------------------------------

    async def _invited(self, request: Request, owner: str) -> Response:
        asked = parse_invitation(await read_body(request, max_bytes=_MAX_INVITATION_BYTES))
        self._require_room()
        if asked.plan.base != self._ports.node.weights:
            refuse("model_mismatch", "This node has another base.")
        if asked.engine not in self._link.engines:
            refuse("engine_unavailable", f"This node does not offer {asked.engine}.")
        if asked.ranks > self._ports.ranks:
            refuse("too_many_ranks", f"This node has {self._ports.ranks} ranks at most.")
        seat = self._seat = _Seat(self._ports.entropy.token(32).hex(), owner, asked)
        try:
            taken = await self._offer(seat)
        except BaseException:
            self._drop(seat)
            raise
        self._after(self._times.offered, lambda: seat.admission is None, seat)
        return JSONResponse(taken.value())

    async def _admitted(self, request: Request, owner: str) -> Response:
        seat = self._find(request, owner)
        if seat.taken is None or seat.admission is not None:
            refuse("invalid_status", "This seat is not waiting for an admission.", status=409)
        try:
            told = parse_admission(await read_body(request, max_bytes=MAX_MESSAGE_BYTES))
            await self._hold(seat, told)
        except (FormatError, Rejected) as error:
            self._drop(seat)
            reason = error.failures[0].step if isinstance(error, Rejected) else error.what
            refuse("seat_refused", f"These seats are not admitted here: {reason}.", status=403)
        seat.admission = told
        self._after(self._times.rows, lambda: seat.work is None, seat)
        return JSONResponse({"admitted": len(told.offers)})

    async def _rows(self, request: Request, owner: str) -> Response:
        seat = self._find(request, owner)
        if seat.admission is None or seat.work is not None:
            refuse("invalid_status", "This seat is not waiting for rows.", status=409)
        try:
            self._require_rest()
            order, rows = await read_order(request.stream())
            job = training_job(order, rows, seat.invitation.plan)
        except BaseException:
            self._drop(seat)
            raise
        if seat.over or seat.work is not None:
            refuse("invalid_status", "This seat is over.", status=409)
        form = seat_form(self._ports, order, seat.invitation)
        loop = asyncio.get_running_loop()
        seat.work = loop.run_in_executor(self._pool, self._train, seat, form, job)
        seat.work.add_done_callback(lambda _done: self._drop(seat))
        return JSONResponse({"rows": len(job.data.rows)})

    async def _ended(self, request: Request, owner: str) -> Response:
        return JSONResponse({"told": await self._leave(self._find(request, owner))})

    # --- within -----------------------------------------------------------------------------------

    def _require_room(self) -> None:
        if self._draining:
            raise Overloaded("draining", retry_after=_RETRY_SECONDS, draining=True)
        self._require_rest()
        if self._seat is not None:
            raise Overloaded("seated", retry_after=_RETRY_SECONDS, status_hint=429)

    def _require_rest(self) -> None:
        if self._occupied():
            raise Overloaded("at work", retry_after=_RETRY_SECONDS, status_hint=429)

    async def _offer(self, seat: _Seat) -> TakenSeat:
        """Prove this node for the seat, with a key that was drawn for it."""
        ports, asked = self._ports, seat.invitation
        seat.expectation, _ = await prove_met(asked.expectation, ports.node, param="expectation")
        payload = run_commitment(RUN_EVENT, run=asked.job, digest=asked.plan.digest)
        await ports.node.guest.extend(RuntimeEvent(RUN_EVENT, payload))
        seat.key = seat_key(ports.entropy.token(32))
        point = key_point(seat.key)
        evidence = await ports.node.identity.current.attester.attest(
            purpose="claim",
            nonce=seat_nonce(asked.nonce, boot=asked.boot, seat=asked.seat),
            expectation=seat.expectation.digest,
            claim=seat_claim(
                self._seating(seat),
                seat=asked.seat,
                first=asked.first,
                ranks=asked.ranks,
                key=key_digest(point),
                engine=asked.engine,
            ),
        )
        seat.listener = self._link.listen()
        seat.taken = TakenSeat(seat.id, point, self._link.address(seat.listener), evidence)
        return seat.taken

    def _seating(self, seat: _Seat) -> Seating:
        asked, node = seat.invitation, self._ports.node
        return Seating(
            job=asked.job,
            nonce=asked.nonce,
            plan=asked.plan.digest,
            base=node.weights,
            world=asked.plan.world,
            boot=asked.boot,
            keyset=asked.keyset,
            software=node.identity.current.keys.keyset.software,
            engine=asked.engine,
        )

    async def _hold(self, seat: _Seat, told: SeatAdmission) -> None:
        """Hold every seat, seat 0 too, to the steps by which seat 0 admitted them (4.4)."""
        taken, expectation, asked = seat.taken, seat.expectation, seat.invitation
        if taken is None or expectation is None:
            raise RuntimeError("an admission before an offer")
        if (told.cluster is None) != (asked.engine == "ring"):
            refuse("seat_refused", "Another engine than this seat was taken for.", status=403)
        admitted = await asyncio.to_thread(
            admit_seats,
            self._seating(seat),
            told.offers,
            expectation=expectation,
            roots=self._ports.node.roots,
            now=self._ports.clock.now(),
        )
        mine = admitted.seats[asked.seat] if asked.seat < len(admitted.seats) else None
        if (
            mine is None
            or (mine.first, mine.ranks) != (asked.first, asked.ranks)
            or not hmac.compare_digest(mine.key or b"", key_digest(taken.point))
        ):
            refuse("seat_refused", "This node's own seat is not among them.", status=403)

    def _train(self, seat: _Seat, form: OrderForm, job: TrainingJob) -> str:
        """Train in the thread that processes belong to; return what to say at the end. Blocks."""
        asked, told, key = seat.invitation, seat.admission, seat.key
        if seat.over or told is None or key is None or seat.listener is None:
            return "ended before it began"
        pins = [offer.key or b"" for offer in told.offers]
        beside = Beside(
            before=pins[asked.seat - 1],
            after=pins[(asked.seat + 1) % len(pins)],
            address=told.after,
        )
        links = LinkOrder(
            identity=SeatIdentity(told.authority, told.certificate, key.pkcs8_pem()),
            beside=beside,
            listener=seat.listener,
            seat=asked.seat,
            seats=len(told.offers),
            host=self._link.host,
            port=self._link.port,
            cluster=told.cluster,
            patience_seconds=self._times.meet,
        )
        try:
            with (
                open_links(links) as linked,
                self._ports.start_seat(
                    form,
                    range(asked.first, asked.first + asked.ranks),
                    linked.outer,
                ) as run,
            ):
                seat.run = run
                if seat.over:
                    return "ended before it began"
                run.begin(job, key=_NO_KEY, session=_NO_KEY)
                return _last_word(run)
        except OSError:
            return "its links could not be made"
        except ConfideError:
            return "its ranks ended"
        except Exception as error:  # noqa: BLE001 - somebody's job, whatever broke
            say_crash(error)
            return "something broke"

    async def _leave(self, seat: _Seat) -> str:
        """Let the ranks leave, or end them; return how they ended."""
        told = "never began"
        if seat.work is not None:
            await asyncio.wait([seat.work], timeout=self._times.leave)
            await asyncio.to_thread(seat.end)
            told = await seat.work
        self._drop(seat)
        return told

    def _after(self, seconds: float, waits: Callable[[], bool], seat: _Seat) -> None:
        """Take the seat back after `seconds`, if it still waits for what comes next (4.8)."""

        def look() -> None:
            if waits():
                self._drop(seat)

        asyncio.get_running_loop().call_later(seconds, look)

    def _drop(self, seat: _Seat) -> None:
        seat.forget()
        if self._seat is seat and (seat.work is None or seat.work.done()):
            self._seat = None

    def _find(self, request: Request, owner: str) -> _Seat:
        seat = self._seat
        if seat is None or (seat.id, seat.owner) != (request.path_params["id"], owner):
            refuse("not_found", "No such seat.", status=404)
        return seat


def _last_word(run: TrainingRun) -> str:
    for kind, payload in run.frames():
        if kind is Frame.FAILED:
            return read_failed(read_json(payload)).message
    return "left with the others"
