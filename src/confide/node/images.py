"""Images of owners on a training node: the sandbox they run in, and where they are found.

docs/protocols/training-image.md 2.1, 2.2, 2.6. Part of the composition of `serve_train`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from confide.adapters.containers import open_sandbox
from confide.adapters.engine_images import find_stored
from confide.node.train_image import BaseFolder, ImagePorts
from confide.training.image_recipe import ImageLimits

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path
    from typing import Protocol

    from confide.adapters.weights_facts import WatchedWeights
    from confide.agents.sandbox import AgentImage
    from confide.node.image_proof import ProvenNode

    class _Settings(Protocol):
        @property
        def images(self) -> Path | None: ...

        @property
        def gpus(self) -> tuple[str, ...]: ...


__all__ = ["open_images"]

_GIB: Final = 1 << 30
# Rows and output are memory of this machine: a job gets no more than this share of it.
_SHARE: Final = 0.75
_MAX_WALL_SECONDS: Final = 39_600
_MAX_PIDS: Final = 4096
_MAX_FILES: Final = 20_000


async def open_images(
    settings: _Settings, stack: AsyncExitStack, node: ProvenNode, base: WatchedWeights
) -> ImagePorts | None:
    """
    Return what runs images of owners; None where `settings` name no folder of images.

    Closed with `stack`. Raises `ConfigurationError` where no container engine works here.
    """
    images = settings.images
    if images is None:
        return None
    sandbox = await open_sandbox()
    stack.push_async_callback(sandbox.close)

    async def find_image(digest: str) -> AgentImage | None:
        return await find_stored(sandbox.engine, images, digest)

    most = _most_limits()
    return ImagePorts(
        node=node,
        sandbox=sandbox,
        find_image=find_image,
        base=BaseFolder(str(base.path), base.unchanged),
        limits=most,
        max_input_bytes=most.output_bytes,
        devices=settings.gpus,
    )


def _most_limits() -> ImageLimits:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = max(_GIB, int(memory * _SHARE))
    return ImageLimits(
        memory_bytes=share,
        cpus_milli=1000 * len(os.sched_getaffinity(0)),
        pids=_MAX_PIDS,
        wall_seconds=_MAX_WALL_SECONDS,
        output_bytes=share,
        output_files=_MAX_FILES,
        scratch_bytes=share,
    )
