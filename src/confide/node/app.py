"""What both nodes show the outside: health, evidence, and the sealed channel. Nothing else.

- `GET /confide/v1/health`: `{role, keyset, ready, simulated}`; a hint, not evidence.
- `POST /confide/v1/evidence`: `{nonce, expectation}` → fresh evidence (evidence.md §2).
- `POST /confide/v1/ohttp`: everything else, sealed (docs/protocols/channel.md).

Plaintext requests to any other path are refused; the sealed application behind is an argument.
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
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from confide.node.identity import NodeIdentity

__all__ = ["HEALTH_PATH", "NodeApp", "problem", "read_json"]

HEALTH_PATH = "/confide/v1/health"
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
    """The outer ASGI application of a node: three routes, the sealed one around `inner`."""

    def __init__(
        self, identity: NodeIdentity, inner: ASGIApp, *, window: ReplayWindow | None = None
    ) -> None:
        self._identity = identity
        self._evidence_slots = asyncio.Semaphore(_MAX_CONCURRENT_EVIDENCE)
        self._sealed = SealedGateway(
            inner,
            keys=identity.ring(),
            clock=identity.clock,
            entropy=identity.entropy,
            window=window or ReplayWindow(ReplayPolicy(), secret=identity.entropy.token(32)),
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
        sealed = scope["type"] == "lifespan" or scope.get("path") == CHANNEL_PATH
        await (self._sealed if sealed else self._plain)(scope, receive, send)

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
