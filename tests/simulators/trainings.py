"""Whole training jobs in memory: simulated nodes, arithmetic instead of a model, a genuine record.

A `Job` says what happened to a job: how many steps, which boots on which machines, what was put
out. `train` issues its record as a training node does; `resealed` is a dishonest node.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from nodes import NOW, SOFTWARE, WEIGHTS, CountingEntropy, SimulatedNode
from runs import expectation_and_roots, payload_of
from training_seats import digest_of, offer_of, seat_node

from confide.appraisal.eventlog import run_commitment
from confide.appraisal.node import appraise_node
from confide.errors import Reason, TrainingRejected
from confide.inference.weights import WeightsManifest, weights_manifest
from confide.training.boots import (
    RUN_EVENT,
    Turn,
    boot_claim,
    boot_nonce,
    machine_digest,
    turns_head,
)
from confide.training.chain import chain_start
from confide.training.checkpoints import CheckpointEntry
from confide.training.plan import TrainingPlan
from confide.training.predicates import HardwareOfBoot
from confide.training.ranks import Seating, admit_seats
from confide.training.record import (
    TrainingOutput,
    TrainingRecord,
    issue_training_record,
    listed_checkpoints,
)
from confide.training.record_file import RecordFile
from confide.training.record_parse import parse_training_record
from confide.training.record_verify import VerifiedRecord, verify_record
from confide.trust.roots import encode_roots_file
from confide.wire.dsse import Envelope
from confide.wire.json import jcs
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from image_trainings import TrainedByImage

    from confide.expectation import Expectation
    from confide.training.boots import TurnKind
    from confide.training.ranks import Seat
    from confide.training.shares import Engine
    from confide.wire.evidence import EvidenceBundle


def sha(*parts: str) -> bytes:
    """A digest that names `parts`."""
    return hashlib.sha256("/".join(parts).encode()).digest()


def manifest(*names: str) -> WeightsManifest:
    """A directory of weights with files of these names."""
    return weights_manifest((name, sha("weights", name).hex()) for name in names)


MERGED = manifest("config.json", "model.safetensors", "tokenizer.json")
ADAPTER = manifest("adapter_config.json", "adapter_model.safetensors")
ENVIRONMENT = (("isa", "avx512"), ("python", "3.13.9"), ("torch", "2.13.0+cpu"))


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened after `step`: a kind of event, and for a new boot its GPU."""

    kind: TurnKind
    step: int
    gpu: str = "model-node"


@dataclass(frozen=True)
class Job:
    """One job. `name` makes its job id, nonce and digests its own."""

    name: str = "first"
    steps: int = 8
    planned: int = 8
    every: int = 2
    turns: tuple[Happening, ...] = ()
    evaluated: bool = True
    better: bool = True
    adapter: bool = True
    base: bytes = WEIGHTS
    # The weights that its nodes have: what they measure at boot.
    held: bytes = WEIGHTS
    # What a dishonest node does not measure, or measures for another plan.
    measured: str = "plan"
    environment: tuple[tuple[str, str], ...] = ENVIRONMENT
    # How many ranks each seat has; none: a job of one rank.
    seats: tuple[int, ...] = ()
    # What links them.
    engine: Engine = "ring"

    @property
    def plan(self) -> TrainingPlan:
        """Its plan."""
        names = ("recipe", "dataset", "tokenizer", "template")
        recipe, dataset, tokenizer, template = (sha(self.name, name) for name in names)
        world = sum(self.seats) or 1
        return TrainingPlan(recipe, dataset, None, self.base, tokenizer, template, world)

    def chain(self, step: int) -> bytes:
        """The chain value after `step`."""
        return chain_start(self.plan.digest) if not step else sha(self.name, "chain", str(step))

    @property
    def manifests(self) -> dict[str, WeightsManifest]:
        """The directories that came out."""
        return {"merged": MERGED, **({"adapter": ADAPTER} if self.adapter else {})}

    @property
    def expectation(self) -> Expectation:
        """The Expectation that its nodes meet."""
        known, _ = expectation_and_roots()
        return replace(known, model=replace(known.model, weights=self.held.hex()))

    @property
    def digests(self) -> dict[str, bytes]:
        """What else its record names."""
        names = ("dataset-root", "event chain", "owner-log", "base metrics", "tuned metrics")
        return {name: sha(self.name, name) for name in names}

    @property
    def checkpoints(self) -> tuple[CheckpointEntry, ...]:
        """Every `every` steps, where something happened, and at the end."""
        at = {*range(self.every, self.steps + 1, self.every), self.steps}
        at |= {turn.step for turn in self.turns if turn.step}
        return tuple(
            CheckpointEntry(
                step,
                self.chain(step),
                sha(self.name, "state", str(step)),
                sha(self.name, "sealed", str(step)),
            )
            for step in sorted(at)
        )


