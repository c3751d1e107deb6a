"""Several engines that serve one model, or one: least loaded, watched, bounded.

The `Upstream` port over a few `HttpUpstream`: docs/protocols/inference.md §9. What an engine says
of itself keeps a mistake out of a pool; which weights answer is proven elsewhere (weights.md).
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from confide.adapters.upstream_http import EngineLost, HttpUpstream
from confide.errors import ConfigurationError, Overloaded, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from types import TracebackType

    from confide.adapters.upstream_http import HttpUpstreamResponse, UpstreamConfig
    from confide.inference.plan import EngineRoutes
    from confide.wire.json import JsonValue

__all__ = ["EnginePool", "PoolLimits"]

# The engine has not taken the work: §9.5.
_NOT_TAKEN = (429, 503)
# Calls in a row after which an engine is asked at once whether it is well: §9.3.
_SUSPICIOUS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """Bounds of §9.3 and §9.4: calls in progress for each engine, calls that wait for any."""

    max_active: int = 64
    max_waiting: int = 256
    wait_seconds: float = 10.0
    check_seconds: float = 5.0
    first_back_off_seconds: float = 1.0
    max_back_off_seconds: float = 30.0


class _Member:
    """One engine and what is known of it now."""

    def __init__(self, index: int, upstream: HttpUpstream) -> None:
        self.index = index
        self.upstream = upstream
        self.active = 0
        self.failures = 0
        self.well = True
        self.suspected = asyncio.Event()
        self.described: Mapping[str, JsonValue] | None = None

    def tell(self, *, good: bool, reached: bool = True) -> None:
        """Take in how a call went. An engine that cannot be reached is ill at once."""
        self.failures = 0 if good else self.failures + 1
        if not reached:
            self.well = False
        if not reached or self.failures >= _SUSPICIOUS:
            self.suspected.set()


@dataclass(frozen=True, slots=True)
class _Call:
    path: str
    body: bytes
    method: str
    content_type: str
    repeatable: bool


async def _ask(member: _Member, call: _Call) -> HttpUpstreamResponse:
    try:
        response = await member.upstream.forward(
            call.path,
            call.body,
            method=call.method,
            content_type=call.content_type,
            repeatable=call.repeatable,
        )
    except EngineLost as lost:
        member.tell(good=False, reached=lost.sent)
        raise
    except Unavailable:
        member.tell(good=False)
        raise
    member.tell(good=response.status < 500)
    return response


class _PooledResponse:
    """One answer, and the place in its engine that it holds until it is closed."""

    def __init__(self, pool: EnginePool, member: _Member, response: HttpUpstreamResponse) -> None:
        self._pool = pool
        self._member = member
        self._response = response
        self._open = True

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status

    @property
    def content_type(self) -> str:
        """The content type, "" where none was given."""
        return self._response.content_type

    @property
    def member(self) -> int | None:
        """Which engine of a pool answered; None where there is one."""
        return self._member.index if self._pool.size > 1 else None

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body; raises `Unavailable`."""
        return self._response.chunks()

    async def close(self) -> None:
        """Let go of the answer and of the place."""
        if self._open:
            self._open = False
            self._pool.leave(self._member)
        await self._response.close()


