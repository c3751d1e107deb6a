"""Compatibility faces of a node: other services' protocols in front of the same application.

Clauses: docs/protocols/faces.md. A face is asked after the node's own routes, so it can never take
one of them over. It calls the inner application with a `FaceRecord` where the sealed channel has
its own record: the receipt then says by which way the request came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from confide.wire.faces import FaceName, Way

__all__ = ["TLS_KEY", "Carried", "Face", "FaceRecord"]

# Set in a scope by the listener whose TLS ends in this process, and by nothing else.
TLS_KEY = "confide.tls"


class Carried(Protocol):
    """What the inner application may know of what carries its request, under `SCOPE_KEY`."""

    @property
    def key_id(self) -> int:
        """The id, in the keyset, of the key that the request was protected with."""
        ...

    @property
    def request_sha256(self) -> bytes | None:
        """SHA-256 of the request as it arrived; None until it was read to its end."""
        ...

    @property
    def way(self) -> Way | None:
        """By which way of a face it came; None for the sealed channel."""
        ...

    @property
    def receipt_inline(self) -> bool:
        """Whether the receipt may travel with the answer: what carries it hides it."""
        ...


@dataclass(slots=True)
class FaceRecord:
    """
    The `Carried` of a request over a face.

    A receipt names digests of plaintext. `receipt_inline` is False where the body of an answer is
    not sealed as a whole: a stranger on the way could try texts against those digests.
    """

    way: Way
    key_id: int
    request_sha256: bytes | None
    receipt_inline: bool


class Face(Protocol):
    """One face: an ASGI application and what it takes."""

    @property
    def name(self) -> FaceName:
        """Which face it is."""
        ...

    def takes(self, scope: Scope, /) -> bool:
        """Whether this HTTP request is the face's to answer."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> None:
        """Serve one HTTP scope that it takes."""
        ...
