"""Jobs of an owner's image in memory: a simulated node, a sandbox that only pretends, a record.

`run_image_job` is driven as a training node drives it. Nothing is patched: sandbox, results and
base are ports. An `ImageStory` says what the image does and what the node is.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from nodes import NOW, SOFTWARE, WEIGHTS, CountingEntropy, SimulatedNode
from runs import PretendedSandbox, PretendedSession, expectation_and_roots
from trainings import sha

from confide.agents.sandbox import AgentImage, ExitKind, LeftOut, OutputFile, SandboxExit
from confide.appraisal.eventlog import run_commitment
from confide.appraisal.node import appraise_node
from confide.errors import Reason, RunRefused, TrainingRejected
from confide.inference.weights import WeightsManifest, weights_manifest
from confide.node.identity import NodeIdentity
from confide.node.train_image import (
    BaseFolder,
    CommittedRows,
    ImageJob,
    ImagePorts,
    run_image_job,
)
from confide.rats import Finding, Status
from confide.training.boot_verify import hardware_of
from confide.training.boots import RUN_EVENT, boot_nonce
from confide.training.dataset import commit_rows
from confide.training.image_parse import parse_image_record
from confide.training.image_recipe import ImageLimits, ImageRecipe, image_boot_claim
from confide.training.image_record import ImageRecord, issue_image_record
from confide.training.image_verify import VerifiedImageRecord, verify_image_record
from confide.training.record_file import RecordFile
from confide.training.rows import RowReader, require_rows
from confide.trust.roots import encode_roots_file
from confide.wire.json import Members
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from confide.agents.sandbox import SandboxSpec
    from confide.expectation import Expectation
    from confide.node.image_proof import ProvenNode
    from confide.ports import NetworkEndpoints
    from confide.simulator.machine import SimulatedGuest
    from confide.trust.roots import Roots
    from confide.wire.json import JsonValue

SALT = b"s" * 32
# As their owner wrote them: with white space that is no part of what is committed to.
ROWS = b'{"prompt": "one", "completion": "1"}\n{"completion":"2","prompt":"two"}\n'
CANONICAL_ROWS = b'{"completion":"1","prompt":"one"}\n{"completion":"2","prompt":"two"}\n'
HELD_OUT = b'{"completion":"3","prompt":"three"}\n'
IMAGE = sha("the training image of these tests").hex()
MADE = {"config.json": b"{}", "model.safetensors": b"weights"}
MOST = ImageLimits(
    memory_bytes=8 << 30,
    cpus_milli=4000,
    pids=512,
    wall_seconds=7200,
    output_bytes=2 << 30,
    output_files=2000,
    scratch_bytes=1 << 30,
)


def made_manifest(files: dict[str, bytes]) -> WeightsManifest:
    """The manifest of a directory with these files."""
    return weights_manifest((name, hashlib.sha256(raw).hexdigest()) for name, raw in files.items())


@dataclass(frozen=True)
class ImageStory:
    """
    One job. `name` makes its ids and digests its own.

    `rows` are what the node reads, `committed` what the owner committed to; `touched` says when
    somebody writes to the base: `before` the start, or while the image `runs`.
    """

    name: str = "own recipe"
    rows: bytes = ROWS
    committed: bytes = ROWS
    validation: bytes | None = None
    recipe: ImageRecipe = field(
        default_factory=lambda: ImageRecipe("support-notes", IMAGE, ("python3", "/agent/t.py"))
    )
    files: tuple[tuple[str, bytes], ...] = tuple(MADE.items())
    left_out: tuple[LeftOut, ...] = ()
    end: ExitKind = ExitKind.EXITED
    status: int | None = 0
    base: bytes = WEIGHTS
    held: bytes = WEIGHTS
    images: tuple[str, ...] = (IMAGE,)
    devices: tuple[str, ...] = ()
    touched: str = ""
    gpu: str = "model-node"
    # What a dishonest node does not measure, or measures for another plan.
    measured: str = "plan"
    stdout: bytes = b"epoch 1\n"
    endless: bool = False

    @property
    def expectation(self) -> Expectation:
        """The Expectation that its node meets."""
        known, _ = expectation_and_roots()
        return replace(known, model=replace(known.model, weights=self.held.hex()))

    def job(self) -> ImageJob:
        """What the owner asks for."""
        return ImageJob(
            training_id=sha(self.name, "job"),
            nonce=sha(self.name, "nonce"),
            expectation=self.expectation,
            recipe=self.recipe,
            data=committed_rows(self.rows, self.committed),
            validation=None
            if self.validation is None
            else committed_rows(self.validation, self.validation),
        )


def committed_rows(stored: bytes, committed: bytes) -> CommittedRows:
    """Rows as a node stores them, and the commitment of their owner."""
    rows = require_rows(RowReader().read([committed]))
    # In pieces that end anywhere, as a store reads.
    pieces = [stored[at : at + 7] for at in range(0, len(stored), 7)]
    return CommittedRows(commit_rows(rows, SALT), SALT, lambda: iter(pieces))


class _Ends:
    """Endpoints that remember whether they were closed."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class ImageSession(PretendedSession):
    """A sandbox session in which the image of a story runs."""

    def __init__(self, story: ImageStory, spec: SandboxSpec, running: asyncio.Event) -> None:
        super().__init__()
        self.story = story
        self.running = running
        self.spec = spec
        self.files = dict(story.files)
        self.ends = _Ends()
        self.ran = False

    @property
    def endpoints(self) -> NetworkEndpoints:
        return cast("NetworkEndpoints", self.ends)

    async def run(self) -> SandboxExit:
        self.ran = True
        self.running.set()
        story = self.story
        if story.endless:
            await asyncio.Event().wait()
        outputs = tuple(
            OutputFile(path, len(raw), hashlib.sha256(raw).hexdigest())
            for path, raw in sorted(self.files.items())
        )
        out = story.stdout
        return SandboxExit(
            story.end, story.status, 12, out, b"", len(out), 0, outputs, story.left_out
        )

    async def read_output(self, path: str) -> AsyncIterator[bytes]:
        raw = self.files[path]
        for at in range(0, len(raw), 3):
            yield raw[at : at + 3]


