"""The header of a store: which key opens it, and what nobody may write into it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.broker.master import (
    FileLock,
    PassphraseLock,
    ShareLock,
    lock_master,
    open_master,
    parse_header,
)
from confide.crypto.argon2 import PassphraseCost
from confide.errors import ConfigurationError, FormatError, Reason

if TYPE_CHECKING:
    from confide.broker.master import Lock

MASTER, KEY, SALT = bytes(range(32)), bytes([7] * 32), bytes([9] * 32)
LOCKS = (FileLock(), PassphraseLock(bytes(16), PassphraseCost()), ShareLock(2, 3))
locks = pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: type(lock).__name__)


def header(lock: Lock) -> bytes:
    return lock_master(MASTER, lock, key=KEY, salt=SALT).encode()


def edited(lock: Lock, /, **members: object) -> bytes:
    document: dict[str, Any] = json.loads(header(lock))
    return json.dumps(document | members).encode()


@locks
def test_the_key_of_the_lock_opens_and_no_other_does(lock: Lock) -> None:
    found = parse_header(header(lock))
    assert found.lock == lock
    assert found.encode() == header(lock)
    assert open_master(found, key=KEY) == MASTER
    with pytest.raises(ConfigurationError, match="this store"):
        open_master(found, key=bytes(32))


@pytest.mark.parametrize(
    ("lock", "cause"),
    [(LOCKS[0], "--master"), (LOCKS[1], "passphrase"), (LOCKS[2], "gather shares")],
)
def test_a_refusal_says_which_and_what_to_do(lock: Lock, cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause):
        open_master(parse_header(header(lock)), key=bytes(32))


def test_another_lock_guards_the_same_master_key() -> None:
    opened = open_master(parse_header(header(FileLock())), key=KEY)
    again = lock_master(opened, ShareLock(3, 5), key=bytes([1] * 32), salt=bytes(32))
    assert open_master(again, key=bytes([1] * 32)) == MASTER
    with pytest.raises(ConfigurationError):
        open_master(again, key=KEY)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[" * 40,
        edited(FileLock(), type="confide/broker-store/v2"),
        edited(FileLock(), lock="none"),
        edited(FileLock(), threshold=2),
        edited(FileLock(), wrapped=""),
        edited(FileLock(), wrapped="!"),
        edited(FileLock(), pad="x" * 4096),
        edited(LOCKS[1], memory_kib=64 * 1024 - 1),
        edited(LOCKS[1], memory_kib=100 * 1024 * 1024),
        edited(LOCKS[1], passes=1),
        edited(LOCKS[1], passes=2**40),
        edited(LOCKS[1], lanes=1),
        edited(LOCKS[1], lanes=10**6),
        edited(LOCKS[1], salt="00"),
        edited(LOCKS[2], threshold=1),
        edited(LOCKS[2], threshold=4),
        edited(LOCKS[2], count=17),
    ],
)
def test_a_header_that_is_none_is_refused_before_it_costs_anything(raw: bytes) -> None:
    with pytest.raises(FormatError) as refused:
        parse_header(raw)
    assert refused.value.reason is Reason.VAULT_FORMAT


@pytest.mark.parametrize(
    "raw",
    [
        edited(LOCKS[1], memory_kib=65 * 1024),
        edited(LOCKS[1], passes=4),
        edited(LOCKS[1], salt="01" * 16),
        edited(LOCKS[2], count=4),
    ],
)
def test_parameters_cannot_be_changed_under_the_key(raw: bytes) -> None:
    with pytest.raises(ConfigurationError):
        open_master(parse_header(raw), key=KEY)


@given(st.sampled_from(LOCKS), st.integers(0, 10_000))
def test_no_changed_bit_opens(lock: Lock, where: int) -> None:
    raw = bytearray(header(lock))
    at, bit = divmod(where % (8 * len(raw)), 8)
    raw[at] ^= 1 << bit
    with pytest.raises((FormatError, ConfigurationError)):
        open_master(parse_header(bytes(raw)), key=KEY)


def test_sizes_are_held_and_nothing_is_printed() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        lock_master(bytes(16), FileLock(), key=KEY, salt=SALT)
    assert "wrapped" not in repr(parse_header(header(FileLock())))
