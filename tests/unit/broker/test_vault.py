"""Sealed records: what opens, what does not, and what a thief of the database sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore

from confide.broker.record import Change, Record
from confide.broker.vault import Vault
from confide.crypto.aead import OpenError
from confide.crypto.salted import open_salted, seal_salted
from confide.errors import ConfigurationError, FormatError, Reason
from confide.node.broker_store import Edit, SealedStore

MASTER = bytes(range(32))


class Counting:
    """Randomness that never repeats and says what it gave."""

    def __init__(self) -> None:
        self.given = 0

    def token(self, size: int) -> bytes:
        self.given += 1
        return self.given.to_bytes(size, "big")


def sealed_store(store: MemoryStore, master: bytes = MASTER) -> SealedStore:
    return SealedStore(store, Vault(master), Counting())


def begun(store: MemoryStore) -> SealedStore:
    sealed_store(store).begin(b"header", [])
    return sealed_store(store)


def test_what_was_put_comes_back_and_the_revision_counts() -> None:
    store = begun(MemoryStore())
    assert store.get("secret", "acme/secret/key") is None
    assert store.apply([Edit("secret", "acme/secret/key", 0, b"one")])
    assert store.apply([Edit("secret", "acme/secret/key", 1, b"two")])
    entry = store.get("secret", "acme/secret/key")
    assert entry is not None
    assert (entry.revision, entry.value) == (2, b"two")
    assert [found.name for found in store.entries("secret")] == ["acme/secret/key"]


def test_a_store_begins_with_its_first_records_or_not_at_all() -> None:
    memory = MemoryStore()
    store = sealed_store(memory)
    store.begin(b"header", [Edit("identity", "broker", 0, b"keys")])
    entry = store.get("identity", "broker")
    assert entry is not None
    assert (entry.revision, entry.value, memory.header()) == (1, b"keys", b"header")
    with pytest.raises(ConfigurationError):
        store.begin(b"other", [Edit("identity", "other", 0, b"keys")])
    assert store.get("identity", "other") is None


def test_a_change_made_for_another_revision_changes_nothing() -> None:
    store = begun(MemoryStore())
    assert store.apply([Edit("a", "x", 0, b"1")])
    assert not store.apply([Edit("a", "y", 0, b"new"), Edit("a", "x", 0, b"late")])
    assert store.get("a", "y") is None
    entry = store.get("a", "x")
    assert entry is not None
    assert entry.value == b"1"


def test_a_thief_of_the_database_finds_no_names_and_no_values() -> None:
    memory = MemoryStore()
    store = begun(memory)
    assert store.apply([Edit("secret", "acme/secret/planted-name", 0, b"planted-value-0123456789")])
    for record in memory.rows.values():
        assert b"planted" not in record.sealed
        assert "planted" not in record.row
    with pytest.raises(FormatError) as refused:
        sealed_store(memory, master=bytes(32)).entries("secret")
    assert refused.value.reason is Reason.VAULT_FORMAT


@pytest.mark.parametrize(
    "changed",
    [{"kind": "release"}, {"row": "00" * 32}, {"revision": 2}],
    ids=["another kind", "another row", "another revision"],
)
def test_a_record_opens_only_in_its_place(changed: dict[str, object]) -> None:
    vault = Vault(MASTER)
    row = vault.row("secret", "name")
    sealed = vault.seal("secret", row, revision=1, salt=bytes(32), plaintext=b"value")
    record = Record("secret", row, 1, sealed)
    assert vault.open(record) == b"value"
    with pytest.raises(FormatError):
        vault.open(replace(record, **changed))  # type: ignore[arg-type]


@given(st.binary(max_size=64), st.integers(0, 10_000))
def test_no_changed_bit_opens(plaintext: bytes, where: int) -> None:
    sealed = seal_salted(MASTER, info=b"place", salt=bytes(32), plaintext=plaintext)
    assert open_salted(MASTER, info=b"place", sealed=sealed) == plaintext
    at, bit = divmod(where % (8 * len(sealed)), 8)
    flipped = sealed[:at] + bytes([sealed[at] ^ 1 << bit]) + sealed[at + 1 :]
    with pytest.raises(OpenError):
        open_salted(MASTER, info=b"place", sealed=flipped)


def test_equal_values_under_two_salts_look_unrelated() -> None:
    first = seal_salted(MASTER, info=b"", salt=bytes(32), plaintext=b"same" * 8)
    second = seal_salted(MASTER, info=b"", salt=bytes([1] * 32), plaintext=b"same" * 8)
    assert first[32:] != second[32:]


def test_a_repr_shows_no_contents() -> None:
    assert "secret-value" not in repr(Change("secret", "row", 0, b"secret-value"))
    assert "secret-value" not in repr(Edit("secret", "name", 0, b"secret-value"))
