"""Verifying a training record, offline: who made these weights, out of what, and where. Pure.

Performs steps record/1 to record/13 of docs/protocols/training-record.md §6. Everything in the file
is hostile: the verifier brings roots, time and, where it has one, its own Expectation. The file's
own roots are not read here.

What the caller still must do: decide whether Expectation, base and dataset are the ones it wanted
(their digests are in the result). What only the owner's log or a replay can show is not shown here:
`audit` and `replay` do.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.errors import Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.training.boot_verify import ToldBoots, prove_boots
from confide.training.boots import require_lawful, turns_head
from confide.training.chain import chain_start
from confide.training.predicates import (
    TestResult,
    parse_test_result,
)
from confide.training.rank_statement import parse_ranks
from confide.training.rank_verify import NamedSeats, require_seats
from confide.training.record import TrainingRecord
from confide.training.record_parse import parse_training_record
from confide.training.record_steps import (
    RecordState,
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
    from confide.training.ranks import Seat
    from confide.training.record_file import RecordFile
    from confide.trust.roots import Roots

__all__ = ["RECORD_STEPS", "VerifiedRecord", "verify_record"]

_DOC = "docs/protocols/training-record.md#6"
_SEAL = object()
_OUTPUTS = ({"merged"}, {"merged", "adapter"})


@dataclass(frozen=True, slots=True)
class VerifiedRecord:
    """
    A training record that held in every step. Only `verify_record` makes one.

    `node` is the training node as proven after the last step, `boots` each boot before its first
    and `machines` the digest of the machine of each, `seats` those of each boot where there were
    several ranks, `evaluation` the Test Results of base and tuned model where both were evaluated.
    """

    record: TrainingRecord
    digest: bytes
    expectation: Expectation
    node: VerifiedNode
    boots: tuple[VerifiedNode, ...]
    machines: tuple[bytes, ...]
    seats: tuple[tuple[Seat, ...], ...]
    manifests: Mapping[str, WeightsManifest]
    evaluation: tuple[TestResult, TestResult] | None
    findings: tuple[Finding, ...] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `verify_record`."""
        if seal is not _SEAL:
            raise TypeError("only verify_record makes a VerifiedRecord")

    @property
    def simulated(self) -> bool:
        """Whether any root in the chain is a SIMULATED one."""
        return self.node.result.simulated or any(boot.result.simulated for boot in self.boots)


@dataclass(slots=True)
class _State(RecordState[TrainingRecord]):
    seats: tuple[tuple[Seat, ...], ...] = ()
    evaluation: tuple[TestResult, TestResult] | None = None


def verify_record(
    file: RecordFile,
    *,
    roots: Roots,
    now: datetime | None,
    expectation: Expectation | None,
    nonce: bytes | None,
    outputs: Mapping[str, bytes],
) -> VerifiedRecord:
    """
    Verify `file` against `roots` at `now`.

    With None all evidence is judged by the node's own clock: that of a boot when it began, that
    over the record when the training ended. Only a log bounds that clock, and from one side.

    `expectation`, `nonce` and `outputs` (name to the weights.md digest of a directory at hand) are
    what the verifier knows by itself; None and an empty mapping mean that it knows nothing, and
    the result then only says what the record is about. **Does not check** what the node computed:
    see `audit` and `replay`. Raises `TrainingRejected` with every finding.
    """
    state = _State(file, roots, now, expectation, nonce, outputs)
    findings = run_steps(RECORD_STEPS, state, subject="record")
    everything = (*findings, *state.nested)
    if any(finding.status is not Status.PASS for finding in findings):
        raise TrainingRejected(everything)
    return VerifiedRecord(
        established(state.record),
        file.record.digest,
        established(state.expectation),
        established(state.node),
        tuple(state.boots),
        tuple(each.machine for each in state.hardware),
        state.seats,
        state.manifests,
        state.evaluation,
        everything,
        seal=_SEAL,
    )


def _step_1(state: _State) -> str:
    state.record = parse_training_record(state.file.record.payload)
    return f"plan {state.record.plan.digest.hex()}"


def _step_2(state: _State) -> str:
    held = require_statements(state)
    _require_outputs(established(state.record), set(held))
    read_statements(state, held)
    if "ranks" in held:
        trained, state.seats = parse_ranks(held["ranks"].payload)
        if trained != established(state.record).made:
            raise Refused(Reason.CLAIM_MISMATCH, "the ranks statement is about other weights")
    if "evaluation/tuned" in held:
        state.evaluation = (
            parse_test_result(held["evaluation/base"].payload, "base"),
            parse_test_result(held["evaluation/tuned"].payload, "merged"),
        )
    return f"{len(held)} statements"


