"""One model call from the engine's answer to the caller's, with its record. Pure, sans-IO.

The rim forwards `plan.body`, tells an `Exchange` what comes back, returns to the caller what the
`Exchange` gives it, and takes the record. docs/protocols/inference.md §3 and §4::

    answer ─▶ feed … ─▶ finish          in order
       │         ├────▶ fail            the engine broke off, or gave no answer at all
       └─────────┴────▶ cancel          the caller went away

Every byte for the caller comes out of `feed`, `finish` or `fail`, and nowhere else: that is what
makes `response` in the record the digest of what was returned.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from confide.errors import FormatError, LocalProtocolError
from confide.inference.digest import PLAIN, Carriage, ExchangeDigests, Finish, InferenceRecord
from confide.inference.faults import engine_fault
from confide.inference.plan import Reply, Transformation
from confide.inference.responses_answer import ResponseContext, response_body
from confide.inference.responses_stream import ResponsesStream
from confide.inference.rewrite import ModelRenamer, UsageTail, rename_model

if TYPE_CHECKING:
    from confide.inference.digest import Usage
    from confide.inference.faults import ApiFault
    from confide.inference.models import ServedModel
    from confide.inference.plan import InferencePlan

__all__ = ["MAPPING_HEADER", "Exchange", "refusal_record"]

# From: docs/protocols/inference.md §5.1.
MAPPING_HEADER = "confide-mapping"
_JSON = "application/json"
_EVENTS = "text/event-stream"
_BYTES = "application/octet-stream"
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}\Z")
# Held answers come in pieces as small as the engine likes; so many are joined to one.
_MAX_HELD_PIECES = 1024
# From: docs/protocols/inference.md §4.6.
_NO_STATUS = 499


class Exchange:
    """
    The answering half of one planned request.

    `received` is the body as it came; `token` (fresh hex) and `created_at` (Unix seconds) go into
    a mapped response. After `answer`, `streams` says whether bytes may be returned as they come;
    where not, `status` and `content_type` are settled by `finish` or `fail`, which then return
    the whole body.
    """

    def __init__(
        self, plan: InferencePlan, received: bytes, *, token: str, created_at: int
    ) -> None:
        self._plan = plan
        self._context = ResponseContext(
            token=token, created_at=created_at, model=plan.served.name, echo=plan.mapped or {}
        )
        self._digests = ExchangeDigests()
        self._digests.received(received)
        self._digests.forwarded(plan.body, identical=plan.identical)
        self._transformations = list(plan.transformations)
        self._chunks: list[bytes] = []
        self._held = bytearray()
        self._tail = UsageTail()
        self._renamer: ModelRenamer | None = None
        self._mapper: ResponsesStream | None = None
        self._usage: Usage | None = None
        self._finish: Finish | None = None
        self._retry_after: int | None = None
        self._member: int | None = None
        self._engine_status = 0
        self.status = _NO_STATUS
        self.content_type = _JSON
        self.streams = False

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The response headers: what the body is, whether it was mapped, when to ask again."""
        head = [("content-type", self.content_type)]
        if self._plan.reply is Reply.RESPONSES:
            head.append((MAPPING_HEADER, Transformation.RESPONSES_OVER_CHAT.value))
        if self._retry_after is not None:
            head.append(("retry-after", str(self._retry_after)))
        return tuple(head)

    def answer(self, status: int, content_type: str, *, member: int | None = None) -> None:
        """Take in the head of the engine's answer; `member` is its place in a pool."""
        if self._engine_status or self._finish is not None:
            raise LocalProtocolError("an exchange has one answer")
        self._engine_status, self._member = status, member
        kind = content_type.partition(";")[0].strip().lower()
        if not 200 <= status < 300:
            return
        if self._plan.streamed and kind == _EVENTS:
            self.streams, self.status, self.content_type = True, 200, _EVENTS
            if self._plan.reply is Reply.RENAME:
                self._renamer = ModelRenamer(self._plan.served)
            elif self._plan.reply is Reply.RESPONSES:
                self._mapper = ResponsesStream(self._context)
        elif kind != _JSON:
            self._take_type(kind)

    def _take_type(self, kind: str) -> None:
        """Return the engine's type where the endpoint may have it (§3.6)."""
        pattern = kind.partition("/")[0] + "/*"
        allowed = self._plan.answers
        known = kind in allowed or pattern in allowed or "*/*" in allowed
        if known and kind != "text/html" and _MEDIA_TYPE.match(kind):
            self.content_type = kind
            return
        self.content_type = _BYTES
        if kind != _BYTES:
            self._transformations.append(Transformation.MEDIA_TYPE.value)

    def feed(self, chunk: bytes) -> bytes:
        """
        Take in bytes of the engine's body; return bytes for the caller, perhaps none.

        Raises `FormatError` for an engine that cannot be renamed within bounds; then `fail`.
        """
        if not self._engine_status or self._finish is not None:
            raise LocalProtocolError("an exchange is fed between its answer and its end")
        if not self.streams:
            self._hold(chunk)
            return b""
        if self._mapper is not None:
            self._digests.upstream(chunk)
            opening = b"" if self._mapper.started else self._mapper.start()
            return self._return(opening + self._mapper.feed(chunk))
        self._tail.feed(chunk)
        if self._renamer is None:
            self._digests.passed(chunk)
            return chunk
        self._digests.upstream(chunk)
        return self._return(self._renamer.feed(chunk))

    def finish(self) -> bytes:
        """Say that the engine's body ended in order; return the rest, or the whole body."""
        if not self._engine_status or self._finish is not None:
            raise LocalProtocolError("an exchange is finished once, after its answer")
        if not self.streams:
            return self._finish_whole()
        rest = b""
        failed = False
        if self._mapper is not None:
            opening = b"" if self._mapper.started else self._mapper.start()
            rest = opening + self._mapper.close()
            failed, self._usage = self._mapper.failed, self._mapper.usage
        else:
            rest = b"" if self._renamer is None else self._renamer.close()
            self._usage = self._tail.usage()
        if failed:
            self._transformations.append(Transformation.ERROR_EVENT.value)
        self._finish = Finish.UPSTREAM_FAILED if failed else Finish.COMPLETE
        return self._return(rest)

    def fail(self) -> bytes:
        """
        Say that the engine gave no answer or broke off; return what the caller gets instead.

        Where nothing has been returned yet that is an error body, otherwise a closing event.
        """
        if self._finish is not None:
            raise LocalProtocolError("an exchange ends once")
        if not self.streams:
            self._digest_upstream()
            return self._fault(engine_fault(502 if self._engine_status else None))
        self._finish = Finish.UPSTREAM_FAILED
        self._transformations.append(Transformation.ERROR_EVENT.value)
        if self._mapper is not None:
            opening = b"" if self._mapper.started else self._mapper.start()
            return self._return(opening + self._mapper.fail())
        held = b"" if self._renamer is None else self._renamer.close()
        # A blank line first: the engine may have stopped in the middle of one.
        return self._return(held + b"\n\n" + engine_fault(502).stream_event())

    def cancel(self) -> None:
        """Say that the caller went away; nothing more is returned. Harmless after the end."""
        if self._finish is None:
            self._digest_upstream()
            self._finish = Finish.CLIENT_CANCELLED

    def record(self) -> InferenceRecord:
        """Return the record; the exchange must have ended."""
        if self._finish is None:
            raise LocalProtocolError("an exchange is recorded after its end")
        return self._digests.record(
            endpoint=str(self._plan.endpoint),
            model=self._plan.served.name,
            status=self.status,
            streamed=self.streams,
            usage=self._usage,
            transformations=tuple(self._transformations),
            finish=self._finish,
            carriage=self._carriage(),
        )

    def _carriage(self) -> Carriage:
        plan = self._plan
        special = None if self.content_type in (_JSON, _EVENTS) else self.content_type
        if special is None and self._member is None and plan.listed and plan.content_type == _JSON:
            return PLAIN
        query = hashlib.sha256(plan.query.encode()).hexdigest() if plan.query else None
        return Carriage(
            method=plan.method,
            query=query,
            request_type=plan.content_type if plan.content_type not in (_JSON, "") else None,
            response_type=special,
            member=self._member,
        )

    def _hold(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        if len(self._chunks) > _MAX_HELD_PIECES:
            self._held += b"".join(self._chunks)
            self._chunks = []

    def _take_held(self) -> bytes:
        whole = b"".join(self._chunks)
        if self._held:
            whole = b"".join((self._held, whole))
        self._held, self._chunks = bytearray(), []
        return whole

    def _return(self, out: bytes) -> bytes:
        if out:
            self._digests.returned(out)
        return out

    def _finish_whole(self) -> bytes:
        whole = self._take_held()
        if not 200 <= self._engine_status < 300:
            self._note(whole)
            return self._fault(engine_fault(self._engine_status, listed=self._plan.listed))
        if self._plan.reply is Reply.RESPONSES:
            return self._finish_mapped(whole)
        # A route of §8 has its own successes.
        self.status = 200 if self._plan.listed else self._engine_status
        self._finish = Finish.COMPLETE
        if self.content_type == _JSON:
            self._tail.feed(whole)
            self._usage = self._tail.usage()
        if self._plan.reply is Reply.PASS or self.content_type != _JSON:
            # What is not JSON has no members: audio is never searched for a name.
            self._digests.passed(whole)
            return whole
        self._note(whole)
        return self._return(rename_model(whole, self._plan.served))

    def _finish_mapped(self, whole: bytes) -> bytes:
        self._note(whole)
        if self._plan.streamed:
            # Events were asked for and something else came.
            return self._fault(engine_fault(502))
        try:
            out, self._usage = response_body(whole, self._context)
        except FormatError:
            return self._fault(engine_fault(502))
        self._finish, self.status, self.content_type = Finish.COMPLETE, 200, _JSON
        return self._return(out)

    def _digest_upstream(self) -> None:
        self._note(self._take_held())

    def _note(self, whole: bytes) -> None:
        # An engine that gave nothing has no digest; a stream was digested as it came.
        if whole:
            self._digests.upstream(whole)

    def _fault(self, fault: ApiFault) -> bytes:
        self.status, self.content_type, self._retry_after = fault.status, _JSON, fault.retry_after
        self._finish = Finish.COMPLETE if fault.status < 500 else Finish.UPSTREAM_FAILED
        self._transformations.append(Transformation.ERROR_BODY.value)
        return self._return(fault.body())


def refusal_record(
    endpoint: str,
    received: bytes,
    fault: ApiFault,
    *,
    served: ServedModel,
    carriage: Carriage = PLAIN,
) -> InferenceRecord:
    """Return the record of a request that was refused before anything was forwarded (§4.7)."""
    digests = ExchangeDigests()
    digests.received(received)
    digests.returned(fault.body())
    return digests.record(
        endpoint=str(endpoint),
        model=served.name,
        status=fault.status,
        streamed=False,
        usage=None,
        transformations=(),
        finish=Finish.COMPLETE,
        carriage=carriage,
    )