class EnginePool:
    """
    One or several engines that serve `model`; use as `async with EnginePool(…) as pool`.

    `probe` comes first: it starts the watch. Made and used inside one running loop.
    """

    def __init__(
        self, configs: Sequence[UpstreamConfig], *, model: str, limits: PoolLimits | None = None
    ) -> None:
        if not configs:
            raise ConfigurationError("a pool has at least one engine")
        self._model = model
        self._limits = limits or PoolLimits()
        self._members = [_Member(i, HttpUpstream(config)) for i, config in enumerate(configs)]
        self._waiting: deque[asyncio.Future[_Member | None]] = deque()
        self._watches: list[asyncio.Task[None]] = []

    @property
    def size(self) -> int:
        """How many engines there are."""
        return len(self._members)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the watch and close every connection."""
        for watch in self._watches:
            watch.cancel()
        for watch in self._watches:
            with suppress(asyncio.CancelledError):
                await watch
        for member in self._members:
            await member.upstream.close()

    async def probe(self) -> EngineRoutes:
        """
        Find out which endpoints all engines have, and that all say the same of the model (§9.1).

        Raises `Unavailable` where one does not answer, `ConfigurationError` where they differ.
        """
        routes = await self._members[0].upstream.probe()
        for member in self._members[1:]:
            routes = routes.both(await member.upstream.probe())
        if self.size > 1:
            await self._compare()
        self._watches = [asyncio.ensure_future(self._watch(member)) for member in self._members]
        return routes

    async def descriptions(self) -> tuple[bytes, ...]:
        """Return what each engine says of its own routes (OpenAPI); `Unavailable` where none."""
        found = []
        for member in self._members:
            response = await member.upstream.forward("/openapi.json", b"", method="GET")
            try:
                if response.status != 200:
                    raise Unavailable(f"engine {member.index} does not describe its routes")
                found.append(b"".join([chunk async for chunk in response.chunks()]))
            finally:
                await response.close()
        return tuple(found)

    async def forward(
        self,
        path: str,
        body: bytes,
        *,
        method: str = "POST",
        content_type: str = "application/json",
        repeatable: bool = True,
    ) -> _PooledResponse:
        """
        Send a call to the engine with the fewest in progress (§9.2), and perhaps to another (§9.5).

        Raises `Overloaded` where no engine took it, `Unavailable` when no answer comes.
        """
        call = _Call(path, body, method, content_type, repeatable)
        member = self._take() if not self._waiting else None
        if member is None:
            member = await self._wait()
        other = None
        try:
            response = await _ask(member, call)
            if response.status in _NOT_TAKEN:
                other = self._take(but=member)
        except EngineLost as lost:
            if repeatable or not lost.sent:
                other = self._take(but=member)
            self.leave(member)
            if other is None:
                raise
        except BaseException:
            self.leave(member)
            raise
        else:
            if other is None:
                return _PooledResponse(self, member, response)
            self.leave(member)
            await response.close()
        return await self._again(other, call)

    def leave(self, member: _Member) -> None:
        """Give a place back; who has waited longest goes on."""
        member.active -= 1
        self._wake()

    async def _again(self, member: _Member, call: _Call) -> _PooledResponse:
        try:
            return _PooledResponse(self, member, await _ask(member, call))
        except BaseException:
            self.leave(member)
            raise

    # --- places -----------------------------------------------------------------------------------

    def _take(self, *, but: _Member | None = None) -> _Member | None:
        """Take a place at the least loaded engine, if one is free at once."""
        free = [
            member
            for member in self._members
            if member.well and member is not but and member.active < self._limits.max_active
        ]
        taken = min(free, key=lambda member: member.active, default=None)
        if taken is not None:
            taken.active += 1
        return taken

    def _none_well(self) -> bool:
        return not any(member.well for member in self._members)

    async def _wait(self) -> _Member:
        if len(self._waiting) >= self._limits.max_waiting:
            raise Overloaded("too many calls wait", retry_after=2, status_hint=429)
        if self._none_well():
            raise Unavailable("no engine is well")
        place: asyncio.Future[_Member | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._limits.wait_seconds):
                member = await place
        except BaseException as error:
            self._give_up(place)
            if isinstance(error, TimeoutError):
                raise Overloaded("no engine became free in time", retry_after=5) from error
            raise
        if member is None:
            raise Unavailable("no engine is well")
        return member

    def _give_up(self, place: asyncio.Future[_Member | None]) -> None:
        if place in self._waiting:
            self._waiting.remove(place)
        elif place.done() and not place.cancelled() and (member := place.result()) is not None:
            # Given a place in the moment of leaving.
            self.leave(member)

    def _wake(self) -> None:
        while self._waiting:
            member = None if self._none_well() else self._take()
            if member is None and not self._none_well():
                return
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(member)
            elif member is not None:
                member.active -= 1

    # --- health -----------------------------------------------------------------------------------

    async def _compare(self) -> None:
        for member in self._members:
            try:
                member.described = await member.upstream.describe(self._model)
            except Unavailable as error:
                raise ConfigurationError(
                    f"engine {member.index} does not say which models it serves: a pool needs that"
                ) from error
            if member.described is None:
                raise ConfigurationError(f"engine {member.index} does not serve the model")
            if member.described != self._members[0].described:
                raise ConfigurationError(
                    f"engine {member.index} says other things of the model than engine 0"
                )

    async def _watch(self, member: _Member) -> None:
        limits, back_off = self._limits, self._limits.first_back_off_seconds
        while True:
            delay = limits.check_seconds if member.well else back_off
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await member.suspected.wait()
            if member.suspected.is_set() and not member.well:
                # Found ill by a call: it is given time before it is asked.
                member.suspected.clear()
                continue
            member.suspected.clear()
            well = await self._is_well(member)
            back_off = limits.first_back_off_seconds if well else back_off
            if not well and not member.well:
                back_off = min(2 * back_off, limits.max_back_off_seconds)
            member.well = well
            if well:
                member.failures = 0
            self._wake()

    async def _is_well(self, member: _Member) -> bool:
        busy = member.active > 0 and member.well
        if not await member.upstream.healthy():
            # An engine that computes may be late with this answer; its calls have limits of
            # their own, and one that cannot be reached is found out by the next call.
            return busy and member.active > 0 and member.failures < _SUSPICIOUS
        if member.well or self.size == 1:
            return True
        try:
            return await member.upstream.describe(self._model) == member.described
        except Unavailable:
            return False
