"""One agent run on the agent node: the order of things, and what is written down when.

docs/protocols/agent-run.md. `Run` drives the ports in the one order that the protocol allows and
keeps the transcript; it decides nothing about trust. Plaintext of inputs and outputs exists in the
sandbox's memory-backed directories and in the sealed channel, nowhere else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.agents.egress import EgressPolicy, parse_destination
from confide.agents.environment import agent_environment
from confide.agents.recipients import parse_recipients, seal_output
from confide.agents.sandbox import ExitKind, SandboxSpec
from confide.appraisal.eventlog import run_commitment
from confide.errors import (
    FormatError,
    Reason,
    Rejected,
    RemoteProtocolError,
    RunRefused,
    Unavailable,
)
from confide.node.run_secrets import RunSecrets
from confide.rats import Finding, Status
from confide.receipts.file import RunProof
from confide.receipts.issue import RunFacts, issue_run_receipt, session_claim
from confide.receipts.transcript import COMPLETED, Transcript
from confide.wire.frames import FrameKind, encode_frame, json_frame
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from datetime import datetime

    from confide.agents.egress import EgressAttempt
    from confide.agents.sandbox import AgentImage, SandboxExit
    from confide.expectation import Expectation
    from confide.node.identity import Identity, NodeIdentity
    from confide.node.model_link import ModelLink
    from confide.ports import Clock, Entropy, QuoteSource, Sandbox, SandboxSession, SecretSession
    from confide.wire.dsse import Envelope
    from confide.wire.evidence import EvidenceBundle

__all__ = ["MAX_CALLS", "Run", "RunPorts", "refuse"]

_DOC = "docs/protocols/agent-run.md#2"
_PIECE_BYTES = 256 * 1024
# What one closing at the model node can name (node/model.py), and a transcript holds with ease.
MAX_CALLS = 100_000


def refuse(reason: Reason, detail: str, *, step: str = "run/1") -> RunRefused:
    """Return the refusal of a run, for one reason."""
    return RunRefused((Finding(Status.FAIL, step, _DOC, "agent-node", detail, reason),))


@dataclass(frozen=True, slots=True)
class RunPorts:
    """
    What a run needs from the node: identity, hardware, sandbox, the way to the model, time.

    `open_secrets` attests a run (its Expectation, its id) to the broker; None where there is none.
    """

    identity: NodeIdentity
    quotes: QuoteSource
    sandbox: Sandbox
    open_model: Callable[[Expectation], Awaitable[ModelLink]]
    find_image: Callable[[str], Awaitable[AgentImage | None]]
    clock: Clock
    entropy: Entropy
    open_secrets: Callable[[Expectation, bytes], Awaitable[SecretSession]] | None = None


@dataclass(slots=True)
class Run:
    """
    One run, from the header to the receipt. One task drives it.

    `identity` is the keyset that the request was sealed to.

    `open` → `add_input`* → `prepare` → (agent runs; calls, attempts are recorded) → `record_exit` →
    `keep_state` → `prove`. Everything raised before `prepare` returns is a refusal: nothing was
    executed.
    """

    ports: RunPorts
    identity: Identity
    expectation: Expectation
    nonce: bytes
    run_id: bytes = field(init=False, repr=False)
    token: str = field(init=False, repr=False)
    started: datetime = field(init=False)
    transcript: Transcript = field(init=False, default_factory=Transcript)
    session: SandboxSession | None = field(init=False, default=None)
    link: ModelLink | None = field(init=False, default=None)
    secrets: RunSecrets | None = field(init=False, default=None)
    inferences: list[Envelope] = field(init=False, default_factory=list)
    _input_bytes: int = field(init=False, default=0)
    _calls_begun: int = field(init=False, default=0)
    _failed: str | None = field(init=False, default=None)
    _exit: SandboxExit | None = field(init=False, default=None)

    async def open(self) -> None:
        """Find the image, measure the Expectation into RTMR3, make the sandbox."""
        self.run_id = self.ports.entropy.token(32)
        self.token = "run-" + self.ports.entropy.token(24).hex()
        self.started = self.ports.clock.now()
        wanted = self.expectation.agent
        image = await self.ports.find_image(wanted.image)
        if image is None:
            raise refuse(Reason.AGENT_IMAGE_MISMATCH, f"no image {wanted.image} on this node")
        if self.expectation.broker.wanted and self.ports.open_secrets is None:
            raise refuse(
                Reason.EXPECTATION_MISMATCH, "this node has no broker for secrets or state"
            )
        await self._measure("confide-expectation", self.expectation.digest)
        self.transcript.append("run-started", mode=wanted.mode, image=bytes.fromhex(wanted.image))
        self.session = await self.ports.sandbox.prepare(self._spec(image))

    def _spec(self, image: AgentImage) -> SandboxSpec:
        return SandboxSpec(
            # A label for engines and process lists; the run id itself stays secret.
            run_id=hashlib.sha256(b"confide/run-label/v1\0" + self.run_id).hexdigest()[:16],
            image=image,
            mode=self.expectation.agent.mode,
            command=(),
            environment=agent_environment(token=self.token, model=self.expectation.model.name),
            limits=self.expectation.limits,
            egress=self.egress_policy,
            secret_files=any(use.variable is None for use in self.expectation.broker.uses),
            state=self.expectation.broker.state,
        )

    @property
    def egress_policy(self) -> EgressPolicy:
        """The allow-list of this run, as the Expectation states it."""
        return EgressPolicy(tuple(parse_destination(text) for text in self.expectation.egress))

    @property
    def calls(self) -> int:
        """Model calls recorded so far."""
        return sum(event.kind == "model-call" for event in self.transcript.events)

    async def outputs(self) -> AsyncIterator[bytes]:
        """
        Yield the frames of the output files, in transcript order, for every recipient.

        The caller gets plaintext, inside the channel, only where it is a recipient.
        """
        if self._exit is None:
            return
        caller, others = parse_recipients(self.expectation.recipients)
        for output in self._exit.outputs:
            if caller:
                yield json_frame(FrameKind.FILE, {"path": output.path, "bytes": output.size})
                async for piece in self._session().read_output(output.path):
                    yield encode_frame(FrameKind.DATA, piece)
            for index, recipient in enumerate(others):
                sealed = seal_output(
                    recipient,
                    b"".join([piece async for piece in self._session().read_output(output.path)]),
                    run=self.run_id,
                    path=output.path,
                    ephemeral=self.ports.entropy.token(32),
                )
                name = f"{output.path}.{index}.sealed"
                yield json_frame(
                    FrameKind.FILE, {"path": name, "bytes": len(sealed), "recipient": index}
                )
                for start in range(0, len(sealed), _PIECE_BYTES):
                    yield encode_frame(FrameKind.DATA, sealed[start : start + _PIECE_BYTES])

    async def _measure(self, name: str, digest: bytes) -> None:
        payload = run_commitment(name, run=self.run_id, digest=digest)
        await self.ports.quotes.extend(RuntimeEvent(name, payload))

    def _session(self) -> SandboxSession:
        if self.session is None:
            raise RuntimeError("the run was not opened")
        return self.session

    async def add_input(self, path: str, digest: bytes, size: int) -> None:
        """Record one complete input; its bytes went to the sandbox through `write_input`."""
        self.transcript.append("input", path=_path_digest(path), sha256=digest, bytes=size)

    async def write_input(self, path: str, data: bytes) -> None:
        """Append `data` to input `path`. Raises `RunRefused` above the Expectation's limit."""
        self._input_bytes += len(data)
        if self._input_bytes > self.expectation.limits.input_bytes:
            raise refuse(
                Reason.LIMIT_EXCEEDED,
                f"inputs above limits.input_bytes = {self.expectation.limits.input_bytes}",
            )
        await self._session().write_input(path, data)

    async def prove_model(self) -> None:
        """Prove the model node. Raises what the proof raises."""
        self.link = await self.ports.open_model(self.expectation)
        self.transcript.append(
            "model-verified",
            keyset=self.link.node.keyset.digest,
            evidence=self.link.before.digest,
            nonce=self.link.nonce,
        )

    async def prepare(self) -> None:
        """
        Take secrets and state, measure the image; the model node is proven before.

        Raises what the proof or the broker raises.
        """
        if self.link is None:
            await self.prove_model()
        await self._take_secrets()
        image = bytes.fromhex(self.expectation.agent.image)
        await self._measure("confide-agent-image", image)
        self.transcript.append("agent-started", image=image)

    async def _take_secrets(self) -> None:
        opener = self.ports.open_secrets
        if not self.expectation.broker.wanted or opener is None:
            return
        session = await opener(self.expectation, self.run_id)
        self.secrets = RunSecrets(self.expectation, self.transcript, session)
        self.session = await self.secrets.deliver(self._session())

    def begin_call(self) -> None:
        """Count a model call before it is made. Raises `RunRefused` (LIMIT_EXCEEDED) at the cap."""
        if self._calls_begun >= MAX_CALLS:
            raise refuse(Reason.LIMIT_EXCEEDED, f"more than {MAX_CALLS} model calls in one run")
        self._calls_begun += 1

    def record_call(
        self,
        *,
        endpoint: str,
        request: bytes,
        response: bytes | None,
        status: int,
        outcome: str,
        receipt: Envelope | None,
    ) -> None:
        """Write down one model call; calls after the agent's end are not the agent's."""
        if not self.transcript.running:
            return
        self.transcript.append(
            "model-call",
            endpoint=endpoint,
            request=request,
            response=response,
            status=status,
            outcome=outcome,
            receipt=None if receipt is None else receipt.digest,
        )
        if receipt is not None:
            self.inferences.append(receipt)

    def record_egress(self, attempt: EgressAttempt) -> None:
        """Write down one egress attempt."""
        if self.transcript.running:
            self.transcript.append(
                "egress",
                via=attempt.kind.value,
                destination=attempt.destination,
                allowed=attempt.allowed,
                outcome=attempt.outcome.value,
                bytes_up=attempt.bytes_up,
                bytes_down=attempt.bytes_down,
            )

    def record_turn(self, direction: str, text: bytes) -> None:
        """Write down one chat turn, `in` or `out`."""
        self.transcript.append(
            f"turn-{direction}", sha256=hashlib.sha256(text).digest(), bytes=len(text)
        )

    def record_exit(self, end: SandboxExit, *, unreported: int) -> None:
        """Write down how the agent ended, what it printed and what it left."""
        self._exit = end
        self.transcript.append(
            "agent-exited",
            end=end.kind.value,
            status=end.status,
            egress_unreported=unreported,
        )
        for stream, kept, total in (
            ("stdout", end.stdout, end.stdout_bytes),
            ("stderr", end.stderr, end.stderr_bytes),
        ):
            self.transcript.append(
                "console",
                stream=stream,
                sha256=hashlib.sha256(kept).digest(),
                bytes=total,
                truncated=total > len(kept),
            )
        for output in end.outputs:
            self.transcript.append(
                "output",
                path=_path_digest(output.path),
                sha256=bytes.fromhex(output.sha256),
                bytes=output.size,
            )
        for left in end.left_out:
            self.transcript.append("output-refused", outcome=left.why)
        for where, count in self.secrets.changed if self.secrets is not None else ():
            self.transcript.append("scrubbed", where=where, count=count)

    async def keep_state(self) -> None:
        """Save the agent's state where it ended well, and give the lease back."""
        if self.secrets is not None and self._exit is not None:
            salt = self.ports.entropy.token(32)
            await self.secrets.keep(self._session(), self._exit, salt=salt)

    def record_node_failure(self) -> None:
        """Note that the node, not the agent, is why this run cannot complete."""
        self._failed = "node-failed"

    def _result(self) -> str:
        if self._failed is not None:
            return self._failed
        if self._exit is None or self._exit.kind is ExitKind.NOT_STARTED:
            return "node-failed"
        if self._exit.kind is ExitKind.CANCELLED:
            return "cancelled"
        if self._exit.kind is not ExitKind.EXITED:
            return "agent-killed"
        return COMPLETED if self._exit.succeeded else "agent-failed"

    async def _close_model(self) -> EvidenceBundle | None:
        if self.link is None or self._exit is None:
            return None
        context = self.transcript.head
        receipts = [envelope.digest for envelope in self.inferences]
        try:
            after = await self.link.close_run(nonce=self.nonce, context=context, receipts=receipts)
        except (FormatError, Rejected, RemoteProtocolError, Unavailable):
            # The receipt then says that the run did not complete; it never hides the gap.
            self.record_node_failure()
            return None
        # What was asked for, not what the peer says it answered: a verifier compares the two.
        claim = session_claim(context=context, receipts=receipts)
        self.transcript.append(
            "model-closed", evidence=after.digest, claim=claim, receipts=len(receipts)
        )
        return after

    async def prove(self) -> RunProof:
        """Close with the model node, issue the receipt, make the evidence that binds it."""
        model_after = await self._close_model()
        result = self._result()
        self.transcript.append("run-finished", result=result)
        keys = self.identity.keys
        facts = RunFacts(
            run=self.run_id,
            nonce=self.nonce,
            keyset=keys.keyset.digest,
            expectation=self.expectation.digest,
            started=self.started,
            finished=self.ports.clock.now(),
            result=result,
        )
        outputs = [] if self._exit is None else [o.sha256 for o in self._exit.outputs]
        envelope = issue_run_receipt(
            keys.signer,
            facts,
            transcript=self.transcript,
            outputs=[bytes.fromhex(output) for output in outputs],
        )
        after = await self.identity.attester.attest(
            purpose="claim",
            nonce=self.nonce,
            expectation=self.expectation.digest,
            claim=envelope.digest,
        )
        before = self.link.before if self.link is not None else None
        releases = () if self.secrets is None else tuple(self.secrets.releases)
        return RunProof(envelope, tuple(self.inferences), releases, after, before, model_after)

    async def close(self) -> None:
        """Kill what runs, wipe what is left, give back what is held of the broker."""
        try:
            if self.session is not None:
                await self.session.close()
                self.session = None
        finally:
            if self.secrets is not None:
                await self.secrets.close()


def _path_digest(path: str) -> bytes:
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
