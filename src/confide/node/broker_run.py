"""What one run has of its broker: `ports.SecretSession` over HTTP, secrets and state together.

Clauses: docs/protocols/broker.md §4, §5, state.md §4. A session of the broker may be over before a
run is: then the node attests again, and a lease goes on by its MAC (state.md 4.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.adapters.state_http import StateHttp
from confide.broker.receipt import verify_release
from confide.crypto.aead import OpenError
from confide.errors import LocalProtocolError, Reason, RemoteProtocolError
from confide.node.broker_state_link import StateLink
from confide.wire.jwe import parse_jwe, thumbprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx2

    from confide.adapters.state_http import StateAction, StateAnswer
    from confide.broker.released import OpenedState, ReleasedSecret
    from confide.node.broker_link import BrokerLink, BrokerPlace, LinkSession
    from confide.ports import Sleeper
    from confide.wire.dsse import Envelope
    from confide.wire.release_receipt import StateStep

__all__ = ["BrokerRun"]

_UNAUTHORISED: Final = 401


class BrokerRun:
    """One run at one broker. `resource` is that of its state, whether it has one or not."""

    def __init__(
        self,
        link: BrokerLink,
        place: BrokerPlace,
        *,
        client: httpx2.AsyncClient,
        url: str,
        resource: str,
        sleeper: Sleeper,
    ) -> None:
        self._link = link
        self._place = place
        self._client = client
        self._url = url
        self._resource = resource
        # The session in which the last answer about the state came.
        self._session: LinkSession | None = None
        self._state = StateLink(
            self, resource, unwrap=self._unwrap, check=self._check, sleeper=sleeper
        )

    async def secret(self, name: str) -> ReleasedSecret:
        """See `ports.SecretSession`."""
        return await self._link.secret(name)

    async def open_state(self) -> OpenedState:
        """See `ports.SecretSession`."""
        return await self._state.open()

    async def save_state(self, sealed: bytes) -> Envelope:
        """See `ports.SecretSession`."""
        return await self._state.save(sealed)

    async def close(self) -> None:
        """See `ports.SecretSession`."""
        await self._state.close()
        await self._link.close()

    async def ask(
        self,
        action: StateAction,
        *,
        body: Sequence[bytes] = (),
        headers: Mapping[str, str] | None = None,
        max_bytes: int,
    ) -> StateAnswer:
        """Ask one route of the state in an attested session, begun anew once where it is over."""
        session = await self._link.session()
        found = await self._ask_in(session, action, body, headers, max_bytes)
        if found.status == _UNAUTHORISED and self._session is not None:
            session = await self._link.session(instead_of=session)
            found = await self._ask_in(session, action, body, headers, max_bytes)
        self._session = session
        return found

    async def _ask_in(
        self,
        session: LinkSession,
        action: StateAction,
        body: Sequence[bytes],
        headers: Mapping[str, str] | None,
        max_bytes: int,
    ) -> StateAnswer:
        http = StateHttp(self._client, self._url, self._resource, headers=session.headers)
        return await http.ask(action, body=body, headers=headers, max_bytes=max_bytes)

    def _answered_in(self) -> LinkSession:
        if self._session is None:
            raise LocalProtocolError("no answer about a state came yet")
        return self._session

    def _unwrap(self, raw: bytes) -> bytes:
        try:
            return self._answered_in().key.open(parse_jwe(raw))
        except OpenError as error:
            raise RemoteProtocolError(
                "the answer is not sealed to this session", reason=Reason.SECRET_MISMATCH
            ) from error

    def _check(self, receipt: Envelope, body_sha256: bytes, step: StateStep) -> None:
        session = self._answered_in()
        decision = verify_release(
            receipt,
            key=self._place.key,
            session=session.session,
            tee_pubkey=thumbprint(session.key.public),
            resource=self._resource,
            jwe=body_sha256,
        )
        if decision.state != step:
            raise RemoteProtocolError(
                "the receipt is about another state", reason=Reason.SECRET_MISMATCH
            )
