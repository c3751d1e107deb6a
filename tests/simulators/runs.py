"""Whole runs in memory: two simulated nodes, a sandbox that only pretends, a genuine receipt file.

`node.run.Run` is driven as `node/agent.py` drives it. Nothing is patched: the sandbox is a port,
and the model node answers through a `ModelLink` that skips the network.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from nodes import NOW, CountingEntropy, SimulatedNode, fitting_expectation, roots
from secret_broker import SecretBroker

from confide.agents.egress import EgressAttempt, EgressKind, EgressOutcome
from confide.agents.sandbox import AgentImage, ExitKind, OutputFile, SandboxExit, SandboxSpec
from confide.agents.state_files import StateEntry, StateTree
from confide.appraisal.binding import closing_nonce
from confide.appraisal.node import appraise_node
from confide.errors import Reason, ReceiptRejected
from confide.inference.digest import Finish, InferenceRecord
from confide.node.identity import NodeIdentity
from confide.node.model_link import ModelLink
from confide.node.run import Run, RunPorts
from confide.receipts.file import ReceiptFile
from confide.receipts.issue import issue_inference_receipt, session_claim
from confide.receipts.transcript import GENESIS
from confide.receipts.verify import VerifiedRun, verify_receipt
from confide.trust.roots import encode_roots_file
from confide.wire.dsse import Envelope
from confide.wire.json import jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from confide.adapters.sealed_http import SealedClient
    from confide.expectation import Expectation
    from confide.ports import NetworkEndpoints, Sandbox
    from confide.simulator.machine import SimulatedGuest
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle
    from confide.wire.release_receipt import ReleaseReceipt
    from confide.wire.rtmr_log import RuntimeEvent

# What the broker of these tests holds; one value is too short to be looked for.
VALUES = {"db-password": b"correct horse", "token": b"tok-5f0c2d91", "pin": b"1234"}
OUTPUTS = {"labels.csv": b"note,label\n1,refund\n", "tables/may.csv": b"may\n"}


@dataclass(frozen=True, slots=True)
class Story:
    """What happens in one run. `name` makes its nonce, run id and bytes its own."""

    name: str = "first"
    calls: int = 2
    unanswered: int = 0
    end: ExitKind = ExitKind.EXITED
    status: int | None = 0
    node_fails: bool = False
    # An event that a dishonest node does not measure for this run.
    unmeasured: str = ""
    # What the Expectation asks of a broker, and what a dishonest one says in its receipts.
    secrets: tuple[str, ...] = ()
    state: bool = False
    forge: Callable[[ReleaseReceipt], ReleaseReceipt] | None = None

    @property
    def asks(self) -> bool:
        """Whether there is a broker in this story."""
        return bool(self.secrets) or self.state


@dataclass(slots=True)
class World:
    """An agent node and a model node, booted, with the Expectation that both meet."""

    agent: SimulatedNode
    model: SimulatedNode
    expectation: Expectation
    roots: Roots
    issued: int = field(default=0)

    def identity(self) -> NodeIdentity:
        """The agent node's identity, before any rotation."""
        agent = self.agent
        return NodeIdentity(
            agent.keys, agent.attester, clock=agent.clock, entropy=agent.entropy, simulated=True
        )


@cache
def expectation_and_roots() -> tuple[Expectation, Roots]:
    """The Expectation of these tests, made once: it costs a PKI."""
    known = roots()
    return fitting_expectation(known), known


@cache
def world(boot: bytes = b"boot") -> World:
    """Two booted nodes; another `boot` means other keys on the same machines."""
    agent = SimulatedNode("agent", entropy=CountingEntropy(boot + b"/agent"))
    model = SimulatedNode("model", entropy=CountingEntropy(boot + b"/model"))
    asyncio.run(agent.boot())
    asyncio.run(model.boot())
    return World(agent, model, *expectation_and_roots())


