"""Asking vendors' services: attempts with random waits, one request for many, the cache.

Clauses: docs/protocols/fetching.md#5 to #9. A service's own module says what to ask and reads the
answer; its reader also says how long the answer holds. Every failure is `Unavailable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from confide.adapters.bounded_http import (
    Exchange,
    FetchLimits,
    Received,
    TryAgain,
    exchange,
    plain_url,
)
from confide.adapters.endorsement_cache import NoCache, StoredAnswer
from confide.errors import FormatError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping

    import httpx2

    from confide.adapters.endorsement_cache import DiskCache
    from confide.ports import Clock, Entropy, Sleeper

__all__ = [
    "Answer",
    "Ask",
    "EndorsementFetcher",
    "EndorsementsUnavailable",
    "FetchLimits",
    "NotThere",
    "ReadAnswer",
    "Retry",
    "SystemSleeper",
    "TryAgain",
    "all_of",
    "both_of",
    "plain_url",
]

Value = TypeVar("Value")
First = TypeVar("First")
Second = TypeVar("Second")
# From: docs/protocols/fetching.md#7: more lines help nobody.
_MAX_TOLD: Final = 4
_JITTER_BYTES: Final = 4
# From: docs/protocols/fetching.md#5: AMD's service counts requests over several seconds.
_LIMITED_FACTOR: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """
    One thing to ask a service for.

    `service`, `what` and `advice` make the message when there is none: `service` names the host's
    role, `what` the thing and its id, `advice` what to do. `headers` are the answer's headers that
    the reader needs, in lower case. `keep` bounds the cache, None for never. `question` tells two
    requests to one URL apart where their bodies do not (a nonce).
    """

    service: str
    what: str
    advice: str
    request: Exchange
    headers: tuple[str, ...] = ()
    keep: timedelta | None = None
    question: str = ""

    @property
    def key(self) -> str:
        """What makes two requests the same."""
        question = self.question or self.request.body.hex()
        return f"{self.request.method} {self.request.url} {question}"

    def failed(self, why: str) -> Unavailable:
        """Return the error that says so."""
        return Unavailable(f"{self.service}: no {self.what}: {why}. {self.advice}")


@dataclass(frozen=True, slots=True)
class Answer:
    """
    The body of an answer with status 200, and the headers that were asked for.

    `live` is False for one out of the cache.
    """

    body: bytes = field(repr=False)
    headers: Mapping[str, str]
    live: bool


# Returns the value and until when it holds (None: it does not say, and is not kept). Raises
# `FormatError` for what is not the thing asked for, `TryAgain` for "ask me later".
ReadAnswer: TypeAlias = Callable[[Answer], tuple[Value, "datetime | None"]]


class EndorsementsUnavailable(Unavailable):
    """Several things could not be had; `failures` holds one message for each."""

    def __init__(self, failures: tuple[str, ...]) -> None:
        self.failures = failures
        told = " | ".join(failures[:_MAX_TOLD])
        more = len(failures) - _MAX_TOLD
        super().__init__(f"{told} (and {more} more)" if more > 0 else told)


class NotThere(Unavailable):
    """The service answered, and does not know the thing (status 404)."""


class SystemSleeper:
    """The `Sleeper` port on the event loop."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)


