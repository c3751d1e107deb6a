"""The answer of an agent node, frame by frame, into what a client keeps (agent-run.md §1).

Everything is the node's word until the receipt verified: text is made printable, names are checked
by `StagedOutputs`, and nothing here says that anything is proven.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.errors import Reason, RemoteProtocolError, RunRefused, Unavailable
from confide.rats import Finding, Status
from confide.receipts.file import RunProof, parse_proof
from confide.wire.frames import FrameDecoder, FrameKind
from confide.wire.json import Members, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.adapters.sealed_http import SealedResponse
    from confide.client.staging import StagedOutputs

__all__ = ["Progress", "Received", "receive"]

_REASON = Reason.RECEIPT_FORMAT
_CLAUSE = "docs/protocols/agent-run.md#2"
_MAX_SHOWN_CHARS = 400


@dataclass(frozen=True, slots=True)
class Progress:
    """One thing that happened: a step name and a short detail."""

    step: str
    detail: str


@dataclass(slots=True)
class Received:
    """
    What a run's answer has brought so far.

    `recipients` is how many others the Expectation names: only to them may a file be sealed.
    """

    outputs: StagedOutputs
    recipients: int
    on_progress: Callable[[Progress], None]
    proof: RunProof | None = None
    console: dict[str, bytes] = field(default_factory=dict)
    session: str | None = None
    turn: bytes | None = None
    ended: bool = False
    _stream: str | None = None

    def take(self, kind: FrameKind, payload: bytes) -> None:
        """Take one frame. Raises what a REFUSED frame says, `RemoteProtocolError` for nonsense."""
        if self.ended:
            raise RemoteProtocolError("something follows END")
        match kind:
            case FrameKind.DATA:
                self._data(payload)
            case FrameKind.PROGRESS | FrameKind.CONSOLE | FrameKind.FILE:
                self._announce(kind, _members(payload))
            case FrameKind.TURN:
                self.turn = payload
            case FrameKind.RECEIPT:
                self.proof = parse_proof(payload)
            case FrameKind.END:
                self.ended = True
            case FrameKind.REFUSED:
                raise _refusal(payload)
            case _:
                raise RemoteProtocolError("a frame that only clients send")

    def _data(self, payload: bytes) -> None:
        if self._stream is not None:
            self.console[self._stream] = payload
        else:
            self.outputs.write(payload)

    def _announce(self, kind: FrameKind, members: Members) -> None:
        if kind is FrameKind.CONSOLE:
            self._stream = members.choice("stream", ("stdout", "stderr"))
            members.integer("bytes")
        elif kind is FrameKind.FILE:
            self._stream = None
            sealed = members.has("recipient")
            if sealed and members.integer("recipient") >= self.recipients:
                members.refuse("sealed for somebody the Expectation does not name")
            self.outputs.begin(members.text("path"), members.integer("bytes"), plain=not sealed)
        else:
            step, detail = members.text("step"), members.text("detail")
            if step == "session":
                self.session = detail
            else:
                self.on_progress(Progress(_printable(step), _printable(detail)))
        members.end()


async def receive(answer: SealedResponse, received: Received) -> None:
    """
    Read `answer` to its end into `received`.

    Raises `RemoteProtocolError` (CHANNEL_TRUNCATED) when it ends before END.
    """
    decoder = FrameDecoder()
    async for piece in answer.aiter_bytes():
        for kind, payload in decoder.feed(piece):
            received.take(kind, payload)
    decoder.finish()
    if not received.ended:
        raise RemoteProtocolError("the answer has no END", reason=Reason.CHANNEL_TRUNCATED)


def _members(payload: bytes) -> Members:
    value = parse_json(payload, what="frame", reason=_REASON)
    return Members(value, what="frame", reason=_REASON)


def _refusal(payload: bytes) -> RunRefused | Unavailable:
    members = _members(payload)
    reason, step = members.text("reason"), members.text("step")
    detail = _printable(members.text("detail"))
    others = members.texts("findings")
    if reason not in set(Reason):
        return Unavailable(f"the node cannot run this now: {detail}")
    first = Finding(Status.FAIL, _printable(step), _CLAUSE, "agent-node", detail, Reason(reason))
    rest = tuple(
        Finding(Status.FAIL, "node", _CLAUSE, "agent-node", _printable(text), Reason(reason))
        for text in others[1:]
    )
    return RunRefused((first, *rest))


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_SHOWN_CHARS])
