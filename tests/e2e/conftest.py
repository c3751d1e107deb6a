"""The deployment that the tests of this folder share: started once, stopped by process id."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from deployment import AGENTS, Deployment, Installation
from newcomer import Newcomer
from stub_openai import StubOpenAI

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def build_cache() -> Path:
    """Where base images are kept between test runs."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "confide"


@pytest.fixture(scope="session")
def stub() -> Iterator[StubOpenAI]:
    """The engine behind the model node."""
    with StubOpenAI() as running:
        yield running


@pytest.fixture(scope="session")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, build_cache: Path, stub: StubOpenAI
) -> Iterator[Deployment]:
    """Both nodes, up; skipped loudly where agents cannot run."""
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip("END-TO-END TESTS NOT RUN: they need Podman and root")
    installation = Installation(tmp_path_factory.mktemp("e2e"), stub.url)
    built = installation.build(AGENTS / "probe", cache=build_cache)
    try:
        model, agent = installation.up()
        yield Deployment(installation, built, model, agent)
    finally:
        installation.engine.down()


@pytest.fixture(scope="module")
def newcomer(
    tmp_path_factory: pytest.TempPathFactory, build_cache: Path, stub: StubOpenAI
) -> Iterator[Newcomer]:
    """Nodes start with the first run and are stopped at the end."""
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip("END-TO-END TESTS NOT RUN: they need Podman and root")
    home = tmp_path_factory.mktemp("newcomer")
    (home / ".cache").mkdir()
    build_cache.mkdir(parents=True, exist_ok=True)
    (home / ".cache" / "confide").symlink_to(build_cache)
    someone = Newcomer(home, stub.url)
    yield someone
    someone.confide("down")
