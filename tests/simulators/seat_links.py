"""Seats that were admitted, with certificates, and a network between them that listens."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from nodes import NOW, SOFTWARE, WEIGHTS
from runs import expectation_and_roots
from training_seats import digest_of, offer_of, seat_node, tls_key

from confide.adapters.rank_tls import Beside, SeatIdentity, SeatLinks
from confide.training.rank_certificates import issue_seat_certificates, key_point
from confide.training.ranks import AdmittedSeats, Seating, admit_seats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.training.shares import Engine


@cache
def admitted(job: str = "job", *, count: int = 2, engine: Engine = "ring") -> AdmittedSeats:
    """Seats of one rank each."""

    async def admit() -> AdmittedSeats:
        expectation, roots = expectation_and_roots()
        digests = [hashlib.sha256(f"{job} {what}".encode()).digest() for what in ("id", "plan")]
        seating = Seating(
            digests[0], bytes(32), digests[1], WEIGHTS, count, 0, b"", SOFTWARE, engine
        )
        nodes = [
            await seat_node(f"{job} {n}", seating, gpu=f"{job} {n}", weights=WEIGHTS)
            for n in range(count)
        ]
        offers = [
            await offer_of(
                node, seating, expectation.digest,
                seat=n, first=n, ranks=1, key=digest_of(f"{job} {n}"),
            )
            for n, node in enumerate(nodes)
        ]  # fmt: skip
        keyset = nodes[0].keys.keyset.digest
        seating = Seating(
            digests[0], bytes(32), digests[1], WEIGHTS, count, 0, keyset, SOFTWARE, engine
        )
        return admit_seats(seating, offers, expectation=expectation, roots=roots, now=NOW)

    return asyncio.run(admit())


@cache
def identities(
    job: str = "job", *, count: int = 2, engine: Engine = "ring"
) -> tuple[SeatIdentity, ...]:
    """What the seats of `job` are given; with Ray they have addresses of this machine."""
    keys = [tls_key(f"{job} {n}") for n in range(count)]
    issued = issue_seat_certificates(
        admitted(job, count=count, engine=engine),
        [key_point(key) for key in keys],
        seed=hashlib.sha256(job.encode()).digest(),
        now=datetime.now(UTC),
        addresses=() if engine == "ring" else [IPv4Address(loopback(n)) for n in range(count)],
    )
    return tuple(
        SeatIdentity(issued.authority, certificate, key.pkcs8_pem())
        for certificate, key in zip(issued.seats, keys, strict=True)
    )


def loopback(number: int) -> str:
    """An address of this machine for each seat; Ray does not believe in 127.0.0.1."""
    return f"127.0.0.{number + 2}"


def listening() -> socket.socket:
    """A free port of this machine."""
    return socket.create_server(("127.0.0.1", 0))


@contextmanager
def two_seats(captured: bytearray | None = None) -> Iterator[tuple[SeatLinks, SeatLinks]]:
    """Two seats of one job, linked; `captured` gets what goes over the wire."""
    pins = [digest_of(f"job {n}") for n in (0, 1)]
    listeners = [listening(), listening()]
    with ExitStack() as stack:
        addresses = [listener.getsockname() for listener in listeners]
        if captured is not None:
            addresses = [stack.enter_context(tapped(each, captured)) for each in addresses]
        links = [
            stack.enter_context(
                SeatLinks(
                    identities()[n],
                    Beside(before=pins[1 - n], after=pins[1 - n], address=addresses[1 - n]),
                    listener=listeners[n],
                    patience_seconds=60,
                )
            )
            for n in (0, 1)
        ]
        yield links[0], links[1]


@contextmanager
def tapped(
    address: tuple[str, int], captured: bytearray, *, at: tuple[str, int] = ("127.0.0.1", 0)
) -> Iterator[tuple[str, int]]:
    """An address, `at`, on the way to `address`, where somebody keeps what passes."""
    server = socket.create_server(at)
    ends: list[socket.socket] = [server]

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                captured.extend(data)
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                came, _ = server.accept()
                on = socket.create_connection(address)
                ends.extend((came, on))
                for pair in ((came, on), (on, came)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server.getsockname()
    finally:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