def _require_outputs(record: TrainingRecord, held: set[str]) -> None:
    if set(record.outputs) not in _OUTPUTS:
        raise Refused(Reason.TRAINING_FORMAT, "the subjects are not merged and adapter")
    wanted = {"hardware", *(f"weights/{name}" for name in record.outputs)}
    if record.plan.world > 1:
        wanted.add("ranks")
    both = {"evaluation/base", "evaluation/tuned"}
    if held & both:
        wanted |= both
    if wanted - held:
        raise Refused(Reason.RECEIPT_MISSING, "a statement that has to stand beside it is absent")
    if held - wanted:
        raise Refused(Reason.RECEIPT_NOT_REFERENCED, "a statement that belongs to no part of it")


def _step_6(state: _State) -> str:
    record = established(state.record)
    told = ToldBoots(
        record.job,
        record.nonce,
        record.plan.digest,
        record.turns,
        state.file.boots,
        state.hardware,
    )
    state.boots = prove_boots(state, told)
    require_same_end(state)
    named = NamedSeats(state.seats, state.file.seats)
    said = require_seats(state, established(state.record), named, state.hardware)
    return f"{len(state.boots)} boot(s), {said}"


def _step_9(state: _State) -> str:
    record = established(state.record)
    start = chain_start(record.plan.digest)
    if turns_head(start, record.turns) != record.turns_head:
        raise Refused(Reason.TRAINING_CHAIN, "the turns do not hash to their head")
    times = [*(turn.at for turn in record.turns), record.finished]
    if times != sorted(times):
        raise Refused(Reason.TRAINING_CHAIN, "the turns go back in time")
    # What the first boot proved, and not what the last one says of it.
    if record.started != record.turns[0].at:
        raise Refused(Reason.TRAINING_CHAIN, "the job started at another time than its first boot")
    standing = {0: start} | {each.step: each.chain for each in record.checkpoints}
    told = require_lawful(record.turns, [each.machine for each in state.hardware], standing)
    if record.turns[-1].kind == "paused":
        raise Refused(Reason.CHECKPOINT_MISMATCH, "the job ended while it was paused")
    return told


def _step_10(state: _State) -> str:
    record = established(state.record)
    steps = [each.step for each in record.checkpoints]
    if not steps or steps != sorted(set(steps)) or steps[0] < 1:
        raise Refused(Reason.CHECKPOINT_MISMATCH, "the checkpoints do not ascend")
    last = record.checkpoints[-1]
    if last.step > record.steps:
        raise Refused(Reason.CHECKPOINT_MISMATCH, "a checkpoint stands behind the last step")
    if last.step < record.steps:
        raise Refused(Reason.CHECKPOINT_ROLLBACK, "the last checkpoint is older than the last step")
    if last.chain != record.head:
        raise Refused(Reason.CHECKPOINT_MISMATCH, "the last checkpoint is not at the head")
    return f"{len(steps)} checkpoints, {record.steps} steps"


def _step_12(state: _State) -> str:
    record = established(state.record)
    if state.evaluation is None:
        return "neither model was evaluated: nothing is said of quality"
    base, tuned = state.evaluation
    if (base.model, tuned.model) != (record.plan.base, record.outputs["merged"]):
        raise Refused(Reason.TRAINING_EVALUATION, "other models were evaluated")
    if {base.plan, tuned.plan} != {record.plan.digest}:
        raise Refused(Reason.TRAINING_EVALUATION, "evaluated on other rows than the plan names")
    if base.better is not None or tuned.better is None:
        raise Refused(Reason.TRAINING_EVALUATION, "it is not said whether the tuned one is better")
    return "better than base" if tuned.better else "not better than base"


def _step_13(state: _State) -> str:
    record = established(state.record)
    if record.steps != record.planned:
        raise Refused(Reason.RUN_FAILED, f"{record.steps} of {record.planned} steps were done")
    return f"{record.steps} steps"


def _steps() -> tuple[Step[_State], ...]:
    def step(number: int, run: Callable[[_State], str], *needs: int) -> Step[_State]:
        return Step(f"record/{number}", _DOC, run, tuple(f"record/{need}" for need in needs))

    return (
        step(1, _step_1),
        step(2, _step_2, 1),
        step(3, hold_expectation, 1),
        step(4, prove_after, 1, 3),
        step(5, require_signatures, 4),
        step(6, _step_6, 2, 4),
        step(7, hold_job, 6),
        step(8, hold_base, 6),
        step(9, _step_9, 6),
        step(10, _step_10, 1),
        step(11, require_output, 2),
        step(12, _step_12, 2),
        step(13, _step_13, 1),
    )


RECORD_STEPS = _steps()
