"""`confide broker` as a scripted session: locks, refusals, backups, and what a thief finds."""

from __future__ import annotations

import base64
import os
import pty
import re
import sqlite3
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from postgres_server import PASSWORD, PostgresServer

from confide.adapters.broker_sql import open_store
from confide.adapters.entropy import SystemEntropy
from confide.broker.vault import Vault
from confide.cli.broker_unlock import StoreOptions, open_sealed_store
from confide.errors import ConfigurationError, FormatError
from confide.node.broker_store import Edit, SealedStore

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def store(home: Path) -> Path:
    """Where the store is by default."""
    return home / ".local" / "share" / "confide" / "broker.store"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with a passphrase."""
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_text(f"{PASSPHRASE}\n")
    return path


def options(store: Path, **files: object) -> StoreOptions:
    return StoreOptions(store=str(store), **files)  # type: ignore[arg-type]


def test_a_store_is_begun_once_and_its_key_does_not_change(
    cli: Cli, tmp_path: Path, store: Path
) -> None:
    master = tmp_path / "keys" / "master"
    made = cli("broker", "init", "--master", master, "--json")
    assert made.code == 0
    assert (master.stat().st_mode & 0o777, store.stat().st_mode & 0o777) == (0o600, 0o600)
    shown = cli("broker", "key", "--master", master, "--json")
    assert shown.result == made.result
    assert set(shown.result) == {"event", "key", "fingerprint", "seal"}
    again = cli("broker", "init", "--master", tmp_path / "other")
    assert again.code == 2
    assert "a store is begun once" in again.err
    assert not (tmp_path / "other").exists()
    sealed, keys, opened = open_sealed_store(options(store, master=master))
    assert keys.key.hex() == made.result["key"]
    assert sealed.get("secret", "nothing") is None
    opened.close()


def test_the_same_key_file_locks_two_stores(cli: Cli, tmp_path: Path) -> None:
    for name in ("one", "two"):
        words = ("--store", tmp_path / name, "--master", tmp_path / "master")
        assert cli("broker", "init", *words).code == 0
    keys = {
        cli(
            *("broker", "key", "--json", "--store", tmp_path / name),
            *("--master", tmp_path / "master"),
        ).result["key"]
        for name in ("one", "two")
    }
    assert len(keys) == 2


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--passphrase", "--split", "2/3"),
        ("--master", "m", "--passphrase-file", "p"),
        ("--master", "m", "--shares-out", "d"),
        ("--split", "1/3", "--shares-out", "d"),
        ("--split", "4/3", "--shares-out", "d"),
        ("--split", "2/17", "--shares-out", "d"),
        ("--split", "two", "--shares-out", "d"),
        ("--split", "2/3"),
        ("--split", "2/3", "--json"),
        ("--passphrase",),
        ("--master", "m", "--store", "mysql://host/db"),
        ("--master", "m", "--store", "postgresql://u:planted@127.0.0.1:1/db"),
        ("--master", "m", "--store", "postgresql://u:planted/@[x@127.0.0.1:1/db"),
        ("--master", "m", "--store", "postgresql://u@127.0.0.1:1/db?password=planted"),
        ("--master", "m", "--store", "postgresql://127.0.0.1:1/db"),
        ("--master", "m", "--store", "postgresql://u@db.example/db?sslmode=disable"),
        ("--master", "m", "--store", "postgresql://u@db.example/db?sslmode=require"),
        ("--master", "m", "--store", "postgresql://u@db.example/db?sslrootcert=/nothing"),
        ("--master", "m", "--store", "postgresql://u@db.example/db?options=-c"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_begun_makes_nothing(
    cli: Cli,
    tmp_path: Path,
    store: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = cli("broker", "init", *words)
    assert refused.code == 2, refused
    assert "planted" not in refused.out + refused.err
    assert not (tmp_path / "d").exists()
    assert not store.exists() or store.stat().st_size == 0


def test_a_passphrase_file_locks_and_unlocks(cli: Cli, secret: Path, tmp_path: Path) -> None:
    assert cli("broker", "init", "--passphrase-file", secret).code == 0
    assert cli("broker", "key", "--passphrase-file", secret).code == 0
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("correct horse battery stable")
    refused = cli("broker", "key", "--passphrase-file", wrong)
    assert refused.code == 2
    assert "passphrase is not the one" in refused.err
    assert "stable" not in refused.err
    secret.chmod(0o644)
    assert "open to others" in cli("broker", "key", "--passphrase-file", secret).err
    nobody = cli("broker", "key")
    assert nobody.code == 2
    assert "no terminal" in nobody.err


def test_shares_go_into_files_and_k_of_them_open(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "shares"
    made = cli("broker", "init", "--split", "2/3", "--shares-out", out)
    assert made.code == 0
    files = sorted(out.iterdir())
    assert [path.name for path in files] == ["share-1-of-3", "share-2-of-3", "share-3-of-3"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    words = {word for path in files for word in path.read_text().split()}
    assert len(words & set(made.out.split())) == 0
    for first, second in ((0, 1), (2, 0), (1, 2)):
        chosen = ("--share", files[first], "--share", files[second])
        assert cli("broker", "key", *chosen).code == 0
    few = cli("broker", "key", "--share", files[0])
    assert few.code == 2
    assert "exactly 2 of its 3" in few.err
    assert "no terminal" in cli("broker", "key").err
    other = cli("broker", "init", "--store", tmp_path / "other", "--split", "2/3",
                "--shares-out", tmp_path / "foreign")  # fmt: skip
    assert other.code == 0
    foreign = sorted((tmp_path / "foreign").iterdir())
    refused = cli("broker", "key", "--share", foreign[0], "--share", foreign[1])
    assert refused.code == 2
    assert "not those of this store" in refused.err


def test_an_option_for_another_lock_is_refused(cli: Cli, secret: Path, tmp_path: Path) -> None:
    assert cli("broker", "init", "--passphrase-file", secret).code == 0
    refused = cli("broker", "key", "--master", tmp_path / "x")
    assert refused.code == 2
    assert "--passphrase-file, and not --master" in refused.err
    assert cli("broker", "init", "--store", tmp_path / "s", "--master", tmp_path / "m").code == 0
    assert "give --master" in cli("broker", "key", "--store", tmp_path / "s").err


def test_relocking_keeps_everything_and_the_old_lock_opens_no_more(
    cli: Cli, secret: Path, tmp_path: Path
) -> None:
    old = ("--master", tmp_path / "master")
    key = cli("broker", "init", *old, "--json").result["key"]
    changed = cli("broker", "relock", *old, "--new-passphrase-file", secret, "--json")
    assert changed.result["lock"] == "passphrase"
    assert cli("broker", "key", *old).code == 2
    new = ("--passphrase-file", secret)
    assert cli("broker", "key", *new, "--json").result["key"] == key
    out = tmp_path / "shares"
    assert cli("broker", "relock", *new, "--new-split", "2/2", "--shares-out", out).code == 0
    shares = [word for path in sorted(out.iterdir()) for word in ("--share", path)]
    assert cli("broker", "relock", *shares, "--new-master", tmp_path / "again").code == 0
    again = cli("broker", "key", "--master", tmp_path / "again", "--json")
    assert again.result["key"] == key
    assert cli("broker", "relock", "--master", tmp_path / "again").code == 2


def test_a_backup_is_restored_into_a_new_store_only(cli: Cli, tmp_path: Path) -> None:
    lock = ("--master", tmp_path / "master")
    key = cli("broker", "init", *lock, "--json").result["key"]
    file = tmp_path / "backup"
    made = cli("broker", "backup", file, *lock, "--json")
    assert made.result["bytes"] == file.stat().st_size
    assert file.stat().st_mode & 0o777 == 0o600
    assert "never overwritten" in cli("broker", "backup", file, *lock).err
    assert cli("broker", "restore", file, *lock).code == 2
    new = ("--store", tmp_path / "new")
    assert cli("broker", "restore", file, *new, *lock, "--json").result["records"] == 2
    assert cli("broker", "key", *new, *lock, "--json").result["key"] == key
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    (tmp_path / "bad").write_bytes(raw)
    third = ("--store", tmp_path / "third")
    refused = cli("broker", "restore", tmp_path / "bad", *third, *lock)
    assert refused.code == 30
    assert "vault-format" in refused.err
    assert cli("broker", "key", *third, *lock).code == 2
    assert cli("broker", "restore", tmp_path / "absent", *third, *lock).code == 20


@pytest.mark.parametrize("verb", ["key", "relock", "backup"])
def test_without_a_store_nothing_opens(cli: Cli, tmp_path: Path, verb: str, store: Path) -> None:
    words = [tmp_path / "file"] if verb == "backup" else []
    refused = cli("broker", verb, *words, *(["--new-split", "2/3"] if verb == "relock" else []))
    assert refused.code == 2
    assert "confide broker init" in refused.err
    assert not store.exists()


def test_a_store_moves_to_postgresql_with_the_password_in_the_environment(
    cli: Cli, tmp_path: Path, postgres: PostgresServer
) -> None:
    lock = ("--master", tmp_path / "master")
    key = cli("broker", "init", *lock, "--json").result["key"]
    assert cli("broker", "backup", tmp_path / "backup", *lock).code == 0
    place = ("--store", postgres.database("moved"))
    refused = cli("broker", "restore", tmp_path / "backup", *place, *lock, PGPASSWORD="wrong")
    assert refused.code == 2
    assert "does not let this user in" in refused.err
    password = {"PGPASSWORD": PASSWORD}
    assert cli("broker", "restore", tmp_path / "backup", *place, *lock, **password).code == 0
    assert cli("broker", "key", *place, *lock, "--json", **password).result["key"] == key
    assert "begun once" in cli("broker", "init", *place, *lock, **password).err
    assert (
        cli("broker", "relock", *place, *lock, "--new-master", tmp_path / "n", **password).code == 0
    )
    unreachable = cli(
        "broker", "key", "--store", "postgresql://u@127.0.0.1:1/db", *lock, **password
    )
    assert unreachable.code == 20
    assert PASSWORD not in unreachable.err


def on_a_terminal(home: Path, answers: list[str], *words: object) -> tuple[int, str]:
    """Run `confide` with a terminal of its own; answer each question as it is asked."""
    child, terminal = pty.fork()
    if child == 0:
        command = [sys.executable, "-m", "confide", *(str(word) for word in words)]
        os.execve(sys.executable, command, {"HOME": str(home), "TERM": "dumb"})  # noqa: S606
    seen, left = b"", list(answers)
    with suppress(OSError):  # the terminal is gone with the command
        while chunk := os.read(terminal, 4096):
            seen += chunk
            # A question ends with a colon and a space, and waits.
            if left and re.search(rb": \Z", seen):
                os.write(terminal, left.pop(0).encode() + b"\n")
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), seen.decode()


def test_a_passphrase_is_asked_for_without_echo(home: Path) -> None:
    begin = ("broker", "init", "--passphrase")
    code, seen = on_a_terminal(home, [PASSPHRASE, "something else 123"], *begin)
    assert code == 2
    assert "differ" in seen
    code, seen = on_a_terminal(home, [PASSPHRASE, PASSPHRASE], *begin)
    assert code == 0, seen
    assert PASSPHRASE not in seen
    code, seen = on_a_terminal(home, [PASSPHRASE], "broker", "key")
    assert code == 0, seen
    assert PASSPHRASE not in seen


def test_shares_are_shown_on_a_terminal_once_and_typed_in_again(home: Path) -> None:
    code, seen = on_a_terminal(home, [], "broker", "init", "--split", "2/3")
    assert code == 0, seen
    assert "Hand each share to another person" in seen
    # However wide the terminal was.
    shares = re.findall(r"share \d ((?:[a-z]+ ){32}[a-z]+)", " ".join(seen.split()))
    assert len(shares) == 3
    code, seen = on_a_terminal(home, [shares[2], shares[0]], "broker", "key")
    assert code == 0, seen
    assert shares[0] not in seen
    assert shares[2] not in seen


def encodings(planted: bytes) -> list[bytes]:
    return [
        planted,
        planted.hex().encode(),
        planted.hex().upper().encode(),
        # Wherever it stands among other bytes: base64 of its inside at each of three offsets.
        *(base64.b64encode(bytes(at) + planted)[8:-8] for at in range(3)),
        *(base64.urlsafe_b64encode(bytes(at) + planted)[8:-8] for at in range(3)),
    ]


def test_a_stolen_store_tells_nothing_and_opens_nothing(
    cli: Cli, tmp_path: Path, store: Path
) -> None:
    master = tmp_path / "master"
    assert cli("broker", "init", "--master", master).code == 0
    sealed, keys, opened = open_sealed_store(options(store, master=master))
    value, name = os.urandom(48), "acme-hospital/secret/planted-name-of-a-dataset"
    assert sealed.apply([Edit("secret", name, 0, value), Edit("owners", name, 0, b"x" * 40)])
    assert cli("broker", "backup", tmp_path / "backup", "--master", master).code == 0
    # While it is open: what is not yet in the file is in the write-ahead log.
    files = [*store.parent.glob("broker.store*"), tmp_path / "backup"]
    assert {path.name for path in files} >= {"broker.store", "broker.store-wal", "backup"}
    stolen = b"".join(path.read_bytes() for path in files)
    record = next(iter(opened.records("secret")))
    assert record.sealed in stolen
    assert record.row.encode() in stolen
    secrets = [value, name.encode(), name.encode()[:20], keys.sign, keys.seal, master.read_bytes()]
    for planted in secrets:
        for form in encodings(planted):
            assert form not in stolen
    for guess in (bytes(32), master.read_bytes()):
        # Not even the key-encryption key is the master key.
        with pytest.raises(FormatError):
            SealedStore(opened, Vault(guess), SystemEntropy()).entries("secret")
    opened.close()
    (tmp_path / "guess").touch(mode=0o600)
    (tmp_path / "guess").write_bytes(bytes(32))
    with pytest.raises(ConfigurationError, match="not the one that locks"):
        open_sealed_store(options(store, master=tmp_path / "guess"))
    restored = cli("broker", "restore", tmp_path / "backup", "--store", tmp_path / "thief",
                   "--master", tmp_path / "guess")  # fmt: skip
    assert restored.code == 2


def test_a_store_without_the_keys_of_a_broker_is_refused(tmp_path: Path, cli: Cli) -> None:
    assert cli("broker", "init", "--store", tmp_path / "s", "--master", tmp_path / "m").code == 0
    found = open_store(str(tmp_path / "s"))
    empty = open_store(str(tmp_path / "t"), create=True)
    empty.begin(found.header() or b"")
    found.close()
    empty.close()
    refused = cli("broker", "key", "--store", tmp_path / "t", "--master", tmp_path / "m")
    assert refused.code == 30


def test_a_store_that_somebody_changed_is_refused_with_advice(
    cli: Cli, tmp_path: Path, store: Path
) -> None:
    master = tmp_path / "master"
    assert cli("broker", "init", "--master", master).code == 0
    sealed, _, opened = open_sealed_store(options(store, master=master))
    assert sealed.apply([Edit("revocation", "acme/r", 0, b"revoked"), Edit("owners", "o", 0, b"o")])
    opened.close()
    assert cli("broker", "backup", tmp_path / "backup", "--master", master).code == 0
    other = sqlite3.connect(store)
    other.execute("DELETE FROM confide_broker_record WHERE kind = 'revocation'")
    other.commit()
    other.close()
    for words in (("key",), ("backup", tmp_path / "second")):
        refused = cli("broker", *words, "--master", master)
        assert refused.code == 30
        assert "2 records, where the broker left 3" in refused.err
        assert "confide broker restore" in " ".join(refused.err.split())
    anew = ("--store", tmp_path / "anew", "--master", master)
    assert cli("broker", "restore", tmp_path / "backup", *anew).code == 0
    assert cli("broker", "key", *anew).code == 0
