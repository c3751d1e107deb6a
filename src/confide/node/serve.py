"""Serving a node's application on loopback or a VM's address: one process, one worker.

Keys live in this process and die with it. Nothing about a request is logged: no access log, no
paths, no sizes. `IdleWatch` ends a node that nobody has used for a while.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["IdleWatch", "first_of", "serve"]


class IdleWatch:
    """Counts requests in progress and knows since when there were none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._active = 0
        self._since = asyncio.get_running_loop().time()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        self._active += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._active -= 1
            self._since = asyncio.get_running_loop().time()

    def idle_seconds(self) -> float:
        """Return for how long nothing has been in progress; 0 while something is."""
        return 0.0 if self._active else asyncio.get_running_loop().time() - self._since


async def serve(
    app: ASGIApp, *, host: str, port: int, idle_seconds: int | None, connections: int = 128
) -> None:
    """
    Serve `app` until SIGTERM or SIGINT, or until it was idle for `idle_seconds`.

    Of more than `connections` at once the rest wait until others close.
    The caller releases what the application holds.
    """
    watch = IdleWatch(app)
    server = Server(
        watch,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
        backlog=connections,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    serving = asyncio.ensure_future(server.serve())
    waiting = asyncio.ensure_future(stopping.wait())
    idle = asyncio.ensure_future(_until_idle(watch, idle_seconds))
    await asyncio.wait({serving, waiting, idle}, return_when=asyncio.FIRST_COMPLETED)
    for task in (waiting, idle):
        task.cancel()
    server.stop()  # type: ignore[no-untyped-call]
    with suppress(TimeoutError):
        await asyncio.wait_for(serving, timeout=5)


async def _until_idle(watch: IdleWatch, limit: int | None) -> None:
    if limit is None:
        await asyncio.Event().wait()
        return
    while (left := limit - watch.idle_seconds()) > 0:  # noqa: ASYNC110 - as long as idleness can take
        await asyncio.sleep(left)


async def first_of(*tasks: asyncio.Task[None]) -> None:
    """Return or raise as the first of `tasks` does; the others are cancelled and waited for."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
