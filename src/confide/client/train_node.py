"""A training node as its owner talks to it: proven, sealed to, and asked in OpenAI's shapes.

docs/protocols/training-node.md. Every request goes to a node that was proven first and whose proof
still counts. What it answers is authentic, and otherwise its own word: results are believed for
the record, never for this.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from confide.adapters.sealed_http import RefusedOutside
from confide.errors import (
    ConfigurationError,
    FormatError,
    Reason,
    RemoteProtocolError,
    Unavailable,
)
from confide.wire.json import JsonLimits, Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

    from confide.adapters.sealed_http import SealedResponse
    from confide.client.held import HeldNode, Proof
    from confide.wire.json import JsonValue

__all__ = ["NodeRefused", "Outgoing", "TrainingNode", "words_of_the_node"]

_REASON: Final = Reason.REQUEST_FORMAT
_LIMITS: Final = JsonLimits(max_bytes=16 * 1024 * 1024, max_depth=16)
_MAX_CODE_CHARS: Final = 64
_MAX_MESSAGE_CHARS: Final = 600
# A question is answered at once; only files take long, and then bytes keep coming.
_TIMEOUTS: Final = {"connect": 10.0, "read": 120.0, "write": 120.0, "pool": 60.0}
# But for what the node reads whole before it answers: 8 GiB of rows.
_PATIENT: Final = {**_TIMEOUTS, "read": 3600.0}
_READS_ALL: Final = ("/v1/files", "/complete")
_RANGE: Final = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")
_JSON: Final = ("content-type", "application/json")


class NodeRefused(ConfigurationError):
    """
    A proven node does not take this. `code` and `message` are its words, cut and not ours.

    They name line numbers, members and limits; the command line makes them printable.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        super().__init__(f"the training node refuses: {message} ({code})")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A body that can be made again: a request may have to be sealed to newer keys."""

    content_type: str
    make: Callable[[], AsyncIterator[bytes]]


class TrainingNode:
    """One training node. `token` says whose files and jobs these are; belongs to one event loop."""

    def __init__(self, held: HeldNode, *, token: str) -> None:
        self._held = held
        self._token = token

    async def prove(self) -> Proof:
        """Prove it, where its proof does not count any more. Raises as `HeldNode.current`."""
        return await self._held.current()

    async def ask(self, method: str, path: str, document: JsonValue = None) -> Members:
        """
        Ask and return the answer.

        Raises `NodeRefused`, `Unavailable` where it cannot be done now, `Rejected` where the node
        is not what was expected, `RemoteProtocolError`.
        """
        async with await self._exchange(method, path, document) as answer:
            return await _read(answer)

    async def send(self, path: str, body: Outgoing) -> Members:
        """Send a body piece by piece; otherwise as `ask`."""
        async with await self._exchange("POST", path, body) as answer:
            return await _read(answer)

    async def read(self, path: str, *, max_bytes: int = _LIMITS.max_bytes) -> bytes:
        """Return a document as its bytes. Raises as `ask`."""
        async with await self._exchange("GET", path, None) as answer:
            if answer.status >= HTTPStatus.BAD_REQUEST:
                await _read(answer)
            return await _bounded(answer, max_bytes)

    async def stream(self, path: str, *, stretch: int) -> AsyncGenerator[bytes, None]:
        """
        Yield a file as it comes, whose digest the caller knows, in ranges of `stretch` bytes.

        One answer could not carry a large one (channel.md 2.6). Raises as `ask`.
        """
        at, size = 0, 1
        while at < size:
            last = at + stretch - 1
            fields = (("range", f"bytes={at}-{last}"),)
            async with await self._exchange("GET", path, None, fields) as answer:
                if answer.status >= HTTPStatus.BAD_REQUEST:
                    await _read(answer)
                size = _whole_size(answer, at)
                async for data in answer.aiter_bytes():
                    yield data
                    at += len(data)
            if answer.status != HTTPStatus.PARTIAL_CONTENT:
                return
            if at != min(last + 1, size):
                raise RemoteProtocolError(
                    "a range has another length", reason=Reason.CHANNEL_TRUNCATED
                )

    async def pieces(self, path: str, *, first: int, last: int) -> AsyncGenerator[bytes, None]:
        """
        Yield bytes `first` to `last` of a file as they come, each once and in order.

        A node that knows no ranges answers with the whole file: then everything from `first` on.
        Raises as `ask`; what was yielded until then is authentic.
        """
        fields = (("range", f"bytes={first}-{last}"),)
        async with await self._exchange("GET", path, None, fields) as answer:
            if answer.status >= HTTPStatus.BAD_REQUEST:
                await _read(answer)
            skip = 0 if answer.status == HTTPStatus.PARTIAL_CONTENT else first
            size = 0
            async for data in answer.aiter_bytes():
                wanted, skip = data[skip:], max(0, skip - len(data))
                size += len(wanted)
                if wanted:
                    yield wanted
        if size <= last - first:
            raise RemoteProtocolError("a file came short", reason=Reason.CHANNEL_TRUNCATED)

    async def _exchange(
        self,
        method: str,
        path: str,
        body: JsonValue | Outgoing,
        fields: tuple[tuple[str, str], ...] = (),
    ) -> SealedResponse:
        proof = await self._held.current()
        try:
            return await self._send(proof, method, path, body, fields)
        except RefusedOutside as refusal:
            if refusal.reason is Reason.NODE_BUSY:
                raise Unavailable("the training node is busy") from refusal
            if refusal.reason is not Reason.KEYSET_MISMATCH:
                raise
        # client.md 2.5: its keys changed; nobody's word, so it counts once.
        proof = await self._held.replace(proof)
        return await self._send(proof, method, path, body, fields)

    async def _send(
        self,
        proof: Proof,
        method: str,
        path: str,
        body: JsonValue | Outgoing,
        fields: tuple[tuple[str, str], ...],
    ) -> SealedResponse:
        headers = [("authorization", f"Bearer {self._token}"), *fields]
        content: bytes | AsyncIterator[bytes] = b""
        if isinstance(body, Outgoing):
            headers.append(("content-type", body.content_type))
            content = body.make()
        elif body is not None:
            headers.append(_JSON)
            content = jcs(body)
        patient = method == "POST" and path.endswith(_READS_ALL)
        return await proof.sealed.sealed.request(
            method, path, headers, content, timeouts=_PATIENT if patient else _TIMEOUTS
        )


def _whole_size(answer: SealedResponse, at: int) -> int:
    """Return the size of the file of which `answer` is a range from `at` on, or all there is."""
    said = [value for name, value in answer.headers if name.lower() == "content-range"]
    if answer.status != HTTPStatus.PARTIAL_CONTENT and not at:
        return 0
    found = _RANGE.fullmatch(said[0]) if len(said) == 1 else None
    if found is None or int(found[1]) != at:
        raise RemoteProtocolError("the training node sent another range than was asked for")
    return int(found[2])


async def _bounded(answer: SealedResponse, max_bytes: int = _LIMITS.max_bytes) -> bytes:
    raw = bytearray()
    async for piece in answer.aiter_bytes():
        raw += piece
        if len(raw) > max_bytes:
            raise RemoteProtocolError("an answer is too long", reason=Reason.LIMIT_EXCEEDED)
    return bytes(raw)


async def _read(answer: SealedResponse) -> Members:
    raw, what = await _bounded(answer), "answer of the training node"
    with words_of_the_node():
        value = parse_json(raw, what=what, reason=_REASON, limits=_LIMITS)
        members = Members(value, what=what, reason=_REASON)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(answer.status, members.members("error"))
    return members


@contextmanager
def words_of_the_node() -> Iterator[None]:
    """Say of what the node answers, and is of no use, that the node broke the protocol."""
    try:
        yield
    except FormatError as error:
        raise RemoteProtocolError(error.what) from error


def _refusal(status: int, error: Members) -> NodeRefused | Unavailable:
    code = "" if error.null("code") else error.text("code")[:_MAX_CODE_CHARS]
    message = error.text("message", max_chars=1 << 20)[:_MAX_MESSAGE_CHARS].removesuffix(".")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
        return Unavailable(f"the training node cannot do this now: {message} ({code})")
    return NodeRefused(status, code, message)
