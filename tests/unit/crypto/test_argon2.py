"""A key from a passphrase: one answer everywhere, and a price within bounds."""

from __future__ import annotations

import pytest

from confide.crypto.argon2 import PassphraseCost, stretch

SALT = bytes(range(16))


def test_the_key_depends_on_passphrase_salt_and_every_cost() -> None:
    keys = {
        stretch(b"one", salt=SALT, cost=PassphraseCost()),
        stretch(b"two", salt=SALT, cost=PassphraseCost()),
        stretch(b"one", salt=bytes(16), cost=PassphraseCost()),
        stretch(b"one", salt=SALT, cost=PassphraseCost(memory_kib=65 * 1024)),
        stretch(b"one", salt=SALT, cost=PassphraseCost(passes=4)),
        stretch(b"one", salt=SALT, cost=PassphraseCost(lanes=5)),
    }
    assert len(keys) == 6
    # What another implementation says (argon2-cffi, the reference code of the authors).
    known = "c9b8641451f111fbcd50293db43cce8e8ddfcc1548ab4001b473093e70fd4c6f"
    assert stretch(b"x", salt=bytes(16), cost=PassphraseCost()).hex() == known


@pytest.mark.parametrize(
    "cost",
    [
        {"memory_kib": 64 * 1024 - 1},
        {"memory_kib": 1024 * 1024 + 1},
        {"passes": 2},
        {"passes": 17},
        {"lanes": 3},
        {"lanes": 17},
    ],
    ids=str,
)
def test_neither_cheap_nor_ruinous(cost: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        PassphraseCost(**cost)


def test_a_salt_has_its_size() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        stretch(b"x", salt=bytes(8), cost=PassphraseCost())
