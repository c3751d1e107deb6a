"""Serving a node's application on loopback or a VM's address: one process, one worker.

Keys live in this process and die with it. Nothing about a request is logged: no access log, no
paths, no sizes. `IdleWatch` ends a node that nobody has used for a while. What strangers can hold
open is bounded: connections, the size and the time of a head, the time of a body.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from confide.adapters.crash import say_crash
from confide.errors import ConfideError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from confide.node.tls_port import TlsPort

__all__ = ["IdleWatch", "Service", "first_of", "serve"]

# A head of a sealed request is below 1 KiB. Hyper answers 431 above, and closes after the time.
_HEAD_MILLISECONDS = 10_000
_HEAD_BYTES = 128 * 1024
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """
    How an application ends, and how long it waits for a request.

    `drain` is called on a signal to stop; calls in progress then have `drain_seconds`. A request
    whose body is not whole after `receive_seconds` looks like one whose caller left. `tls` is a
    second port for the same application. While `busy`, the application has work of its own: it is
    not idle then, and not at its end.
    """

    drain: Callable[[], None] | None = None
    drain_seconds: float = 30.0
    receive_seconds: float | None = None
    tls: TlsPort | None = None
    busy: Callable[[], bool] = field(default=lambda: False)


class _Told:
    """Says where an application broke, unforeseen; the server cuts the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except (ConfideError, OSError):
            # Foreseen: how an application tells of a caller that broke off.
            raise
        except Exception as error:
            say_crash(error)
            raise


class _Patience:
    """Ends the wait for a body: docs/protocols/inference.md §2.8."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._seconds
        whole = False

        async def timed() -> Message:
            nonlocal whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                return {"type": "http.disconnect"}
            whole = not message.get("more_body", False)
            return message

        await self._app(scope, timed, send)


class IdleWatch:
    """Counts requests in progress and knows since when there were none."""

    def __init__(self, app: ASGIApp, busy: Callable[[], bool] = lambda: False) -> None:
        self._app = app
        self._busy = busy
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

    async def quiet(self, seconds: float) -> None:
        """Return when nothing is in progress, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._active or self._busy():  # noqa: ASYNC110 - once in the life of a node
                    await asyncio.sleep(_POLL_SECONDS)

    def idle_seconds(self) -> float:
        """Return for how long nothing has been in progress; 0 while something is."""
        now = asyncio.get_running_loop().time()
        if self._active or self._busy():
            self._since = now
        return now - self._since


async def serve(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    idle_seconds: int | None,
    connections: int = 128,
    service: Service | None = None,
) -> None:
    """
    Serve `app` until SIGTERM or SIGINT, or until it was idle for `idle_seconds`.

    Of more than `connections` at once the rest wait until others close. `service` says how it ends.
    The caller releases what the application holds.
    """
    service = service or Service()
    app = _Told(app)
    if service.receive_seconds is not None:
        app = _Patience(app, service.receive_seconds)
    watch = IdleWatch(app, service.busy)
    with ExitStack() as stack:
        servers = [Server(watch, address=host, port=port, **_settings(connections))]
        if service.tls is not None:
            secured = service.tls.server(watch, host, _settings(connections))
            servers.append(stack.enter_context(secured))
        await _run(servers, watch, service, idle_seconds)


async def _run(
    servers: list[Server], watch: IdleWatch, service: Service, idle_seconds: int | None
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    serving = asyncio.ensure_future(_serve_all(servers))
    waiting = asyncio.ensure_future(stopping.wait())
    idle = asyncio.ensure_future(_until_idle(watch, idle_seconds))
    await asyncio.wait({serving, waiting, idle}, return_when=asyncio.FIRST_COMPLETED)
    for task in (waiting, idle):
        task.cancel()
    if service.drain is not None and stopping.is_set():
        service.drain()
        await watch.quiet(service.drain_seconds)
    for server in servers:
        server.stop()  # type: ignore[no-untyped-call]
    with suppress(TimeoutError):
        await asyncio.wait_for(serving, timeout=5)


async def _serve_all(servers: list[Server]) -> None:
    await asyncio.gather(*(server.serve() for server in servers))


def _settings(connections: int) -> dict[str, Any]:
    return {
        "interface": Interfaces.ASGINL,
        "http": HTTPModes.http1,
        "http1_settings": HTTP1Settings(
            header_read_timeout=_HEAD_MILLISECONDS, max_buffer_size=_HEAD_BYTES
        ),
        "websockets": False,
        "log_enabled": False,
        "backlog": connections,
    }


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
