"""The two links of one seat, through mutual TLS to the seats beside it.

docs/protocols/training-ranks.md 3.3 and 3.4. Whoever runs the seat's training processes hands them
`outer` and needs no key for them. What the network says is hostile until a peer has shown the
certificate of the one seat that is expected there.

What it does not do: hide when, and how much, is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from confide.adapters.memory_file import memory_file
from confide.crypto.x509 import parse_certificate_der
from confide.errors import FormatError, Reason, Unavailable

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Beside", "SeatIdentity", "SeatLinks"]

# Other seats load their model meanwhile (2.6).
_PATIENCE_SECONDS = 1800.0
# A stranger that says nothing holds up the seat that is waited for by as much.
_HANDSHAKE_SECONDS = 10.0
_TICK_SECONDS = 0.2
_PIECE_BYTES = 1 << 20
# A machine that went without a word is found within two minutes, also in the middle of a step.
_SILENCE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class SeatIdentity:
    """What a seat proves itself with: the job's authority, its certificate, its key. PEM."""

    authority: str
    certificate: str
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Beside:
    """
    The seats on both sides, by SHA-256 of the SPKI that they proved (4.2).

    `before` connects to us; we connect to `after`, at `address`.
    """

    before: bytes
    after: bytes
    address: tuple[str, int]


