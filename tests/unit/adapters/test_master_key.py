"""The key that locks a store: files that others read, shares that do not fit, are refused."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest
from shamir_mnemonic import Share, generate_mnemonics  # type: ignore[import-untyped]

from confide.adapters.master_key import (
    join_shares,
    make_secret_file,
    passphrase_key,
    read_key_file,
    read_secret_text,
    split_key,
)
from confide.broker.master import PassphraseLock, ShareLock
from confide.crypto.argon2 import PassphraseCost
from confide.errors import ConfigurationError, Unavailable

KEY = bytes(range(32))
LOCK = ShareLock(3, 5)
PASSPHRASE = PassphraseLock(bytes(16), PassphraseCost())


@pytest.fixture(scope="module")
def shares() -> tuple[str, ...]:
    return split_key(KEY, LOCK)


def test_a_key_file_is_made_once_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "master"
    make_secret_file(path, KEY)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(path) == KEY
    with pytest.raises(ConfigurationError, match="never overwritten"):
        make_secret_file(path, KEY)
    with pytest.raises(Unavailable, match="cannot be written"):
        make_secret_file(path / "below a file", KEY)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602, 0o644])
def test_a_file_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master"
    path.write_bytes(KEY)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="open to others"):
        read_key_file(path)
    with pytest.raises(ConfigurationError, match="open to others"):
        read_secret_text(path, "passphrase file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master"
    make_secret_file(path, KEY)
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigurationError, match="another user"):
        read_key_file(path)


@pytest.mark.parametrize("raw", [b"", KEY[:-1], KEY + b"\n", bytes(10_000)], ids=len)
def test_a_key_has_exactly_its_size(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "master"
    make_secret_file(path, raw)
    with pytest.raises(ConfigurationError, match="exactly 32 bytes"):
        read_key_file(path)


def test_what_is_no_file_is_refused_and_does_not_wait(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="neither a file"):
        read_key_file(Path("/dev/zero"))
    with pytest.raises(ConfigurationError, match="Is a directory"):
        read_key_file(tmp_path)
    with pytest.raises(ConfigurationError, match="No such file"):
        read_key_file(tmp_path / "absent")
    with pytest.raises(ConfigurationError, match="no such name"):
        read_key_file(tmp_path / "a\0b")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigurationError, match="exactly 32 bytes"):
        read_key_file(tmp_path / "pipe")


def test_text_loses_its_line_end_and_nothing_else(tmp_path: Path) -> None:
    make_secret_file(tmp_path / "one", b" two words \r\n")
    assert read_secret_text(tmp_path / "one", "passphrase file") == " two words "
    make_secret_file(tmp_path / "binary", b"\xff")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_secret_text(tmp_path / "binary", "passphrase file")


def test_a_passphrase_is_the_same_on_every_keyboard() -> None:
    composed, apart = "caf\u00e9 caf\u00e9 caf\u00e9", "cafe\u0301 cafe\u0301 cafe\u0301"
    assert passphrase_key(composed, PASSPHRASE) == passphrase_key(apart, PASSPHRASE)
    assert passphrase_key(composed + "!", PASSPHRASE) != passphrase_key(composed, PASSPHRASE)
    with pytest.raises(ConfigurationError, match="at least 12"):
        passphrase_key("too short", PASSPHRASE)
    with pytest.raises(ConfigurationError, match="not Unicode"):
        passphrase_key("half a pair \ud800", PASSPHRASE)


def test_every_k_of_the_shares_give_the_key_in_any_order(shares: tuple[str, ...]) -> None:
    assert len(shares) == 5
    assert {len(share.split()) for share in shares} == {33}
    for chosen in itertools.permutations(shares, 3):
        assert join_shares(chosen, LOCK) == KEY
    upper = [f"  {share.upper()}\n" for share in shares[:3]]
    assert join_shares(upper, LOCK) == KEY


def test_too_few_too_many_or_the_same_again_are_refused(shares: tuple[str, ...]) -> None:
    for count in (0, 1, 2, 4, 5):
        with pytest.raises(ConfigurationError, match="exactly 3 of its 5"):
            join_shares(shares[:count], LOCK)
    with pytest.raises(ConfigurationError, match="share 3 was given before"):
        join_shares([shares[0], shares[1], shares[0]], LOCK)


def test_a_misspelt_share_is_named_and_not_repeated(shares: tuple[str, ...]) -> None:
    words = shares[1].split()
    for wrong in (
        " ".join([*words[:-1], "notaword"]),
        " ".join(words[:-1]),
        " ".join([*words[:9], "academic" if words[9] != "academic" else "acid", *words[10:]]),
        "",
    ):
        with pytest.raises(ConfigurationError) as refused:
            join_shares([shares[0], wrong, shares[2]], LOCK)
        told = "share 2 is no share: a word is missing or misspelt; copy it again"
        assert str(refused.value) == told
        assert refused.value.__suppress_context__


def test_a_mixed_set_is_refused(shares: tuple[str, ...]) -> None:
    other = split_key(KEY, LOCK)
    with pytest.raises(ConfigurationError, match="share 3 is of another set"):
        join_shares([shares[0], shares[1], other[2]], LOCK)


def test_an_altered_share_with_a_right_checksum_is_refused(shares: tuple[str, ...]) -> None:
    share = Share.from_mnemonic(shares[0])
    altered = replace(share, value=bytes([share.value[0] ^ 1]) + share.value[1:])
    with pytest.raises(ConfigurationError, match="do not fit each other"):
        join_shares([altered.mnemonic(), *shares[1:3]], LOCK)


@pytest.mark.parametrize(
    "made",
    [
        {"groups": [(2, 5)]},
        {"groups": [(3, 5)], "iteration_exponent": 15},
        {"groups": [(3, 5)], "extendable": False},
        {"groups": [(3, 5)], "master_secret": KEY[:16]},
        {"group_threshold": 2, "groups": [(3, 5), (3, 5)]},
    ],
    ids=["threshold", "costly", "older form", "shorter key", "groups"],
)
def test_shares_of_another_form_are_refused(
    made: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Making a costly share costs as much as opening it; its number alone is what is looked at.
    monkeypatch.setattr("shamir_mnemonic.cipher.BASE_ITERATION_COUNT", 4)
    words = {"group_threshold": 1, "master_secret": KEY, "iteration_exponent": 0} | made
    foreign = generate_mnemonics(**words)[0]
    with pytest.raises(ConfigurationError, match="share 1 is not of this store"):
        join_shares(foreign[:3], LOCK)


def test_a_share_beyond_the_count_is_refused(shares: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="is not of this store"):
        join_shares(shares[2:], ShareLock(3, 4))


def test_a_wrong_text_with_the_right_form_is_another_key() -> None:
    other = split_key(bytes(32), LOCK)
    assert join_shares(other[:3], LOCK) != KEY
