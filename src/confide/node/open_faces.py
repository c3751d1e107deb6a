"""The faces of a model node by name, each built on the node's parts. docs/protocols/faces.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import ConfigurationError
from confide.inference.plan import Endpoint, RequestLimits
from confide.node.ehbp import EhbpFace, replay_window
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
    """What a face is built on: who the node is, what it runs on, and its inner application."""

    identity: NodeIdentity
    machine: Machine
    inner: ASGIApp
    model: str


# What frames add to the largest body that an endpoint takes (ehbp-face.md 3.3).
_FRAMING_BYTES = 2 * 1024 * 1024


def _ehbp(parts: FaceParts) -> Face:
    return EhbpFace(
        parts.identity,
        parts.inner,
        paths=[endpoint.value for endpoint in Endpoint],
        max_bytes=RequestLimits().max_upload_bytes + _FRAMING_BYTES,
        window=replay_window(),
    )


_BUILDERS: dict[FaceName, Callable[[FaceParts], Face]] = {FaceName.EHBP: _ehbp}


def open_faces(names: Sequence[FaceName], parts: FaceParts) -> tuple[Face, ...]:
    """Return the faces `names`; `ConfigurationError` for one that this version does not have."""
    missing = [name.value for name in names if name not in _BUILDERS]
    if missing:
        raise ConfigurationError(f"no such face in this version: {', '.join(missing)}")
    return tuple(_BUILDERS[name](parts) for name in names)
