"""A PostgreSQL of our own for tests: in a temporary directory, on 127.0.0.1, stopped by its pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = "planted-pass:w@rd/with%signs"
_NOBODY = 65534


@dataclass(frozen=True)
class PostgresServer:
    """A running server; every database of it is new."""

    bin: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def database(self, name: str) -> str:
        """Make the database `name`; return the URL of its owner, without the password."""
        self.sql(f"CREATE DATABASE \"{name}\" LOCALE 'C.UTF-8' TEMPLATE template0")
        return self.url(name)

    @property
    def certificate(self) -> Path:
        """The certificate of the server, of its own signing, for 127.0.0.1."""
        return self.folder / "server.crt"

    def url(self, name: str) -> str:
        return f"postgresql://confide@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as the superuser."""
        words = ["-XAtq", "-h", "127.0.0.1", "-p", str(self.port), "-U", "confide"]
        done = subprocess.run(
            [self.bin / "psql", *words, "-c", statement, database],
            check=True,
            capture_output=True,
            text=True,
            env={"PGPASSWORD": PASSWORD, "PATH": os.environ["PATH"]},
        )
        return done.stdout.strip()


def find_postgres() -> Path | None:
    """Return the folder of the server's programs, None where it is not installed."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve()] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    return next((path.parent for path in candidates if (path.parent / "postgres").exists()), None)


def run_postgres(programs: Path) -> Iterator[PostgresServer]:
    """Start a server, yield it, stop it."""
    # Short, for the path of a socket, and open to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="confide-pg-", dir="/tmp"))
    # A server refuses to run as root.
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        who = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        os.chown(folder, _NOBODY, _NOBODY)
    try:
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        _write_certificate(folder)
        if who:
            os.chown(folder / "server.key", _NOBODY, _NOBODY)
        subprocess.run(
            [
                *(programs / "initdb", "-D", folder / "data", "-U", "confide", "--no-sync"),
                *("--auth=scram-sha-256", f"--pwfile={folder / 'password'}"),
                *("--encoding=UTF8", "--locale=C.UTF-8"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **who,
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(programs / "postgres", "-D", folder / "data", "-p", str(port)),
                    *("-h", "127.0.0.1", "-k", folder, "-c", "max_connections=60"),
                    *("-c", "ssl=on", "-c", f"ssl_cert_file={folder / 'server.crt'}"),
                    *("-c", f"ssl_key_file={folder / 'server.key'}"),
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
                **who,
            )
        server = PostgresServer(programs, folder, port, process)
        try:
            _wait(server)
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
    finally:
        shutil.rmtree(folder)


def _write_certificate(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a database for tests")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").touch(mode=0o600)
    (folder / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _wait(server: PostgresServer) -> None:
    while server.process.poll() is None:
        try:
            server.sql("SELECT 1")
        except subprocess.CalledProcessError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError((server.folder / "server.log").read_text())
