"""Sealed states behind the broker's sessions, releases and receipts. broker.md §4, state.md §4.

`StateDesk` knows leases and counters and nobody; here stands who may ask it, decided for each
request anew, and what of a decision is receipted and logged before anything is answered.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from confide.appraisal.steps import established
from confide.broker.attested import NodeProof
from confide.broker.refusal import refusal
from confide.errors import Reason
from confide.node.broker_app import attested_of, refused
from confide.node.broker_service import ReceiptedRefusal
from confide.node.broker_state_app import Authorised

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from confide.broker.attested import Attested
    from confide.broker.decision import Permit
    from confide.node.broker_service import BrokerService
    from confide.ports import Clock
    from confide.wire.dsse import Envelope
    from confide.wire.release_receipt import StateStep

__all__ = ["StateGate"]


class StateGate:
    """What `broker_state_app.state_routes` asks before, and has done after, every decision."""

    def __init__(self, service: BrokerService, clock: Clock) -> None:
        self._service = service
        self._clock = clock

    async def authorise(self, request: Request, resource: str) -> Authorised | Response:
        """
        Return what this session may do with the state `resource`, or the answer that refuses it.

        Raises `ReleaseRefused` without a session, and to a guest: only a run has a state.
        """
        attested = attested_of(self._service, request)
        proof = attested.proof
        if not isinstance(proof, NodeProof):
            raise refusal(
                Reason.RELEASE_MISSING, "a state is for the run of a node", step="10", clause="4.2"
            )
        try:
            allowed = await self._service.permitted(attested, resource, version=None)
        except ReceiptedRefusal as error:
            return refused(error)
        return Authorised(
            session=attested.session,
            wall_seconds=proof.expectation.limits.wall_seconds,
            wrap=partial(self._service.wrap, attested),
            finish=partial(self._finish, attested, allowed, resource),
        )

    async def _finish(
        self,
        attested: Attested,
        allowed: Permit,
        resource: str,
        body_sha256: bytes,
        step: StateStep,
    ) -> Envelope:
        if step.digest is not None:
            return await self._service.release(
                attested,
                allowed,
                resource=resource,
                version=step.digest,
                jwe=body_sha256,
                now=self._clock.now(),
                state=step,
            )
        error = refusal(
            Reason(established(step.reason)), "the state is not given", step="12", clause="4.2"
        )
        kept = await self._service.refuse(attested, error, resource=resource, state=step)
        return kept.receipt
