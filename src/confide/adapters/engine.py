"""The container engine of this machine: found and probed.

docs/protocols/sandbox.md §8. Podman is taken where it works, because it joins a namespace without
a container to hold it; Docker otherwise.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Literal

from confide.adapters.engine_base import Engine
from confide.adapters.engine_docker import probe_docker
from confide.adapters.engine_podman import probe_podman
from confide.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Engine", "EngineName", "probe_engine"]

EngineName = Literal["podman", "docker"]

_NONE = (
    "no container engine: install Podman and runc (Debian: apt-get install podman runc), or Docker"
)


async def probe_engine(name: EngineName | None = None) -> Engine:
    """
    Find an engine that can keep agents in, and how it has to be called: `name`, or any.

    Raises `ConfigurationError` that says what to install, or what keeps each engine from working.
    """
    probes: dict[EngineName, Callable[[str], Awaitable[Engine]]] = {
        "podman": probe_podman,
        "docker": probe_docker,
    }
    refusals: list[str] = []
    for candidate, probe in probes.items():
        program = shutil.which(candidate)
        if name not in {None, candidate}:
            continue
        if program is None:
            if name is not None:
                raise ConfigurationError(f"no container engine: {name} is not installed")
            continue
        try:
            return await probe(program)
        except (ConfigurationError, Unavailable) as error:
            refusals.append(str(error))
    raise ConfigurationError(". ".join(refusals) if refusals else _NONE)
