"""Files that are on the disk only sealed: what a failing disk leaves, what a name may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from training_place import Disk

from confide.adapters.entropy import SystemEntropy
from confide.adapters.sealed_store import SealedStore
from confide.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> SealedStore:
    return SealedStore(tmp_path / "files", SystemEntropy())


def put(store: SealedStore, name: str, *pieces: bytes) -> None:
    writer = store.begin(name)
    for piece in pieces:
        writer.write(piece)
    writer.commit()


def test_what_was_written_is_read_and_only_this_user_can(
    store: SealedStore, tmp_path: Path
) -> None:
    put(store, "a", b"one", b"", b"x" * 200_000)
    assert b"".join(store.read("a")) == b"one" + b"x" * 200_000
    (path,) = (tmp_path / "files").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"x" * 16 not in path.read_bytes()


def test_an_unfinished_file_is_there_for_nobody(store: SealedStore) -> None:
    writer = store.begin("a")
    writer.write(b"x")
    with pytest.raises(Unavailable):
        list(store.read("a"))
    writer.abort()
    put(store, "a", b"y")
    writer.abort()
    assert list(store.read("a")) == [b"y"]


def test_a_file_put_in_the_place_of_another_is_refused(store: SealedStore, tmp_path: Path) -> None:
    put(store, "a", b"x")
    put(store, "b", b"y")
    (tmp_path / "files" / "a.sealed").replace(tmp_path / "files" / "b.sealed")
    with pytest.raises(Unavailable, match="changed"):
        list(store.read("b"))


def test_a_cut_file_is_refused_at_its_end(store: SealedStore, tmp_path: Path) -> None:
    put(store, "a", b"x" * 200_000)
    path = tmp_path / "files" / "a.sealed"
    path.write_bytes(path.read_bytes()[:-70_000])
    pieces = store.read("a")
    assert len(next(pieces)) < 200_000
    with pytest.raises(Unavailable, match="changed"):
        next(pieces)


def test_a_new_start_removes_what_nobody_can_open(store: SealedStore, tmp_path: Path) -> None:
    put(store, "a", b"x")
    writer = store.begin("b")
    writer.write(b"x")
    kept = tmp_path / "files" / "notes.txt"
    kept.write_text("not of this store")
    SealedStore(tmp_path / "files", SystemEntropy())
    assert list((tmp_path / "files").iterdir()) == [kept]
    writer.abort()


@pytest.mark.parametrize("name", ["", "../a", "a/b", "A", "a.sealed", "a\n", "x" * 81])
def test_a_name_is_one_of_ours(store: SealedStore, name: str) -> None:
    for act in (store.begin, store.remove):
        with pytest.raises(ValueError, match="not a name"):
            act(name)


def test_a_disk_that_fails_is_said_to_fail(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(Unavailable):
        SealedStore(blocked, SystemEntropy())
    disk = Disk()
    store = SealedStore(tmp_path / "files", SystemEntropy(), create=disk.create)
    put(store, "a", b"x")
    (tmp_path / "files" / "b.part").mkdir()
    with pytest.raises(Unavailable):
        store.begin("b")
    (tmp_path / "files" / "c.sealed").mkdir()
    with pytest.raises(Unavailable):
        store.remove("c")
    disk.left = 70_000
    writer = store.begin("d")
    with pytest.raises(Unavailable, match="No space"):
        writer.write(b"x" * 200_000)
    assert not (tmp_path / "files" / "d.part").exists()


@pytest.mark.parametrize("start", [0, 1, 65_535, 65_536, 65_537, 131_072, 199_999, 200_000])
def test_a_file_is_read_from_anywhere(store: SealedStore, start: int) -> None:
    raw = bytes(range(250)) * 800
    put(store, "a", raw)
    assert b"".join(store.read("a", start=start)) == raw[start:]


def test_what_is_read_from_the_middle_is_authentic(store: SealedStore, tmp_path: Path) -> None:
    put(store, "a", b"x" * 200_000)
    (path,) = (tmp_path / "files").iterdir()
    raw = bytearray(path.read_bytes())
    raw[-10] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Unavailable, match="changed"):
        list(store.read("a", start=100_000))
    path.write_bytes(raw[:-70_000])
    with pytest.raises(Unavailable, match="changed"):
        list(store.read("a", start=150_000))
