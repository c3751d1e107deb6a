"""Images inside the container engine: loading what was measured, refusing what was not.

An engine names an image by the SHA-256 of its config, which fixes the uncompressed layers, or by
that of its manifest, which fixes both. For an image that came from a layout we verified that chain
ourselves; for one that the engine pulled by digest the engine did. Not checked here: that the
engine's storage still holds what it unpacked; on a node that storage is inside the trust domain.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.oci_store import read_image
from confide.agents.sandbox import AgentImage
from confide.errors import (
    ConfigurationError,
    Reason,
    RunRefused,
    Unavailable,
)
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from confide.adapters.engine import Engine
    from confide.agents.reference import PinnedReference

__all__ = [
    "describe_tag",
    "find_by_digest",
    "find_existing",
    "find_stored",
    "load_image",
    "require_image",
]

_REGISTRY_SECONDS = 20.0


async def load_image(engine: Engine, image: AgentImage) -> None:
    """
    Put `image` into the engine unless it is there, after hashing every blob of its layout.

    Raises `FormatError` where the layout is not what its digest says.
    """
    if not image.layout:
        await require_image(engine, image)
        return
    stored = await asyncio.to_thread(read_image, Path(image.layout), image.digest)
    if stored.manifest.config.digest != image.config:
        raise _mismatch("the manifest names another config")
    if await engine.find_image(engine.image_id(image)) is None:
        await engine.load(stored)
    await require_image(engine, image)


async def require_image(engine: Engine, image: AgentImage) -> None:
    """Refuse (AGENT_IMAGE_MISMATCH) unless the engine would run exactly `image`."""
    ident = engine.image_id(image)
    found = await engine.find_image(ident)
    if found is None:
        raise _mismatch("the engine does not have it")
    if found.ident != ident.removeprefix("sha256:"):
        raise _mismatch("the engine has another image under this id")
    # An engine that holds one config under several manifests names only some of them; a layout
    # was verified down to the config already.
    if not image.layout and image.digest not in found.digests:
        raise _mismatch("the engine has it under another digest")
    engine.require_known_config(image)
    if found.volumes:
        raise ConfigurationError(
            "image: it declares volumes, which this engine would put on a disk; "
            "use an image without, or Podman"
        )


async def find_existing(engine: Engine, reference: PinnedReference) -> AgentImage:
    """
    Return the finished image that `reference` pins: from its layout, the engine or its registry.

    Raises `Unavailable` where none of them has it.
    """
    if reference.layout:
        stored = await asyncio.to_thread(read_image, Path(reference.name), reference.digest)
        return stored.image
    name = str(reference)
    found = await engine.find_image(name) or await engine.find_image(f"sha256:{reference.digest}")
    if found is None:
        status = await engine.pull(name, seconds=_REGISTRY_SECONDS)
        if status != 0:
            raise Unavailable(
                "image: neither the engine nor its registry has the pinned image; "
                "load it first, or name an OCI layout as oci:<path>@sha256:<digest>"
            )
        found = await engine.find_image(name)
    if found is None:
        raise Unavailable("image: the engine lost it")
    image = AgentImage(reference.digest, found.ident, "")
    if reference.digest not in found.digests:
        raise _mismatch("the engine has it under another digest")
    engine.require_known_config(image)
    return image


async def find_by_digest(engine: Engine, digest: str) -> AgentImage | None:
    """Return the image whose manifest has `digest` (hex), if the engine holds it; never pulls."""
    config = await engine.find_config(digest)
    return None if config is None else AgentImage(digest, config, "")


async def find_stored(engine: Engine, images: Path, digest: str) -> AgentImage | None:
    """Return the image whose manifest has `digest`: from its layout in `images`, or the engine."""
    layout = images / digest
    if layout.is_dir():
        return (await asyncio.to_thread(read_image, layout, digest)).image
    return await find_by_digest(engine, digest)


async def describe_tag(engine: Engine, tag: str) -> str:
    """
    Return the error text for an image named by `tag` alone: with the digest to pin, if known here.

    Never pulls.
    """
    found = await engine.find_image(tag) if not tag.startswith("-") else None
    if found is None:
        return "a tag can be moved to another image; pin it as name@sha256:<digest>"
    if not found.digests:
        return (
            f"a tag can be moved to another image, and {engine.name} knows no digest to pin for "
            "this one; copy it to an OCI layout and name that as oci:<path>@sha256:<digest>"
        )
    name = tag.partition("@")[0]
    head, colon, last = name.rpartition(":")
    bare = head if colon and "/" not in last else name
    return f"a tag can be moved to another image; today it names {bare}@sha256:{found.digests[0]}"


def _mismatch(detail: str) -> RunRefused:
    return RunRefused(
        (
            Finding(
                Status.FAIL,
                "run/image",
                "sandbox.md §2",
                "agent image",
                detail,
                Reason.AGENT_IMAGE_MISMATCH,
            ),
        )
    )