class SeatLinks:
    """
    Carries what the ranks of a seat send and receive; a context manager.

    `outer` are the links to hand to them: from the rank before the first, to the one after the
    last. Where a link ends, so does the end of `outer` that belongs to it. Ranks that were started
    earlier have theirs: then the other ends of those are `inner`, and there is no `outer`.
    """

    def __init__(
        self,
        identity: SeatIdentity,
        beside: Beside,
        *,
        listener: socket.socket,
        inner: tuple[socket.socket, socket.socket] | None = None,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        """
        Begin to accept and to connect; `listener` is bound, listens, and is closed here.

        So is `inner`. Raises `OSError` where the certificate is none for the key.
        """
        deadline = time.monotonic() + patience_seconds
        server = _context(identity, ssl.PROTOCOL_TLS_SERVER)
        client = _context(identity, ssl.PROTOCOL_TLS_CLIENT)
        self._outer: tuple[socket.socket, socket.socket] | None = None
        if inner is None:
            before, after = socket.socketpair(), socket.socketpair()
            inner, self._outer = (before[0], after[0]), (before[1], after[1])
        self._accepting = _Accepting(server, beside.before, listener, deadline)
        self._links = (
            _Link(self._accepting, inner[0], inwards=True),
            _Link(
                _Connecting(client, beside.after, beside.address, deadline),
                inner[1],
                inwards=False,
            ),
        )
        for link in self._links:
            link.start()

    @property
    def outer(self) -> tuple[socket.socket, socket.socket]:
        """The links to hand to ranks; `LookupError` where they had theirs before."""
        if self._outer is None:
            raise LookupError("these ranks were linked before")
        return self._outer

    @property
    def refused(self) -> int:
        """How many came and were not the seat that is expected."""
        return self._accepting.refused

    @property
    def failures(self) -> tuple[str, ...]:
        """What ended the links, as far as something did."""
        return tuple(link.failure for link in self._links if link.failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for link in self._links:
            link.stop()
        for link in self._links:
            link.join()
        for end in self._outer or ():
            end.close()


class _Meeting(Protocol):
    def attempt(self) -> tuple[socket.socket, ssl.SSLSocket] | None:
        """Return the neighbour, a handle on its transport first; None to be asked again."""
        ...

    def close(self) -> None:
        """Look for nobody any more."""
        ...


class _Link(threading.Thread):
    """One way: from the neighbour inwards, or outwards to it."""

    def __init__(self, meeting: _Meeting, inner: socket.socket, *, inwards: bool) -> None:
        super().__init__(daemon=True)
        self.failure: str | None = None
        self._meeting = meeting
        self._inner = inner
        self._inwards = inwards
        self._stopping = threading.Event()
        # Shutting these down wakes whoever waits for them; TLS objects have one user alone.
        self._handles = [inner.dup()]

    def run(self) -> None:
        """Meet the neighbour, then carry bytes until either side ends."""
        with ExitStack() as stack:
            stack.callback(self._meeting.close)
            for handle in (self._inner, *self._handles):
                stack.enter_context(handle)
            try:
                transport, peer = self._met()
                stack.enter_context(transport)
                stack.enter_context(peer)
                self._handles.append(transport)
                source, sink = (peer, self._inner) if self._inwards else (self._inner, peer)
                view = memoryview(bytearray(_PIECE_BYTES))
                while not self._stopping.is_set() and (count := source.recv_into(view)):
                    sink.sendall(view[:count])
            except (OSError, Unavailable) as error:
                self.failure = str(error)

    def stop(self) -> None:
        """End it, whatever it waits for."""
        self._stopping.set()
        for handle in [*self._handles]:
            with suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)

    def _met(self) -> tuple[socket.socket, ssl.SSLSocket]:
        while not self._stopping.is_set():
            found = self._meeting.attempt()
            if found is not None:
                return found
        raise Unavailable("stopped before the seats had met")


class _Accepting:
    """Waits for the seat before, and turns away whoever else comes."""

    def __init__(
        self, context: ssl.SSLContext, pin: bytes, listener: socket.socket, deadline: float
    ) -> None:
        self.refused = 0
        self._context = context
        self._pin = pin
        self._listener = listener
        self._deadline = deadline
        listener.settimeout(_TICK_SECONDS)

    def attempt(self) -> tuple[socket.socket, ssl.SSLSocket] | None:
        """Take one connection, if one comes."""
        _require_time(self._deadline)
        try:
            plain, _ = self._listener.accept()
        except TimeoutError:
            return None
        try:
            met = _secured(self._context, plain, self._pin, server_side=True)
        except (OSError, FormatError, Unavailable):
            self.refused += 1
            plain.close()
            return None
        # One neighbour, once: whoever comes later finds no port.
        self.close()
        return met

    def close(self) -> None:
        """Close the port."""
        self._listener.close()


class _Connecting:
    """Looks for the seat after, which may not listen yet."""

    def __init__(
        self, context: ssl.SSLContext, pin: bytes, address: tuple[str, int], deadline: float
    ) -> None:
        self._context = context
        self._pin = pin
        self._address = address
        self._deadline = deadline

    def attempt(self) -> tuple[socket.socket, ssl.SSLSocket] | None:
        """Connect once. Raises `Unavailable` where somebody else is there."""
        _require_time(self._deadline)
        try:
            plain = socket.create_connection(self._address, timeout=_HANDSHAKE_SECONDS)
        except OSError:
            time.sleep(_TICK_SECONDS)
            return None
        try:
            return _secured(self._context, plain, self._pin, server_side=False)
        except (OSError, FormatError) as error:
            raise Unavailable("the seat after this one did not prove itself") from error
        finally:
            plain.close()

    def close(self) -> None:
        """Nothing is open between attempts."""


def _secured(
    context: ssl.SSLContext, plain: socket.socket, pin: bytes, *, server_side: bool
) -> tuple[socket.socket, ssl.SSLSocket]:
    """Shake hands and compare the key of the peer with that of the seat expected here."""
    plain.settimeout(_HANDSHAKE_SECONDS)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, _SILENCE_SECONDS),
        (socket.TCP_KEEPINTVL, _SILENCE_SECONDS),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 4 * _SILENCE_SECONDS * 1000),
    ):
        plain.setsockopt(socket.IPPROTO_TCP, option, value)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with ExitStack() as stack:
        transport = stack.enter_context(plain.dup())
        peer = stack.enter_context(context.wrap_socket(plain, server_side=server_side))
        _require_seat(peer, pin)
        stack.pop_all()
    peer.settimeout(None)
    return transport, peer


def _require_seat(peer: ssl.SSLSocket, pin: bytes) -> None:
    shown = peer.getpeercert(binary_form=True) or b""
    what = "certificate of a seat"
    certificate = parse_certificate_der(shown, what=what, reason=Reason.CHAIN_MALFORMED)
    if not hmac.compare_digest(hashlib.sha256(certificate.public_key.spki()).digest(), pin):
        raise Unavailable("another seat than the one expected here")


def _context(identity: SeatIdentity, side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Seats are known by their keys; there are no names to compare.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=identity.authority)
    with (
        memory_file("certificate", identity.certificate.encode()) as certificate,
        memory_file("key", identity.key) as key,
    ):
        context.load_cert_chain(certificate, key)
    return context


def _require_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise Unavailable("the seat beside this one did not come")