def serving(weights: bytes) -> World:
    """Two booted nodes of which the model node serves `weights`."""
    expectation, known = expectation_and_roots()
    agent = SimulatedNode("agent", entropy=CountingEntropy(b"serving/agent"))
    model = SimulatedNode("model", entropy=CountingEntropy(b"serving/model"), weights=weights)
    asyncio.run(agent.boot())
    asyncio.run(model.boot())
    served = replace(expectation, model=replace(expectation.model, weights=weights.hex()))
    return World(agent, model, served, known)


class PretendedSession:
    """A sandbox session that keeps what it is given; `left` is what the agent leaves in /state."""

    def __init__(self) -> None:
        self.inputs: dict[str, bytes] = {}
        self.secrets: dict[str, bytes] = {}
        self.variables: dict[str, str] = {}
        self.restored: tuple[StateEntry, ...] = ()
        self.left = StateTree((), (), over=False)
        self.end: SandboxExit | None = None
        self.files: dict[str, bytes] = dict(OUTPUTS)
        self.closed = False

    @property
    def endpoints(self) -> NetworkEndpoints:
        raise NotImplementedError("nothing connects in memory")

    async def write_input(self, name: str, data: bytes) -> None:
        self.inputs[name] = self.inputs.get(name, b"") + data

    async def write_secret(self, name: str, data: bytes) -> None:
        self.secrets[name] = data

    async def set_variable(self, name: str, value: str) -> None:
        self.variables[name] = value

    async def restore_state(self, entries: Sequence[StateEntry]) -> None:
        self.restored = tuple(entries)

    async def read_state(self) -> StateTree:
        return self.left

    async def run(self) -> SandboxExit:
        if self.end is None:
            raise NotImplementedError("the story says how it ended")
        return self.end

    async def start(self) -> None:
        raise NotImplementedError

    async def turn(self, line: bytes) -> bytes:
        return line

    async def finish(self) -> SandboxExit:
        raise NotImplementedError

    async def cancel(self) -> None: ...

    async def read_output(self, path: str) -> AsyncIterator[bytes]:
        yield self.files[path]

    async def close(self) -> None:
        self.closed = True


class PretendedSandbox:
    """The `Sandbox` port without a container."""

    def __init__(self) -> None:
        self.specs: list[SandboxSpec] = []
        self.sessions: list[PretendedSession] = []

    async def prepare(self, spec: SandboxSpec) -> PretendedSession:
        self.specs.append(spec)
        self.sessions.append(PretendedSession())
        return self.sessions[-1]

    async def sweep(self) -> int:
        return 0

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LinkInMemory(ModelLink):
    """A proven model node whose closing takes no network."""

    model: SimulatedNode

    async def close_run(
        self, *, nonce: bytes, context: bytes, receipts: Sequence[bytes]
    ) -> EvidenceBundle:
        return await self.model.attest(
            "claim",
            closing_nonce(nonce, context),
            self.node.statement.expectation,
            session_claim(context=context, receipts=receipts),
        )


@dataclass(frozen=True, slots=True)
class _Measuring:
    """The `QuoteSource` of the agent node, leaving out one event where a story says so."""

    guest: SimulatedGuest
    left_out: str

    async def quote(self, report_data: bytes) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
        return await self.guest.quote(report_data)

    async def extend(self, event: RuntimeEvent) -> None:
        if event.name != self.left_out:
            await self.guest.extend(event)

    def firmware_log(self) -> bytes:
        return self.guest.firmware_log()


def sha(*parts: str) -> bytes:
    """A digest that names `parts`."""
    return hashlib.sha256("/".join(parts).encode()).digest()


