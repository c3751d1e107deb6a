"""Verifying an artefact-level training record, offline: which image left these weights. Pure.

Performs steps image/1 to image/10 of docs/protocols/training-image.md §5; what is the same for
step-level records is in `record_steps`. Everything in the file is hostile: the verifier brings
roots, time and, where it has one, its own Expectation.

What the caller still must do: decide whether image, base and dataset are the ones it wanted (their
digests are in the result), and look into the image: nothing here says what its code did.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from confide.agents.sandbox import ExitKind
from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.errors import Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.training.boot_verify import hardware_of
from confide.training.boots import boot_nonce
from confide.training.image_parse import parse_image_record
from confide.training.image_recipe import image_boot_claim
from confide.training.image_record import ImageRecord
from confide.training.record_steps import (
    RecordState,
    appraise_claim,
    hold_base,
    hold_expectation,
    hold_job,
    prove_after,
    read_statements,
    require_output,
    require_same_end,
    require_signatures,
    require_statements,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation
    from confide.inference.weights import WeightsManifest
    from confide.training.record_file import RecordFile
    from confide.trust.roots import Roots

__all__ = ["IMAGE_STEPS", "VerifiedImageRecord", "verify_image_record"]

_DOC = "docs/protocols/training-image.md#5"
_SEAL = object()


@dataclass(frozen=True, slots=True)
class VerifiedImageRecord:
    """
    An artefact-level record that held in every step. Only `verify_image_record` makes one.

    It proves which image was given which committed rows and which base, and what it left; nothing
    of what the image did in between. `node` is the training node as proven after the end, `boots`
    the one boot before the start, `machines` the digest of its machine.
    """

    record: ImageRecord
    digest: bytes
    expectation: Expectation
    node: VerifiedNode
    boots: tuple[VerifiedNode, ...]
    machines: tuple[bytes, ...]
    manifests: Mapping[str, WeightsManifest]
    findings: tuple[Finding, ...] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `verify_image_record`."""
        if seal is not _SEAL:
            raise TypeError("only verify_image_record makes a VerifiedImageRecord")

    @property
    def simulated(self) -> bool:
        """Whether any root in the chain is a SIMULATED one."""
        return self.node.result.simulated or any(boot.result.simulated for boot in self.boots)


_State: TypeAlias = RecordState[ImageRecord]


def verify_image_record(
    file: RecordFile,
    *,
    roots: Roots,
    now: datetime | None,
    expectation: Expectation | None,
    nonce: bytes | None,
    outputs: Mapping[str, bytes],
) -> VerifiedImageRecord:
    """
    Verify `file` against `roots` at `now`; arguments are those of `verify_record`.

    **Does not check** what the image computed: no record of this kind can show it. Raises
    `TrainingRejected` with every finding; TRAINING_GRANULARITY for a step-level record.
    """
    state = _State(file, roots, now, expectation, nonce, outputs)
    findings = run_steps(IMAGE_STEPS, state, subject="artefact-level record")
    everything = (*findings, *state.nested)
    if any(finding.status is not Status.PASS for finding in findings):
        raise TrainingRejected(everything)
    return VerifiedImageRecord(
        established(state.record),
        file.record.digest,
        established(state.expectation),
        established(state.node),
        tuple(state.boots),
        tuple(each.machine for each in state.hardware),
        state.manifests,
        everything,
        seal=_SEAL,
    )


def _step_1(state: _State) -> str:
    state.record = parse_image_record(state.file.record.payload)
    return f"artefact-level; plan {state.record.plan.digest.hex()}"


def _step_2(state: _State) -> str:
    record, held = established(state.record), require_statements(state)
    if set(record.outputs) != {record.main}:
        raise Refused(Reason.TRAINING_FORMAT, "the subject is not the one output")
    wanted = {"hardware", f"weights/{record.main}"}
    if wanted - held.keys():
        raise Refused(Reason.RECEIPT_MISSING, "a statement that has to stand beside it is absent")
    if held.keys() - wanted:
        # An evaluation, say: nothing of the kind was done.
        raise Refused(Reason.RECEIPT_NOT_REFERENCED, "a statement that belongs to no part of it")
    read_statements(state, held)
    return f"{len(held)} statements"


def _step_6(state: _State) -> str:
    record, bundles = established(state.record), state.file.boots
    if not len(bundles) == len(state.hardware) == 1:
        raise Refused(Reason.TRAINING_MACHINE, "an image is started on one boot, once")
    if state.file.seats:
        raise Refused(Reason.TRAINING_MACHINE, "seats in a job that has no ranks")
    claim = image_boot_claim(job=record.job, plan=record.plan.digest, at=record.started)
    nonce = boot_nonce(record.nonce, 0)
    node = appraise_claim(
        state,
        bundles[0],
        "training-node (before)",
        nonce=nonce,
        claim=claim,
        own=record.started,
    )
    if hardware_of(node) != state.hardware[0]:
        raise Refused(Reason.TRAINING_MACHINE, "another machine than the statement names")
    state.boots.append(node)
    require_same_end(state)
    return "one boot, proven before the image was started"


def _step_10(state: _State) -> str:
    record = established(state.record)
    if record.end is not ExitKind.EXITED or record.status != 0:
        raise Refused(Reason.RUN_FAILED, f"the image ended as {record.end}, {record.status}")
    if record.finished < record.started:
        raise Refused(Reason.RUN_FAILED, "the image ended before it began")
    return "the image ended by itself, with status 0"


def _steps() -> tuple[Step[_State], ...]:
    def step(number: int, run: Callable[[_State], str], *needs: int) -> Step[_State]:
        return Step(f"image/{number}", _DOC, run, tuple(f"image/{need}" for need in needs))

    return (
        step(1, _step_1),
        step(2, _step_2, 1),
        step(3, hold_expectation, 1),
        step(4, prove_after, 1, 3),
        step(5, require_signatures, 4),
        step(6, _step_6, 2, 4),
        step(7, hold_job, 6),
        step(8, hold_base, 6),
        step(9, require_output, 2),
        step(10, _step_10, 1),
    )


IMAGE_STEPS = _steps()
