"""Inference over sealed channels to proven nodes, every answer with a verified receipt.

Clauses: docs/protocols/client.md §1 to §5. A `Session` sends a request only to a node that was
proven and whose proof still counts, and hands an answer over only when its receipt held and is
kept: before the first byte of a whole answer, before the last event of a stream.

There is no other way out: no plaintext, no redirect, no proxy of the environment. A request goes
out a second time only where it cannot have been opened, and then to a proven node again.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from confide.adapters.carrier import NotSent
from confide.adapters.http_client import make_node_client, require_node_url
from confide.adapters.sealed_http import RefusedOutside
from confide.client.answer import AnswerTaker
from confide.client.held import HeldNode
from confide.client.relayed import RelayedNodes
from confide.errors import (
    ConfideError,
    ConfigurationError,
    FormatError,
    Reason,
    Rejected,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from confide.adapters.answer_transport import Request
    from confide.adapters.carrier import Carrier
    from confide.adapters.sealed_http import SealedResponse
    from confide.channel.padding import StreamShape
    from confide.client.answer import Answer, Receipt, ReceiptKeeper
    from confide.client.held import NodeState, Proof, TrustPolicy
    from confide.client.relayed import Relay
    from confide.ports import Clock, Entropy

__all__ = ["Session"]


# What proving a node raises: nothing but a nonce and a digest has been sent.
_UNPROVEN = (Rejected, Unavailable, FormatError)


class Session:
    """
    Requests to the first of `urls` that proves itself, and to the next one that does.

    With `relay` the candidates are those of its directory instead (relay.md §4). `shape` hides
    the lengths of a stream's pieces, and their moments (channel.md 5.2, 5.4). `carrier` takes
    sealed requests to nodes, otherwise `httpx2` does. Belongs to one event loop. `close` closes
    `keeper` too; `on_receipt` learns of every receipt.
    """

    def __init__(
        self,
        urls: Sequence[str],
        policy: TrustPolicy,
        *,
        keeper: ReceiptKeeper,
        clock: Clock,
        entropy: Entropy,
        on_receipt: Callable[[Receipt], None] | None = None,
        relay: Relay | None = None,
        shape: StreamShape | None = None,
        carrier: Carrier | None = None,
    ) -> None:
        if bool(urls) is (relay is not None):
            raise ConfigurationError("a session needs addresses of nodes, or a relay, and not both")
        self._http = make_node_client()
        self._taker = AnswerTaker(policy, keeper=keeper, clock=clock, on_receipt=on_receipt)
        self._nodes = [
            HeldNode(_address(url), policy, self._http, clock, entropy, carrier=carrier)
            for url in urls
        ]
        self._preferred = self._nodes[0] if self._nodes else None
        self._relayed = None
        if relay is not None:
            at = replace(relay, url=_address(relay.url))
            self._relayed = RelayedNodes(at, policy, self._http, clock, entropy, carrier=carrier)
        self._shape = shape

    @property
    def nodes(self) -> tuple[NodeState, ...]:
        """What is known of every candidate."""
        return tuple(node.state for node in self._nodes)

    @property
    def preferred(self) -> NodeState:
        """What is known of the node that is asked first; `LookupError` where none is known."""
        if self._preferred is None:
            raise LookupError("the directory of the relay has not been asked for nodes")
        return self._preferred.state

    def recent(self, receipt_id: str) -> Receipt | None:
        """Return one of the last receipts of this session."""
        return self._taker.recent(receipt_id)

    async def prove(self) -> NodeState:
        """
        Prove a node now, without sending anything else.

        Raises the refusal of the first candidate, or `Unavailable`, where none is proven.
        """
        failures: list[_Failure] = []
        async with aclosing(self._candidates()) as candidates:
            async for node in candidates:
                try:
                    await node.current()
                except _UNPROVEN as error:
                    failures.append((node.url, error))
                    continue
                self._preferred = node
                return node.state
        raise _worst(failures)

    async def send(self, request: Request) -> Answer:
        """
        Send `request` to a proven node; return its answer once that may be handed over.

        Raises `Rejected` for a node or a receipt that is not believed, `RemoteProtocolError` for
        an answer that does not open, `Unavailable` where no node or no place for the receipt is
        there, `FormatError` for what is no evidence.
        """
        failures: list[_Failure] = []
        async with aclosing(self._candidates()) as candidates:
            async for node in candidates:
                try:
                    proof, sealed = await self._exchange(node, request)
                except _NotOpened as error:
                    failures.append((node.url, error.error))
                    continue
                self._preferred = node
                return await self._taker.take(node.url, proof, request, sealed)
        raise _worst(failures)

    async def close(self) -> None:
        """Close every connection and the keeper."""
        for node in self._nodes:
            await node.close()
        if self._relayed is not None:
            await self._relayed.close()
        await self._http.aclose()
        await self._taker.close()

    async def _candidates(self) -> AsyncGenerator[HeldNode, None]:
        """Yield every candidate once; behind a relay also those of a newer directory."""
        tried: list[HeldNode] = []
        if self._relayed is not None:
            self._nodes = await self._relayed.current()
        for node in self._in_order():
            tried.append(node)
            yield node
        if self._relayed is not None:
            self._nodes = await self._relayed.renewed() or self._nodes
            for node in self._in_order():
                if not any(node is other for other in tried):
                    yield node

    def _in_order(self) -> list[HeldNode]:
        # A stable order: the one that answered last first.
        return sorted(self._nodes, key=lambda node: node is not self._preferred)

    async def _exchange(self, node: HeldNode, request: Request) -> tuple[Proof, SealedResponse]:
        """Everything that another candidate may do instead: nothing was opened if it raises."""
        try:
            proof = await node.current()
        except _UNPROVEN as error:
            raise _NotOpened(error) from error
        try:
            return proof, await self._send(proof, request)
        except NotSent as error:
            raise _NotOpened(error) from error
        except RefusedOutside as refusal:
            if not isinstance(request.body, bytes):
                await self._forget(node, proof, refusal)
            if refusal.reason is Reason.NODE_BUSY:
                raise _NotOpened(refusal) from refusal
            if refusal.reason is not Reason.KEYSET_MISMATCH:
                raise
            return await self._exchange_again(node, proof, request, refusal)

    @staticmethod
    async def _forget(node: HeldNode, proof: Proof, refusal: RefusedOutside) -> NoReturn:
        """Refuse to send again what was read as it was sent; the caller has it, and can."""
        if refusal.reason is Reason.KEYSET_MISMATCH:
            await node.replace(proof)
        if refusal.reason in {Reason.KEYSET_MISMATCH, Reason.NODE_BUSY}:
            raise Unavailable("the node did not open what was sent: send it again") from refusal
        raise refusal

    async def _exchange_again(
        self, node: HeldNode, proof: Proof, request: Request, refusal: RefusedOutside
    ) -> tuple[Proof, SealedResponse]:
        # client.md 2.5: the refusal is nobody's word, so it counts once.
        try:
            proof = await node.replace(proof)
        except Unavailable as error:
            raise _NotOpened(refusal) from error
        except _UNPROVEN as error:
            raise _NotOpened(error) from error
        try:
            return proof, await self._send(proof, request)
        except NotSent as error:
            raise _NotOpened(error) from refusal
        except RefusedOutside as again:
            if again.reason not in (Reason.NODE_BUSY, Reason.KEYSET_MISMATCH):
                raise
            raise _NotOpened(again) from refusal

    async def _send(self, proof: Proof, request: Request) -> SealedResponse:
        shape = self._shape
        return await proof.sealed.sealed.request(
            request.method,
            request.path,
            request.headers,
            request.body,
            cell_bytes=None if shape is None else shape.cell_bytes,
            cadence_ms=None if shape is None else shape.cadence_ms,
            timeouts=request.timeouts,
        )


class _NotOpened(Exception):
    """No node has opened the request: another candidate may have it. Never leaves this module."""

    def __init__(self, error: ConfideError) -> None:
        self.error = error
        super().__init__(str(error))


_Failure = tuple[str, ConfideError]


def _worst(failures: Sequence[_Failure]) -> ConfideError:
    """Return the failure that says most: a refusal before what could not be asked."""
    if not failures:
        return Unavailable("the relay lists no node of this model")
    ranked = sorted(failures, key=lambda item: not isinstance(item[1], Rejected | FormatError))
    worst = ranked[0][1]
    for url, error in ranked[1:]:
        worst.add_note(f"{url}: {type(error).__name__}: {error}")
    return worst


def _address(url: str) -> str:
    require_node_url(url)
    return url.rstrip("/").removesuffix("/v1")
