"""Whether a job may go on here from what another node handed over, offline. Pure.

Performs steps handover/1 to handover/10 of docs/protocols/training-node.md 7.5. The file is
hostile: it came from an owner, who holds no key of any node. The caller brings roots, time, and
what it computed of the request by itself.

What the caller still must do: hold the sealed checkpoint to `Handover.checkpoint`, and tokenizer,
template, number of steps and environment to those that its own training process finds (7.6). **Does
not show** that no newer handover exists elsewhere (7.8).
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from confide.appraisal.known import Known
from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.errors import FormatError, ProtocolError, Reason, TrainingRejected
from confide.rats import Status
from confide.receipts.held import require_expectation
from confide.receipts.inference import require_signed
from confide.training.account import MAX_BOOTS, MAX_TURNS, Account
from confide.training.boot_verify import ToldBoots, prove_boots, require_base, require_job
from confide.training.boots import require_lawful
from confide.training.handover import parse_handover, parse_handover_file
from confide.training.owner_log import parse_owner_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation
    from confide.rats import Finding
    from confide.training.dataset import Commitment
    from confide.training.handover import Handover, HandoverFile
    from confide.training.owner_log import OwnerLog
    from confide.training.recipe import Recipe
    from confide.trust.roots import Roots

__all__ = ["HANDOVER_STEPS", "Asked", "VerifiedHandover", "verify_handover"]

_DOC: Final = "docs/protocols/training-node.md#7.5"
_SEAL: Final = object()
# From: docs/protocols/training-node.md 7.5, handover/4. Clocks of two machines differ.
_MAX_AGE: Final = timedelta(days=30)
_MAX_AHEAD: Final = timedelta(minutes=5)
# A pause is two turns with what goes on after it, and a failure may come between.
_TURNS_LEFT: Final = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """What the job here is, as the node itself read it: request, rows, base, own software."""

    expectation: Expectation
    nonce: bytes
    recipe: Recipe
    dataset: Commitment
    validation: Commitment | None
    base: bytes
    software: bytes


@dataclass(frozen=True, slots=True)
class VerifiedHandover:
    """A handover that held in every step. Only `verify_handover` makes one."""

    handover: Handover
    file: HandoverFile
    account: Account
    findings: tuple[Finding, ...] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `verify_handover`."""
        if seal is not _SEAL:
            raise TypeError("only verify_handover makes a VerifiedHandover")


@dataclass(slots=True)
class _State:
    raw: bytes
    asked: Asked
    roots: Roots
    at: datetime
    nested: list[Finding] = field(default_factory=list)
    known: Known = field(default_factory=Known)
    # Each boot is judged by its node's clock when it began, as the record will be.
    now: datetime | None = None
    # What earlier steps established; a step that needs one lists that step in `needs`.
    file: HandoverFile | None = None
    handover: Handover | None = None
    log: OwnerLog | None = None
    expectation: Expectation | None = None
    boots: list[VerifiedNode] = field(default_factory=list)
    account: Account | None = None


def verify_handover(raw: bytes, asked: Asked, *, roots: Roots, now: datetime) -> VerifiedHandover:
    """
    Establish that `raw` is how far the job that is `asked` for came, by the word of its last node.

    `now` bounds the age of that word; the evidence of each boot is judged by its own clock (as
    record/6). Raises `TrainingRejected` with every finding.
    """
    state = _State(raw, asked, roots, now)
    findings = run_steps(HANDOVER_STEPS, state, subject="handover")
    everything = (*findings, *state.nested)
    if any(finding.status is not Status.PASS for finding in findings):
        raise TrainingRejected(everything)
    return VerifiedHandover(
        established(state.handover),
        established(state.file),
        established(state.account),
        everything,
        seal=_SEAL,
    )


def _step_1(state: _State) -> str:
    state.file = parse_handover_file(state.raw)
    handover = parse_handover(state.file.envelope.payload)
    if state.file.log_digest != handover.log:
        raise Refused(Reason.TRAINING_LOG, "the log is another than the handover names")
    state.log = parse_owner_log(state.file.log)
    state.handover = handover
    return f"{len(state.log.steps)} of {handover.planned} steps"


def _step_2(state: _State) -> str:
    handover = established(state.handover)
    state.expectation = require_expectation(
        established(state.file).expectation,
        named=handover.expectation,
        wanted=state.asked.expectation,
        what="handover",
    )
    if handover.nonce != state.asked.nonce:
        raise Refused(Reason.NONCE_MISMATCH, "it is of a job with another nonce")
    return handover.expectation.hex()


def _step_3(state: _State) -> str:
    handover, file = established(state.handover), established(state.file)
    told = ToldBoots(
        handover.job,
        handover.nonce,
        handover.plan.digest,
        handover.turns,
        file.boots,
        handover.boots,
    )
    state.boots = prove_boots(state, told)
    return f"{len(state.boots)} boot(s)"