@dataclass(slots=True)
class Trained:
    """What a job leaves: its file, the node that signed, and what a forger needs to go on."""

    file: RecordFile
    node: SimulatedNode
    record: TrainingRecord


@dataclass(slots=True)
class _Telling:
    job: Job
    nonce: bytes
    turns: list[Turn] = field(default_factory=list)
    bundles: list[EvidenceBundle] = field(default_factory=list)
    hardware: list[HardwareOfBoot] = field(default_factory=list)
    node: SimulatedNode | None = None
    seats: list[tuple[Seat, ...]] = field(default_factory=list)
    seat_bundles: list[tuple[EvidenceBundle, ...]] = field(default_factory=list)

    async def boot(self, turn: Happening) -> None:
        """Bring in the next boot as a node does: measure, link the event, prove."""
        job, number = self.job, len(self.bundles)
        entropy = CountingEntropy(f"{job.name}/boot/{number}".encode())
        node = SimulatedNode("model", entropy=entropy, gpu=turn.gpu, weights=job.held)
        await node.boot()
        digest = {"plan": job.plan.digest, "other": sha("another plan")}.get(job.measured)
        if digest is not None:
            payload = run_commitment(RUN_EVENT, run=sha(job.name, "job"), digest=digest)
            await node.guest.extend(RuntimeEvent(RUN_EVENT, payload))
        event = Turn(turn.kind, number, turn.step, job.chain(turn.step), NOW)
        self.turns.append(event)
        claim = boot_claim(
            job=sha(job.name, "job"),
            plan=job.plan.digest,
            turn=event,
            turns=turns_head(job.chain(0), self.turns),
        )
        expectation = job.expectation
        bundle = await node.attest(
            "claim", boot_nonce(self.nonce, number), expectation.digest, claim
        )
        self.node = node
        self.bundles.append(bundle)
        self.hardware.append(_hardware(job, bundle, boot_nonce(self.nonce, number), claim))
        if job.seats:
            await self._seat_all(node, number)

    async def _seat_all(self, node: SimulatedNode, boot: int) -> None:
        """Seat the others beside `node`, and have them proven."""
        job, (_, roots) = self.job, expectation_and_roots()
        seating = Seating(
            job=sha(job.name, "job"),
            nonce=self.nonce,
            plan=job.plan.digest,
            base=job.base,
            world=job.plan.world,
            boot=boot,
            keyset=node.keys.keyset.digest,
            software=SOFTWARE,
            engine=job.engine,
        )
        offers = []
        for seat, ranks in enumerate(job.seats):
            label = f"{job.name}/boot/{boot}/seat/{seat}"
            if seat:
                node = await seat_node(label, seating, gpu=f"seat-{seat}", weights=job.held)
            offers.append(
                await offer_of(
                    node,
                    seating,
                    job.expectation.digest,
                    seat=seat,
                    first=sum(job.seats[:seat]),
                    ranks=ranks,
                    key=digest_of(label) if len(job.seats) > 1 else None,
                )
            )
        admitted = admit_seats(seating, offers, expectation=job.expectation, roots=roots, now=NOW)
        self.seats.append(admitted.seats)
        self.seat_bundles.append(tuple(offer.evidence for offer in offers))


def _hardware(job: Job, bundle: EvidenceBundle, nonce: bytes, claim: bytes) -> HardwareOfBoot:
    """What the node says about itself: as whoever appraises it finds it."""
    expectation, (_, roots) = job.expectation, expectation_and_roots()
    node = appraise_node(
        bundle,
        subject=job.name,
        role="model",
        purpose="claim",
        nonce=nonce,
        claim=claim,
        expectation=expectation,
        roots=roots,
        now=NOW,
    )
    assert node.gpus is not None
    serials = [device.ueid for device in node.gpus.devices]
    machine = machine_digest(node.platform, serials)
    return HardwareOfBoot(node.keyset.digest, machine, node.evidence, len(serials))


