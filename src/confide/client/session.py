"""Inference over sealed channels to proven nodes, every answer with a verified receipt.

Clauses: docs/protocols/client.md §1 to §5. A `Session` sends a request only to a node that was
proven and whose proof still counts, and hands an answer over only when its receipt held and is
kept: before the first byte of a whole answer, before the last event of a stream.

There is no other way out: no plaintext, no redirect, no proxy of the environment. A request goes
out a second time only where it cannot have been opened, and then to a proven node again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from confide.adapters.http_client import make_node_client
from confide.adapters.sealed_http import NotSent, RefusedOutside
from confide.client.held import HeldNode
from confide.errors import (
    ConfigurationError,
    FormatError,
    Reason,
    Rejected,
    RemoteProtocolError,
    Unavailable,
)
from confide.inference.stream_end import EndHolder
from confide.receipts.inference import (
    ExchangeFacts,
    VerifiedInference,
    missing_receipt,
    verify_inference_receipt,
)
from confide.receipts.inference_file import InferenceFile
from confide.receipts.inline import RECEIPT_HEADER, ReceiptStripper, decode_inline

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from datetime import datetime

    from confide.adapters.answer_transport import Request
    from confide.adapters.sealed_http import SealedResponse
    from confide.client.held import NodeState, Proof, TrustPolicy
    from confide.ports import Clock, Entropy

__all__ = ["Answer", "Receipt", "ReceiptKeeper", "Session"]

# An answer that is not a stream is held until its receipt was verified.
_MAX_WHOLE_BYTES = 256 * 1024 * 1024
_MAX_RECENT = 1024
_EVENTS = "text/event-stream"
# From: client.md 3.2: methods that ask for no inference.
_WITHOUT_RECEIPT = frozenset({"GET", "HEAD"})


class ReceiptKeeper(Protocol):
    """Where receipts are kept: before an answer is handed over."""

    async def keep(
        self, inference: VerifiedInference, file: InferenceFile, *, url: str, at: datetime
    ) -> None:
        """Keep the receipt before returning; `Unavailable` where that cannot be."""
        ...

    async def close(self) -> None:
        """Let go of what is open."""
        ...


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Receipt:
    """The verified receipt of one answer. `file` is what travels: `file.encode()`."""

    inference: VerifiedInference
    file: InferenceFile
    url: str

    @property
    def id(self) -> str:
        """The id that the node gave it."""
        return self.inference.statement.id


class Answer:
    """
    The answer of a proven node. A whole one is verified already, a stream when it has ended.

    `receipt` is None until then, and for ever where none is asked for (client.md 3.2). Iterate
    once; a stream whose receipt does not hold ends with `ReceiptRejected`. Call `aclose`.
    """

    def __init__(
        self,
        sealed: SealedResponse,
        headers: tuple[tuple[str, str], ...],
        body: bytes | AsyncGenerator[bytes, None],
        receipt: Receipt | None,
    ) -> None:
        self.status = sealed.status
        self.headers = headers
        self.receipt = receipt
        self._sealed = sealed
        self._body = body

    @property
    def streamed(self) -> bool:
        """Whether the body is a stream that is verified at its end."""
        return not isinstance(self._body, bytes)

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        if isinstance(self._body, bytes):
            yield self._body
            return
        async for piece in self._body:
            yield piece

    async def aread(self) -> bytes:
        """Return the whole body."""
        return b"".join([piece async for piece in self.aiter_bytes()])

    async def aclose(self) -> None:
        """Let the connection go; a stream that has not ended stays without a receipt."""
        await self._sealed.aclose()
        if not isinstance(self._body, bytes):
            await self._body.aclose()


class Session:
    """
    Requests to the first of `urls` that proves itself, and to the next one that does.

    Belongs to one event loop. `close` closes `keeper` too; `on_receipt` learns of every receipt.
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
    ) -> None:
        if not urls:
            raise ConfigurationError("a session needs the address of a node")
        self._http = make_node_client()
        self._clock = clock
        self._keeper = keeper
        self._on_receipt = on_receipt
        self._policy = policy
        self._expectation = policy.expectation.canonical()
        self._recent: OrderedDict[str, Receipt] = OrderedDict()
        self._nodes = [HeldNode(_address(url), policy, self._http, clock, entropy) for url in urls]
        self._preferred = self._nodes[0]

    @property
    def nodes(self) -> tuple[NodeState, ...]:
        """What is known of every candidate."""
        return tuple(node.state for node in self._nodes)

    @property
    def preferred(self) -> NodeState:
        """What is known of the node that is asked first."""
        return self._preferred.state

    def recent(self, receipt_id: str) -> Receipt | None:
        """Return one of the last receipts of this session."""
        return self._recent.get(receipt_id)

    async def prove(self) -> NodeState:
        """
        Prove a node now, without sending anything else.

        Raises the refusal of the first candidate, or `Unavailable`, where none is proven.
        """
        failures: list[_Failure] = []
        for node in self._in_order():
            try:
                await node.current()
            except (Rejected, Unavailable, FormatError) as error:
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
        for node in self._in_order():
            try:
                proof, sealed = await self._exchange(node, request)
            except (_NotOpened, Rejected, FormatError) as error:
                failures.append((node.url, error))
                continue
            self._preferred = node
            return await self._answer(node, proof, request, sealed)
        raise _worst(failures)

    async def close(self) -> None:
        """Close every connection and the keeper."""
        for node in self._nodes:
            await node.close()
        await self._http.aclose()
        await self._keeper.close()

    def _in_order(self) -> list[HeldNode]:
        return [self._preferred, *(node for node in self._nodes if node is not self._preferred)]

    async def _exchange(self, node: HeldNode, request: Request) -> tuple[Proof, SealedResponse]:
        """Everything that another candidate may do instead: nothing was opened if it raises."""
        try:
            proof = await node.current()
        except Unavailable as error:
            raise _NotOpened(error) from error
        try:
            return proof, await _send(proof, request)
        except NotSent as error:
            raise _NotOpened(error) from error
        except RefusedOutside as refusal:
            if refusal.reason is Reason.NODE_BUSY:
                raise _NotOpened(refusal) from refusal
            if refusal.reason is not Reason.KEYSET_MISMATCH:
                raise
            return await self._exchange_again(node, proof, request, refusal)

    async def _exchange_again(
        self, node: HeldNode, proof: Proof, request: Request, refusal: RefusedOutside
    ) -> tuple[Proof, SealedResponse]:
        # client.md 2.5: the refusal is nobody's word, so it counts once.
        try:
            proof = await node.replace(proof)
        except Unavailable as error:
            raise _NotOpened(refusal) from error
        try:
            return proof, await _send(proof, request)
        except NotSent as error:
            raise _NotOpened(error) from refusal
        except RefusedOutside as again:
            raise _NotOpened(again) from refusal

    async def _answer(
        self, node: HeldNode, proof: Proof, request: Request, sealed: SealedResponse
    ) -> Answer:
        try:
            return await self._taken(node, proof, request, sealed)
        except BaseException:
            await sealed.aclose()
            raise

    async def _taken(
        self, node: HeldNode, proof: Proof, request: Request, sealed: SealedResponse
    ) -> Answer:
        kept = tuple((n, v) for n, v in sealed.headers if n.lower() != RECEIPT_HEADER)
        if _media_type(sealed) == _EVENTS and sealed.status < 300:
            # The body of an answer is made before the answer, and tells it of its receipt.
            stream = _Stream()
            body = self._events(node, proof, request, sealed, stream)
            stream.answer = Answer(sealed, kept, body, None)
            return stream.answer
        whole = await _whole(sealed)
        texts = [value for name, value in sealed.headers if name.lower() == RECEIPT_HEADER]
        if not texts and (request.method in _WITHOUT_RECEIPT or sealed.status >= 400):
            return Answer(sealed, kept, whole, None)
        text = texts[0] if len(texts) == 1 else None
        facts = _facts(request, sealed, hashlib.sha256(whole).digest(), streamed=False)
        receipt = await self._settle(node, proof, facts, text)
        return Answer(sealed, (*kept, ("x-request-id", receipt.id)), whole, receipt)

    async def _events(
        self,
        node: HeldNode,
        proof: Proof,
        request: Request,
        sealed: SealedResponse,
        stream: _Stream,
    ) -> AsyncGenerator[bytes, None]:
        stripper, digest, holder = ReceiptStripper(), hashlib.sha256(), EndHolder()
        async for piece in sealed.aiter_bytes():
            plain = stripper.feed(piece)
            digest.update(plain)
            if out := holder.feed(plain):
                yield out
        rest, text = stripper.finish()
        digest.update(rest)
        last = holder.feed(rest)
        facts = _facts(request, sealed, digest.digest(), streamed=True)
        receipt = await self._settle(node, proof, facts, text)
        if stream.answer is not None:
            stream.answer.receipt = receipt
        if last := last + holder.finish():
            yield last

    async def _settle(
        self, node: HeldNode, proof: Proof, facts: ExchangeFacts, text: str | None
    ) -> Receipt:
        if text is None:
            raise missing_receipt("the answer came without a receipt, or with several")
        try:
            envelope = decode_inline(text)
        except FormatError as error:
            raise missing_receipt("what came as a receipt is none") from error
        expectation, sealed = self._policy.expectation, proof.sealed
        inference = verify_inference_receipt(
            envelope, keyset=sealed.node.keyset, expectation=expectation, facts=facts
        )
        file = InferenceFile(
            envelope,
            facts,
            self._expectation,
            sealed.evidence,
            sealed.nonce,
            proof.proven_at,
            self._policy.roots.name,
        )
        await self._keeper.keep(inference, file, url=node.url, at=self._clock.now())
        receipt = Receipt(inference, file, node.url)
        self._recent[receipt.id] = receipt
        if len(self._recent) > _MAX_RECENT:
            self._recent.popitem(last=False)
        if self._on_receipt is not None:
            self._on_receipt(receipt)
        return receipt


