"""The store of keys and usage for several workers: the process above them alone has it open.

docs/protocols/workers.md §2.6. A worker sends what it would do in one transaction; what comes of
several while one is under way goes into the next, so that a commit serves all of them.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from confide.errors import Reason, Unavailable
from confide.node.worker_link import Ask
from confide.tenancy.budget import Charge
from confide.tenancy.keys import Budget, KeyRecord, Limits, Period
from confide.tenancy.ledger import Find, Reserve, Settle, Spent
from confide.wire.json import Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.node.worker_link import WorkerLink
    from confide.ports import TenantStore
    from confide.tenancy.ledger import Operation, Outcome
    from confide.wire.json import JsonValue

__all__ = ["DistantStore", "SharedStore"]

_MAX_OPERATIONS = 4096


class SharedStore:
    """
    `store`, for whoever asks in this event loop. `at_work` is held while its thread is at work.

    What one asks for is done in one transaction, whole or not at all.
    """

    def __init__(self, store: TenantStore, at_work: asyncio.Lock) -> None:
        self._store = store
        self._at_work = at_work
        self._waiting: list[tuple[list[Operation], asyncio.Future[list[Outcome]]]] = []
        self._running: asyncio.Task[None] | None = None

    async def answer(self, payload: bytes) -> bytes:
        """Answer `Ask.LEDGER`. Raises `FormatError`, and what the store raises."""
        asked = _members(payload).items("asked", max_items=_MAX_OPERATIONS)
        outcomes = await self.work([_operation(_object(each)) for each in asked])
        return jcs({"told": [_told(outcome) for outcome in outcomes]})

    async def work(self, operations: list[Operation]) -> list[Outcome]:
        """Do `operations`, in the next transaction there is."""
        done: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._waiting.append((operations, done))
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._run())
        return await done

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            together = [operation for operations, _ in batch for operation in operations]
            try:
                async with self._at_work:
                    outcomes = await asyncio.to_thread(self._store.work, together)
            except Exception as error:  # noqa: BLE001 - whatever it was, nothing is answered from it
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for operations, done in batch:
                own, outcomes = outcomes[: len(operations)], outcomes[len(operations) :]
                if not done.done():
                    done.set_result(own)


class DistantStore:
    """The same as a worker sees it, over `link`."""

    def __init__(self, link: WorkerLink) -> None:
        self._link = link

    async def work(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Have all `operations` done in one transaction, or none. Raises `Unavailable`."""
        asked = jcs({"asked": [_asked(operation) for operation in operations]})
        told = _members(await self._link.ask(Ask.LEDGER, asked))
        outcomes = [_outcome(each) for each in told.items("told", max_items=_MAX_OPERATIONS)]
        if len(outcomes) != len(operations):
            raise Unavailable("the process that has the ledger answered something else")
        return outcomes


# --- what is said over the link -------------------------------------------------------------------


def _asked(operation: Operation) -> JsonValue:
    if isinstance(operation, Find):
        return {"do": "find", "digest": operation.digest.hex()}
    if isinstance(operation, Reserve):
        return {
            "do": "reserve",
            "reservation": operation.reservation,
            "key": operation.key_id,
            "endpoint": operation.endpoint,
            "period": _seconds(operation.period),
            "budget": operation.budget,
            "tokens": operation.tokens,
        }
    return {
        "do": "settle",
        "reservation": operation.reservation,
        "key": operation.key_id,
        "endpoint": operation.endpoint,
        "hour": _seconds(operation.hour),
        "read": operation.charge.input_tokens,
        "written": operation.charge.output_tokens,
        "estimated": operation.charge.estimated,
        "failed": operation.failed,
        "cancelled": operation.cancelled,
    }


def _operation(asked: Members) -> Operation:
    do = asked.choice("do", ("find", "reserve", "settle"))
    if do == "find":
        return Find(asked.hexes("digest", 32))
    reservation, key_id = asked.text("reservation"), asked.text("key")
    endpoint = asked.text("endpoint")
    if do == "reserve":
        return Reserve(
            reservation=reservation,
            key_id=key_id,
            endpoint=endpoint,
            period=_moment(asked, "period"),
            budget=_whole(asked, "budget"),
            tokens=asked.integer("tokens"),
        )
    return Settle(
        reservation=reservation,
        key_id=key_id,
        hour=_moment(asked, "hour"),
        endpoint=endpoint,
        charge=Charge(
            asked.integer("read"), asked.integer("written"), estimated=asked.boolean("estimated")
        ),
        failed=asked.boolean("failed"),
        cancelled=asked.boolean("cancelled"),
    )


def _told(outcome: Outcome) -> JsonValue:
    if outcome is None:
        return None
    if isinstance(outcome, Spent):
        return {"is": "spent", "granted": outcome.granted, "tokens": outcome.tokens}
    limits = outcome.limits
    return {
        "is": "key",
        "id": outcome.id,
        "digest": outcome.digest.hex(),
        "tenant": outcome.tenant,
        "created": _seconds(outcome.created),
        "expires": None if outcome.expires is None else _seconds(outcome.expires),
        "revoked": None if outcome.revoked is None else _seconds(outcome.revoked),
        "models": list(outcome.models),
        "endpoints": list(outcome.endpoints),
        "rate": limits.rate,
        "concurrency": limits.concurrency,
        "budget": None if limits.budget is None else limits.budget.tokens,
        "period": None if limits.budget is None else limits.budget.period.value,
    }


def _outcome(value: JsonValue) -> Outcome:
    if value is None:
        return None
    told = _object(value)
    if told.choice("is", ("spent", "key")) == "spent":
        return Spent(told.boolean("granted"), told.integer("tokens"))
    tokens, budget = _whole(told, "budget"), None
    if tokens is not None:
        budget = Budget(tokens, told.choice("period", tuple(Period)))
    return KeyRecord(
        id=told.text("id"),
        digest=told.hexes("digest", 32),
        tenant=told.text("tenant"),
        created=_moment(told, "created"),
        expires=None if told.null("expires") else _moment(told, "expires"),
        revoked=None if told.null("revoked") else _moment(told, "revoked"),
        models=told.texts("models"),
        endpoints=told.texts("endpoints"),
        limits=Limits(_whole(told, "rate"), _whole(told, "concurrency"), budget),
    )


def _seconds(moment: datetime) -> int:
    # The store holds whole seconds.
    return int(moment.timestamp())


def _moment(members: Members, name: str) -> datetime:
    return datetime.fromtimestamp(members.integer(name), UTC)


def _whole(members: Members, name: str) -> int | None:
    return None if members.null(name) else members.integer(name)


def _members(raw: bytes) -> Members:
    return _object(parse_json(raw, what="ledger", reason=Reason.STATEMENT_MISMATCH))


def _object(value: JsonValue) -> Members:
    return Members(value, what="ledger", reason=Reason.STATEMENT_MISMATCH)
