"""The log over HTTP: static tiles, and entries taken. log.md §9. ASGI; no caller is logged."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from confide.errors import ConfideError, FormatError, Unavailable
from confide.node.request_body import read_body
from confide.tlog.leaf import ENTRY_BYTES
from confide.wire.tiles import parse_tile_path

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from confide.node.log_keeper import LogKeeper
    from confide.node.log_writer import LogWriter
    from confide.ports import LogStore

__all__ = ["MAX_ENTRIES", "log_app"]

# From: log.md 9.3.
MAX_ENTRIES = 4096
_TEXT: Final = "text/plain; charset=utf-8"
# How long an entry waits for the witnesses before its answer is "durable, not yet final".
_FINAL_SECONDS: Final = 5.0
_IMMUTABLE: Final = {"cache-control": "public, max-age=31536000, immutable"}
_MUTABLE: Final = {"cache-control": "no-cache"}


class _LogRoutes:
    def __init__(
        self, keeper: LogKeeper, writer: LogWriter, store: LogStore, *, final_seconds: float
    ) -> None:
        self._keeper = keeper
        self._writer = writer
        self._store = store
        self._final_seconds = final_seconds

    async def checkpoint(self, _request: Request) -> Response:
        published = self._writer.published
        if published is None:
            return _text(404, "no checkpoint yet\n")
        return Response(published.encode(), media_type=_TEXT, headers=_MUTABLE)

    async def tile(self, request: Request) -> Response:
        try:
            path = parse_tile_path(f"tile/{request.path_params['path']}")
        except FormatError:
            return _text(404, "no such tile\n")
        published = self._writer.published
        if published is None or not path.covered_by(published.head.size):
            return _text(404, "no such tile\n")
        try:
            raw = await asyncio.to_thread(self._store.read, str(path))
        except Unavailable:
            return _text(503, "the tile cannot be read\n")
        if raw is None:
            return _text(404, "no such tile\n")
        return Response(raw, media_type="application/octet-stream", headers=_IMMUTABLE)

    async def add(self, request: Request) -> Response:
        return await self._add(request, most=1)

    async def add_entries(self, request: Request) -> Response:
        return await self._add(request, most=MAX_ENTRIES)

    async def _add(self, request: Request, *, most: int) -> Response:
        try:
            raw = await read_body(request, max_bytes=most * ENTRY_BYTES)
        except FormatError:
            return _text(413, f"at most {most} entries of {ENTRY_BYTES} bytes\n")
        except ClientDisconnect:
            return Response(status_code=400)
        if not raw or len(raw) % ENTRY_BYTES:
            return _text(400, f"an entry has {ENTRY_BYTES} bytes\n")
        try:
            return await self._place(raw, many=most > 1)
        except ConfideError:
            return _text(503, "the log cannot take the entry now\n")

    async def _place(self, raw: bytes, *, many: bool) -> Response:
        entries = tuple(raw[at : at + ENTRY_BYTES] for at in range(0, len(raw), ENTRY_BYTES))
        first = await self._writer.add(entries)
        size = first + len(entries)
        at = await self._writer.final(size, timeout_seconds=self._final_seconds)
        status = 202 if at is None else 200
        if many:
            return _text(status, f"index {first}\ncount {len(entries)}\n")
        if at is None:
            return _text(status, f"index {first}\n")
        return Response(self._keeper.prove(first, at).encode(), media_type=_TEXT)


def log_app(
    keeper: LogKeeper,
    writer: LogWriter,
    store: LogStore,
    *,
    final_seconds: float = _FINAL_SECONDS,
) -> ASGIApp:
    """Return the application of one log."""
    routes = _LogRoutes(keeper, writer, store, final_seconds=final_seconds)
    return Starlette(
        routes=[
            Route("/checkpoint", routes.checkpoint, methods=["GET"]),
            Route("/tile/{path:path}", routes.tile, methods=["GET"]),
            Route("/add", routes.add, methods=["POST"]),
            Route("/add-entries", routes.add_entries, methods=["POST"]),
        ]
    )


def _text(status: int, text: str) -> Response:
    return Response(text, status_code=status, media_type=_TEXT)