@dataclass(slots=True)
class _Stream:
    answer: Answer | None = None


class _NotOpened(Exception):
    """No node has opened the request: another candidate may have it. Never leaves this module."""

    def __init__(self, error: Unavailable | RefusedOutside) -> None:
        self.error = error
        super().__init__(str(error))


_Failure = tuple[str, "Exception"]


def _worst(failures: Sequence[_Failure]) -> Exception:
    """Return the failure that says most: a refusal before what could not be asked."""
    found = [(url, e.error if isinstance(e, _NotOpened) else e) for url, e in failures]
    ranked = sorted(found, key=lambda item: not isinstance(item[1], Rejected | FormatError))
    worst = ranked[0][1]
    for url, error in ranked[1:]:
        worst.add_note(f"{url}: {type(error).__name__}: {error}")
    return worst


async def _send(proof: Proof, request: Request) -> SealedResponse:
    return await proof.sealed.sealed.request(
        request.method, request.path, request.headers, request.body, timeouts=request.timeouts
    )


async def _whole(sealed: SealedResponse) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in sealed.aiter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_WHOLE_BYTES:
            raise RemoteProtocolError(
                f"an answer of more than {_MAX_WHOLE_BYTES} bytes", reason=Reason.LIMIT_EXCEEDED
            )
    return b"".join(pieces)


def _facts(
    request: Request, sealed: SealedResponse, response: bytes, *, streamed: bool
) -> ExchangeFacts:
    return ExchangeFacts(
        path=request.path.partition("?")[0],
        status=sealed.status,
        streamed=streamed,
        request=hashlib.sha256(request.body).digest(),
        response=response,
        sealed_request=sealed.request_sha256,
    )


def _media_type(sealed: SealedResponse) -> str:
    values = [value for name, value in sealed.headers if name.lower() == "content-type"]
    return values[0].partition(";")[0].strip().lower() if values else ""


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https"):
        raise ConfigurationError("the address of a node is http:// or https:// and a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError("the address of a node has no user, query or fragment")
    return url.rstrip("/").removesuffix("/v1")
