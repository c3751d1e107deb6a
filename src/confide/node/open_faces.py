"""The faces of a model node by name, each built on the node's parts. docs/protocols/faces.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import ConfigurationError
from confide.inference.plan import Endpoint, RequestLimits
from confide.node.aci import AciFace
from confide.node.aci_receipts import AciReceipts
from confide.node.ehbp import EhbpFace, replay_window
from confide.wire.faces import FaceName

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import ASGIApp

    from confide.node.aci import Serving
    from confide.node.faces import Face
    from confide.node.identity import NodeIdentity
    from confide.node.machine import Machine
    from confide.node.model import ModelNode

__all__ = ["FaceParts", "behind_channel", "open_faces"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceParts:
    """
    What a face is built on: who the node is, what it runs on, and its inner application.

    `engine_inside` says that the engine was started by this node, inside the measured machine.
    """

    identity: NodeIdentity
    machine: Machine
    inner: ASGIApp
    model: str
    engine_inside: bool = False

    @property
    def serving(self) -> Serving:
        """What ACI calls a node with or without an engine of its own (aci-face.md 3.3)."""
        return "direct" if self.engine_inside else "aggregator"


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


def _aci(parts: FaceParts) -> Face:
    return AciFace(parts.identity, serving=parts.serving)


_BUILDERS: dict[FaceName, Callable[[FaceParts], Face]] = {
    FaceName.ACI: _aci,
    FaceName.EHBP: _ehbp,
}


def open_faces(names: Sequence[FaceName], parts: FaceParts) -> tuple[Face, ...]:
    """Return the faces `names`; `ConfigurationError` for one that this version does not have."""
    missing = [name.value for name in names if name not in _BUILDERS]
    if missing:
        raise ConfigurationError(f"no such face in this version: {', '.join(missing)}")
    return tuple(_BUILDERS[name](parts) for name in names)


def behind_channel(names: Sequence[FaceName], parts: FaceParts, node: ModelNode) -> ASGIApp:
    """Return what the sealed channel leads to: `node`, and what faces have beside it there."""
    if FaceName.ACI in names:
        return AciReceipts(parts.identity, node, serving=parts.serving)
    return node
