"""The faces of a model node by name, each built on the node's parts. docs/protocols/faces.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import ConfigurationError
from confide.node.near import NearFace
from confide.wire.faces import FaceName

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import ASGIApp

    from confide.node.faces import Face
    from confide.node.identity import NodeIdentity
    from confide.node.machine import Machine

__all__ = ["FaceParts", "open_faces"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceParts:
    """
    What a face is built on: who the node is, what it runs on, and its inner application.

    `fingerprint` is the SHA-256 of the TLS key that ends in this process, where there is a port
    for it.
    """

    identity: NodeIdentity
    machine: Machine
    inner: ASGIApp
    model: str
    fingerprint: bytes | None = None


def _near(parts: FaceParts) -> Face:
    return NearFace(
        identity=parts.identity,
        machine=parts.machine,
        inner=parts.inner,
        model=parts.model,
        fingerprint=parts.fingerprint,
    )


_BUILDERS: dict[FaceName, Callable[[FaceParts], Face]] = {FaceName.NEAR: _near}


def open_faces(names: Sequence[FaceName], parts: FaceParts) -> tuple[Face, ...]:
    """Return the faces `names`; `ConfigurationError` for one that this version does not have."""
    missing = [name.value for name in names if name not in _BUILDERS]
    if missing:
        raise ConfigurationError(f"no such face in this version: {', '.join(missing)}")
    return tuple(_BUILDERS[name](parts) for name in names)
