"""One engine and one built image for the tests that need containers; skipped loudly without."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from confide.adapters.engine import probe_engine
from confide.adapters.image_build import BuiltAgent, build_agent

_TOML = 'name="probe"\nmode="batch"\nentry=["python3","/agent/agent.py"]\nmodel="support-notes"\n'


@pytest.fixture(scope="session")
def build_cache() -> Path:
    """Where base images and wheels are kept between test runs."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "confide"


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory, build_cache: Path) -> BuiltAgent:
    """An image with nothing but the base and a trivial agent."""
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip("CONTAINER TESTS NOT RUN: they need Podman and root")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "agent.toml").write_text(_TOML)
    (folder / "agent.py").write_text("print('ready')\n")

    async def build() -> BuiltAgent:
        return await build_agent(
            await probe_engine(), folder, store=folder / ".store", cache=build_cache,
            progress=lambda _line: None,
        )  # fmt: skip

    return asyncio.run(build())
