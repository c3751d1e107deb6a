"""The relying party of an agent node: prove, send sealed, receive, verify. In that order only.

docs/protocols/agent-run.md. `prove` returns the only value that `run` and `chat` accept, so that
nothing can be sent to a node that was not proven. Outputs are staged beside their destination and
moved there only after the receipt verified.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.adapters.prove import prove_node
from confide.agents.recipients import parse_recipients
from confide.appraisal.known import Known
from confide.client.receive import Progress, Received, receive
from confide.client.staging import StagedOutputs
from confide.errors import (
    FormatError,
    Reason,
    ReceiptRejected,
    RemoteProtocolError,
    Unavailable,
)
from confide.receipts.file import ReceiptFile
from confide.receipts.verify import VerifiedRun, verify_receipt
from confide.trust.roots import encode_roots_file
from confide.wire.frames import FrameKind, encode_frame, json_frame
from confide.wire.json import b64encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    import httpx2

    from confide.adapters.sealed_http import SealedClient
    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation
    from confide.ports import Clock, Entropy
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle

__all__ = ["AgentClient", "ChatSession", "InputFile", "Progress", "ProvenAgentNode", "RunOutcome"]

_RUNS = "/confide/v1/runs"
_HEADERS = (("content-type", "application/x-confide-frames"),)
_REASON = Reason.RECEIPT_FORMAT
_PIECE = 256 * 1024


@dataclass(frozen=True, slots=True)
class InputFile:
    """A local file to send, under the name the agent sees below /input."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class ProvenAgentNode:
    """An agent node that was proven for one Expectation and one nonce; good for one run."""

    node: VerifiedNode
    before: EvidenceBundle
    nonce: bytes
    expectation: Expectation
    sealed: SealedClient


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """
    A finished run.

    `verified` is None when the receipt did not verify; `failure` then says why. `receipt` is the
    self-contained file to keep either way. Outputs lie in the destination only when verified.
    """

    receipt: ReceiptFile
    verified: VerifiedRun | None
    failure: Exception | None
    outputs: tuple[str, ...]
    stdout: bytes
    stderr: bytes


