"""A port whose TLS ends in this process, with a key that is drawn at boot and touches no disk.

Clauses: docs/protocols/faces.md §5. The certificate is signed by itself: no name is proven, and a
client pins the key that evidence names. The server reads key and certificate from anonymous memory
files of this process, which nobody else can open.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from granian.server.embed import Server

from confide.adapters.memory_file import memory_file
from confide.crypto.ecdsa import Curve, derive_signing_key
from confide.crypto.issuing import CertificateTemplate, encode_pem, issue_certificate
from confide.node.faces import TLS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["TlsPort", "make_tls_port"]

# The key lives as long as the process; evidence, not this date, says whether it is good.
_LIFE = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class TlsPort:
    """A port, its key and certificate (PEM). `fingerprint` is SHA-256 of the key's SPKI."""

    port: int
    fingerprint: bytes
    _certificate: bytes
    _key: bytes = field(repr=False)

    @contextmanager
    def server(self, app: ASGIApp, host: str, settings: dict[str, Any]) -> Iterator[Server]:
        """
        Yield the server of this port, to be run inside the context.

        What comes through it is marked in its scope with `TLS_KEY`.
        """
        with (
            memory_file("certificate", self._certificate) as certificate,
            memory_file("key", self._key) as key,
        ):
            yield _MemoryServer(
                _Marked(app, self.fingerprint),
                address=host,
                port=self.port,
                ssl_cert=certificate,
                ssl_key=key,
                **settings,
            )


def make_tls_port(port: int, *, seed: bytes, now: datetime) -> TlsPort:
    """Return a port with the key of `seed` (32 fresh random bytes)."""
    key = derive_signing_key(Curve.P256, seed, "tls")
    template = CertificateTemplate(
        common_name="confide.invalid",
        organization="",
        # A client whose clock is a little behind must not find it not yet valid.
        not_before=now - timedelta(hours=1),
        not_after=now + _LIFE,
    )
    certificate = issue_certificate(template, key.public, issuer=None, issuer_key=key)
    fingerprint = hashlib.sha256(key.public.spki()).digest()
    return TlsPort(port, fingerprint, encode_pem(certificate).encode("ascii"), key.pkcs8_pem())


class _Marked:
    """Tells the application that a request came through this port."""

    def __init__(self, app: ASGIApp, fingerprint: bytes) -> None:
        self._app = app
        self._fingerprint = fingerprint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, TLS_KEY: self._fingerprint}, receive, send)


class _MemoryServer(Server):
    """A server that takes the paths as they are: that of a memory file cannot be resolved."""

    def build_ssl_context(self, cert: Any, key: Any, password: Any, *rest: Any) -> None:
        """Name the files; the first of `rest` is the least version of TLS (1.3)."""
        protocol = str(rest[0])
        context: Any = (True, str(cert), str(key), password, protocol, None, [], False)
        self.ssl_ctx = context