class Retry:
    """The wait between two attempts; docs/protocols/fetching.md#5."""

    def __init__(
        self, limits: FetchLimits, *, clock: Clock, entropy: Entropy, sleeper: Sleeper | None
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._entropy = entropy
        self._sleeper = sleeper or SystemSleeper()

    async def wait(
        self, attempt: int, again: TryAgain, failed: Callable[[str], Unavailable]
    ) -> None:
        """
        Wait after the failure of `attempt` (from 0).

        Raises what `failed` makes of the cause where it was the last one, or the service wants to
        be left alone for longer than is waited.
        """
        limits = self._limits
        asked = _retry_after(again.retry_after, self._clock.now())
        if asked > limits.max_retry_after_seconds:
            raise failed(f"{again.why}; it wants to be asked again in {asked:.0f} s") from again
        if attempt + 1 >= limits.attempts:
            raise failed(f"{again.why}, {limits.attempts} times") from again
        share = int.from_bytes(self._entropy.token(_JITTER_BYTES), "big") / (1 << 32)
        first = limits.first_wait_seconds * (_LIMITED_FACTOR if again.limited else 1)
        wait = first * 2**attempt * (0.5 + share / 2)
        await self._sleeper.sleep(max(wait, asked))


async def all_of(jobs: Iterable[Awaitable[Value]]) -> list[Value]:
    """
    Await `jobs` side by side and return their values in order.

    Raises `EndorsementsUnavailable` with every distinct failure after all have ended.
    """
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    values: list[Value] = []
    failures: dict[str, None] = {}
    for outcome in outcomes:
        if isinstance(outcome, EndorsementsUnavailable):
            failures.update(dict.fromkeys(outcome.failures))
        elif isinstance(outcome, Unavailable):
            failures[str(outcome)] = None
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            values.append(outcome)
    if failures:
        raise EndorsementsUnavailable(tuple(failures))
    return values


async def both_of(first: Awaitable[First], second: Awaitable[Second]) -> tuple[First, Second]:
    """Await two jobs of different kinds as `all_of` does."""
    jobs: tuple[Awaitable[Any], Awaitable[Any]] = (first, second)
    one, other = await all_of(jobs)
    return one, other


@dataclass(slots=True)
class _Flight:
    """One request under way, and how many wait for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    value: Any = None
    failure: Unavailable | None = None
    done: bool = False


class EndorsementFetcher:
    """
    Fetches endorsements for the services' modules.

    `fresh` leaves the cache unread; what is fetched is stored all the same.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        *,
        clock: Clock,
        entropy: Entropy,
        sleeper: Sleeper | None = None,
        cache: DiskCache | NoCache | None = None,
        limits: FetchLimits | None = None,
        fresh: bool = False,
    ) -> None:
        self._http = http
        self._clock = clock
        self._entropy = entropy
        self._cache = cache or NoCache()
        self._limits = limits or FetchLimits()
        self._retry = Retry(self._limits, clock=clock, entropy=entropy, sleeper=sleeper)
        self._fresh = fresh
        self._flights: dict[str, _Flight] = {}
        self._slots = asyncio.Semaphore(self._limits.concurrent)

    def token(self, size: int) -> bytes:
        """Return `size` random bytes, for nonces inside questions."""
        return self._entropy.token(size)

    async def fetch(self, ask: Ask, read: ReadAnswer[Value]) -> Value:
        """
        Return what `read` makes of the answer to `ask`: from the cache, or fetched.

        Raises `Unavailable`.
        """
        async with self._flight(ask.key) as flight:
            if not flight.done:
                try:
                    flight.value = await self._fetch(ask, read)
                except Unavailable as error:
                    flight.failure = error
                flight.done = True
            if flight.failure is not None:
                raise type(flight.failure)(str(flight.failure)) from flight.failure
            value: Value = flight.value
            return value

    @asynccontextmanager
    async def _flight(self, key: str) -> AsyncIterator[_Flight]:
        flight = self._flights.setdefault(key, _Flight())
        flight.users += 1
        try:
            async with flight.lock:
                yield flight
        finally:
            flight.users -= 1
            if flight.users == 0:
                self._flights.pop(key, None)

    async def _fetch(self, ask: Ask, read: ReadAnswer[Value]) -> Value:
        kept = await self._kept(ask, read)
        if kept is not None:
            return kept[0]
        for attempt in range(self._limits.attempts):
            try:
                answer = await self._ask(ask)
                value, until = read(answer)
            except TryAgain as again:
                await self._retry.wait(attempt, again, ask.failed)
            except FormatError as error:
                raise ask.failed(f"the answer is something else ({error.what})") from error
            else:
                await self._keep(ask, answer, until)
                return value
        raise ask.failed("it was asked in vain")

    async def _ask(self, ask: Ask) -> Answer:
        try:
            async with self._slots:
                received = await exchange(self._http, ask.request, limits=self._limits)
        except Unavailable as error:
            raise ask.failed(str(error)) from error
        _require_answer(ask, received)
        headers = {name: received.headers.get(name, "") for name in ask.headers}
        return Answer(received.body, headers, live=True)

    async def _kept(self, ask: Ask, read: ReadAnswer[Value]) -> tuple[Value] | None:
        if ask.keep is None or self._fresh:
            return None
        stored = await asyncio.to_thread(self._cache.get, ask.key)
        if stored is None:
            return None
        now = self._clock.now()
        with_headers = set(ask.headers) <= set(stored.headers)
        if with_headers and stored.fetched <= now < stored.fetched + ask.keep:
            try:
                value, until = read(Answer(stored.body, stored.headers, live=False))
            except (FormatError, TryAgain):
                until = None
            if until is not None and now < until:
                return (value,)
        await asyncio.to_thread(self._cache.drop, ask.key)
        return None

    async def _keep(self, ask: Ask, answer: Answer, until: datetime | None) -> None:
        # Times are stored to the second; what is fetched is never older than it says.
        now = self._clock.now().replace(microsecond=0)
        if ask.keep is None or until is None or until <= now:
            return
        stored = StoredAnswer(answer.body, answer.headers, now)
        await asyncio.to_thread(self._cache.put, ask.key, stored)


def _require_answer(ask: Ask, received: Received) -> None:
    if received.status == 404:
        raise NotThere(str(ask.failed("the service does not know it (status 404)")))
    if received.status != 200:
        raise ask.failed(f"status {received.status}")
    if received.headers.get("content-type", "").lower().startswith("text/html"):
        raise ask.failed("a web page came instead")


def _retry_after(text: str | None, now: datetime) -> float:
    """Return the seconds that Retry-After (RFC 9110 §10.2.3) asks for, 0 where it says nothing."""
    if text is None:
        return 0.0
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
