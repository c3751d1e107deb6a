"""The receipts that a client holds: one SQLite file below the data directory (client.md §5).

What is in it: envelopes, evidence, Expectations, digests, when and from where. Never a prompt,
never an answer. One writer at a time, of any number of processes; a writer that cannot write
raises `Unavailable`, and the answer it was about is not handed over.

A receipt survives the end of the process as soon as `keep` returned; the last ones before a power
failure may be lost (WAL, `synchronous = NORMAL`).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import ConfigurationError, FormatError, Reason, Unavailable
from confide.receipts.inference import parse_inference_statement
from confide.receipts.inference_file import InferenceFile, encode_facts, parse_facts
from confide.wire.dsse import parse_envelope
from confide.wire.evidence import decode_evidence, encode_evidence_file
from confide.wire.json import Members, jcs, parse_json
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from confide.receipts.inference import VerifiedInference

__all__ = ["ReceiptDatabase", "ReceiptRow", "UnsafeKeepNone", "find_rows", "list_rows", "load_file"]

_VERSION = 1
_BUSY_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE expectations (digest BLOB PRIMARY KEY, canonical BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE proofs (
  proof BLOB PRIMARY KEY, nonce BLOB NOT NULL, evidence BLOB NOT NULL, proven_at TEXT NOT NULL,
  roots TEXT NOT NULL,
  expectation BLOB NOT NULL REFERENCES expectations
);
CREATE TABLE receipts (
  id TEXT PRIMARY KEY, taken_at TEXT NOT NULL, url TEXT NOT NULL, model TEXT NOT NULL,
  path TEXT NOT NULL, status INTEGER NOT NULL, finish TEXT NOT NULL,
  input_tokens INTEGER, output_tokens INTEGER,
  envelope BLOB NOT NULL, exchange BLOB NOT NULL, proof BLOB NOT NULL REFERENCES proofs
);
CREATE INDEX receipts_by_time ON receipts (taken_at);
"""
_SETTINGS = (
    "synchronous = NORMAL",
    "foreign_keys = ON",
    "trusted_schema = OFF",
    "wal_autocheckpoint = 0",
)
_INSERT = "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COLUMNS = "id, taken_at, url, model, path, status, finish, input_tokens, output_tokens, roots"
_ROWS = f"SELECT {_COLUMNS} FROM receipts JOIN proofs USING (proof)"  # noqa: S608 - constants
_MAX_FOUND = 2
# About 4 MB of log.
_CHECKPOINT_RECEIPTS = 512
# An extended result code keeps the primary one in its low byte.
_PRIMARY = 0xFF


class UnsafeKeepNone:
    """Keeps no receipts: answers are verified and nothing of that remains."""

    async def keep(
        self, inference: VerifiedInference, file: InferenceFile, *, url: str, at: datetime
    ) -> None:
        """Keep nothing."""

    async def close(self) -> None:
        """Nothing is open."""


