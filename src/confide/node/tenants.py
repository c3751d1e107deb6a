"""Who calls the model node: found by key, held to its limits, charged for what was counted.

docs/protocols/tenancy.md §2 to §5. The key is read inside the sealed request and kept by nobody: it
is hashed, and the hash is looked up for each call, so a revoked key is worthless at the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from confide.errors import ConfideError
from confide.inference.digest import Finish
from confide.inference.salting import Salting
from confide.node.observed import facts_of
from confide.node.pacing import OwnPace
from confide.node.sealed import SCOPE_KEY
from confide.tenancy.budget import (
    Charge,
    Demand,
    EventCount,
    charge_of,
    demand_of,
    period_end,
    period_start,
)
from confide.tenancy.keys import KeyRecord, Period, Standing, parse_key
from confide.tenancy.ledger import Find, Reserve, Settle, Spent, hour_of
from confide.tenancy.refusals import (
    held,
    no_key,
    no_quota,
    out_of_scope,
    pace_headers,
    quota_headers,
    unknown_key,
    unmetered,
    worthless_key,
)
from confide.wire.faces import Way

if TYPE_CHECKING:
    from types import TracebackType

    from starlette.types import Scope

    from confide.inference.digest import InferenceRecord
    from confide.inference.plan import Endpoint, InferencePlan
    from confide.node.metering import Meter
    from confide.node.pacing import Paced, Pacer
    from confide.ports import Clock, Entropy
    from confide.tenancy.limits import Pace
    from confide.tenancy.refusals import Headers

__all__ = ["Anyone", "Call", "Caller", "KeyedTenants", "SaltSource", "Tenants"]

# From: docs/protocols/tenancy.md §2.1. None is the sealed channel.
_HEADERS_HIDDEN = frozenset({None, Way.ACI_TLS, Way.NEAR_TLS})
_MAX_KEY_BYTES = 512


@dataclass(frozen=True, slots=True)
class SaltSource:
    """The salts of this boot: a `key` that never leaves it, and where the engine takes a salt."""

    key: bytes = field(repr=False)
    endpoints: frozenset[Endpoint]

    def of(self, tenant: str) -> Salting:
        """Return how one tenant's requests are salted."""
        return Salting(self.key, tenant, self.endpoints)


class Call(Protocol):
    """One admitted call: what its answer says of limits, and how it is accounted for."""

    @property
    def headers(self) -> Headers:
        """Headers for its answer."""
        ...

    def count(self, chunk: bytes) -> None:
        """Take in bytes that came from the engine."""
        ...

    def settle(self, record: InferenceRecord) -> None:
        """Account for the call, which ended as `record` says. Once."""
        ...


class Caller(Protocol):
    """Somebody who may call; the end of the `with` block ends the call."""

    @property
    def salting(self) -> Salting | None:
        """How the engine's cache is kept apart for this caller; None where it is shared."""
        ...

    async def admit(self, plan: InferencePlan) -> Call:
        """Let `plan` be carried out; `RequestRefused` where limits stand against it."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Tenants(Protocol):
    """Whoever may call a model node."""

    async def identify(self, scope: Scope) -> Caller:
        """Return who calls; `RequestRefused` for one who may not."""
        ...


class _Uncounted:
    headers: Headers = ()

    def count(self, chunk: bytes) -> None:
        """Nobody counts."""

    def settle(self, record: InferenceRecord) -> None:
        """Nobody pays."""


@dataclass(frozen=True, slots=True)
class Anyone:
    """Whoever reaches the node may call it; with `salts`, all of them are one tenant."""

    salts: SaltSource | None = None

    async def identify(self, scope: Scope) -> Anyone:
        """Return this: nobody is asked."""
        del scope
        return self

    @property
    def salting(self) -> Salting | None:
        """The salt that callers can add their own to."""
        return None if self.salts is None else self.salts.of("")

    async def admit(self, plan: InferencePlan) -> _Uncounted:
        """Let everything through, uncounted."""
        del plan
        return _Uncounted()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held."""


