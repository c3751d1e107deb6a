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
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def _wait(server: PostgresServer) -> None:
    while server.process.poll() is None:
        try:
            server.sql("SELECT 1")
        except subprocess.CalledProcessError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError((server.folder / "server.log").read_text())
