"""A backup: every record that is not exactly as it was written is refused."""

from __future__ import annotations

import hashlib
import hmac
import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.broker.backup import BackupReader, write_backup
from confide.broker.record import Record, named
from confide.broker.root import NOTHING, ROOT
from confide.broker.vault import Vault
from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

MASTER, OTHER = bytes(range(32)), bytes([1] * 32)
HEADER = b'{"a":"header"}'


def record(
    kind: str, name: str, revision: int = 1, master: bytes = MASTER, value: bytes = b"value"
) -> Record:
    vault = Vault(master)
    row = vault.row(kind, name)
    plaintext = named(name, value)
    sealed = vault.seal(kind, row, revision=revision, salt=bytes(32), plaintext=plaintext)
    return Record(kind, row, revision, sealed)


def ordered(*records: Record) -> list[Record]:
    return sorted(records, key=lambda each: (each.kind, each.row))


def rooted(*records: Record) -> list[Record]:
    """Records with their root among them."""
    root = NOTHING.after(Vault(MASTER), come=[each.mark for each in records])
    return ordered(*records, record(*ROOT, value=root.encode()))


RECORDS = rooted(*(record("secret", f"name {n}", n + 1) for n in range(4)), record("lease", "x"))


def written(records: Sequence[Record] = tuple(RECORDS), master: bytes = MASTER) -> bytes:
    return b"".join(write_backup(master, HEADER, records))


def read(raw: bytes, master: bytes = MASTER) -> list[Record]:
    reader = BackupReader(io.BytesIO(raw), len(raw))
    assert reader.header == HEADER
    return list(reader.records(master))


def forged(records: Sequence[Record]) -> bytes:
    """What somebody with the master key, and without our writer, could put together."""
    pieces = [b"confide/broker-backup/v1\n", len(HEADER).to_bytes(4, "big"), HEADER]
    for each in records:
        pieces += [b"\1", bytes([len(each.kind)]), each.kind.encode(), bytes.fromhex(each.row)]
        pieces += [each.revision.to_bytes(8, "big"), len(each.sealed).to_bytes(4, "big")]
        pieces += [each.sealed]
    raw = b"".join([*pieces, b"\0", len(records).to_bytes(8, "big")])
    return raw + _mac(raw)


def bare() -> bytes:
    """A backup of nothing at all."""
    return forged([])


def _mac(raw: bytes) -> bytes:
    # The MAC of clause 7.4, written a second time.
    secret = hmac.new(b"", MASTER, hashlib.sha256).digest()
    key = hmac.new(secret, b"confide/broker-backup/v1\x01", hashlib.sha256).digest()
    return hmac.new(key, raw, hashlib.sha256).digest()


def test_what_was_written_is_read() -> None:
    assert read(written()) == RECORDS
    assert read(written(rooted())) == rooted()
    assert forged(RECORDS) == written()


@pytest.mark.parametrize(
    "records",
    [
        [RECORDS[0], RECORDS[0]],
        [RECORDS[1], RECORDS[0]],
        [record("secret", "x", master=OTHER)],
        [Record("secret", RECORDS[1].row, 9, RECORDS[1].sealed)],
        [Record("lease", RECORDS[1].row, RECORDS[1].revision, RECORDS[1].sealed)],
        [Record("secret", RECORDS[1].row, 0, RECORDS[1].sealed)],
        [Record("Secret", RECORDS[1].row, 1, RECORDS[1].sealed)],
        [Record("", RECORDS[1].row, 1, RECORDS[1].sealed)],
    ],
    ids=["twice", "reordered", "foreign", "revision", "kind", "no revision", "name", "nameless"],
)
def test_a_record_that_does_not_belong_is_refused_even_under_the_right_mac(
    records: list[Record],
) -> None:
    with pytest.raises(FormatError) as refused:
        read(forged(records))
    assert refused.value.reason is Reason.VAULT_FORMAT
    # And what could not be restored is not written in the first place.
    with pytest.raises(FormatError):
        written(records)


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([], "no root"),
        ([each for each in RECORDS if each.kind != ROOT[0]], "no root"),
        (RECORDS[1:], "4 records, where the broker left 5"),
        (ordered(*RECORDS, record("secret", "more")), "6 records, where the broker left 5"),
        (ordered(*RECORDS[:-1], record("secret", "more")), "not the one that the broker wrote"),
    ],
    ids=["nothing", "no root", "one less", "one more", "another"],
)
def test_records_that_are_not_those_of_the_root_are_refused(
    records: list[Record], told: str
) -> None:
    with pytest.raises(FormatError, match=told) as refused:
        read(forged(records))
    assert refused.value.reason is Reason.VAULT_FORMAT
    with pytest.raises(FormatError, match=told):
        written(records)


def test_a_missing_record_or_one_of_another_backup_is_refused() -> None:
    whole = written()
    less = written(rooted(*RECORDS[2:]))
    with pytest.raises(FormatError, match="changed since"):
        read(less[:-32] + whole[-32:])
    # One record cut out, count and all: only the MAC knows.
    newer = rooted(RECORDS[0], *RECORDS[2:-1], record("other", "name 3", 9))
    with pytest.raises(FormatError, match="changed since"):
        read(written(newer)[:-32] + whole[-32:])


def test_another_master_key_reads_nothing() -> None:
    with pytest.raises(FormatError, match="does not open"):
        read(written(), OTHER)
    with pytest.raises(FormatError, match="changed since"):
        read(bare(), OTHER)


def test_another_header_is_refused() -> None:
    raw = written().replace(b"header", b"HEADER")
    reader = BackupReader(io.BytesIO(raw), len(raw))
    with pytest.raises(FormatError, match="changed since"):
        list(reader.records(MASTER))


def test_bytes_after_the_end_and_files_that_shrink_are_refused() -> None:
    raw = written() + b"\0"
    with pytest.raises(FormatError, match="after the end"):
        read(raw)
    with pytest.raises(FormatError, match="shorter"):
        list(BackupReader(io.BytesIO(raw[:-100]), len(raw)).records(MASTER))


def test_every_cut_is_refused() -> None:
    raw = written(rooted(RECORDS[0]))
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            read(raw[:length])


@given(st.integers(0, 100_000))
def test_no_changed_bit_is_believed(where: int) -> None:
    raw = bytearray(written())
    at, bit = divmod(where % (8 * len(raw)), 8)
    raw[at] ^= 1 << bit
    with pytest.raises(FormatError):
        list(BackupReader(io.BytesIO(bytes(raw)), len(raw)).records(MASTER))


def test_a_length_costs_no_memory() -> None:
    asked: list[int] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size or 0)
            return super().read(size)

    raw = bare()[: -32 - 9] + b"\1\1a" + bytes(32) + (1).to_bytes(8, "big") + b"\xff" * 4
    with pytest.raises(FormatError, match="too early"):
        list(BackupReader(Watched(raw), len(raw)).records(MASTER))
    assert max(asked) < 100