def _step_4(state: _State) -> str:
    handover, last = established(state.handover), state.boots[-1]
    if last.keyset.digest != handover.keyset:
        raise Refused(Reason.KEYSET_MISMATCH, "it names another keyset than that of the last boot")
    require_signed(established(state.file).envelope, last.keyset)
    if not last.keyset.not_before <= handover.at <= last.keyset.not_after:
        raise Refused(Reason.KEYSET_EXPIRED, "it was signed when its keys did not hold")
    if not state.at - _MAX_AGE <= handover.at <= state.at + _MAX_AHEAD:
        raise Refused(Reason.EVIDENCE_STALE, "it is older than 30 days, or of the future")
    return f"signed at {handover.at:%Y-%m-%dT%H:%M:%SZ}"


def _step_5(state: _State) -> str:
    handover = established(state.handover)
    require_job(state.boots, job=handover.job, plan=handover.plan.digest)
    return handover.plan.digest.hex()


def _step_6(state: _State) -> str:
    handover, asked = established(state.handover), state.asked
    if handover.software != asked.software:
        raise Refused(Reason.NODE_SOFTWARE_MISMATCH, "this node runs other software")
    require_base(state.boots, base=handover.plan.base, software=handover.software)
    return handover.software.hex()


def _step_7(state: _State) -> str:
    plan, asked = established(state.handover).plan, state.asked
    log = established(state.log)
    if not plan.recipe == log.recipe.digest == asked.recipe.digest:
        raise Refused(Reason.TRAINING_PLAN, "another recipe was asked for")
    if not plan.dataset == log.dataset.digest == asked.dataset.digest:
        raise Refused(Reason.DATASET_MISMATCH, "the rows are not those of the job")
    if established(state.handover).root != asked.dataset.root:
        raise Refused(Reason.DATASET_MISMATCH, "it names another root than that of the rows")
    validation = [
        None if each is None else each.digest for each in (log.validation, asked.validation)
    ]
    if validation != [plan.validation, plan.validation]:
        raise Refused(Reason.DATASET_MISMATCH, "the validation rows are not those of the job")
    if plan.base != asked.base:
        raise Refused(Reason.MODEL_MISMATCH, "this node has another base")
    return plan.digest.hex()


def _step_8(state: _State) -> str:
    handover, log = established(state.handover), established(state.log)
    account = Account(handover.plan, handover.root, handover.planned, handover.environment)
    try:
        account.take_up(
            steps=log.steps,
            events=log.events,
            turns=handover.turns,
            evaluated=log.evaluated,
        )
    except (ProtocolError, FormatError) as error:
        raise Refused(Reason.TRAINING_CHAIN, str(error)) from error
    if account.events_head != handover.events:
        raise Refused(Reason.TRAINING_CHAIN, "the events do not hash to their head")
    if account.newest != handover.checkpoint:
        raise Refused(Reason.CHECKPOINT_MISMATCH, "its checkpoint is not the newest of its log")
    wanted = log.recipe.evaluated_after(len(log.steps), planned=handover.planned)
    if [each.step for each in log.evaluated] != wanted:
        raise Refused(Reason.TRAINING_EVALUATION, "not evaluated where the recipe says")
    state.account = account
    return f"{len(account.steps)} steps to {account.head.hex()}"


def _step_9(state: _State) -> str:
    handover, account = established(state.handover), established(state.account)
    times = [*(turn.at for turn in handover.turns), handover.at]
    if times != sorted(times):
        raise Refused(Reason.TRAINING_CHAIN, "the turns go back in time")
    standing = {0: account.start} | {each.step: each.chain for each in account.checkpoints}
    return require_lawful(handover.turns, [boot.machine for boot in handover.boots], standing)


def _step_10(state: _State) -> str:
    handover = established(state.handover)
    if len(handover.boots) >= MAX_BOOTS or len(handover.turns) > MAX_TURNS - _TURNS_LEFT:
        raise Refused(Reason.LIMIT_EXCEEDED, "the job was interrupted too often to go on")
    return f"{len(handover.turns)} turns"


def _steps() -> tuple[Step[_State], ...]:
    def step(number: int, run: Callable[[_State], str], *needs: int) -> Step[_State]:
        return Step(f"handover/{number}", _DOC, run, tuple(f"handover/{need}" for need in needs))

    return (
        step(1, _step_1),
        step(2, _step_2, 1),
        step(3, _step_3, 2),
        step(4, _step_4, 3),
        step(5, _step_5, 3),
        step(6, _step_6, 3),
        step(7, _step_7, 1),
        step(8, _step_8, 1),
        step(9, _step_9, 3, 8),
        step(10, _step_10, 1),
    )


HANDOVER_STEPS: Final = _steps()