def infer(place: World, *, request: bytes, response: bytes, **changed: Any) -> Envelope:
    """The model node's receipt for one call."""
    record = InferenceRecord(
        endpoint="chat.completions",
        model="support-notes",
        request_digest=request.hex(),
        forwarded_digest=None,
        upstream_digest=response.hex(),
        response_digest=response.hex(),
        status=200,
        streamed=False,
        usage=None,
        transformations=(),
        finish=Finish.COMPLETE,
    )
    place.issued += 1
    facts: dict[str, Any] = {
        "receipt_id": f"rcpt-{place.issued}",
        "keyset": place.model.keys.keyset.digest,
        "model": "support-notes",
        "weights": bytes.fromhex(place.expectation.model.weights),
        "served": NOW,
        "sequence": place.issued,
        "sealed_request": sha("sealed", request.hex()),
        "response": response,
        "record": record.as_json(),
    }
    return issue_inference_receipt(place.model.keys.signer, **{**facts, **changed})


def run_ports(
    place: World, story: Story, broker: SecretBroker | None = None, sandbox: Sandbox | None = None
) -> RunPorts:
    """The ports of one run; `broker` is what it asks for secrets."""
    entropy = CountingEntropy(f"run/{story.name}".encode())

    async def open_model(expectation: Expectation) -> ModelLink:
        nonce = entropy.token(32)
        before = await place.model.attest("channel", nonce, expectation.digest)
        node = appraise_node(
            before,
            subject="model-node (before)",
            role="model",
            purpose="channel",
            nonce=nonce,
            claim=None,
            expectation=expectation,
            roots=place.roots,
            now=NOW,
        )
        return LinkInMemory(node, before, nonce, cast("SealedClient", None), place.model)

    async def find_image(digest: str) -> AgentImage | None:
        wanted = place.expectation.agent.image
        return AgentImage(digest, "c" * 64, "/nowhere") if digest == wanted else None

    return RunPorts(
        identity=place.identity(),
        quotes=_Measuring(place.agent.guest, story.unmeasured),
        sandbox=sandbox or PretendedSandbox(),
        open_model=open_model,
        find_image=find_image,
        clock=place.agent.clock,
        entropy=entropy,
        open_secrets=None if broker is None else broker.open,
    )


def _exit(story: Story) -> SandboxExit:
    outputs = tuple(
        OutputFile(path, len(raw), hashlib.sha256(raw).hexdigest()) for path, raw in OUTPUTS.items()
    )
    return SandboxExit(story.end, story.status, 1200, b"done\n", b"", 5, 0, outputs, ())


def _call(run: Run, place: World, story: Story, number: int) -> None:
    request, response = sha(story.name, "q", str(number)), sha(story.name, "a", str(number))
    run.record_call(
        endpoint="/v1/chat/completions",
        request=request,
        response=response,
        status=200,
        outcome="complete",
        receipt=infer(place, request=request, response=response),
    )


async def _tell(place: World, story: Story) -> ReceiptFile:
    nonce = sha("owner's nonce", story.name)
    broker = SecretBroker(NOW, VALUES, forge=story.forge) if story.asks else None
    expectation = place.expectation
    if broker is not None:
        asked = broker.spec(*story.secrets, state=story.state)
        expectation = replace(expectation, broker=asked)
    before = await place.agent.attest("channel", nonce, expectation.digest)
    ports = run_ports(place, story, broker)
    run = Run(ports, ports.identity.current, expectation, nonce)
    await run.open()
    for name, raw in (("notes.csv", b"note\n"), ("empty", b"")):
        await run.write_input(name, raw)
        await run.add_input(name, hashlib.sha256(raw).digest(), len(raw))
    await run.prepare()
    for number in range(story.calls):
        _call(run, place, story, number)
    for number in range(story.unanswered):
        run.record_call(
            endpoint="/v1/chat/completions",
            request=sha(story.name, "lost", str(number)),
            response=None,
            status=503,
            outcome="unavailable",
            receipt=None,
        )
    run.record_egress(
        EgressAttempt(1, EgressKind.CONNECT, "collector.example:443", EgressOutcome.REFUSED)
    )
    run.record_exit(_exit(story), unreported=0)
    await run.keep_state()
    if story.node_fails:
        run.record_node_failure()
    proof = await run.prove()
    await run.close()
    return ReceiptFile(
        expectation=expectation.canonical(),
        run=proof.run,
        inferences=proof.inferences,
        releases=proof.releases,
        agent_before=before,
        agent_after=proof.agent_after,
        model_before=proof.model_before,
        model_after=proof.model_after,
        roots=encode_roots_file(place.roots),
        log=None,
    )