class ImageSandbox(PretendedSandbox):
    """The `Sandbox` port in which images of a story run."""

    def __init__(self, story: ImageStory) -> None:
        super().__init__()
        self.story = story
        self.sessions: list[PretendedSession] = []
        # Set once an image was started.
        self.running = asyncio.Event()

    async def prepare(self, spec: SandboxSpec) -> ImageSession:
        self.specs.append(spec)
        session = ImageSession(self.story, spec, self.running)
        self.sessions.append(session)
        return session


class MemoryResults:
    """Results that are kept in memory, unsealed; what is `sealed` is named by its own digest."""

    def __init__(self) -> None:
        self.manifests: dict[str, WeightsManifest] = {}
        self.sealed: dict[str, bytes] = {}
        self.plain: dict[str, bytes] = {}
        self._name = ""

    def file(self, value: JsonValue) -> None:
        members = Members(value, what="head", reason=Reason.TRAINING_FORMAT)
        assert members.text("output") == "output"
        self._name = members.text("name")
        self.plain[self._name] = b""

    def data(self, payload: bytes) -> None:
        self.plain[self._name] += payload

    def end_outputs(self) -> None:
        self.manifests["output"] = made_manifest(
            {name: raw for name, raw in self.plain.items() if name not in ("stdout", "stderr")}
        )
        self.sealed["output"] = sha("sealed", *sorted(self.plain))

    def seal(self, name: str, data: bytes) -> None:
        self.plain[name] = data
        self.sealed[name] = hashlib.sha256(b"sealed" + data).digest()


@dataclass(slots=True)
class _Guest:
    """The machine of a node that measures what a story says."""

    guest: SimulatedGuest
    story: ImageStory
    extended: list[str] = field(default_factory=list)

    async def quote(self, report_data: bytes) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
        return await self.guest.quote(report_data)

    async def extend(self, event: RuntimeEvent) -> None:
        if self.story.measured == "nothing":
            return
        if self.story.measured == "other":
            run, digest = sha(self.story.name, "job"), sha("another plan")
            event = RuntimeEvent(RUN_EVENT, run_commitment(RUN_EVENT, run=run, digest=digest))
        self.extended.append(event.name)
        await self.guest.extend(event)

    def firmware_log(self) -> bytes:
        return self.guest.firmware_log()


@dataclass(frozen=True, slots=True)
class ImageNode:
    """A booted training node, as `ProvenNode` wants it."""

    identity: NodeIdentity
    guest: _Guest
    roots: Roots
    weights: bytes


@dataclass
class ImagePlace:
    """One node with the ports of its jobs, and what a job left there."""

    story: ImageStory
    node: SimulatedNode
    sandbox: ImageSandbox
    ports: ImagePorts
    results: MemoryResults = field(default_factory=MemoryResults)
    told: list[str] = field(default_factory=list)

    @property
    def measured(self) -> list[str]:
        """The names of the events that were measured for the job."""
        guest = self.ports.node.guest
        assert isinstance(guest, _Guest)
        return guest.extended

    @property
    def session(self) -> ImageSession:
        """The one session."""
        (session,) = self.sandbox.sessions
        assert isinstance(session, ImageSession)
        return session

    async def run(self) -> RecordFile:
        """Run the job of the story."""
        return await run_image_job(
            self.ports, self.story.job(), self.results, tell=self.told.append
        )


