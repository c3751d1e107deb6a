"""What the verifiers of step-level and of artefact-level training records do alike. Pure.

Clauses: docs/protocols/training-record.md §6, docs/protocols/training-image.md §5. Everything in a
record file is hostile. Each function is a step, or a part of one, over a `RecordState`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from confide.appraisal.known import Known
from confide.appraisal.steps import Refused, established
from confide.errors import Reason
from confide.receipts.held import appraise_held, require_expectation
from confide.receipts.inference import require_signed
from confide.training.boot_verify import hardware_of, require_base, require_job
from confide.training.predicates import parse_hardware, parse_weights
from confide.training.record_core import RecordCore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation
    from confide.inference.weights import WeightsManifest
    from confide.rats import Finding
    from confide.training.predicates import HardwareOfBoot
    from confide.training.record_file import RecordFile
    from confide.trust.roots import Roots
    from confide.wire.dsse import Envelope
    from confide.wire.evidence import EvidenceBundle

__all__ = [
    "RecordState",
    "appraise_claim",
    "hold_base",
    "hold_expectation",
    "hold_job",
    "prove_after",
    "read_statements",
    "require_output",
    "require_same_end",
    "require_signatures",
    "require_statements",
]

R = TypeVar("R", bound=RecordCore)


@dataclass(slots=True)
class RecordState(Generic[R]):
    """The working state of a verification; `R` is the kind of record."""

    file: RecordFile
    roots: Roots
    now: datetime | None
    wanted: Expectation | None
    nonce: bytes | None
    outputs: Mapping[str, bytes]
    nested: list[Finding] = field(default_factory=list)
    known: Known = field(default_factory=Known)
    # What earlier steps established; a step that needs one lists that step in `needs`.
    record: R | None = None
    hardware: tuple[HardwareOfBoot, ...] = ()
    manifests: dict[str, WeightsManifest] = field(default_factory=dict)
    expectation: Expectation | None = None
    node: VerifiedNode | None = None
    boots: list[VerifiedNode] = field(default_factory=list)


def require_statements(state: RecordState[R]) -> Mapping[str, Envelope]:
    """Require that the statements at hand are exactly those that the record names; return them."""
    record, held = established(state.record), state.file.statements
    for name, digest in record.statements.items():
        if name not in held:
            raise Refused(Reason.RECEIPT_MISSING, "a statement that the record names is absent")
        if held[name].digest != digest:
            raise Refused(Reason.RECEIPT_NOT_REFERENCED, "a statement is another than was named")
    if held.keys() - record.statements.keys():
        raise Refused(Reason.RECEIPT_NOT_REFERENCED, "a statement that the record does not name")
    return held


def read_statements(state: RecordState[R], held: Mapping[str, Envelope]) -> None:
    """Read the statements that stand beside every record: hardware, and files of each output."""
    record = established(state.record)
    made, state.hardware = parse_hardware(held["hardware"].payload, record.main)
    if made != record.made:
        raise Refused(Reason.CLAIM_MISMATCH, "the hardware statement is about other weights")
    for name in record.outputs:
        state.manifests[name] = parse_weights(held[f"weights/{name}"].payload, name)


def hold_expectation(state: RecordState[R]) -> str:
    """Step 3 of every record: its Expectation, and that of the verifier."""
    state.expectation = require_expectation(
        state.file.expectation,
        named=established(state.record).expectation,
        wanted=state.wanted,
        what="record",
    )
    return state.expectation.digest.hex()


def appraise_claim(
    state: RecordState[R],
    bundle: EvidenceBundle,
    subject: str,
    *,
    nonce: bytes,
    claim: bytes,
    own: datetime,
) -> VerifiedNode:
    """Appraise evidence of the training node, by its `own` time unless the verifier names one."""
    return appraise_held(
        state,
        bundle,
        subject=subject,
        role="model",
        purpose="claim",
        nonce=nonce,
        claim=claim,
        now=own if state.now is None else state.now,
    )


def prove_after(state: RecordState[R]) -> str:
    """Step 4 of every record: fresh evidence over it."""
    record = established(state.record)
    if state.nonce is not None and state.nonce != record.nonce:
        raise Refused(Reason.NONCE_MISMATCH, "the record answers another nonce")
    state.node = appraise_claim(
        state,
        state.file.after,
        "training-node (after)",
        nonce=record.nonce,
        claim=state.file.record.digest,
        own=record.finished,
    )
    return "fresh evidence of CPU and GPU over this record"


def require_signatures(state: RecordState[R]) -> str:
    """Step 5 of every record: signed, like its statements, by the keyset that was proven."""
    keyset = established(state.node).keyset
    if keyset.digest != established(state.record).keyset:
        raise Refused(Reason.KEYSET_MISMATCH, "the record names another keyset")
    for envelope in (state.file.record, *state.file.statements.values()):
        require_signed(envelope, keyset)
    return keyset.digest.hex()


def require_same_end(state: RecordState[R]) -> None:
    """Require that the keyset and machine of the last boot are those that ended the job."""
    last, after = hardware_of(state.boots[-1]), hardware_of(established(state.node))
    if (last.keyset, last.machine) != (after.keyset, after.machine):
        raise Refused(Reason.TRAINING_MACHINE, "another machine ended the job than trained last")


def hold_job(state: RecordState[R]) -> str:
    """Step 7 of every record: the machine measured this job and plan."""
    record = established(state.record)
    nodes = (*state.boots, established(state.node))
    require_job(nodes, job=record.job, plan=record.plan.digest)
    return record.plan.digest.hex()


def hold_base(state: RecordState[R]) -> str:
    """Step 8 of every record: base model and software are those that were measured."""
    record = established(state.record)
    nodes = (*state.boots, established(state.node))
    require_base(nodes, base=record.plan.base, software=record.software)
    return record.plan.base.hex()


def require_output(state: RecordState[R]) -> str:
    """Hold the files to the outputs, and directories at hand to both: record/11, image/9."""
    record = established(state.record)
    for name, manifest in state.manifests.items():
        if manifest.digest != record.outputs[name]:
            raise Refused(Reason.OUTPUT_MISMATCH, "the files do not make the digest of the output")
    for name, digest in state.outputs.items():
        if record.outputs.get(name) != digest:
            raise Refused(Reason.OUTPUT_MISMATCH, "a directory at hand is not what came out")
    at_hand = ", ".join(sorted(state.outputs)) or "no directory at hand to compare"
    return f"{record.made.hex()}; {at_hand}"