def tell_at(place: World, story: Story) -> ReceiptFile:
    """The receipt file of `story` on the nodes of `place`."""
    return asyncio.run(_tell(place, story))


@cache
def tell(story: Story | None = None, boot: bytes = b"boot") -> ReceiptFile:
    """The receipt file of `story` on the nodes of `boot`."""
    return asyncio.run(_tell(world(boot), story or Story()))


def refusals(file: ReceiptFile, **known: Any) -> dict[str, Reason]:
    """The steps of receipt.md §7 that refuse `file`, with their reasons; it must be refused."""
    try:
        verify(file, **known)
    except ReceiptRejected as error:
        return {
            finding.step.removeprefix("receipt/"): finding.reason
            for finding in error.findings
            if finding.step.startswith("receipt/") and finding.reason is not None
        }
    raise AssertionError("a bad receipt was accepted")


def verify(file: ReceiptFile, **known: Any) -> VerifiedRun:
    """Verify as a stranger with the right roots does; `known` is what the verifier also knows."""
    place = world()
    facts: dict[str, Any] = {
        "roots": place.roots,
        "now": NOW,
        "expectation": None,
        "nonce": None,
        "outputs": None,
    }
    return verify_receipt(file, **{**facts, **known})


def payload_of(envelope: Envelope) -> dict[str, Any]:
    """The in-toto statement of `envelope`, as JSON to edit."""
    value = parse_json(envelope.payload, what="payload", reason=Reason.RECEIPT_FORMAT)
    return cast("dict[str, Any]", value)


def predicate(document: dict[str, Any]) -> dict[str, Any]:
    """The predicate of an in-toto statement."""
    return cast("dict[str, Any]", document["predicate"])


def edited(file: ReceiptFile, edit: Callable[[dict[str, Any]], None]) -> ReceiptFile:
    """`file` with its receipt edited by somebody who holds no key."""
    document = payload_of(file.run)
    edit(document)
    return replace(file, run=Envelope(jcs(document), file.run.signatures))


def resealed(
    file: ReceiptFile,
    edit: Callable[[dict[str, Any]], None],
    *,
    boot: bytes = b"boot",
    encode: Callable[[dict[str, Any]], bytes] = jcs,
) -> ReceiptFile:
    """`file` with its receipt edited by a dishonest agent node, which signs and quotes it anew."""
    document = payload_of(file.run)
    edit(document)
    place = world(boot)
    run = place.agent.keys.signer.seal(encode(document))
    nonce = bytes.fromhex(payload_of(file.run)["predicate"]["nonce"])
    expectation = hashlib.sha256(file.expectation).digest()
    after = asyncio.run(place.agent.attest("claim", nonce, expectation, run.digest))
    return replace(file, run=run, agent_after=after)


def renumber(document: dict[str, Any]) -> None:
    """Make the numbers of the transcript follow from its order again."""
    for index, event in enumerate(document["predicate"]["transcript"]):
        event["seq"] = index


def rehash(document: dict[str, Any]) -> None:
    """Make the head and the subjects follow from the transcript again."""
    events = document["predicate"]["transcript"]
    head = GENESIS
    for event in events:
        head = hashlib.sha256(b"confide/transcript/v1\0" + head + jcs(event)).digest()
    document["predicate"]["head"] = head.hex()
    outputs = [event["sha256"] for event in events if event["kind"] == "output"]
    document["subject"] = [
        {"name": f"output/{index}", "digest": {"sha256": digest}}
        for index, digest in enumerate(outputs)
    ]
