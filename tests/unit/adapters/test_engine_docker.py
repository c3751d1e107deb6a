"""Which Docker is good enough, and what is said where one is not: a program plays its client."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from confide.adapters.docker_holder import enter_holder, holder_image
from confide.adapters.engine import probe_engine
from confide.errors import ConfigurationError

_ABLE: dict[str, Any] = {
    "ServerVersion": "26.1.5",
    "OSType": "linux",
    "Architecture": "x86_64",
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin"],
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a shell and nothing else."""
    shell = shutil.which("sh")
    if shell is None:
        pytest.skip("NOT RUN: no shell")
    (tmp_path / "sh").symlink_to(shell)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def _install(tools: Path, facts: dict[str, Any], host: str = "unix:///run/docker.sock") -> None:
    # Everything after `info` fails, so that a good daemon ends at the attempt to load an image.
    program = tools / "docker"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in\n'
        f"*'context inspect'*) echo '{host}';;\n"
        f"*' info '*) echo '{json.dumps(facts)}';;\n"
        "*) exit 1;;\nesac\n"
    )
    program.chmod(0o755)


def _refusal(name: Any = None) -> str:
    with pytest.raises(ConfigurationError) as refused:
        asyncio.run(probe_engine(name))
    return str(refused.value)


def test_a_machine_without_an_engine_is_told_what_to_install(tools: Path) -> None:
    assert not (tools / "docker").exists()
    assert "apt-get install podman runc" in _refusal()
    assert _refusal("docker") == "no container engine: docker is not installed"
    assert _refusal("podman") == "no container engine: podman is not installed"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"ServerVersion": ""}, "does not answer"),
        ({"ServerVersion": "19.03.5"}, "too old"),
        ({"Architecture": "aarch64"}, "x86-64 only"),
        ({"OSType": "windows"}, "x86-64 only"),
        ({"SwapLimit": False}, "SwapLimit missing"),
        ({"PidsLimit": None}, "PidsLimit missing"),
        ({"SecurityOptions": ["name=apparmor"]}, "seccomp"),
        ({"SecurityOptions": ["name=seccomp,profile=unconfined"]}, "seccomp"),
        ({"SecurityOptions": [*_ABLE["SecurityOptions"], "name=rootless"]}, "rootless"),
        ({"SecurityOptions": [*_ABLE["SecurityOptions"], "name=userns"]}, "userns"),
    ],
)
def test_a_daemon_that_cannot_keep_agents_in_is_refused(
    tools: Path, change: dict[str, Any], word: str
) -> None:
    _install(tools, _ABLE | change)
    assert word in _refusal("docker")
    assert word in _refusal()


@pytest.mark.parametrize("host", ["tcp://10.0.0.1:2375", "ssh://machine", ""])
def test_a_daemon_elsewhere_is_refused(tools: Path, host: str) -> None:
    _install(tools, _ABLE, host)
    assert "not on this machine" in _refusal("docker")


def test_an_able_daemon_gets_as_far_as_the_first_image(tools: Path) -> None:
    _install(tools, _ABLE)
    assert _refusal() == "container engine: load failed with status 1"


def test_the_image_of_holders_is_always_the_same() -> None:
    digests = []
    for _ in range(2):
        with holder_image() as stored:
            digests.append(stored.manifest.digest)
    assert digests[0] == digests[1]


def test_a_process_that_does_not_show_our_file_is_never_entered(tmp_path: Path) -> None:
    # What a daemon on another machine would name: some process that happens to have the number.
    own = tmp_path / "own"
    own.touch()
    before = Path("/proc/self/ns/net").stat().st_ino
    with pytest.raises(ConfigurationError, match="not processes of this machine"):
        enter_holder(os.getpid(), own)
    with pytest.raises(ConfigurationError, match="not processes of this machine"):
        enter_holder(2**22 + 1, own)
    assert Path("/proc/self/ns/net").stat().st_ino == before