class ReceiptDatabase:
    """
    The writing end, opened at the first receipt.

    Where nobody else writes, a receipt is a few pages appended to the log of the database, and is
    written at once. Whatever may wait is done in a thread of its own: the first receipt of a proof,
    another writer, moving the log into the database.

    Raises `Unavailable` when the file cannot be opened, is locked for too long, or the disk is
    full; `ConfigurationError` when others may read it or a newer version wrote it.
    """

    def __init__(self, path: Path, *, busy_seconds: float = _BUSY_SECONDS) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="confide-receipts")
        self._connection: sqlite3.Connection | None = None
        # The same file for the caller's own thread: it never waits.
        self._direct: sqlite3.Connection | None = None
        self._since_checkpoint = 0
        # Proofs written here, by nonce: evidence is encoded once, not with each receipt.
        self._proofs: dict[bytes, bytes] = {}

    async def keep(
        self, inference: VerifiedInference, file: InferenceFile, *, url: str, at: datetime
    ) -> None:
        """Write one receipt, with its proof if it is the first of it."""
        row = _row(inference, file, url, at)
        loop = asyncio.get_running_loop()
        if not self._keep_at_once(row, file):
            await loop.run_in_executor(self._worker, self._keep, row, file)
        self._since_checkpoint += 1
        if self._since_checkpoint >= _CHECKPOINT_RECEIPTS:
            self._since_checkpoint = 0
            loop.run_in_executor(self._worker, self._checkpoint)

    def _keep_at_once(self, row: tuple[object, ...], file: InferenceFile) -> bool:
        """Write where that needs no waiting, and say whether it was written."""
        proof = self._proofs.get(file.nonce)
        if proof is None:
            return False
        with _translated("written"):
            try:
                if self._direct is None:
                    self._direct = _connect(self._path, 0.0)
                self._direct.execute(_INSERT, (*row, proof))
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & _PRIMARY != sqlite3.SQLITE_BUSY:
                    raise
                return False
        return True

    def _keep(self, row: tuple[object, ...], file: InferenceFile) -> None:
        with _translated("written"):
            if self._connection is None:
                self._connection = _open(self._path, self._busy_seconds)
            with self._connection as connection:
                connection.execute("BEGIN IMMEDIATE")
                proof = self._proofs.get(file.nonce) or _write_proof(connection, file)
                connection.execute(_INSERT, (*row, proof))
        self._proofs[file.nonce] = proof

    def _checkpoint(self) -> None:
        # Of no consequence where it fails: the log is then longer, and the next writer says why.
        with suppress(sqlite3.Error):
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    async def close(self) -> None:
        """Close the connections and end the thread."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._worker, self._close)
        # It has just answered and has nothing left to do.
        self._worker.shutdown(wait=True)

    def _close(self) -> None:
        connections = (self._direct, self._connection)
        self._direct = self._connection = None
        for connection in connections:
            if connection is not None:
                with _translated("closed"):
                    connection.close()


def _row(
    inference: VerifiedInference, file: InferenceFile, url: str, at: datetime
) -> tuple[object, ...]:
    statement = inference.statement
    return (
        statement.id, format_time(at), url, statement.model.name, file.facts.path,
        file.facts.status, statement.finish, statement.input_tokens, statement.output_tokens,
        file.envelope.encode(), jcs(encode_facts(file.facts)),
    )  # fmt: skip


def _write_proof(connection: sqlite3.Connection, file: InferenceFile) -> bytes:
    digest, proof = file.expectation_digest, file.evidence.digest
    connection.execute(
        "INSERT OR IGNORE INTO expectations VALUES (?, ?)", (digest, file.expectation)
    )
    row = (
        proof, file.nonce, encode_evidence_file(file.evidence), format_time(file.proven_at),
        file.roots, digest,
    )  # fmt: skip
    connection.execute("INSERT OR IGNORE INTO proofs VALUES (?, ?, ?, ?, ?, ?)", row)
    return proof


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise Unavailable("the receipt store holds another receipt with this id") from error
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
        raise Unavailable(f"the receipt store cannot be {what}: {name}") from error
    except OSError as error:
        raise Unavailable(f"the receipt store cannot be {what}: {error.strerror}") from error


def _open(path: Path, busy_seconds: float) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Made here, so that it is private from its first byte; SQLite gives its WAL the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    _require_private(path)
    connection = _connect(path, busy_seconds)
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=busy_seconds, isolation_level=None, check_same_thread=False
    )
    for setting in _SETTINGS:
        connection.execute(f"PRAGMA {setting}")
    return connection


def _require_private(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(f"{path} may be read by others: chmod 600 it")


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        [(version,)] = connection.execute("PRAGMA user_version").fetchall()
        if version == 0:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
    _require_version(connection)


def _require_version(connection: sqlite3.Connection) -> None:
    [(version,)] = connection.execute("PRAGMA user_version").fetchall()
    if version != _VERSION:
        raise ConfigurationError(f"the receipt store is of version {version}, not {_VERSION}")


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """One receipt in a list. Nothing here is verified again."""

    id: str
    taken_at: str
    url: str
    model: str
    path: str
    status: int
    finish: str
    input_tokens: int | None
    output_tokens: int | None
    roots: str


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise ConfigurationError(f"no receipts are kept at {path}")
    _require_private(path)
    with _translated("read"), closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
        _require_version(connection)
        yield connection


def list_rows(path: Path, *, limit: int) -> tuple[ReceiptRow, ...]:
    """Return the newest receipts, newest first; none where none was ever kept."""
    if not path.is_file():
        return ()
    with _reading(path) as connection:
        query = f"{_ROWS} ORDER BY taken_at DESC, receipts.rowid DESC LIMIT ?"
        return tuple(ReceiptRow(*row) for row in connection.execute(query, (limit,)))


def find_rows(path: Path, prefix: str) -> tuple[ReceiptRow, ...]:
    """Return up to two receipts whose id begins with `prefix`: one is what was meant."""
    with _reading(path) as connection:
        query = f"{_ROWS} WHERE substr(id, 1, ?) = ? LIMIT ?"
        found = connection.execute(query, (len(prefix), prefix, _MAX_FOUND))
        return tuple(ReceiptRow(*row) for row in found)


def load_file(path: Path, receipt_id: str) -> InferenceFile:
    """
    Return the self-contained file of one receipt; verifies nothing but that it has this id.

    `ConfigurationError` where there is none, `FormatError` for what no client of ours wrote.
    """
    query = (
        "SELECT envelope, exchange, canonical, evidence, nonce, proven_at, roots FROM receipts "
        "JOIN proofs USING (proof) JOIN expectations ON expectation = digest WHERE id = ?"
    )
    with _reading(path) as connection:
        row = connection.execute(query, (receipt_id,)).fetchone()
    if row is None:
        raise ConfigurationError("no receipt with this id is kept")
    envelope, exchange, canonical, evidence, nonce, proven_at, roots = row
    reason = Reason.RECEIPT_FORMAT
    try:
        parsed = parse_envelope(parse_json(envelope, what="envelope", reason=reason))
        if parse_inference_statement(parsed.payload).id != receipt_id:
            raise FormatError(
                "stored receipt: it has another id", reason=reason, clause="client.md 5.2"
            )
        return InferenceFile(
            envelope=parsed,
            facts=parse_facts(
                Members(
                    parse_json(exchange, what="exchange", reason=reason),
                    what="exchange",
                    reason=reason,
                )
            ),
            expectation=canonical,
            evidence=decode_evidence(evidence),
            nonce=nonce,
            proven_at=parse_time(proven_at, what="proven_at", reason=reason),
            roots=roots,
        )
    except TypeError as error:
        raise FormatError("stored receipt", reason=reason, clause="client.md 5.1") from error
