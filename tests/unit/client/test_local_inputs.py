"""Inputs are named, measured and refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from confide.client.local_inputs import gather_inputs
from confide.errors import ConfigurationError


def test_files_go_by_their_name_and_directories_by_relative_names(tmp_path: Path) -> None:
    (tmp_path / "d" / "tables").mkdir(parents=True)
    (tmp_path / "d" / "tables" / "may.csv").write_bytes(b"12")
    (tmp_path / "d" / "empty").write_bytes(b"")
    (tmp_path / "notes.csv").write_bytes(b"123")
    found = gather_inputs([tmp_path / "notes.csv", tmp_path / "d"], max_bytes=5)
    assert [(item.name, item.size) for item in found] == [
        ("notes.csv", 3),
        ("empty", 0),
        ("tables/may.csv", 2),
    ]


def test_no_input_is_fine() -> None:
    assert gather_inputs([], max_bytes=1) == ()


def test_one_byte_above_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123456")
    with pytest.raises(ConfigurationError, match=r"6 bytes.* allows 5"):
        gather_inputs([tmp_path / "a"], max_bytes=5)


@pytest.mark.parametrize("name", ["two\nlines", "tab\t", "back\\slash", "bidi\u202e"])
def test_a_name_no_agent_is_given_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"1")
    with pytest.raises(ConfigurationError) as caught:
        gather_inputs([tmp_path / name], max_bytes=5)
    assert str(caught.value).isprintable()


def test_two_inputs_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.csv").write_bytes(b"1")
    with pytest.raises(ConfigurationError, match=r"two inputs would be /input/notes\.csv"):
        gather_inputs([tmp_path / "a", tmp_path / "b"], max_bytes=5)


def test_a_link_inside_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "link").symlink_to("/etc/hostname")
    with pytest.raises(ConfigurationError, match="is a link"):
        gather_inputs([tmp_path / "d"], max_bytes=5)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="without files"):
        gather_inputs([tmp_path], max_bytes=5)


def test_a_device_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not a plain file"):
        gather_inputs([Path("/dev/null")], max_bytes=5)
