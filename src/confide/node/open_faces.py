"""The faces of a model node by name, each built on the node's parts. docs/protocols/faces.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.inference.plan import Endpoint, RequestLimits
from confide.node.aci import AciFace
from confide.node.aci_receipts import AciReceipts
from confide.node.ehbp import EhbpFace, replay_window
from confide.node.near import NearFace
from confide.wire.faces import FaceName

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

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

    `engine_inside` says that the engine was started by this node, inside the measured machine;
    `fingerprint` is the SHA-256 of the TLS key that ends in this process, where there is a port
    for it.
    """

    identity: NodeIdentity
    machine: Machine
    inner: ModelNode
    model: str
    engine_inside: bool = False
    fingerprint: bytes | None = None

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
    inside = AciReceipts(
        parts.identity, parts.inner, serving=parts.serving, fingerprint=parts.fingerprint
    )
    return AciFace(parts.identity, inside, serving=parts.serving, fingerprint=parts.fingerprint)


def _near(parts: FaceParts) -> Face:
    return NearFace(
        identity=parts.identity,
        machine=parts.machine,
        inner=parts.inner,
        model=parts.model,
        fingerprint=parts.fingerprint,
    )


# In the order in which they are asked: EHBP takes only what says that it is its own.
_BUILDERS: dict[FaceName, Callable[[FaceParts], Face]] = {
    FaceName.EHBP: _ehbp,
    FaceName.ACI: _aci,
    FaceName.NEAR: _near,
}


def open_faces(names: Collection[FaceName], parts: FaceParts) -> tuple[Face, ...]:
    """Return the faces `names`, in the order in which they are asked."""
    return tuple(build(parts) for name, build in _BUILDERS.items() if name in names)


def behind_channel(faces: Sequence[Face], node: ModelNode) -> ASGIApp:
    """Return what the sealed channel leads to: `node`, and what faces have beside it there."""
    return next((face.inside for face in faces if isinstance(face, AciFace)), node)
