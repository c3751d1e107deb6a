"""Outputs on the client's disk: hostile names stay out, and nothing is left behind."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from confide.client.staging import StagedOutputs
from confide.errors import ConfigurationError, FormatError, RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path


def everything(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_verified_outputs_appear_whole_and_only_then(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with StagedOutputs(out) as staged:
        staged.begin("tables/may.csv", 5, plain=True)
        staged.write(b"ab")
        staged.write(b"cde")
        staged.begin("empty", 0, plain=True)
        assert not out.exists()
        assert staged.digests == (hashlib.sha256(b"abcde").digest(), hashlib.sha256().digest())
        assert staged.names == ("tables/may.csv", "empty")
        staged.publish()
    assert everything(tmp_path / "deep") == ["out", "out/empty", "out/tables", "out/tables/may.csv"]
    assert (out / "tables/may.csv").read_bytes() == b"abcde"


def test_what_was_not_verified_is_named_so(tmp_path: Path) -> None:
    with StagedOutputs(tmp_path / "out") as staged:
        staged.begin("a", 1, plain=True)
        staged.write(b"x")
        staged.keep_unverified()
    assert everything(tmp_path) == ["out.unverified", "out.unverified/a"]


def test_what_was_not_verified_before_is_not_overwritten(tmp_path: Path) -> None:
    for number in range(3):
        with StagedOutputs(tmp_path / "out") as staged:
            staged.begin(f"run-{number}", 0, plain=True)
            staged.keep_unverified()
    kept = ["out.unverified", "out.unverified-2", "out.unverified-3"]
    assert everything(tmp_path) == sorted(
        name for at, base in enumerate(kept) for name in (base, f"{base}/run-{at}")
    )


def test_nothing_unverified_is_kept_where_nothing_came(tmp_path: Path) -> None:
    with StagedOutputs(tmp_path / "out") as staged:
        staged.keep_unverified()
    assert everything(tmp_path) == []


def test_an_error_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    def break_off() -> None:
        with StagedOutputs(tmp_path / "out") as staged:
            staged.begin("a", 10, plain=True)
            staged.write(b"secret")
            raise RuntimeError("the connection broke")

    with pytest.raises(RuntimeError, match="broke"):
        break_off()
    assert everything(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a/..",
        ".",
        "./a",
        "a//b",
        "a/",
        "a\nb",
        "a\x00b",
        "a\\b",
        "\x1b[2J",
        "a\u202eb",
        "x" * 256,
        "y/" * 600 + "z",
        "\udcff",
    ],
)
def test_a_hostile_name_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    with StagedOutputs(inside / "out") as staged, pytest.raises(FormatError):
        staged.begin(name, 1, plain=True)
    assert everything(tmp_path) == ["inside"]


def test_a_sealed_file_is_kept_but_is_no_output_at_hand(tmp_path: Path) -> None:
    with StagedOutputs(tmp_path / "out") as staged:
        staged.begin("0.0.sealed", 1, plain=False)
        staged.write(b"x")
        staged.begin("a", 0, plain=True)
        assert staged.digests == (hashlib.sha256().digest(),)
        assert staged.names == ("a",)
        assert staged.sealed_names == ("0.0.sealed",)
        staged.publish()
    # Nobody here can check a sealed file: it never stands among verified outputs.
    assert everything(tmp_path) == ["out", "out.sealed", "out.sealed/0.0.sealed", "out/a"]


def test_a_name_cannot_come_twice(tmp_path: Path) -> None:
    with StagedOutputs(tmp_path / "out") as staged:
        staged.begin("a", 0, plain=True)
        with pytest.raises(RemoteProtocolError):
            staged.begin("a", 0, plain=True)


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a")])
def test_a_file_and_a_directory_cannot_share_a_name(
    tmp_path: Path, first: str, second: str
) -> None:
    with StagedOutputs(tmp_path / "out") as staged:
        staged.begin(first, 0, plain=True)
        with pytest.raises(RemoteProtocolError):
            staged.begin(second, 0, plain=True)
    assert everything(tmp_path) == []


def test_bytes_belong_to_a_file_and_fit(tmp_path: Path) -> None:
    with StagedOutputs(tmp_path / "out") as staged:
        with pytest.raises(RemoteProtocolError):
            staged.write(b"x")
        staged.begin("a", 1, plain=True)
        with pytest.raises(RemoteProtocolError):
            staged.write(b"xy")
        with pytest.raises(RemoteProtocolError):
            staged.begin("b", 1, plain=True)
        with pytest.raises(RemoteProtocolError):
            _ = staged.digests


def test_an_existing_directory_with_files_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_bytes(b"precious")
    with pytest.raises(ConfigurationError):
        StagedOutputs(out)
    assert everything(tmp_path) == ["out", "out/mine"]


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    with pytest.raises(ConfigurationError):
        StagedOutputs(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"precious"


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with StagedOutputs(tmp_path / "out") as staged:
        staged.begin("a", 0, plain=True)
        staged.publish()
    assert everything(tmp_path) == ["out", "out/a"]


def test_a_directory_that_filled_up_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with StagedOutputs(out) as staged:
        staged.begin("a", 0, plain=True)
        out.mkdir()
        (out / "mine").write_bytes(b"precious")
        with pytest.raises(Unavailable, match="they are in"):
            staged.publish()
    (kept,) = tmp_path.glob(".receiving-*/plain/a")
    assert kept.is_file(), "verified outputs are not lost when they cannot be moved"
    assert (out / "mine").read_bytes() == b"precious"


def test_others_cannot_read_what_is_being_received(tmp_path: Path) -> None:
    with StagedOutputs(tmp_path / "out"):
        (stage,) = tmp_path.iterdir()
        assert stage.stat().st_mode & 0o077 == 0


def test_no_room_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((Unavailable, ConfigurationError)):
        StagedOutputs(tmp_path / "file" / "out")
