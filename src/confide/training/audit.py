"""The owner's log against the record: what was trained on, in which order, at which rate. Pure.

Performs steps audit/1 to audit/6 of docs/protocols/training-record.md 4.3. It needs neither a GPU
nor a training: everything but the arithmetic of the steps follows from the recipe. That the
arithmetic was done is what `replay` asks.
"""

from __future__ import annotations

import hashlib
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Final

from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.errors import Reason, Rejected, TrainingRejected
from confide.rats import Finding, Status
from confide.training.chain import links
from confide.training.checkpoints import verify_events
from confide.training.order import held_out_count
from confide.training.owner_log import OwnerLog, parse_owner_log
from confide.training.privacy_texts import follows_from
from confide.training.record import listed_checkpoints
from confide.training.steplog import verify_step_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.training.dataset import Commitment
    from confide.training.job import Evaluation
    from confide.training.record_verify import VerifiedRecord

__all__ = ["AUDIT_STEPS", "AuditedLog", "audit_log"]

_DOC: Final = "docs/protocols/training-record.md#4.3"
_SEAL = object()


@dataclass(frozen=True, slots=True)
class AuditedLog:
    """
    An owner's log that is the record's, and follows from its recipe. Only `audit_log` makes one.

    `chain` are the links of the step chain, from the one before the first step.
    """

    record: VerifiedRecord
    log: OwnerLog
    chain: tuple[bytes, ...] = field(repr=False)
    findings: tuple[Finding, ...] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `audit_log`."""
        if seal is not _SEAL:
            raise TypeError("only audit_log makes an AuditedLog")


@dataclass(slots=True)
class _State:
    record: VerifiedRecord
    raw: bytes
    dataset_salt: bytes
    rows: Commitment | None
    nested: list[Finding] = field(default_factory=list)
    log: OwnerLog | None = None


def audit_log(
    record: VerifiedRecord, raw: bytes, *, dataset_salt: bytes, rows: Commitment | None
) -> AuditedLog:
    """
    Establish that `raw` is the owner's log of `record`, and that it follows from its recipe.

    `dataset_salt` (32 bytes) is the owner's; `rows` the commitment that the owner computed from
    rows at hand, None without them. **Does not check** that losses and states are right. Raises
    `TrainingRejected` with every finding.
    """
    state = _State(record, raw, dataset_salt, rows)
    findings = run_steps(AUDIT_STEPS, state, subject="owner's log")
    everything = (*findings, *state.nested)
    if any(finding.status is not Status.PASS for finding in findings):
        raise TrainingRejected(everything)
    log = established(state.log)
    chain = tuple(links(record.record.plan.digest, (each.record for each in log.steps)))
    return AuditedLog(record, log, chain, everything, seal=_SEAL)


def _step_1(state: _State) -> str:
    if hashlib.sha256(state.raw).digest() != state.record.record.owner_log:
        raise Refused(Reason.TRAINING_LOG, "the record names another log")
    state.log = parse_owner_log(state.raw)
    return f"{len(state.log.steps)} steps"


def _step_2(state: _State) -> str:
    log, record = established(state.log), state.record.record
    validation = None if log.validation is None else log.validation.digest
    said = (log.recipe.digest, log.dataset.digest, validation)
    if said != (record.plan.recipe, record.plan.dataset, record.plan.validation):
        raise Refused(Reason.TRAINING_PLAN, "recipe or data are not those of the plan")
    if not follows_from(log.recipe, record.privacy):
        raise Refused(Reason.TRAINING_PLAN, "privacy is not that of the recipe")
    if log.dataset.root != record.dataset_root:
        raise Refused(Reason.DATASET_MISMATCH, "the record names another root")
    return f"{log.dataset.rows} rows"


def _step_3(state: _State) -> str:
    if state.rows is None:
        return "no rows at hand to compare"
    # Of the same kind, as many, and every one of them the same.
    if state.rows.digest != established(state.log).dataset.digest:
        raise Refused(Reason.DATASET_MISMATCH, "the rows at hand have another commitment")
    return f"{state.rows.rows} rows at hand are those"


def _step_4(state: _State) -> str:
    log, record = established(state.log), state.record.record
    if len(log.steps) != record.steps:
        raise Refused(Reason.TRAINING_CHAIN, "the record counts other steps")
    _nested(
        state,
        lambda: verify_step_log(
            log.steps,
            recipe=log.recipe,
            plan=record.plan,
            root=log.dataset.root,
            rows=log.dataset.rows,
            dataset_salt=state.dataset_salt,
            head=record.head,
        ),
    )
    return "rows, order, rates and chain follow from the recipe"


def _step_5(state: _State) -> str:
    log, record = established(state.log), state.record.record
    plan = record.plan.digest
    _nested(state, lambda: verify_events(plan, log.events, head=record.events_head))
    chain = tuple(links(plan, (each.record for each in log.steps)))
    kept = {each.step: each for each in log.checkpoints}
    for each in kept.values():
        if each.step > record.steps or each.chain != chain[each.step]:
            raise Refused(Reason.CHECKPOINT_MISMATCH, "a checkpoint is not where it says")
        # A pause leaves no trace in the step chain (training.md 6.3): nothing to compare there.
        if log.steps[each.step - 1].record.state not in {None, each.state}:
            raise Refused(Reason.CHECKPOINT_MISMATCH, "a checkpoint holds another state")
    for listed in record.checkpoints:
        if kept.get(listed.step) != listed:
            raise Refused(Reason.CHECKPOINT_MISMATCH, "the record lists another checkpoint")
    if record.checkpoints != listed_checkpoints(log.checkpoints, record.turns):
        raise Refused(Reason.CHECKPOINT_MISMATCH, "the record leaves out a checkpoint")
    return f"{len(kept)} checkpoints"


def _step_6(state: _State) -> str:
    log, stated = established(state.log), state.record.evaluation
    try:
        rows = held_out_count(log.recipe.val_set_size, log.dataset.rows)
    except ValueError as error:
        raise Refused(Reason.TRAINING_PLAN, str(error)) from error
    rows += 0 if log.validation is None else log.validation.rows
    if {log.evaluations is None, stated is None} != {not rows}:
        raise Refused(Reason.TRAINING_EVALUATION, "an evaluation is missing, or of no rows")
    if log.evaluations is None or stated is None:
        if log.evaluated:
            raise Refused(Reason.TRAINING_EVALUATION, "evaluated, with nothing held out")
        return "nothing was held out"
    base, tuned = log.evaluations
    if (base.commitment, tuned.commitment) != (stated[0].metrics, stated[1].metrics):
        raise Refused(Reason.TRAINING_EVALUATION, "other metrics than the Test Results name")
    judged = (base.metrics, tuned.metrics)
    if {each.rows for each in judged} != {rows} or len({each.count for each in judged}) != 1:
        raise Refused(Reason.TRAINING_EVALUATION, "judged by other rows than are held out")
    if not all(0 <= each.accuracy <= 1 and each.loss >= 0 for each in judged):
        raise Refused(Reason.TRAINING_EVALUATION, "metrics that no evaluation gives")
    if stated[1].better != (tuned.metrics.loss < base.metrics.loss):
        raise Refused(Reason.TRAINING_EVALUATION, "which model is better does not follow")
    _require_evaluated(log, tuned.metrics)
    return "better than base" if stated[1].better else "not better than base"


def _require_evaluated(log: OwnerLog, tuned: Evaluation) -> None:
    """Require that the model was judged on the way exactly where the recipe says."""
    done = len(log.steps)
    if [each.step for each in log.evaluated] != log.recipe.evaluated_after(done, planned=done):
        raise Refused(Reason.TRAINING_EVALUATION, "not evaluated where the recipe says")
    last = log.evaluated[-1:]
    if last and (last[0].loss, last[0].accuracy) != (tuned.loss, tuned.accuracy):
        raise Refused(Reason.TRAINING_EVALUATION, "after the last step it is another model")


def _nested(state: _State, verify: Callable[[], None]) -> None:
    try:
        verify()
    except Rejected as error:
        state.nested.extend(error.findings)
        raise Refused(error.reason, str(error.failures[0])) from error


def _steps() -> tuple[Step[_State], ...]:
    def step(number: int, run: Callable[[_State], str], *needs: int) -> Step[_State]:
        return Step(f"audit/{number}", _DOC, run, tuple(f"audit/{need}" for need in needs))

    return (
        step(1, _step_1),
        step(2, _step_2, 1),
        step(3, _step_3, 1),
        step(4, _step_4, 2),
        step(5, _step_5, 4),
        # Of a recipe that leaves nothing to train on, audit/4 says so.
        step(6, _step_6, 4),
    )


AUDIT_STEPS = _steps()
