"""What both nodes show the outside: health, evidence, and the sealed channel.

- `GET /confide/v1/health`: `{role, keyset, ready, simulated}`; a hint, not evidence.
- `POST /confide/v1/evidence`: `{nonce, expectation}` → fresh evidence (evidence.md §2).
- `POST /confide/v1/ohttp`: everything else, sealed (docs/protocols/channel.md).

A request to any other path is refused unless a face that is on takes it (docs/protocols/faces.md);
none is on unless the operator names it. The application behind is an argument.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from confide.adapters.evidence_http import EVIDENCE_PATH
from confide.channel.carriage import CHANNEL_PATH
from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.errors import ConfideError, FormatError, Reason
from confide.node.request_body import read_body
from confide.node.sealed import SealedGateway
from confide.wire.evidence import encode_evidence_file
from confide.wire.json import JsonLimits, Members, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from confide.node.faces import Face
    from confide.node.identity import NodeIdentity

__all__ = ["HEALTH_PATH", "NodeApp", "problem", "read_json"]

HEALTH_PATH = "/confide/v1/health"
_OWN = frozenset({HEALTH_PATH, EVIDENCE_PATH, CHANNEL_PATH})
_EVIDENCE_LIMITS = JsonLimits(max_bytes=4096, max_depth=4)
# A quote costs the platform tens of milliseconds: more callers wait, they do not pile up.
_MAX_CONCURRENT_EVIDENCE = 4


def problem(status: int, reason: Reason, detail: str) -> JSONResponse:
    """Return a refusal in our words: `{reason, detail}`."""
    return JSONResponse({"reason": reason.value, "detail": detail}, status_code=status)


async def read_json(request: Request, limits: JsonLimits) -> Members:
    """Read a bounded JSON object from `request`. Raises `FormatError`."""
    raw = await read_body(request, max_bytes=limits.max_bytes)
    value = parse_json(raw, what="request", reason=Reason.STATEMENT_MISMATCH, limits=limits)
    return Members(value, what="request", reason=Reason.STATEMENT_MISMATCH)


class NodeApp:
    """
    The outer ASGI application of a node: three routes, the sealed one around `inner`, and `faces`.

    A face is asked for every other path, the first that takes it serves it.
    """

    def __init__(self, identity: NodeIdentity, inner: ASGIApp, faces: Sequence[Face] = ()) -> None:
        self._identity = identity
        self._faces = tuple(faces)
        self._evidence_slots = asyncio.Semaphore(_MAX_CONCURRENT_EVIDENCE)
        self._sealed = SealedGateway(
            inner,
            keys=identity.ring(),
            clock=identity.clock,
            entropy=identity.entropy,
            window=ReplayWindow(ReplayPolicy()),
        )
        identity.on_rotation(self._sealed.rotate)
        self._plain = Starlette(
            routes=[
                Route(HEALTH_PATH, self._health, methods=["GET"]),
                Route(EVIDENCE_PATH, self._evidence, methods=["POST"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        self._identity.tick()
        await self._serving(scope)(scope, receive, send)

    def _serving(self, scope: Scope) -> ASGIApp:
        path = scope.get("path")
        if scope["type"] == "lifespan" or path == CHANNEL_PATH:
            return self._sealed
        if scope["type"] == "http" and path not in _OWN:
            for face in self._faces:
                if face.takes(scope):
                    return face
        return self._plain

    async def _health(self, _request: Request) -> Response:
        keyset = self._identity.current.keys.keyset
        return JSONResponse(
            {
                "role": keyset.role,
                "keyset": keyset.digest.hex(),
                "ready": True,
                "simulated": self._identity.simulated,
            }
        )

    async def _evidence(self, request: Request) -> Response:
        try:
            members = await read_json(request, _EVIDENCE_LIMITS)
            nonce, expectation = members.hexes("nonce", 32), members.hexes("expectation", 32)
            members.end()
        except FormatError as error:
            return problem(400, error.reason, error.what)
        except ClientDisconnect:
            return Response(status_code=400)
        try:
            async with self._evidence_slots:
                bundle = await self._identity.current.attester.attest(
                    purpose="channel", nonce=nonce, expectation=expectation
                )
        except ConfideError:
            return problem(503, Reason.EVIDENCE_MISSING, "no evidence can be made now")
        return Response(encode_evidence_file(bundle), media_type="application/json")
