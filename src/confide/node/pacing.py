"""Who holds the buckets of keys: this process or, of several workers, the one above them.

docs/protocols/tenancy.md §3.1 and §3.2, docs/protocols/workers.md §2.6. A worker asks for each call
of a key that has a rate or a number of calls at once; without an answer the call is refused.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from confide.errors import Reason, Unavailable
from confide.node.worker_link import Ask
from confide.tenancy.keys import Limits
from confide.tenancy.limits import Held, Pace, Rates, Taken
from confide.wire.json import Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.node.worker_link import WorkerLink

__all__ = ["DistantPace", "OwnPace", "Paced", "Pacer", "SharedPace"]

# From: docs/protocols/tenancy.md §4.3: whoever waits for accounts waits no longer.
_ASK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Paced:
    """Whether a call may go on; one that may calls `leave` at its end, once."""

    taken: Taken
    leave: Callable[[], None]


class Pacer(Protocol):
    """Holds the rate and the calls at once of each key."""

    async def take(self, key_id: str, limits: Limits) -> Paced:
        """Begin a call of this key. Raises `Unavailable` where nobody can say."""
        ...


class OwnPace:
    """The buckets of one process that is the node."""

    def __init__(self) -> None:
        self._rates = Rates()

    async def take(self, key_id: str, limits: Limits) -> Paced:
        """Begin a call of this key, or say what holds it."""
        taken = self._rates.take(key_id, limits, asyncio.get_running_loop().time())
        return Paced(taken, lambda: self._rates.release(key_id))


class SharedPace:
    """
    The buckets of all workers of a node, in the process above them.

    A call has a number of its worker's, so that it ends once, and with its worker at the latest.
    """

    def __init__(self) -> None:
        self._rates = Rates()
        self._calls: dict[int, dict[int, str]] = {}

    def take(self, worker: int, payload: bytes, seconds: float) -> bytes:
        """Answer `Ask.PACE` of `worker`. Raises `FormatError`."""
        asked = _members(payload)
        limits = Limits(rate=_limit(asked, "rate"), concurrency=_limit(asked, "concurrency"))
        key_id, number = asked.text("key"), asked.integer("call")
        taken = self._rates.take(key_id, limits, seconds)
        if taken.held is None:
            self._calls.setdefault(worker, {})[number] = key_id
        return _encode(taken)

    def leave(self, worker: int, payload: bytes) -> bytes:
        """Answer `Ask.LEAVE`: end a call of `worker`; nothing where it was held, or has ended."""
        key_id = self._calls.get(worker, {}).pop(_members(payload).integer("call"), None)
        if key_id is not None:
            self._rates.release(key_id)
        return b""

    def end(self, worker: int) -> None:
        """End every call of a worker that ended."""
        for key_id in self._calls.pop(worker, {}).values():
            self._rates.release(key_id)


class DistantPace:
    """The same as a worker sees it, over `link`. Keys without such limits are not asked about."""

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        self._number = 0

    async def take(self, key_id: str, limits: Limits) -> Paced:
        """Begin a call of this key, or say what holds it. Raises `Unavailable`."""
        if limits.rate is None and limits.concurrency is None:
            return Paced(Taken(None), lambda: None)
        self._number += 1
        number = self._number
        asked = {
            "call": number,
            "key": key_id,
            "rate": limits.rate,
            "concurrency": limits.concurrency,
        }
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                answer = await self._link.ask(Ask.PACE, jcs(dict(asked)))
        except TimeoutError as error:
            self._leave(number)
            raise Unavailable("the process that holds the rates does not answer") from error
        except asyncio.CancelledError:
            # It may have been let in all the same.
            self._leave(number)
            raise
        return Paced(_parse(answer, limits.rate), lambda: self._leave(number))

    def _leave(self, number: int) -> None:
        # Where the parent is gone, so are its counts.
        with suppress(Unavailable):
            self._link.tell(Ask.LEAVE, jcs({"call": number}))


def _encode(taken: Taken) -> bytes:
    pace = taken.pace
    return jcs(
        {
            "held": None if taken.held is None else taken.held.value,
            "retry": taken.retry_seconds,
            "left": 0 if pace is None else pace.left,
            "reset": 0.0 if pace is None else pace.reset_seconds,
        }
    )


def _parse(raw: bytes, rate: int | None) -> Taken:
    told = _members(raw)
    held = None if told.null("held") else Held(told.choice("held", tuple(Held)))
    pace = None if rate is None else Pace(rate, told.integer("left"), told.number("reset"))
    return Taken(held, told.integer("retry"), pace)


def _limit(asked: Members, name: str) -> int | None:
    return None if asked.null(name) else asked.integer(name)


def _members(raw: bytes) -> Members:
    value = parse_json(raw, what="pace", reason=Reason.STATEMENT_MISMATCH)
    return Members(value, what="pace", reason=Reason.STATEMENT_MISMATCH)
