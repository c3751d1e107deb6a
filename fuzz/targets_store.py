"""Targets: what a thief or an operator may put in the place of a store's header, backup, shares."""

from __future__ import annotations

import io
from functools import cache

from confide.adapters.master_key import join_shares, split_key
from confide.broker.backup import BackupReader, write_backup
from confide.broker.master import (
    FileLock,
    PassphraseLock,
    ShareLock,
    lock_master,
    open_master,
    parse_header,
)
from confide.broker.record import Record, named
from confide.broker.root import NOTHING, ROOT
from confide.broker.vault import Vault
from confide.crypto.argon2 import PassphraseCost
from confide.errors import ConfigurationError
from fuzz.driver import Target
from fuzz.pieces import text

_MASTER, _KEY, _SALT = bytes(range(32)), bytes([7] * 32), bytes(32)
_SHARES = ShareLock(2, 3)
_LOCKS = (FileLock(), PassphraseLock(bytes(16), PassphraseCost()), _SHARES)


def _headers() -> tuple[bytes, ...]:
    return tuple(lock_master(_MASTER, lock, key=_KEY, salt=_SALT).encode() for lock in _LOCKS)


def _header(raw: bytes) -> None:
    found = parse_header(raw)
    try:
        opened = open_master(found, key=_KEY)
    except ConfigurationError:
        return
    # Whatever opens is one of those that were locked.
    assert opened == _MASTER
    assert found.encode() in _headers()


def _record(kind: str, name: str, value: bytes) -> Record:
    vault = Vault(_MASTER)
    row = vault.row(kind, name)
    plaintext = named(name, value)
    return Record(kind, row, 3, vault.seal(kind, row, revision=3, salt=_SALT, plaintext=plaintext))


@cache
def _records(count: int) -> tuple[Record, ...]:
    """So many records, and their root."""
    places = (("lease", "a"), ("secret", "a"), ("secret", "b"))[:count]
    found = [_record(kind, name, name.encode() * 90) for kind, name in places]
    root = NOTHING.after(Vault(_MASTER), come=[each.mark for each in found])
    found.append(_record(*ROOT, root.encode()))
    return tuple(sorted(found, key=lambda each: (each.kind, each.row)))


def _backups() -> tuple[bytes, ...]:
    header = _headers()[0]
    return tuple(b"".join(write_backup(_MASTER, header, _records(count))) for count in (3, 0))


def _backup(raw: bytes) -> None:
    reader = BackupReader(io.BytesIO(raw), len(raw))
    found = tuple(reader.records(_MASTER))
    # What is believed to its end is what was written, byte for byte.
    assert raw in _backups()
    assert found in {_records(3), _records(0)}


def _share_texts() -> tuple[bytes, ...]:
    return tuple("\n".join(pair).encode() for pair in (split_key(_KEY, _SHARES)[:2],))


def _join(raw: str) -> None:
    join_shares(raw.split("\n"), _SHARES)


STORE_TARGETS: tuple[Target, ...] = (
    Target("store-header", _header, _headers, json_values=True),
    Target("store-backup", _backup, _backups, tokens=(b"\x00", b"\x01", b"\xff" * 4)),
    Target("store-shares", text(_join), _share_texts, tokens=(b"academic", b" ", b"\n")),
)
