"""The four routes of sealed states over HTTP. state.md §4. ASGI; no caller is logged.

Who may ask, how answers are sealed and what is logged is the caller's to give, as one function: it
has to decide each request anew (broker.md 4.2) and to log a decision before `finish` returns.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Final, Literal, TypeAlias

from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from confide.broker.names import STATE, parse_resource
from confide.broker.state_wire import (
    LEASE_HEADER,
    MAX_CLOSE_BYTES,
    MAX_SAVE_BYTES,
)
from confide.errors import ConfideError, FormatError, Reason, ReleaseRefused
from confide.receipts.inline import RECEIPT_HEADER, encode_inline
from confide.wire.json import is_hex, jcs
from confide.wire.kbs import KBS_ERRORS
from confide.wire.release_receipt import StateStep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request

    from confide.node.broker_state import StateDesk
    from confide.wire.dsse import Envelope

__all__ = ["Authorise", "Authorised", "state_problem", "state_routes"]

_STATUS: Final[Mapping[Reason, int]] = {
    Reason.BROKER_FORMAT: 400,
    Reason.SESSION_UNKNOWN: 401,
    Reason.RESOURCE_UNKNOWN: 404,
    Reason.STATE_IN_USE: 409,
    Reason.STATE_FORK: 409,
    Reason.STATE_ROLLBACK: 409,
    Reason.LIMIT_EXCEEDED: 413,
    Reason.VAULT_FORMAT: 503,
}
_JSON: Final = "application/json"
_BYTES: Final = "application/octet-stream"
# Bodies on their way: each may lie in a file of 65 MiB. More are told to come again.
_SAVES_AT_ONCE: Final = 8
_BODY_SECONDS: Final = 300.0
_SPOOL_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Authorised:
    """
    A session that may open one state, and what is done with the answer.

    `session` names it, up to 64 bytes; `wall_seconds` is of its Expectation. `wrap` seals an answer
    to the key of the session. `finish(body_sha256, step)` makes the receipt of a decision whose
    answer has that body, keeps it and logs it as broker.md 5.3 says, and returns it: nothing is
    answered before. `step` is that of state.md 4.6.
    """

    session: bytes
    wall_seconds: int
    wrap: Callable[[bytes], bytes]
    finish: Callable[[bytes, StateStep], Awaitable[Envelope]]


# A `Response` is a refusal that is answered as it is. A `ConfideError` is answered by its reason.
Authorise: TypeAlias = Callable[["Request", str], Awaitable[Authorised | Response]]


def state_routes(desk: StateDesk, authorise: Authorise) -> list[Route]:
    """Return the routes of 4.1 and 4.2."""
    routes = _StateRoutes(desk, authorise)
    path = "/confide/v1/state/{repository}/state/{tag}"
    return [
        Route(f"{path}/open", routes.open, methods=["POST"]),
        Route(f"{path}/blob", routes.blob, methods=["GET"]),
        Route(f"{path}/save", routes.save, methods=["POST"]),
        Route(f"{path}/close", routes.close, methods=["POST"]),
    ]


def state_problem(error: ConfideError) -> tuple[int, bytes]:
    """Return status and body of the answer to `error`; never a word of anybody else's (4.4)."""
    reason = getattr(error, "reason", None)
    status = _STATUS.get(reason, 403) if isinstance(reason, Reason) else 503
    if isinstance(error, ReleaseRefused):
        detail = error.failures[0].detail
    elif isinstance(error, FormatError) and status < 500:
        detail = error.what
    else:
        status, detail, reason = 503, "the broker cannot answer now", None
    kind = "".join(word.title() for word in (reason or "unavailable").split("-"))
    said = {"type": KBS_ERRORS + kind, "detail": detail, "reason": reason and str(reason)}
    return status, jcs(said)


