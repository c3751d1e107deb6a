"""The node's half of a sealed state: opened, held under a lease, saved once. state.md §4.

The broker, and whoever stands between, can withhold; what comes through is of the counter and
digest that the broker signed for. Nothing here opens or seals a state: that is `broker.state`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from confide.broker.lease import refuse_state
from confide.broker.released import OpenedState
from confide.broker.state_wire import (
    CLOSE_LABEL,
    LEASE_HEADER,
    MAX_STATE_BYTES,
    SAVE_LABEL,
    OpenAnswer,
    SaveAnswer,
    SaveHead,
    encode_close,
    lease_mac,
    parse_open_answer,
    parse_save_answer,
)
from confide.errors import (
    ConfideError,
    FormatError,
    LocalProtocolError,
    Reason,
    RemoteProtocolError,
    Unavailable,
)
from confide.receipts.inline import RECEIPT_HEADER, decode_inline
from confide.wire.dsse import Envelope
from confide.wire.json import Members, parse_json
from confide.wire.release_receipt import StateStep

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from confide.adapters.state_http import StateAction, StateAnswer
    from confide.ports import Sleeper

__all__ = ["ReceiptCheck", "StateAsker", "StateLink"]

# `(receipt, body_sha256, step)`: raises `Rejected` unless the broker that the Expectation names
# signed that it decided this (state.md 4.6) for this session and this resource.
ReceiptCheck: TypeAlias = Callable[[Envelope, bytes, StateStep], None]

_MAX_ANSWER_BYTES: Final = 64 * 1024
# What a broker may refuse for, in its own words; anything else is no refusal (broker.md 4.2).
_REASONS: Final = frozenset(
    {
        *(reason for reason in Reason if reason.startswith("release-")),
        *(Reason.SESSION_UNKNOWN, Reason.RESOURCE_UNKNOWN, Reason.STATE_IN_USE),
        *(Reason.STATE_FORK, Reason.STATE_ROLLBACK, Reason.LIMIT_EXCEEDED),
    }
    - {Reason.RELEASE_FORMAT}
)
_WAITS: Final = (1.0, 4.0)


class StateAsker(Protocol):
    """The routes of one state, in a session: `adapters.state_http.StateHttp` has this shape."""

    async def ask(
        self,
        action: StateAction,
        *,
        body: Sequence[bytes] = (),
        headers: Mapping[str, str] | None = None,
        max_bytes: int,
    ) -> StateAnswer:
        """See `StateHttp.ask`."""
        ...


class StateLink:
    """
    One resource, for one run; `ports.SecretSession` has the three verbs.

    `unwrap` opens a JWE under the key of the session, `check` verifies receipts. Every method but
    `close` raises `ReleaseRefused` with the broker's reason, `Unavailable` without an answer and
    `RemoteProtocolError` for one that is none.
    """

    def __init__(
        self,
        http: StateAsker,
        resource: str,
        *,
        unwrap: Callable[[bytes], bytes],
        check: ReceiptCheck,
        sleeper: Sleeper,
    ) -> None:
        self._http = http
        self._resource = resource
        self._unwrap = unwrap
        self._check = check
        self._sleeper = sleeper
        self._held: OpenAnswer | None = None

    async def open(self) -> OpenedState:
        """Open the state and hold its lease: key, counter, and the sealed bytes of that digest."""
        if self._held is not None:
            raise LocalProtocolError("the state is open already")
        found = await self._ask("open")
        with _understood():
            opened = parse_open_answer(self._unwrap(found.body))
            # Held from here on: whatever goes wrong below, `close` gives it back.
            self._held = opened
            step = StateStep("open", opened.counter, opened.digest)
            receipt = self._receipt(found, step)
        sealed = await self._blob(opened) if opened.counter else b""
        return OpenedState(
            self._resource, opened.counter, opened.digest, receipt, sealed, opened.key
        )

    async def save(self, sealed: bytes) -> Envelope:
        """
        Save `sealed` as what follows the state that was opened; return the broker's receipt.

        Ends the lease. A save whose answer does not come is sent again: the broker takes it once.
        After `Unavailable` it is not known whether it was taken.
        """
        held = self._held
        if held is None:
            raise LocalProtocolError("no state is open")
        if not 0 < len(sealed) <= MAX_STATE_BYTES:
            raise FormatError(
                f"sealed state: {len(sealed)} bytes, from 1 to {MAX_STATE_BYTES} are saved",
                reason=Reason.LIMIT_EXCEEDED,
                clause="docs/protocols/state.md#4.8",
            )
        saved = SaveAnswer(held.counter + 1, hashlib.sha256(sealed).digest())
        head = SaveHead(held.lease, saved.counter, saved.digest).encode()
        mac = lease_mac(held.lease_secret, SAVE_LABEL, [head, sealed])
        found = await self._ask("save", body=(head, sealed), headers={LEASE_HEADER: mac.hex()})
        with _understood():
            if parse_save_answer(found.body) != saved:
                raise RemoteProtocolError("the broker says that it saved something else")
            step = StateStep("save", saved.counter, saved.digest)
            receipt = self._receipt(found, step)
        self._held = None
        return receipt

    async def close(self) -> None:
        """Give a lease back that was not saved; never raises. Without an answer it ends by time."""
        held, self._held = self._held, None
        if held is None:
            return
        body = encode_close(held.lease)
        headers = {LEASE_HEADER: lease_mac(held.lease_secret, CLOSE_LABEL, [body]).hex()}
        with suppress(ConfideError):
            await self._http.ask("close", body=[body], headers=headers, max_bytes=_MAX_ANSWER_BYTES)

    async def _blob(self, opened: OpenAnswer) -> bytes:
        found = await self._http.ask("blob", max_bytes=MAX_STATE_BYTES)
        _require_ok(found)
        if hashlib.sha256(found.body).digest() != opened.digest:
            # 3.2: whoever changed it, it is not the state that the broker signed for.
            detail = "the sealed state is not of the digest that the broker signed"
            raise refuse_state(Reason.STATE_ROLLBACK, detail, clause="3.2")
        return found.body

    async def _ask(
        self,
        action: StateAction,
        *,
        body: Sequence[bytes] = (),
        headers: Mapping[str, str] | None = None,
    ) -> StateAnswer:
        """Ask, and ask again while there is no answer: 4.1 and 4.3 make that harmless."""
        for wait in (*_WAITS, None):
            try:
                found = await self._http.ask(
                    action, body=body, headers=headers, max_bytes=_MAX_ANSWER_BYTES
                )
                _require_ok(found)
            except Unavailable:
                if wait is None:
                    raise
                await self._sleeper.sleep(wait)
            else:
                return found
        raise Unavailable("the broker was asked in vain")

    def _receipt(self, found: StateAnswer, step: StateStep) -> Envelope:
        given = found.headers.get(RECEIPT_HEADER)
        if given is None:
            raise RemoteProtocolError("an answer without a receipt", reason=Reason.RECEIPT_MISSING)
        receipt = decode_inline(given)
        self._check(receipt, hashlib.sha256(found.body).digest(), step)
        return receipt


def _require_ok(found: StateAnswer) -> None:
    """Raise what an answer means that is no success; what it says beside its reason is not told."""
    if found.status == 200:
        return
    if found.status >= 500:
        raise Unavailable(f"the broker answered {found.status}")
    with _understood():
        value = parse_json(found.body, what="refusal", reason=Reason.BROKER_FORMAT)
        members = Members(value, what="refusal", reason=Reason.BROKER_FORMAT)
        reason = members.choice("reason", sorted(_REASONS))
    detail = f"the broker refused with status {found.status}"
    raise refuse_state(reason, detail, clause="4.1")


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise RemoteProtocolError(error.what, reason=error.reason) from error
