"""Inputs that are empty, huge, oddly named or not plain files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from deployment import published
from in_path import InPath

from confide.adapters.evidence_http import EVIDENCE_PATH
from confide.client.agent import InputFile
from confide.client.local_inputs import gather_inputs
from confide.errors import ConfigurationError, Reason, RunRefused, Unavailable

if TYPE_CHECKING:
    from deployment import Deployment

pytestmark = pytest.mark.container

_MIB = 1 << 20


def test_inputs_of_no_bytes_arrive(deployment: Deployment) -> None:
    folder = deployment.folder()
    outcome = deployment.run(
        [{"do": "copy"}], files={"empty": b"", "also/empty": b""}, folder=folder
    )
    assert outcome.failure is None
    assert published(folder) == {"also/empty": b"", "empty": b""}


def test_a_gigabyte_is_refused_before_anything_is_sent(deployment: Deployment) -> None:
    folder = deployment.folder()
    big = _sparse(folder / "big", 1 << 30)
    limits = deployment.expectation().limits
    with pytest.raises(ConfigurationError) as refusal:
        gather_inputs([big], max_bytes=limits.input_bytes)
    assert str(1 << 30) in str(refusal.value)
    assert str(limits.input_bytes) in str(refusal.value)


def test_a_client_that_sends_too_much_is_refused_by_the_node(deployment: Deployment) -> None:
    """The careless client: it sends 16 MiB where 4 are allowed. Nothing is started."""
    folder = deployment.folder()
    big = _sparse(folder / "big", 16 * _MIB)
    given = [*deployment.inputs(folder, [], {}), InputFile("big", big, 16 * _MIB)]
    seen: list[object] = []
    with pytest.raises(RunRefused) as refusal:
        deployment.run([], inputs=given, folder=folder, progress=seen)
    assert refusal.value.reason is Reason.LIMIT_EXCEEDED
    assert "4194304" in str(refusal.value)
    assert "started" not in {getattr(progress, "step", "") for progress in seen}
    deployment.nothing_left()


def test_a_large_input_streams_through_a_node_of_bounded_memory(deployment: Deployment) -> None:
    folder = deployment.folder()
    size = 64 * _MIB
    big = _sparse(folder / "big", size)
    given = [
        *deployment.inputs(folder, [{"do": "size", "file": "big"}], {}),
        InputFile("big", big, size),
    ]
    states = {state.node.role: state.node.pid for state in deployment.installation.engine.status()}
    before = _forget_peak(states["agent"])
    roomy = deployment.expectation(limits={"input_bytes": 2 * size, "memory_bytes": 3 * size})
    outcome = deployment.run([], inputs=given, folder=folder, expectation=roomy)
    assert outcome.failure is None
    assert published(folder) == {"size.txt": str(size).encode()}
    # The file itself lies in a memory file system of the run, not in the node's process.
    assert _peak(states["agent"]) - before < size // 4
    deployment.nothing_left()


@pytest.mark.parametrize(
    "name",
    [
        "two\nlines",
        "../above",
        "/etc/passwd",
        "a/../../b",
        "",
        ".",
        "back\\slash",
        "n" * 256,
        "nul\0",
    ],
)
def test_a_name_that_no_agent_is_given_is_refused(deployment: Deployment, name: str) -> None:
    folder = deployment.folder()
    given = [replace(item, name=name) for item in deployment.inputs(folder, [], {})]
    with pytest.raises(RunRefused) as refusal:
        deployment.run([], inputs=given, folder=folder)
    assert refusal.value.reason is Reason.FILE_NAME
    assert "\n" not in str(refusal.value)
    deployment.nothing_left()


def test_a_file_that_is_a_directory_of_another_is_refused(deployment: Deployment) -> None:
    with pytest.raises(RunRefused) as refusal:
        deployment.run([], files={"a": b"1", "a/b": b"2"})
    assert refusal.value.reason is Reason.FILE_NAME
    deployment.nothing_left()


def test_odd_paths_of_the_client_stay_with_the_client(deployment: Deployment) -> None:
    """A path with a newline is refused by name; below a directory with one, only names travel."""
    odd = deployment.folder() / "two\nlines"
    odd.mkdir()
    (odd / "notes.csv").write_bytes(b"note\n")
    with pytest.raises(ConfigurationError) as refusal:
        gather_inputs([_written(odd / "bad\nname")], max_bytes=_MIB)
    assert "\n" not in str(refusal.value)
    (odd / "bad\nname").unlink()
    folder = deployment.folder()
    given = [
        *deployment.inputs(folder, [{"do": "copy"}], {}),
        *gather_inputs([odd], max_bytes=_MIB),
    ]
    outcome = deployment.run([], inputs=given, folder=folder)
    assert outcome.failure is None
    assert published(folder) == {"notes.csv": b"note\n"}


def test_links_and_special_files_are_not_followed_unasked(deployment: Deployment) -> None:
    folder = deployment.folder()
    target = _written(folder / "target")
    inside = folder / "inside"
    inside.mkdir()
    (inside / "link").symlink_to("/etc/shadow")
    with pytest.raises(ConfigurationError, match="is a link"):
        gather_inputs([inside], max_bytes=_MIB)
    os.mkfifo(folder / "pipe")
    with pytest.raises(ConfigurationError, match="not a plain file"):
        gather_inputs([folder / "pipe"], max_bytes=_MIB)
    # A link that was named by the user is the file it points to, under the link's name.
    (folder / "named").symlink_to(target)
    (named,) = gather_inputs([folder / "named"], max_bytes=_MIB)
    assert (named.name, named.size) == ("named", target.stat().st_size)


def test_an_input_that_shrinks_while_it_is_read_is_not_a_run(deployment: Deployment) -> None:
    folder = deployment.folder()
    orders = deployment.inputs(folder, [{"do": "copy"}], {})
    short = InputFile("short", _written(folder / "short"), 100_000)
    with pytest.raises(Unavailable, match="became shorter"):
        deployment.run([], inputs=[*orders, short], folder=folder)
    assert not (folder / "out").exists()
    deployment.nothing_left()


def test_an_input_that_is_gone_is_not_a_run(deployment: Deployment) -> None:
    folder = deployment.folder()
    orders = deployment.inputs(folder, [{"do": "copy"}], {})
    with pytest.raises((OSError, Unavailable)):
        deployment.run([], inputs=[*orders, InputFile("gone", folder / "gone", 5)], folder=folder)
    assert not (folder / "out").exists()
    deployment.nothing_left()


def test_an_image_the_expectation_does_not_name_is_not_run(deployment: Deployment) -> None:
    fitting = deployment.expectation()
    other = replace(fitting, agent=replace(fitting.agent, image="ab" * 32))
    with pytest.raises(RunRefused) as refusal:
        deployment.run([{"do": "say", "text": "never"}], expectation=other)
    assert refusal.value.reason is Reason.AGENT_IMAGE_MISMATCH
    deployment.nothing_left()


def test_an_output_directory_that_is_not_empty_is_refused_before_sending(
    deployment: Deployment,
) -> None:
    folder = deployment.folder()
    (folder / "out").mkdir()
    _written(folder / "out" / "mine")
    with InPath(deployment.agent_url) as relay:
        with pytest.raises(ConfigurationError):
            deployment.run([{"do": "copy"}], url=relay.url, folder=folder)
        assert relay.paths == [EVIDENCE_PATH]
    assert (folder / "out" / "mine").read_bytes() == b"something"


def test_after_all_of_this_the_node_works(deployment: Deployment) -> None:
    deployment.still_works()


def _sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def _written(path: Path) -> Path:
    path.write_bytes(b"something")
    return path


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no peak")


def _forget_peak(pid: int) -> int:
    # From: proc(5), clear_refs: 5 resets the peak resident set size.
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _peak(pid)
