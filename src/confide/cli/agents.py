"""AGENT on the command line: a folder to build, or a finished image pinned by digest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.engine import probe_engine
from confide.adapters.engine_images import describe_tag, find_existing, load_image
from confide.adapters.image_build import BuiltAgent, build_agent, read_agent_manifest
from confide.adapters.upstream_serve import BUNDLED_NAME
from confide.agents.manifest import AgentManifest
from confide.agents.reference import parse_reference
from confide.cli.screen import printable
from confide.errors import ConfigurationError
from confide.expectation import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from confide.adapters.paths import Paths

__all__ = ["Agent", "build", "find_agent"]

_NOT_NAME = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Agent:
    """What AGENT names: a manifest, and the folder to build (None: a finished image)."""

    manifest: AgentManifest
    folder: Path | None


def find_agent(text: str, *, mode: Literal["batch", "chat"]) -> Agent:
    """
    Read what `text` names, without building. `mode` is how a finished image is driven.

    Raises `ConfigurationError`, `FormatError`. A tag is not refused here but in `build`, where the
    engine can tell the digest to pin.
    """
    folder = Path(text)
    if folder.is_dir():
        manifest = read_agent_manifest(folder)
        return Agent(manifest, folder)
    pinned = "@sha256:" in text
    if not pinned and (text.startswith((".", "/", "~")) or folder.exists()):
        raise ConfigurationError(f"{printable(text)} is not a folder with an agent.toml")
    reference = parse_reference(text) if pinned else None
    name = _NOT_NAME.sub("-", text.partition("@")[0].rpartition("/")[2].lower()).strip("-")
    return Agent(
        AgentManifest(
            name=name[:63] or "image",
            mode=mode,
            entry=(),
            model=BUNDLED_NAME,
            egress=(),
            existing=reference,
            base=None,
            requirements=None,
            leave_out=(),
            secrets=(),
            state=False,
            limits=Limits(),
        ),
        None,
    )


async def build(
    agent: Agent, text: str, paths: Paths, progress: Callable[[str], None]
) -> BuiltAgent:
    """
    Build the folder, or find the pinned image. What did not change comes from the cache.

    Raises `ConfigurationError` with the digest to pin for a tag, or for what this machine lacks.
    """
    reference = agent.manifest.existing
    if agent.folder is None and reference is None:
        raise await _not_pinned(text)
    engine = await probe_engine()
    if agent.folder is not None:
        return await build_agent(
            engine, agent.folder, store=paths.images, cache=paths.cache, progress=progress
        )
    if reference is None:
        raise ConfigurationError("no image is named")
    image = await find_existing(engine, reference)
    await load_image(engine, image)
    return BuiltAgent(agent.manifest, image, "", "", 0)


async def _not_pinned(text: str) -> ConfigurationError:
    why = await describe_tag(await probe_engine(), text)
    return ConfigurationError(f"there is no folder {printable(text)}, and as an image: {why}")