async def _train(job: Job) -> Trained:
    nonce = sha(job.name, "nonce")
    told = _Telling(job, nonce)
    await told.boot(Happening("started", 0))
    for turn in job.turns:
        if turn.kind in ("restarted", "moved"):
            await told.boot(turn)
        else:
            boot = len(told.bundles) - 1
            told.turns.append(Turn(turn.kind, boot, turn.step, job.chain(turn.step), NOW))
    node = told.node
    assert node is not None
    expectation, (_, roots) = job.expectation, expectation_and_roots()
    record = TrainingRecord(
        job=sha(job.name, "job"),
        nonce=nonce,
        keyset=node.keys.keyset.digest,
        expectation=expectation.digest,
        software=SOFTWARE,
        started=NOW,
        finished=NOW,
        plan=job.plan,
        dataset_root=job.digests["dataset-root"],
        environment=dict(job.environment),
        privacy=None,
        steps=job.steps,
        planned=job.planned,
        head=job.chain(job.steps),
        events_head=job.digests["event chain"],
        turns=tuple(told.turns),
        turns_head=turns_head(job.chain(0), told.turns),
        checkpoints=listed_checkpoints(job.checkpoints, told.turns),
        owner_log=job.digests["owner-log"],
        sealed={"adapter": sha(job.name, "sealed adapter")},
        outputs={},
        statements={},
    )
    output = TrainingOutput(
        manifests=job.manifests,
        base_metrics=job.digests["base metrics"] if job.evaluated else None,
        tuned_metrics=job.digests["tuned metrics"] if job.evaluated else None,
        better=job.better,
    )
    issued = issue_training_record(
        node.keys.signer, record, output=output, boots=told.hardware, seats=told.seats
    )
    after = await node.attest("claim", nonce, expectation.digest, issued.record.digest)
    file = RecordFile(
        expectation=expectation.canonical(),
        record=issued.record,
        statements=issued.statements,
        boots=tuple(told.bundles),
        after=after,
        roots=encode_roots_file(roots),
        log=None,
        seats=tuple(told.seat_bundles),
    )
    return Trained(file, node, parse_training_record(issued.record.payload))


@cache
def train(job: Job | None = None) -> Trained:
    """The record file of `job`, and the node that made it."""
    return asyncio.run(_train(job or Job()))


def verify(file: RecordFile, **known: Any) -> VerifiedRecord:
    """Verify as a stranger with the right roots does; `known` is what the verifier also knows."""
    facts: dict[str, Any] = {
        "roots": expectation_and_roots()[1],
        "now": NOW,
        "expectation": None,
        "nonce": None,
        "outputs": {},
    }
    return verify_record(file, **{**facts, **known})


def refusals(file: RecordFile, **known: Any) -> dict[str, Reason]:
    """The steps of training-record.md §6 that refuse `file`, with reasons; it must be refused."""
    try:
        verify(file, **known)
    except TrainingRejected as error:
        return {
            finding.step.removeprefix("record/"): finding.reason
            for finding in error.findings
            if finding.step.startswith("record/") and finding.reason is not None
        }
    raise AssertionError("a bad record was accepted")


def edited(file: RecordFile, edit: Callable[[dict[str, Any]], None]) -> RecordFile:
    """`file` with its record edited by somebody who holds no key."""
    document = payload_of(file.record)
    edit(document)
    return replace(file, record=Envelope(jcs(document), file.record.signatures))


def resealed(
    trained: Trained | TrainedByImage,
    edit: Callable[[dict[str, Any]], None] = lambda _: None,
    *,
    statements: Mapping[str, bytes | None] | None = None,
    encode: Callable[[dict[str, Any]], bytes] = jcs,
) -> RecordFile:
    """
    The record edited by a dishonest node, which signs and quotes it anew.

    `statements` are payloads in place of those it issued (None: left out); the record names them.
    """
    file, signer = trained.file, trained.node.keys.signer
    held = dict(file.statements)
    document = payload_of(file.record)
    byproducts = document["predicate"]["runDetails"]["byproducts"]
    for name, payload in (statements or {}).items():
        entry = next(item for item in byproducts if item["name"] == f"statement/{name}")
        if payload is None:
            del held[name]
            byproducts.remove(entry)
        else:
            held[name] = signer.seal(payload)
            entry["digest"]["sha256"] = held[name].digest.hex()
    edit(document)
    record = signer.seal(encode(document))
    expectation = hashlib.sha256(file.expectation).digest()
    after = asyncio.run(
        trained.node.attest("claim", trained.record.nonce, expectation, record.digest)
    )
    return replace(file, record=record, statements=held, after=after)


def byproduct(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A byproduct of a record, to edit."""
    found: dict[str, Any] = next(
        item for item in document["predicate"]["runDetails"]["byproducts"] if item["name"] == name
    )
    return found


def dependency(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A resolved dependency of a record, to edit."""
    found: dict[str, Any] = next(
        item
        for item in document["predicate"]["buildDefinition"]["resolvedDependencies"]
        if item["name"] == name
    )
    return found
