"""The key broker over HTTP. ASGI; no caller, path or body is written down anywhere.

Clauses: docs/protocols/broker.md §1.3, §2 to §4, §6, release.md 2.8. Refusals are fixed texts: what
a guest did wrong is in `reason`, and in the receipt where there is one. What the state of an agent
needs is an argument (`node/broker_state_app.py`, docs/protocols/state.md §4).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from confide.adapters.broker_http import INFO_PATH, SIGNATURE_HEADER, STATEMENTS_PATH
from confide.errors import (
    ConfideError,
    FormatError,
    Reason,
    Rejected,
    RemoteProtocolError,
    Unsupported,
)
from confide.node.broker_service import ReceiptedRefusal
from confide.receipts.inline import RECEIPT_HEADER, encode_inline
from confide.wire.json import b64encode, jcs
from confide.wire.kbs import MAX_ATTESTATION_BYTES, SESSION_COOKIE, KbsError, encode_token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from confide.broker.attested import Attested
    from confide.node.broker_service import BrokerService
    from confide.wire.dsse import Envelope

__all__ = [
    "attested_of",
    "broker_app",
    "refused",
    "with_receipt",
]

_MAX_REQUEST_BYTES: Final = 16 * 1024
# A sealed value of 1 MiB and a policy of as much, in base64, and the envelope.
_MAX_STATEMENT_BYTES: Final = 4 << 20
_JSON: Final = "application/json"
_NEVER_KEPT: Final = {"cache-control": "no-store"}
_BEARER: Final = "bearer "
# Reasons that mean the same wherever they come up; everything else goes with its route.
_STATUS: Final = {
    Reason.LIMIT_EXCEEDED: 413,
    Reason.NODE_BUSY: 503,
    Reason.PROTOCOL_VERSION: 401,
    Reason.RESOURCE_UNKNOWN: 404,
    Reason.SESSION_UNKNOWN: 401,
    Reason.STATE_FORK: 409,
    Reason.STATE_IN_USE: 409,
    Reason.TEE_TYPE: 401,
}
# 4.4: kind and detail, in our own words; nothing of what was sent comes back.
_WORDS: Final = {
    400: ("BadRequest", "not a message of this protocol"),
    401: ("Unauthorized", "attest first, in version 0.4.0, with evidence that is accepted"),
    403: ("PolicyDeny", "what the owners signed does not allow it"),
    404: ("ResourceNotFound", "no such resource"),
    409: ("Conflict", "somebody else was first"),
    413: ("PayloadTooLarge", "more than is read"),
    503: ("Unavailable", "not now; come again"),
}


def with_receipt(response: Response, receipt: Envelope) -> Response:
    """Return `response` with the receipt in its header (5.4)."""
    response.headers[RECEIPT_HEADER] = encode_inline(receipt)
    return response


def refused(error: ConfideError, *, rejected: int = 403) -> Response:
    """
    Return the answer to a refusal or a failure; `rejected` is the status of what is not believed.

    A failure of an edge, of the store too, names no reason: it says nothing about whoever asked.
    """
    reason: Reason | None = None
    status = 503
    if isinstance(error, FormatError) and error.reason is not Reason.VAULT_FORMAT:
        reason, status = error.reason, _STATUS.get(error.reason, 400)
    elif isinstance(error, Unsupported):
        reason, status = Reason.TEE_TYPE, 401
    elif isinstance(error, Rejected):
        reason, status = error.reason, _STATUS.get(error.reason, rejected)
    elif isinstance(error, RemoteProtocolError):
        reason, status = error.reason, 400
    kind, detail = _WORDS[status]
    body = KbsError(kind, detail, "" if reason is None else reason.value).encode()
    headers = _NEVER_KEPT | ({"retry-after": "1"} if status == 503 else {})
    response = Response(body, status_code=status, media_type=_JSON, headers=headers)
    if isinstance(error, ReceiptedRefusal):
        return with_receipt(response, error.receipt)
    return response


def attested_of(service: BrokerService, request: Request) -> Attested:
    """Return the session that `request` names (4.2, 1). Raises `ReleaseRefused`."""
    given = request.headers.get("authorization", "")
    bearer = given[: len(_BEARER)].lower() == _BEARER
    token = given[len(_BEARER) :].strip() if bearer else None
    return service.attested(cookie=request.cookies.get(SESSION_COOKIE), token=token)


@dataclass(slots=True)
class _Routes:
    service: BrokerService
    report: Callable[[str], None]
    malformed: int = 0

    async def info(self, _request: Request) -> Response:
        try:
            body, signature = await asyncio.to_thread(self.service.info)
        except ConfideError as error:
            return self._no(error)
        headers = {SIGNATURE_HEADER: b64encode(signature), "cache-control": "no-cache"}
        return Response(body, media_type=_JSON, headers=headers)

    async def auth(self, request: Request) -> Response:
        try:
            async with self.service.gate.body(request, max_bytes=_MAX_REQUEST_BYTES) as raw:
                body, cookie = self.service.challenge(raw)
        except ConfideError as error:
            return self._no(error)
        response = _answer(body)
        response.set_cookie(SESSION_COOKIE, cookie, path="/", httponly=True, samesite="strict")
        return response

    async def attest(self, request: Request) -> Response:
        try:
            issued = self.service.challenged(request.cookies.get(SESSION_COOKIE, ""))
            async with self.service.gate.body(request, max_bytes=MAX_ATTESTATION_BYTES) as raw:
                return _answer(encode_token(await self.service.attest(issued, raw)))
        except ConfideError as error:
            return self._no(error, rejected=401)

    async def resource(self, request: Request) -> Response:
        try:
            attested = attested_of(self.service, request)
            released = await self.service.resource(attested, request.path_params["name"])
        except ConfideError as error:
            return self._no(error)
        return with_receipt(_answer(released.body), released.receipt)

    async def statements(self, request: Request) -> Response:
        try:
            async with self.service.gate.body(request, max_bytes=_MAX_STATEMENT_BYTES) as raw:
                return _answer(jcs(await self.service.holdings.take(raw)))
        except ConfideError as error:
            return self._no(error)

    def _no(self, error: ConfideError, *, rejected: int = 403) -> Response:
        response = refused(error, rejected=rejected)
        if response.status_code in (400, 413):
            # 5.3: bytes that are no message are counted. One line for 1, 10, 100, …
            self.malformed += 1
            if str(self.malformed).strip("0") == "1":
                self.report(f"refused {self.malformed} message(s) that are none")
        return response


def _answer(body: bytes) -> Response:
    return Response(body, media_type=_JSON, headers=_NEVER_KEPT)


def broker_app(
    service: BrokerService,
    *,
    states: Sequence[Route] = (),
    report: Callable[[str], None] = lambda _line: None,
) -> ASGIApp:
    """
    Return the application of one broker.

    `states` are the routes of sealed states. `report` gets a line where messages are refused that
    are none.
    """
    routes = _Routes(service, report)
    return Starlette(
        routes=[
            Route(INFO_PATH, routes.info, methods=["GET"]),
            Route("/kbs/v0/auth", routes.auth, methods=["POST"]),
            Route("/kbs/v0/attest", routes.attest, methods=["POST"]),
            Route("/kbs/v0/resource/{name:path}", routes.resource, methods=["GET"]),
            Route(STATEMENTS_PATH, routes.statements, methods=["POST"]),
            *states,
        ],
        exception_handlers={ClientDisconnect: _gone},
    )


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)
