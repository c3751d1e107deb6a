"""Where things are kept, and files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from confide.adapters.files import write_atomically
from confide.adapters.paths import Paths
from confide.errors import ConfigurationError, Unavailable


def test_defaults_lie_below_home() -> None:
    paths = Paths.from_environment({"HOME": "/home/a"})
    assert paths == Paths(
        config=Path("/home/a/.config/confide"),
        data=Path("/home/a/.local/share/confide"),
        cache=Path("/home/a/.cache/confide"),
        state=Path("/home/a/.local/state/confide"),
    )


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_DATA_HOME", "data"),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_STATE_HOME", "state"),
    ],
)
def test_each_variable_moves_its_place_unless_it_is_relative(variable: str, place: str) -> None:
    moved = Paths.from_environment({"HOME": "/home/a", variable: "/elsewhere"})
    assert getattr(moved, place) == Path("/elsewhere/confide")
    for ignored in ("", "relative/path", "./here"):
        kept = Paths.from_environment({"HOME": "/home/a", variable: ignored})
        assert kept == Paths.from_environment({"HOME": "/home/a"})


@pytest.mark.parametrize("environment", [{}, {"HOME": ""}, {"HOME": "relative"}])
def test_without_a_home_nothing_is_guessed(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="HOME"):
        Paths.from_environment(environment)


def test_nothing_lies_in_the_working_directory() -> None:
    paths = Paths.from_environment({"HOME": "/home/a"})
    named = (paths.simulated_seed, paths.simulated_roots, paths.nodes, paths.images, paths.runs)
    assert all(path.is_relative_to("/home/a") for path in named)


def test_the_places_are_private(tmp_path: Path) -> None:
    paths = Paths.from_environment({"HOME": str(tmp_path)})
    paths.make_private()
    paths.make_private()
    for place in (paths.config, paths.data, paths.cache, paths.state):
        assert place.stat().st_mode & 0o777 == 0o700


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    write_atomically(target, b"one")
    write_atomically(target, b"two")
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_mode_may_be_asked_for(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"", mode=0o644)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_and_nothing_new(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.mkdir()
    (target / "inside").write_bytes(b"old")
    with pytest.raises(Unavailable, match="file cannot be written"):
        write_atomically(target, b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    assert (target / "inside").read_bytes() == b"old"


def test_a_parent_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        write_atomically(tmp_path / "file" / "below", b"x")