class AgentClient:
    """A client of one agent node at `url`. `http` is the caller's to close."""

    def __init__(
        self,
        url: str,
        *,
        roots: Roots,
        http: httpx2.AsyncClient,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._url = url
        self._roots = roots
        self._http = http
        self._clock = clock
        self._entropy = entropy
        self._known = Known()

    async def prove(self, expectation: Expectation) -> ProvenAgentNode:
        """
        Fetch evidence over a fresh nonce and appraise it against `expectation`.

        Sends a nonce and a digest, nothing else. Raises `EvidenceRejected`, `PolicyRejected`,
        `FormatError` or `Unavailable`.
        """
        proven = await prove_node(
            self._url,
            role="agent",
            expectation=expectation,
            roots=self._roots,
            http=self._http,
            clock=self._clock,
            entropy=self._entropy,
            known=self._known,
        )
        self._known = proven.node.known
        return ProvenAgentNode(
            proven.node, proven.evidence, proven.nonce, expectation, proven.sealed
        )

    async def run(
        self,
        proven: ProvenAgentNode,
        inputs: Sequence[InputFile],
        *,
        destination: Path,
        on_progress: Callable[[Progress], None],
    ) -> RunOutcome:
        """
        Run a batch agent on `inputs`; verified outputs end up in `destination`.

        Raises `RunRefused` when the node would not start it (nothing was executed), `Unavailable`
        or `RemoteProtocolError` when the connection broke: the inputs then reached the node,
        sealed, and whether the agent ran is not known.
        """
        with StagedOutputs(destination) as staged:
            received = Received(staged, _others(proven), on_progress)
            body = _request_body(proven, inputs)
            await self._exchange(proven, _RUNS, body, received)
            return self._conclude(proven, received)

    async def open_chat(
        self,
        proven: ProvenAgentNode,
        inputs: Sequence[InputFile],
        *,
        destination: Path,
        on_progress: Callable[[Progress], None],
    ) -> ChatSession:
        """Start a chat agent; its files end up in `destination` when the session is finished."""
        with ExitStack() as undo:
            # Until there is a session that can be finished, nobody else would remove the stage.
            received = Received(
                undo.enter_context(StagedOutputs(destination)), _others(proven), on_progress
            )
            await self._exchange(proven, _RUNS, _request_body(proven, inputs), received)
            if received.session is None:
                raise RemoteProtocolError("the node opened no session")
            undo.pop_all()
            return ChatSession(self, proven, received, received.session, on_progress)

    async def _exchange(
        self,
        proven: ProvenAgentNode,
        path: str,
        body: AsyncIterator[bytes],
        received: Received,
    ) -> None:
        answer = await proven.sealed.request("POST", path, _HEADERS, body)
        async with answer:
            if answer.status != 200:
                raise RemoteProtocolError(f"the node answered {answer.status}")
            await receive(answer, received)

    def _conclude(self, proven: ProvenAgentNode, received: Received) -> RunOutcome:
        proof = received.proof
        if proof is None:
            raise RemoteProtocolError("the node ended the run without a receipt")
        roots = encode_roots_file(self._roots) if self._roots.simulated else b""
        receipt = ReceiptFile(
            expectation=proven.expectation.canonical(),
            run=proof.run,
            inferences=proof.inferences,
            releases=proof.releases,
            agent_before=proven.before,
            agent_after=proof.agent_after,
            model_before=proof.model_before,
            model_after=proof.model_after,
            roots=roots,
            log=None,
        )
        verified: VerifiedRun | None = None
        failure: Exception | None = None
        caller, _ = parse_recipients(proven.expectation.recipients)
        try:
            verified = verify_receipt(
                receipt,
                roots=self._roots,
                now=self._clock.now(),
                expectation=proven.expectation,
                nonce=proven.nonce,
                outputs=received.outputs.digests if caller else None,
            )
            received.outputs.publish()
        except Unavailable as error:
            # Verified, but not in its place: the caller gets the receipt and where the files are.
            failure = error
        except (FormatError, ReceiptRejected) as error:
            failure = error
            received.outputs.keep_unverified()
        return RunOutcome(
            receipt,
            verified,
            failure,
            received.outputs.names,
            received.console.get("stdout", b""),
            received.console.get("stderr", b""),
        )


class ChatSession:
    """A chat agent that is up. Finish it, or the node ends it after `limits.wall_seconds`."""

    def __init__(
        self,
        client: AgentClient,
        proven: ProvenAgentNode,
        received: Received,
        session: str,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._client = client
        self._proven = proven
        self._received = received
        self._path = f"{_RUNS}/{session}"
        self._on_progress = on_progress

    async def turn(self, text: str) -> str:
        """Say `text`, return the agent's answer. One line each way; newlines become spaces."""
        line = " ".join(text.splitlines()).encode()
        received = Received(self._received.outputs, self._received.recipients, self._on_progress)
        body = _single(encode_frame(FrameKind.TURN, line))
        await self._client._exchange(  # noqa: SLF001 - one module, two classes
            self._proven, f"{self._path}/turn", body, received
        )
        if received.turn is None:
            raise RemoteProtocolError("the node answered without a turn")
        return received.turn.decode("utf-8", "replace")

    def abandon(self) -> None:
        """Let go without a receipt; the node ends the session by itself."""
        self._received.outputs.discard()

    async def finish(self) -> RunOutcome:
        """End the session: receipt, verification, outputs."""
        received = self._received
        received.ended = False
        with received.outputs:
            await self._client._exchange(  # noqa: SLF001 - one module, two classes
                self._proven, f"{self._path}/finish", _single(), received
            )
            return self._client._conclude(self._proven, received)  # noqa: SLF001 - as above


async def _single(*frames: bytes) -> AsyncIterator[bytes]:
    yield b"".join((*frames, encode_frame(FrameKind.END)))


async def _request_body(
    proven: ProvenAgentNode, inputs: Sequence[InputFile]
) -> AsyncIterator[bytes]:
    yield json_frame(
        FrameKind.HEADER,
        {
            "expectation": b64encode(proven.expectation.canonical()),
            "nonce": proven.nonce.hex(),
        },
    )
    for item in inputs:
        yield json_frame(FrameKind.FILE, {"path": item.name, "bytes": item.size})
        left = item.size
        with item.path.open("rb") as file:
            while left and (piece := file.read(min(_PIECE, left))):
                left -= len(piece)
                yield encode_frame(FrameKind.DATA, piece)
        if left:
            raise Unavailable(f"an input became shorter while it was read ({left} bytes missing)")
    yield encode_frame(FrameKind.END)


def _others(proven: ProvenAgentNode) -> int:
    return len(parse_recipients(proven.expectation.recipients)[1])
