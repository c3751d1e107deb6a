"""Images inside the container engine: loading what was measured, refusing what was not.

An engine names an image by the SHA-256 of its config, which fixes the uncompressed layers. For an
image that came from a layout we verified that chain ourselves; for one that the engine pulled by
digest the engine did. Not checked here: that the engine's storage still holds what it unpacked;
on a node that storage is inside the trust domain.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.oci_store import StoredImage, read_image
from confide.agents.oci import MEDIA_MANIFEST, Descriptor, image_index
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

__all__ = ["describe_tag", "find_existing", "load_image", "refuse_tag", "require_image"]

_PULL_SECONDS = 600.0
_WORK = Path("/dev/shm")  # noqa: S108 - holds two small documents and a link for a moment
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
    if await engine.quietly("image", "exists", image.config) != 0:
        work = _WORK / f"confide-load-{os.getpid()}-{image.digest}"
        try:
            await asyncio.to_thread(_present, stored, work)
            await engine.call("pull", "--quiet", f"oci:{work}", seconds=_PULL_SECONDS)
            await engine.call("tag", image.config, f"localhost/confide/image:{image.digest}")
            await engine.quietly("untag", image.config, f"localhost{work}")
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
    await require_image(engine, image)


def _present(stored: StoredImage, work: Path) -> None:
    # A layout of exactly this image (one by others may hold more), at a path of ours: the engine
    # makes a name out of the path, and most paths do not survive that.
    digest = stored.manifest.digest
    size = stored.blob(digest).stat().st_size
    work.mkdir(mode=0o700, exist_ok=True)
    (work / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    (work / "index.json").write_bytes(image_index(Descriptor(MEDIA_MANIFEST, digest, size)))
    with contextlib.suppress(FileExistsError):
        (work / "blobs").symlink_to(stored.path.resolve() / "blobs")


async def require_image(engine: Engine, image: AgentImage) -> None:
    """Refuse (AGENT_IMAGE_MISMATCH) unless the engine would run exactly `image`."""
    found = await _inspect(engine, image.config)
    if found is None:
        raise _mismatch("the engine does not have it")
    config, digests = found
    if config != image.config:
        raise _mismatch("the engine has another image under this id")
    # An engine that holds one config under several manifests names only some of them; a layout
    # was verified down to the config already.
    if not image.layout and image.digest not in digests:
        raise _mismatch("the engine has it under another digest")


async def find_existing(engine: Engine, reference: PinnedReference) -> AgentImage:
    """
    Return the finished image that `reference` pins: from its layout, the engine or its registry.

    Raises `Unavailable` where none of them has it.
    """
    if reference.layout:
        stored = await asyncio.to_thread(read_image, Path(reference.name), reference.digest)
        return stored.image
    name = str(reference)
    if await engine.quietly("image", "exists", name) != 0 and await engine.quietly(
        "image", "exists", reference.digest
    ):
        status = await engine.quietly("pull", "--quiet", name, seconds=_REGISTRY_SECONDS)
        if status != 0:
            raise Unavailable(
                "image: neither the engine nor its registry has the pinned image; "
                "load it first, or name an OCI layout as oci:<path>@sha256:<digest>"
            )
    found = await _inspect(engine, name) or await _inspect(engine, reference.digest)
    if found is None:
        raise Unavailable("image: the engine lost it")
    config, digests = found
    image = AgentImage(reference.digest, config, "")
    if reference.digest not in digests:
        raise _mismatch("the engine has it under another digest")
    return image


async def find_by_digest(engine: Engine, digest: str) -> AgentImage | None:
    """Return the image whose manifest has `digest` (hex), if the engine holds it; never pulls."""
    listing = await engine.call("image", "ls", "--no-trunc", "--format", "{{.ID}} {{.Digest}}")
    for line in listing.splitlines():
        config, _, found = line.partition(" ")
        if found == f"sha256:{digest}":
            return AgentImage(digest, config.removeprefix("sha256:"), "")
    return None


async def describe_tag(engine: Engine, tag: str) -> str:
    """
    Return the error text for an image named by `tag` alone: with the digest to pin, if known here.

    Never pulls.
    """
    found = await _inspect(engine, tag) if not tag.startswith("-") else None
    if found is None or not found[1]:
        return "a tag can be moved to another image; pin it as name@sha256:<digest>"
    name = tag.partition("@")[0]
    head, colon, last = name.rpartition(":")
    bare = head if colon and "/" not in last else name
    return f"a tag can be moved to another image; today it names {bare}@sha256:{found[1][0]}"


async def refuse_tag(engine: Engine, tag: str) -> None:
    """Raise `ConfigurationError` with `describe_tag`."""
    raise ConfigurationError(f"image: {await describe_tag(engine, tag)}")


async def _inspect(engine: Engine, name: str) -> tuple[str, tuple[str, ...]] | None:
    template = "{{.Id}} {{.Digest}} {{json .RepoDigests}}"
    answer = await engine.attempt("image", "inspect", "--format", template, name)
    if answer is None:
        return None
    config, digest, rest = answer.split(" ", 2)
    others = [str(item).rpartition("@sha256:")[2] for item in json.loads(rest) or []]
    digests = dict.fromkeys((digest.removeprefix("sha256:"), *others))
    return config.removeprefix("sha256:"), tuple(digests)


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
