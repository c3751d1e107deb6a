"""Taking an answer: its receipt is verified and kept before the answer is handed over.

Clauses: docs/protocols/client.md §3 to §5. A whole answer waits for its receipt before its first
byte, a stream before the event that ends it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from confide.errors import (
    FormatError,
    LocalProtocolError,
    Reason,
    ReceiptNotKept,
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
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from datetime import datetime

    from confide.adapters.answer_transport import Request
    from confide.adapters.sealed_http import SealedResponse
    from confide.client.held import Proof, TrustPolicy
    from confide.ports import Clock

__all__ = ["Answer", "AnswerTaker", "Receipt", "ReceiptKeeper"]

# An answer that is not a stream is held until its receipt was verified.
_MAX_WHOLE_BYTES = 256 * 1024 * 1024
_MAX_RECENT = 1024
_EVENTS = "text/event-stream"
# From: client.md 3.2: methods that ask for no inference, and routes that do not.
_WITHOUT_RECEIPT = frozenset({"GET", "HEAD"})
_TRAINING = ("/v1/files", "/v1/uploads", "/v1/fine_tuning/")
_CONTENT = "/content"


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


class AnswerTaker:
    """Verifies and keeps the receipts of one session. `on_receipt` learns of every one."""

    def __init__(
        self,
        policy: TrustPolicy,
        *,
        keeper: ReceiptKeeper,
        clock: Clock,
        on_receipt: Callable[[Receipt], None] | None,
    ) -> None:
        self._policy = policy
        self._expectation = policy.expectation.canonical()
        self._keeper = keeper
        self._clock = clock
        self._on_receipt = on_receipt
        self._recent: OrderedDict[str, Receipt] = OrderedDict()

    def recent(self, receipt_id: str) -> Receipt | None:
        """Return one of the last receipts."""
        return self._recent.get(receipt_id)

    async def close(self) -> None:
        """Close the keeper."""
        await self._keeper.close()

    async def take(
        self, url: str, proof: Proof, request: Request, sealed: SealedResponse
    ) -> Answer:
        """
        Return the answer to `request` that `sealed` brings, from the node of `proof` at `url`.

        Raises `ReceiptRejected`, `ReceiptNotKept`, and what reading
        a sealed response raises.
        """
        try:
            return await self._taken(url, proof, request, sealed)
        except BaseException:
            await sealed.aclose()
            raise

    async def _taken(
        self, url: str, proof: Proof, request: Request, sealed: SealedResponse
    ) -> Answer:
        kept = tuple((n, v) for n, v in sealed.headers if n.lower() != RECEIPT_HEADER)
        if _media_type(sealed) == _EVENTS and sealed.status < 300:
            # The body of an answer is made before the answer, and tells it of its receipt.
            stream = _Stream()
            body = self._events(url, proof, request, sealed, stream)
            stream.answer = Answer(sealed, kept, body, None)
            return stream.answer
        if _trains(request):
            return await _unreceipted(request, sealed, kept)
        whole = await _whole(sealed)
        texts = [value for name, value in sealed.headers if name.lower() == RECEIPT_HEADER]
        if not texts and (request.method in _WITHOUT_RECEIPT or sealed.status >= 400):
            return Answer(sealed, kept, whole, None)
        text = texts[0] if len(texts) == 1 else None
        facts = _facts(request, sealed, hashlib.sha256(whole).digest(), streamed=False)
        receipt = await self._settle(url, proof, facts, text)
        return Answer(sealed, (*kept, ("x-request-id", receipt.id)), whole, receipt)

    async def _events(
        self,
        url: str,
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
        receipt = await self._settle(url, proof, facts, text)
        if stream.answer is not None:
            stream.answer.receipt = receipt
        if last := last + holder.finish():
            yield last

    async def _settle(
        self, url: str, proof: Proof, facts: ExchangeFacts, text: str | None
    ) -> Receipt:
        if text is None:
            raise missing_receipt("the answer came without a receipt, or with several")
        try:
            envelope = decode_inline(text)
        except FormatError as error:
            raise missing_receipt("what came as a receipt is none") from error
        expectation, sealed = self._policy.expectation, proof.sealed
        inference = verify_inference_receipt(
            envelope,
            keyset=sealed.node.keyset,
            measured=sealed.node.events.model,
            expectation=expectation,
            facts=facts,
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
        try:
            await self._keeper.keep(inference, file, url=url, at=self._clock.now())
        except Unavailable as error:
            raise ReceiptNotKept(str(error)) from error
        receipt = Receipt(inference, file, url)
        self._recent[receipt.id] = receipt
        if len(self._recent) > _MAX_RECENT:
            self._recent.popitem(last=False)
        if self._on_receipt is not None:
            self._on_receipt(receipt)
        return receipt


@dataclass(slots=True)
class _Stream:
    answer: Answer | None = None


def _trains(request: Request) -> bool:
    path = request.path.partition("?")[0]
    return any(
        path == name.rstrip("/") or path.startswith(f"{name.rstrip('/')}/") for name in _TRAINING
    )


async def _unreceipted(
    request: Request, sealed: SealedResponse, headers: tuple[tuple[str, str], ...]
) -> Answer:
    """Return what a training node answers: a file as it comes, everything else whole."""
    if request.path.endswith(_CONTENT) and sealed.status < 300:
        return Answer(sealed, headers, _as_it_comes(sealed), None)
    return Answer(sealed, headers, await _whole(sealed), None)


async def _as_it_comes(sealed: SealedResponse) -> AsyncGenerator[bytes, None]:
    async for piece in sealed.aiter_bytes():
        yield piece


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
    if not isinstance(request.body, bytes):
        raise LocalProtocolError("what has a receipt is sent whole")
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