class KeyedTenants:
    """
    Callers with a key of the store that `meter` asks; everybody else is refused.

    `pace` holds rates and calls at once: this process, unless another is named.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        clock: Clock,
        entropy: Entropy,
        salts: SaltSource | None = None,
        pace: Pacer | None = None,
    ) -> None:
        self._meter = meter
        self._clock = clock
        self._entropy = entropy
        self._salts = salts
        self._pace = pace or OwnPace()

    async def identify(self, scope: Scope) -> Caller:
        """
        Return who calls.

        (1) There is one key, inside the sealed channel, and it is spelled like one. (2) The store
        knows it (3) and it is neither revoked nor expired. (4) It is not over its rate or its
        calls at once.
        """
        key = parse_key(_key_text(scope))  # (1)
        if key is None:
            raise unknown_key()
        try:
            record = await self._meter.ask(Find(key.digest))  # (2)
        except ConfideError as error:
            raise unmetered() from error
        if not isinstance(record, KeyRecord):
            raise unknown_key()
        facts_of(scope).key_id = record.id
        standing = record.standing(self._clock.now())  # (3)
        if standing is not Standing.GOOD:
            raise worthless_key(standing)
        try:
            paced = await self._pace.take(record.id, record.limits)  # (4)
        except ConfideError as error:
            raise unmetered() from error
        if paced.taken.held is not None:
            raise held(paced.taken)
        return _KeyedCaller(self, record, paced)

    def salting(self, tenant: str) -> Salting | None:
        """Return how the cache is kept apart for `tenant`."""
        return None if self._salts is None else self._salts.of(tenant)

    async def reserve(self, record: KeyRecord, plan: InferencePlan, pace: Pace | None) -> Call:
        """Reserve what `plan` may use; `RequestRefused` where that is more than is left (§3.4)."""
        now, demand, budget = self._clock.now(), demand_of(plan), record.limits.budget
        period = Period.MONTH if budget is None else budget.period
        reservation = self._entropy.token(16).hex()
        try:
            spent = await self._meter.ask(
                Reserve(
                    reservation=reservation,
                    key_id=record.id,
                    endpoint=str(plan.endpoint),
                    period=period_start(period, now),
                    budget=None if budget is None else budget.tokens,
                    tokens=demand.tokens,
                )
            )
        except ConfideError as error:
            raise unmetered() from error
        if not isinstance(spent, Spent):
            raise unmetered()
        headers = pace_headers(pace)
        if budget is not None:
            reset = (period_end(period, now) - now).total_seconds()
            if not spent.granted:
                raise no_quota(
                    budget=budget.tokens, spent=spent.tokens, reset_seconds=reset, pace=pace
                )
            headers = (*headers, *quota_headers(budget.tokens, spent.tokens, reset))
        return _KeyedCall(self, headers, reservation, record.id, demand)

    def settle(self, call: _KeyedCall, charge: Charge, record: InferenceRecord) -> None:
        """Have the end of `call` written (§4.2)."""
        self._meter.settle(
            Settle(
                reservation=call.reservation,
                key_id=call.key_id,
                hour=hour_of(self._clock.now()),
                endpoint=record.endpoint,
                charge=charge,
                failed=record.finish is Finish.UPSTREAM_FAILED or record.status >= 500,
                cancelled=record.finish is Finish.CLIENT_CANCELLED,
            )
        )


@dataclass(frozen=True, slots=True)
class _KeyedCaller:
    tenants: KeyedTenants
    record: KeyRecord
    paced: Paced

    @property
    def salting(self) -> Salting | None:
        return self.tenants.salting(self.record.tenant)

    async def admit(self, plan: InferencePlan) -> Call:
        if not self.record.permits(model=plan.served.name, endpoint=str(plan.endpoint)):
            raise out_of_scope()
        return await self.tenants.reserve(self.record, plan, self.paced.taken.pace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.paced.leave()


@dataclass(frozen=True, slots=True)
class _KeyedCall:
    tenants: KeyedTenants
    headers: Headers
    reservation: str
    key_id: str
    demand: Demand
    counted: EventCount = field(default_factory=EventCount)

    def count(self, chunk: bytes) -> None:
        self.counted.feed(chunk)

    def settle(self, record: InferenceRecord) -> None:
        charge = charge_of(self.demand, record, self.counted)
        self.tenants.settle(self, charge, record)


def _key_text(scope: Scope) -> str:
    """Return the key as it came: one `Authorization: Bearer`, or one `x-api-key` (§2.1)."""
    if scope[SCOPE_KEY].way not in _HEADERS_HIDDEN:
        # Whoever carries such a request may have read its headers.
        raise no_key()
    found: set[bytes] = set()
    for name, value in scope.get("headers", ()):
        lowered = name.lower()
        if lowered == b"x-api-key":
            found.add(bytes(value).strip())
        elif lowered == b"authorization":
            scheme, _, rest = bytes(value).strip().partition(b" ")
            found.add(rest.strip() if scheme.lower() == b"bearer" else b"")
    if len(found) != 1:
        raise no_key()
    (text,) = found
    if not text:
        raise no_key()
    return text[:_MAX_KEY_BYTES].decode("latin-1")