class _StateRoutes:
    def __init__(self, desk: StateDesk, authorise: Authorise) -> None:
        self._desk = desk
        self._authorise = authorise
        self._saving = asyncio.Semaphore(_SAVES_AT_ONCE)

    async def open(self, request: Request) -> Response:
        async def work(resource: str, who: Authorised) -> Response:
            await _drain(request)
            opening = await asyncio.to_thread(
                self._desk.open, resource, session=who.session, wall_seconds=who.wall_seconds
            )
            answer = opening.answer
            try:
                step = StateStep("open", answer.counter, answer.digest)
                return await _finished(who, 200, who.wrap(answer.encode()), step)
            except BaseException:
                if opening.fresh:
                    # Nobody was told of this lease: the next one need not wait for its end.
                    with suppress(ConfideError):
                        await asyncio.to_thread(self._desk.give_back, resource, lease=answer.lease)
                raise

        return await self._answer(request, work, decides="open")

    async def blob(self, request: Request) -> Response:
        async def work(resource: str, who: Authorised) -> Response:
            blob = await asyncio.to_thread(self._desk.blob, resource, session=who.session)
            headers = {"content-length": str(blob.size), "cache-control": "no-store"}
            return StreamingResponse(_streamed(blob.pieces), media_type=_BYTES, headers=headers)

        return await self._answer(request, work)

    async def save(self, request: Request) -> Response:
        async def work(resource: str, who: Authorised) -> Response:
            if self._saving.locked():
                return _busy()
            async with self._saving:
                with SpooledTemporaryFile(_SPOOL_BYTES) as body:
                    await _spool(request, body, max_bytes=MAX_SAVE_BYTES)
                    saved = await asyncio.to_thread(
                        self._desk.save, resource, body, mac=_given_mac(request)
                    )
            step = StateStep("save", saved.counter, saved.digest)
            return await _finished(who, 200, saved.encode(), step)

        return await self._answer(request, work, decides="save")

    async def close(self, request: Request) -> Response:
        async def work(resource: str, _who: Authorised) -> Response:
            with SpooledTemporaryFile(_SPOOL_BYTES) as spool:
                await _spool(request, spool, max_bytes=MAX_CLOSE_BYTES)
                spool.seek(0)
                body = spool.read()
            await asyncio.to_thread(self._desk.close, resource, body, mac=_given_mac(request))
            return Response(jcs({}), media_type=_JSON)

        return await self._answer(request, work)

    async def _answer(
        self,
        request: Request,
        work: Callable[[str, Authorised], Awaitable[Response]],
        *,
        decides: Literal["open", "save"] | None = None,
    ) -> Response:
        try:
            params = request.path_params
            name = f"{params['repository']}/{STATE}/{params['tag']}"
            resource = str(parse_resource(name, reason=Reason.BROKER_FORMAT))
            who = await self._authorise(request, resource)
            if isinstance(who, Response):
                return who
            try:
                return await work(resource, who)
            except ReleaseRefused as refused:
                if decides is None:
                    raise
                status, body = state_problem(refused)
                return await _finished(
                    who, status, body, StateStep(decides, None, None, refused.reason.value)
                )
        except ClientDisconnect:
            return Response(status_code=400)
        except ConfideError as error:
            status, body = state_problem(error)
            return Response(body, status, media_type=_JSON, headers=_again(status))


async def _finished(who: Authorised, status: int, body: bytes, step: StateStep) -> Response:
    receipt = await who.finish(hashlib.sha256(body).digest(), step)
    headers = {RECEIPT_HEADER: encode_inline(receipt), "cache-control": "no-store"}
    return Response(body, status, media_type=_JSON, headers=headers)


def _given_mac(request: Request) -> bytes:
    given = request.headers.get(LEASE_HEADER, "")
    # One that is none is compared all the same, and is not equal.
    return bytes.fromhex(given) if is_hex(given, 32) else b""


async def _drain(request: Request) -> None:
    """Read what comes with a request that has no body of its own."""
    with SpooledTemporaryFile(_SPOOL_BYTES) as nowhere:
        await _spool(request, nowhere, max_bytes=MAX_CLOSE_BYTES)


async def _spool(request: Request, body: IO[bytes], *, max_bytes: int) -> None:
    # What lies in the file is sealed. The page cache takes it: nothing here waits for a disk.
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size > max_bytes:
                    raise FormatError(
                        f"request body: more than {max_bytes} bytes",
                        reason=Reason.LIMIT_EXCEEDED,
                        clause="docs/protocols/state.md#4.8",
                    )
                body.write(piece)
    except TimeoutError as error:
        raise FormatError(
            f"request body: not there after {_BODY_SECONDS:.0f} s",
            reason=Reason.BROKER_FORMAT,
            clause="docs/protocols/broker.md#6.1",
        ) from error


async def _streamed(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    # A state that is gone meanwhile ends short of its length, which the other end sees.
    while True:
        try:
            piece = await asyncio.to_thread(next, pieces, None)
        except ConfideError:
            return
        if piece is None:
            return
        yield piece


def _again(status: int) -> dict[str, str]:
    return {"retry-after": "1"} if status == 503 else {}


def _busy() -> Response:
    said = {"type": f"{KBS_ERRORS}Busy", "detail": "too many saves at once", "reason": None}
    return Response(jcs(said), 503, media_type=_JSON, headers=_again(503))
