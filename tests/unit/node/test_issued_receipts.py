"""The receipts of a boot: newest kept, many digests known, none that was not issued."""

from __future__ import annotations

import hashlib

import pytest

from confide.node.receipt_store import DIGEST_TABLE_BYTES, IssuedDigests, ReceiptStore
from confide.wire.dsse import Envelope


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def envelope(number: int) -> Envelope:
    return Envelope(b"%d" % number, (("1", bytes(64)),))


def test_a_digest_is_known_once_it_was_added() -> None:
    issued = IssuedDigests()
    assert digest(1) not in issued
    issued.add(digest(1))
    assert digest(1) in issued
    assert digest(2) not in issued


def test_what_was_never_written_is_no_digest() -> None:
    issued = IssuedDigests()
    assert bytes(32) not in issued
    # One in the bucket of the zeros leaves the other slots empty.
    issued.add(bytes(4) + b"x" * 28)
    assert bytes(32) not in issued


def test_part_of_one_digest_and_of_the_next_are_none() -> None:
    # All three fall into the bucket of the zeros; the third lies across the first two.
    issued = IssuedDigests()
    first, second = bytes(4) + b"x" * 20 + bytes(4) + b"z" * 4, bytes(4) + b"y" * 28
    issued.add(first)
    issued.add(second)
    assert (first + second)[24:56] not in issued
    assert first in issued
    assert second in issued


def test_the_oldest_of_a_bucket_go_first() -> None:
    issued = IssuedDigests()
    full = [bytes(4) + number.to_bytes(28, "big") for number in range(1, 66)]
    for one in full:
        issued.add(one)
    assert full[0] not in issued
    assert all(one in issued for one in full[1:])


def test_tables_are_shared_by_whoever_has_them() -> None:
    table = memoryview(bytearray(DIGEST_TABLE_BYTES))
    IssuedDigests(table=table).add(digest(1))
    assert digest(1) in IssuedDigests(table=table)


def test_receipts_are_found_by_id_and_the_oldest_go() -> None:
    store = ReceiptStore()
    for number in range(8193):
        store.add(f"rcpt-{number}", envelope(number))
    assert store.find("rcpt-0") is None
    assert store.find("rcpt-8192") == envelope(8192)
    assert all(envelope(number).digest in store.issued for number in (0, 8192))


def test_misuse() -> None:
    with pytest.raises(ValueError, match="32"):
        IssuedDigests().add(b"short")
