"""Seat 0: invites other nodes to one attempt at a job, admits them together, hands them their rows.

docs/protocols/training-ranks.md 4.3, 4.7, 4.8. Every other node is proven before it is told
anything, and again with its seat before it is given anything. One party is one attempt: its keys,
certificates and links end with it.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeVar

from confide.adapters.rank_tls import Beside, SeatIdentity
from confide.errors import FormatError, Rejected
from confide.node.seat_guest import Guest, why
from confide.node.seat_links import LinkOrder, open_links, seat_address
from confide.node.seat_messages import Cluster, SeatAdmission, SeatFault, SeatInvitation
from confide.node.seat_places import SeatTimes
from confide.rays.links import RayLinks
from confide.training.rank_certificates import (
    issue_seat_certificates,
    key_digest,
    key_point,
    seat_key,
)
from confide.training.ranks import SeatOffer, admit_seats, seat_claim, seat_nonce

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
    from datetime import datetime
    from ipaddress import IPv4Address
    from types import TracebackType

    import httpx2

    from confide.expectation import Expectation
    from confide.node.identity import Identity
    from confide.node.seat_links import Links
    from confide.node.seat_places import LinkPlace
    from confide.node.train_attempt import TrainingRun
    from confide.node.train_entry import TrainPorts
    from confide.ports import Clock
    from confide.trainer.frames import Frame
    from confide.trainer.order_form import OrderForm
    from confide.training.job import TrainingJob
    from confide.training.plan import TrainingPlan
    from confide.training.ranks import AdmittedSeats, Seating
    from confide.training.shares import Engine
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle

__all__ = ["InvitedNode", "PartyPorts", "SeatParty"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class InvitedNode:
    """Another training node, and how many ranks it is asked to run. Nothing here is trusted."""

    url: str
    ranks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyPorts:
    """
    Whom a node invites, and how it reaches them.

    `link` is where its own links are; `wall` is the clock of the system, to which TLS holds
    certificates.
    """

    nodes: Sequence[InvitedNode]
    link: LinkPlace
    http: httpx2.AsyncClient
    wall: Clock
    times: SeatTimes = field(default_factory=SeatTimes)

    @property
    def ranks(self) -> int:
        """How many ranks the others can have."""
        return sum(node.ranks for node in self.nodes)


@dataclass(frozen=True, slots=True)
class _Judging:
    """By what seats are judged, and when."""

    expectation: Expectation
    roots: Roots
    now: datetime


class SeatParty:
    """
    The seats of one attempt. `start` in the thread of the attempt, the rest in the event loop.

    This node has the ranks that it may have, `nodes` in order the others up to `world`. `read`
    gives the rows; it blocks.
    """

    def __init__(
        self,
        ports: TrainPorts,
        party: PartyPorts,
        *,
        world: int,
        engine: Engine,
        read: Callable[[], TrainingJob],
    ) -> None:
        self._ports = ports
        self._party = party
        self._read = read
        self._guests: list[Guest] = []
        first = ports.ranks
        for node in party.nodes:
            if ranks := min(node.ranks, world - first):
                token = ports.entropy.token(32).hex()
                number = len(self._guests) + 1
                self._guests.append(
                    Guest(number, node.url, first, ranks, token, party.http, party.times, engine)
                )
                first += ranks
        self._loop = asyncio.get_running_loop()
        self._run: _SeatedRun | None = None
        self._links: Links | None = None
        self._taking: asyncio.Task[object] | None = None
        self._over = False

    def start(self, form: OrderForm) -> TrainingRun:
        """Start the ranks of this node; their links lead nowhere until all are seated."""
        before, after = socket.socketpair(), socket.socketpair()
        with ExitStack() as stack:
            for end in (*before, *after):
                stack.enter_context(end)
            run = self._ports.start_seat(form, range(self._ports.ranks), (before[1], after[1]))
            stack.pop_all()
        self._run = _SeatedRun(run, (before[0], after[0]), self._abandon)
        return self._run

    async def meet(self, expectation: Expectation, roots: Roots) -> None:
        """
        Prove every node that is going to be invited. Raises `SeatFault`.

        Before the boot is given its time: what endorses their hardware is there by then.
        """
        ports = self._ports
        await self._unless_over(
            _all(
                guest.prove(expectation, roots, clock=ports.clock, entropy=ports.entropy)
                for guest in self._guests
            )
        )

    async def seat(
        self,
        speaker: Identity,
        seating: Seating,
        plan: TrainingPlan,
        *,
        expectation: Expectation,
        roots: Roots,
        now: datetime,
    ) -> tuple[tuple[EvidenceBundle, ...], AdmittedSeats]:
        """
        Have everybody seated and linked: afterwards the first step can begin.

        They were met. Returns the evidence of all seats and what it proves. Raises `SeatFault`;
        whoever was seated is let go by `close`.
        """
        judging = _Judging(expectation, roots, now)
        return await self._unless_over(self._take(speaker, seating, plan, judging))

    async def close(self) -> list[str]:
        """End the links, and let everybody go; return how each seat ended, in words."""
        self._over = True
        told = await asyncio.gather(*(guest.part() for guest in self._guests))
        numbers = [guest.number for guest in self._guests]
        said = [f"seat {number}: {words}" for number, words in zip(numbers, told, strict=True)]
        if self._links is not None:
            await asyncio.to_thread(self._links.__exit__, None, None, None)
            if isinstance(self._links, RayLinks):
                said += [f"Ray: {words}" for words in self._links.failures]
        elif self._run is not None:
            self._run.unlink()
        return said

    # --- within -----------------------------------------------------------------------------------

    async def _unless_over(self, work: Coroutine[object, object, T]) -> T:
        taking = asyncio.ensure_future(work)
        self._taking = taking
        if self._over:
            taking.cancel()
        try:
            return await taking
        except asyncio.CancelledError:
            if not self._over:
                raise
            raise SeatFault("seat_lost", "the job was ended while seats were taken") from None

    def _abandon(self) -> None:
        """Seat nobody any more, in the middle of it too. From any thread."""
        self._over = True
        with suppress(RuntimeError):  # The loop has ended, and everything with it.
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._taking is not None:
            self._taking.cancel()

    async def _take(
        self, speaker: Identity, seating: Seating, plan: TrainingPlan, judging: _Judging
    ) -> tuple[tuple[EvidenceBundle, ...], AdmittedSeats]:
        ports, party = self._ports, self._party
        key = seat_key(ports.entropy.token(32))
        digest = key_digest(key_point(key))
        await _all(self._invite(guest, seating, plan, judging) for guest in self._guests)
        own = await speaker.attester.attest(
            purpose="claim",
            nonce=seat_nonce(seating.nonce, boot=seating.boot, seat=0),
            expectation=judging.expectation.digest,
            claim=seat_claim(
                seating, seat=0, first=0, ranks=ports.ranks, key=digest, engine=seating.engine
            ),
        )
        offers = (
            SeatOffer(ports.ranks, digest, seating.engine, own),
            *(guest.offer for guest in self._guests),
        )
        admitted = await self._admit(seating, offers, judging)
        points = [key_point(key), *(guest.taken.point for guest in self._guests)]
        with ExitStack() as stack:
            listener = stack.enter_context(party.link.listen())
            addresses = [
                party.link.address(listener),
                *(guest.taken.address for guest in self._guests),
            ]
            cluster = None
            if seating.engine == "ray":
                cluster = Cluster(addresses[0], ports.entropy.token(32))
            issued = issue_seat_certificates(
                admitted,
                points,
                seed=ports.entropy.token(32),
                now=party.wall.now(),
                addresses=() if cluster is None else _named(addresses),
            )
            await _all(
                guest.introduce(
                    SeatAdmission(
                        offers,
                        issued.authority,
                        issued.seats[guest.number],
                        addresses[(guest.number + 1) % len(addresses)],
                        cluster,
                    )
                )
                for guest in self._guests
            )
            job = await asyncio.to_thread(self._read)
            await _all(guest.hand_over(job) for guest in self._guests)
            if self._run is None:
                raise RuntimeError("seats before there are ranks")
            self._links = open_links(
                LinkOrder(
                    identity=SeatIdentity(issued.authority, issued.seats[0], key.pkcs8_pem()),
                    beside=Beside(offers[-1].key or b"", offers[1].key or b"", addresses[1]),
                    listener=listener,
                    seat=0,
                    seats=len(offers),
                    host=party.link.host,
                    port=party.link.port,
                    cluster=cluster,
                    patience_seconds=party.times.meet,
                    inner=self._run.inner,
                )
            )
            stack.pop_all()
        return tuple(offer.evidence for offer in offers), admitted

    async def _invite(
        self, guest: Guest, seating: Seating, plan: TrainingPlan, judging: _Judging
    ) -> None:
        await guest.invite(
            SeatInvitation(
                expectation=judging.expectation.canonical(),
                job=seating.job,
                nonce=seating.nonce,
                plan=plan,
                keyset=seating.keyset,
                boot=seating.boot,
                seat=guest.number,
                first=guest.first,
                ranks=guest.ranks,
                threads=self._ports.threads,
                engine=seating.engine,
            )
        )

    async def _admit(
        self, seating: Seating, offers: Sequence[SeatOffer], judging: _Judging
    ) -> AdmittedSeats:
        try:
            admitted = await asyncio.to_thread(
                admit_seats,
                seating,
                offers,
                expectation=judging.expectation,
                roots=judging.roots,
                now=judging.now,
            )
        except Rejected as error:
            raise SeatFault("seat_refused", why("the seats are not proven", error)) from error
        for guest, node in zip(self._guests, admitted.nodes[1:], strict=True):
            guest.require_keyset(node.keyset.digest)
        return admitted


class _SeatedRun:
    """The ranks of this node, which end together with the taking of seats."""

    def __init__(
        self,
        run: TrainingRun,
        inner: tuple[socket.socket, socket.socket],
        abandon: Callable[[], None],
    ) -> None:
        self.inner = inner
        self._run = run
        self._abandon = abandon

    def unlink(self) -> None:
        """Close the other ends of its links."""
        for end in self.inner:
            end.close()

    def begin(self, job: TrainingJob, *, key: bytes, session: bytes) -> None:
        """Hand over the job."""
        self._run.begin(job, key=key, session=session)

    def go(self) -> None:
        """Let the first step begin."""
        self._run.go()

    def pause(self) -> None:
        """Ask for a checkpoint and an end."""
        self._run.pause()

    def kill(self) -> None:
        """End it at once."""
        self._abandon()
        self._run.kill()

    def frames(self) -> Iterator[tuple[Frame, bytes]]:
        """Yield what the first rank tells."""
        return self._run.frames()

    def __enter__(self) -> Self:
        self._run.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run.__exit__(kind, error, traceback)


def _named(addresses: Sequence[tuple[str, int]]) -> list[IPv4Address]:
    """Return what certificates name. Raises `SeatFault`."""
    try:
        return [seat_address(host) for host, _ in addresses]
    except FormatError as error:
        raise SeatFault("seat_refused", error.what) from error


async def _all(work: Iterable[Coroutine[object, object, None]]) -> None:
    """Do all of `work` at once; where one breaks, nothing of the others goes on."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