def image_ports(story: ImageStory, node: ProvenNode, sandbox: ImageSandbox) -> ImagePorts:
    """What the jobs of `story` need of `node`."""

    async def find_image(digest: str) -> AgentImage | None:
        return AgentImage(digest, "c" * 64, "/images") if digest in story.images else None

    async def unchanged() -> None:
        ran = bool(sandbox.sessions) and cast("ImageSession", sandbox.sessions[0]).ran
        if story.touched == ("runs" if ran else "before"):
            detail = "'model.safetensors' was touched since it was measured"
            clause, reason = "weights.md §7.3", Reason.MODEL_MISMATCH
            raise RunRefused(
                (Finding(Status.FAIL, "weights/7", clause, "weights", detail, reason),)
            )

    return ImagePorts(
        node=node,
        sandbox=sandbox,
        find_image=find_image,
        base=BaseFolder("/models/base", unchanged),
        limits=MOST,
        max_input_bytes=1 << 20,
        devices=story.devices,
    )


async def boot_place(story: ImageStory) -> ImagePlace:
    """Boot the node of `story`."""
    entropy = CountingEntropy(f"image/{story.name}".encode())
    node = SimulatedNode("model", entropy=entropy, gpu=story.gpu, weights=story.held)
    await node.boot()
    identity = NodeIdentity(
        node.keys, node.attester, clock=node.clock, entropy=entropy, simulated=True
    )
    sandbox = ImageSandbox(story)
    guest = _Guest(node.guest, story)
    proven = ImageNode(identity, guest, expectation_and_roots()[1], story.base)
    return ImagePlace(story, node, sandbox, image_ports(story, proven, sandbox))


@dataclass(slots=True)
class TrainedByImage:
    """What a job leaves: its file, the node that signed, what the record says."""

    file: RecordFile
    node: SimulatedNode
    record: ImageRecord


@cache
def train_image(story: ImageStory | None = None) -> TrainedByImage:
    """The record of `story`, made by its node."""

    async def go() -> TrainedByImage:
        place = await boot_place(story or ImageStory())
        file = await place.run()
        return TrainedByImage(file, place.node, parse_image_record(file.record.payload))

    return asyncio.run(go())


def verify_image(file: RecordFile, **known: Any) -> VerifiedImageRecord:
    """Verify as a stranger with the right roots does; `known` is what the verifier also knows."""
    facts: dict[str, Any] = {
        "roots": expectation_and_roots()[1],
        "now": NOW,
        "expectation": None,
        "nonce": None,
        "outputs": {},
    }
    return verify_image_record(file, **{**facts, **known})


def image_refusals(file: RecordFile, **known: Any) -> dict[str, Reason]:
    """The steps of training-image.md §5 that refuse `file`, with reasons; it must be refused."""
    try:
        verify_image(file, **known)
    except TrainingRejected as error:
        return {
            finding.step.removeprefix("image/"): finding.reason
            for finding in error.findings
            if finding.step.startswith("image/") and finding.reason is not None
        }
    raise AssertionError("a bad record was accepted")


async def _forge(story: ImageStory) -> TrainedByImage:
    place = await boot_place(story)
    node, job, expectation = place.node, story.job(), story.expectation
    plan = job.plan(story.base)
    event = RuntimeEvent(
        RUN_EVENT, run_commitment(RUN_EVENT, run=job.training_id, digest=plan.digest)
    )
    await place.ports.node.guest.extend(event)
    claim = image_boot_claim(job=job.training_id, plan=plan.digest, at=NOW)
    nonce = boot_nonce(job.nonce, 0)
    bundle = await node.attest("claim", nonce, expectation.digest, claim)
    proven = appraise_node(
        bundle,
        subject=story.name,
        role="model",
        purpose="claim",
        nonce=nonce,
        claim=claim,
        expectation=expectation,
        roots=expectation_and_roots()[1],
        now=NOW,
    )
    record = ImageRecord(
        job=job.training_id,
        nonce=job.nonce,
        keyset=node.keys.keyset.digest,
        expectation=expectation.digest,
        software=SOFTWARE,
        started=NOW,
        finished=NOW,
        plan=plan,
        dataset_root=job.data.commitment.root,
        sealed={"output": sha(story.name, "sealed")},
        outputs={},
        statements={},
        end=story.end,
        status=story.status,
    )
    issued = issue_image_record(
        node.keys.signer,
        record,
        manifest=made_manifest(dict(story.files)),
        boot=hardware_of(proven),
    )
    after = await node.attest("claim", job.nonce, expectation.digest, issued.record.digest)
    file = RecordFile(
        expectation=expectation.canonical(),
        record=issued.record,
        statements=issued.statements,
        boots=(bundle,),
        after=after,
        roots=encode_roots_file(expectation_and_roots()[1]),
        log=None,
    )
    return TrainedByImage(file, node, parse_image_record(issued.record.payload))


@cache
def forge_image(story: ImageStory) -> TrainedByImage:
    """The record of a dishonest node: made without looking at how the job went."""
    return asyncio.run(_forge(story))
