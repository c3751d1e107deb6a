"""Links between seats: two that were admitted carry anything, nobody else gets in or reads."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from seat_links import identities, listening, two_seats
from training_seats import digest_of

from confide.adapters.memory_file import memory_file
from confide.adapters.rank_tls import Beside, SeatIdentity, SeatLinks

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM = hashlib.shake_256(b"gradients").digest(3_000_000)


def exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := link.recv(size - len(data))):
        data += piece
    return bytes(data)


def test_what_one_seat_sends_the_other_receives_both_ways() -> None:
    with two_seats() as seats:
        for sender, receiver in (seats, seats[::-1]):
            sending = threading.Thread(target=sender.outer[1].sendall, args=(STREAM,))
            sending.start()
            assert exactly(receiver.outer[0], len(STREAM)) == STREAM
            sending.join()
        assert [seat.refused for seat in seats] == [0, 0]


def test_the_wire_shows_nothing_of_it() -> None:
    pattern = b"\x3f\x80\x00\x00" * 4096  # ones, as floats are laid out
    captured = bytearray()
    with two_seats(captured) as (first, second):
        first.outer[1].sendall(pattern)
        assert exactly(second.outer[0], len(pattern)) == pattern
    assert len(captured) > len(pattern)
    assert pattern[:16] not in captured


def test_who_ends_is_noticed_on_the_other_side() -> None:
    with two_seats() as (first, second):
        first.outer[1].sendall(b"hello")
        assert exactly(second.outer[0], 5) == b"hello"
        first.outer[1].close()
        assert second.outer[0].recv(1) == b""


@contextlib.contextmanager
def waiting_seat() -> Iterator[tuple[SeatLinks, tuple[str, int]]]:
    """Seat 1 of the job, which waits for seat 0."""
    listener, nowhere = listening(), listening()
    with nowhere:
        beside = Beside(digest_of("job 0"), digest_of("job 0"), nowhere.getsockname())
        address = listener.getsockname()
        with SeatLinks(identities()[1], beside, listener=listener, patience_seconds=60) as links:
            yield links, address


def come(address: tuple[str, int], identity: SeatIdentity | None, *, old: bool = False) -> bytes:
    """Connect as somebody does who has `identity` and believes anything; return what comes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if old:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if identity is not None:
        with (
            memory_file("certificate", identity.certificate.encode()) as certificate,
            memory_file("key", identity.key) as key,
        ):
            context.load_cert_chain(certificate, key)
    try:
        with (
            socket.create_connection(address, timeout=30) as plain,
            context.wrap_socket(plain) as peer,
        ):
            peer.sendall(b"gradients of mine")
            return peer.recv(1)
    except OSError:
        return b""


def test_nobody_else_is_let_in_and_the_right_seat_still_is() -> None:
    with waiting_seat() as (links, address):
        strangers: list[tuple[SeatIdentity | None, bool]] = [
            (None, False),
            (identities("another job")[0], False),
            (identities()[1], False),  # of this job, from another seat
            (identities()[0], True),
        ]
        for number, (identity, old) in enumerate(strangers, start=1):
            assert come(address, identity, old=old) == b""
            _until_refused(links, number)
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=30) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            plain.recv(100)
        _until_refused(links, 5)
        received = threading.Thread(target=come, args=(address, identities()[0]), daemon=True)
        received.start()
        assert exactly(links.outer[0], 17) == b"gradients of mine"
    received.join()
    assert links.refused == 5


def _until_refused(links: SeatLinks, count: int) -> None:
    while links.refused < count:  # counted just after the stranger was told
        threading.Event().wait(0.01)


@pytest.mark.parametrize("who", ["stranger", "another seat"])
def test_a_seat_sends_nothing_to_somebody_else(who: str) -> None:
    shown = identities("another job")[1] if who == "stranger" else identities()[0]
    pretender = listening()
    beside = Beside(digest_of("job 1"), digest_of("job 1"), pretender.getsockname())
    heard: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with (
        memory_file("certificate", shown.certificate.encode()) as certificate,
        memory_file("key", shown.key) as key,
    ):
        context.load_cert_chain(certificate, key)
    with (
        pretender,
        SeatLinks(identities()[0], beside, listener=listening(), patience_seconds=60) as links,
    ):
        links.outer[1].sendall(b"a gradient")
        plain, _ = pretender.accept()
        with contextlib.suppress(OSError), plain:
            peer = context.wrap_socket(plain, server_side=True)
            heard.append(peer.recv(100))
            peer.close()
        with contextlib.suppress(ConnectionResetError):  # what it sent was not read
            assert links.outer[1].recv(1) == b"", "the rank is told that its link is gone"
    assert heard in ([], [b""])
    assert any("did not prove itself" in each or "another seat" in each for each in links.failures)


def test_a_seat_that_does_not_come_is_not_waited_for_forever() -> None:
    listener, nowhere = listening(), listening()
    address = nowhere.getsockname()
    nowhere.close()
    beside = Beside(digest_of("job 0"), digest_of("job 0"), address)
    with SeatLinks(identities()[1], beside, listener=listener, patience_seconds=0.3) as links:
        assert links.outer[0].recv(1) == b""
        assert links.outer[1].recv(1) == b""
    assert links.failures == ("the seat beside this one did not come",) * 2


def test_an_end_while_waiting_is_an_end() -> None:
    with waiting_seat() as (links, address):
        pass
    assert links.outer[0].fileno() == -1
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address, timeout=5)


def test_keys_are_in_no_file_and_no_repr() -> None:
    identity = identities()[0]
    assert "PRIVATE" in identity.key.decode()
    assert "PRIVATE" not in repr(identity)
    with memory_file("key", b"secret") as path:
        assert path.read_bytes() == b"secret"
        assert str(path.readlink()).startswith("/memfd:")
    assert not path.exists()
    assert replace(identity, key=b"") != identity
