"""HTTP servers on 127.0.0.1 that answer as told: honestly, late, too much, half, or not at all."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

NAMES = ("localhost", "api.trustedservices.intel.com", "kdsintf.amd.com", "pccs.example")
_FLOOD_CHUNK = bytes(64 * 1024)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the server got it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Reply:
    """
    One answer. `length` is the Content-Length that is stated instead of the true one.

    `stalls` says the head and then nothing; `cut` ends the connection after so many bytes of the
    body; `floods` sends zeros for as long as the client reads; `hangs_up` says nothing at all.
    """

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    stalls: bool = False
    cut: int | None = None
    floods: bool = False
    hangs_up: bool = False

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} X"]
        if self.floods:
            lines.append("transfer-encoding: chunked")
        else:
            lines.append(
                f"content-length: {len(self.body) if self.length is None else self.length}"
            )
        lines += [f"{name}: {value}" for name, value in self.headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass(slots=True)
class StandIn:
    """A server: `answer` is its honest behaviour, `script` what it does first for a path."""

    answer: Callable[[Asked], Reply]
    script: dict[str, list[Reply]] = field(default_factory=dict)
    always: dict[str, Reply] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0
    busy: int = 0
    most_busy: int = 0
    url: str = ""
    _talks: set[asyncio.Task[None]] = field(default_factory=set)

    def targets(self, part: str = "") -> list[str]:
        """Return the targets that were asked for and contain `part`."""
        return [each.target for each in self.asked if part in each.target]

    def _reply(self, asked: Asked) -> Reply:
        for part, replies in self.script.items():
            if part in asked.target and replies:
                return replies.pop(0)
        for part, reply in self.always.items():
            if part in asked.target:
                return reply
        return self.answer(asked)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _talk(self._talks, writer):
            while await self._exchange(reader, writer):
                pass

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        asked = await _read_request(reader)
        self.asked.append(asked)
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        try:
            # Let whatever else is under way arrive before this one is over.
            for _ in range(20):
                await asyncio.sleep(0)
            return await self._send(self._reply(asked), reader, writer)
        finally:
            self.busy -= 1

    async def _send(
        self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if reply.hangs_up:
            return False
        writer.write(reply.head())
        if reply.stalls:
            await writer.drain()
            await reader.read()
            return False
        while reply.floods:
            writer.write(b"%x\r\n%b\r\n" % (len(_FLOOD_CHUNK), _FLOOD_CHUNK))
            self.sent += len(_FLOOD_CHUNK)
            await writer.drain()
        writer.write(reply.body if reply.cut is None else reply.body[: reply.cut])
        await writer.drain()
        return reply.cut is None

    @asynccontextmanager
    async def running(self, *, tls: bool = True) -> AsyncIterator[StandIn]:
        """Serve on a free port; `url` says where."""
        context = server_context() if tls else None
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=context)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{_port(server)}"
        try:
            yield self
        finally:
            server.close()
            await _end(self._talks)

    def proxied(self) -> AbstractAsyncContextManager[TunnelProxy]:
        """Run a proxy whose every tunnel ends at this server, which runs."""
        return TunnelProxy(int(self.url.rpartition(":")[2])).running()


@asynccontextmanager
async def _talk(
    talks: set[asyncio.Task[None]], writer: asyncio.StreamWriter
) -> AsyncIterator[None]:
    """Let one connection end as it likes, a cancelled one too: the client is what is tested."""
    task = asyncio.current_task()
    assert task is not None
    talks.add(task)
    try:
        yield
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError, asyncio.CancelledError):
        pass
    finally:
        talks.discard(task)
        writer.close()


async def _end(talks: set[asyncio.Task[None]]) -> None:
    for task in list(talks):
        task.cancel()
    await asyncio.gather(*talks, return_exceptions=True)
    # Transports say goodbye in the next rounds of the loop.
    for _ in range(5):
        await asyncio.sleep(0)


def _port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _read_request(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.strip().split("\r\n")
    method, target, _ = line.split(" ")
    headers = {k.lower(): v.strip() for k, _, v in (each.partition(":") for each in fields)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, target, headers, body)


@dataclass(slots=True)
class TunnelProxy:
    """An HTTP proxy that answers CONNECT and leads every tunnel to `port` of 127.0.0.1."""

    port: int
    asked: list[str] = field(default_factory=list)
    url: str = ""
    _talks: set[asyncio.Task[None]] = field(default_factory=set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _talk(self._talks, writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target, _ = head.split("\r\n", 1)[0].split(" ")
            self.asked.append(f"{method} {target}")
            there_in, there_out = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            try:
                await asyncio.gather(_pump(reader, there_out), _pump(there_in, writer))
            finally:
                there_out.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TunnelProxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{_port(server)}"
        try:
            yield self
        finally:
            server.close()
            await _end(self._talks)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    with suppress(ConnectionError):
        sink.close()


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if is_ca:
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    else:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in NAMES]
        names.append(x509.IPAddress(ip_address("127.0.0.1")))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


@dataclass(frozen=True, slots=True)
class _TestTls:
    authority_pem: str
    chain_and_key: bytes
    spki: bytes


@cache
def _test_tls() -> _TestTls:
    """One authority and one server key for the whole run; nobody else trusts them."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = "TEST ONLY TLS authority"
    authority = _certificate(name, authority_key, name, authority_key, is_ca=True)
    leaf = _certificate("TEST ONLY server", key, name, authority_key, is_ca=False)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return _TestTls(
        authority.public_bytes(Encoding.PEM).decode("ascii"),
        leaf.public_bytes(Encoding.PEM) + private,
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )


@cache
def server_context() -> ssl.SSLContext:
    """TLS of the stand-ins."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "server.pem"
        path.write_bytes(_test_tls().chain_and_key)
        context.load_cert_chain(path)
    return context


def client_context() -> ssl.SSLContext:
    """TLS of a client that trusts the stand-ins and nobody else."""
    return ssl.create_default_context(cadata=_test_tls().authority_pem)


def server_spki() -> bytes:
    """SubjectPublicKeyInfo of the stand-ins' TLS key."""
    return _test_tls().spki


@contextmanager
def in_background(stand_in: StandIn, *, tls: bool = False) -> Iterator[StandIn]:
    """Run `stand_in` in a thread, for clients that have the event loop to themselves."""
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        async with stand_in.running(tls=tls):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    started.wait(10)
    try:
        yield stand_in
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def authority_pem() -> str:
    """The authority of the stand-ins' TLS, for SSL_CERT_FILE."""
    return _test_tls().authority_pem


class FakeClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, now: datetime) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time


class NoSleep:
    """Remembers how long it should have slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class FixedEntropy:
    """The same byte for ever, 0x80 unless told otherwise: half of every range."""

    def __init__(self, byte: int = 0x80) -> None:
        self._byte = byte

    def token(self, size: int) -> bytes:
        return bytes([self._byte]) * size
