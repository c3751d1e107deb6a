"""Each engine of this machine and one image built with it; skipped loudly without."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from probing import Probe

from confide.adapters.engine import probe_engine
from confide.adapters.image_build import BuiltAgent, build_agent

if TYPE_CHECKING:
    from confide.adapters.engine import EngineName

_TOML = 'name="probe"\nmode="batch"\nentry=["python3","/agent/agent.py"]\nmodel="support-notes"\n'


@pytest.fixture(scope="session")
def build_cache() -> Path:
    """Where base images and wheels are kept between test runs."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "confide"


@pytest.fixture(scope="session", params=["podman", "docker"])
def engine_name(request: pytest.FixtureRequest) -> EngineName:
    """Every engine in turn. Docker is the daemon that its own client finds (DOCKER_HOST)."""
    name: EngineName = request.param
    if os.geteuid() != 0:
        pytest.skip("CONTAINER TESTS NOT RUN: they need root")
    if shutil.which(name) is None:
        pytest.skip(f"CONTAINER TESTS NOT RUN WITH {name}: it is not installed")
    if name == "docker" and not _docker_answers():
        pytest.skip("CONTAINER TESTS NOT RUN WITH docker: no daemon answers")
    return name


@pytest.fixture(scope="session")
def probe(
    engine_name: EngineName, tmp_path_factory: pytest.TempPathFactory, build_cache: Path
) -> Probe:
    """The probe image in each engine."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "agent.toml").write_text(_TOML)
    (folder / "agent.py").write_text("print('ready')\n")

    async def build() -> BuiltAgent:
        return await build_agent(
            await probe_engine(engine_name), folder, store=folder / ".store", cache=build_cache,
            progress=lambda _line: None,
        )  # fmt: skip

    return Probe(engine_name, asyncio.run(build()))


def _docker_answers() -> bool:
    asked = subprocess.run(
        ("docker", "version", "--format", "{{.Server.Version}}"), capture_output=True, check=False
    )
    return asked.returncode == 0
