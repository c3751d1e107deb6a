"""Verifying what a node says of a replay, offline. Pure.

Performs steps replayed/1 to replayed/8 of docs/protocols/training-record.md 7.13. Everything in the
file is hostile: the verifier brings roots, and of nonce, Expectation, record, log and draw what it
has.

What the caller still must do: look at the verdict (`require_agreement`). A result that holds may
well say that a step diverges. **Not shown** is that the node computed: its measured code did, or
not; and nothing is said of steps that were not drawn.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Final

from confide.appraisal.known import Known
from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.errors import Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.receipts.held import appraise_held, require_expectation
from confide.receipts.inference import require_signed
from confide.training.boot_verify import hardware_of
from confide.training.draw import draw_steps, replay_beacon
from confide.training.replay import HARMLESS, Replay, environment_differences
from confide.training.replay_end import EVALUATION, PRIVACY, parts_due, require_made
from confide.training.replay_result import parse_replay_result

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation
    from confide.training.audit import AuditedLog
    from confide.training.draw import Sample
    from confide.training.record_verify import VerifiedRecord
    from confide.training.replay import Tolerance
    from confide.training.replay_result import ReplayFile, ReplayResult
    from confide.trust.roots import Roots

__all__ = ["REPLAYED_STEPS", "Asked", "VerifiedResult", "verify_replay"]

_DOC: Final = "docs/protocols/training-record.md#7.13"
_SEAL: Final = object()


@dataclass(frozen=True, slots=True)
class Asked:
    """
    What whoever asked for a replay knows by itself: its nonce, and its own draw.

    `ended` says whether what the training ended with was to be made again (7.14).
    """

    nonce: bytes
    sample: Sample
    tolerance: Tolerance | None
    audited: AuditedLog
    ended: bool


@dataclass(frozen=True, slots=True)
class VerifiedResult:
    """
    A replay result that held in every step. Only `verify_replay` makes one.

    `node` is who executed, as proven after the last step. What it found is in `result`.
    """

    result: ReplayResult
    digest: bytes
    expectation: Expectation
    node: VerifiedNode
    findings: tuple[Finding, ...] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `verify_replay`."""
        if seal is not _SEAL:
            raise TypeError("only verify_replay makes a VerifiedResult")

    @property
    def simulated(self) -> bool:
        """Whether any root in the chain is a SIMULATED one."""
        return self.node.result.simulated

    def require_agreement(self) -> None:
        """Require that every executed step is what was recorded. Raises `TrainingRejected`."""
        found = self.result.divergence
        if found is None:
            require_made(self.result.made)
            return
        first = "" if self.result.located else ", the first of its window"
        detail = f"step {found.step} is another{first}: {', '.join(found.members)}"
        reason, clause = Reason.TRAINING_REPLAY, "docs/protocols/training-record.md#7"
        raise TrainingRejected(
            (Finding(Status.FAIL, "replay/2", clause, "replay", detail, reason),)
        )


@dataclass(slots=True)
class _State:
    file: ReplayFile
    roots: Roots
    now: datetime | None
    wanted: Expectation | None
    record: VerifiedRecord | None
    asked: Asked | None
    nested: list[Finding] = field(default_factory=list)
    known: Known = field(default_factory=Known)
    # What earlier steps established; a step that needs one lists that step in `needs`.
    result: ReplayResult | None = None
    expectation: Expectation | None = None
    node: VerifiedNode | None = None


def verify_replay(
    file: ReplayFile,
    *,
    roots: Roots,
    now: datetime | None,
    expectation: Expectation | None,
    record: VerifiedRecord | None,
    asked: Asked | None,
) -> VerifiedResult:
    """
    Verify `file` against `roots` at `now`; with None at the time that the result names.

    `record` is the record that it has to be about, `asked` what the verifier asked for; with None
    the result only says what it is about, and anybody may have chosen the challenge. **Does not
    check** the verdict: see `VerifiedResult.require_agreement`. Raises `TrainingRejected` with
    every finding.
    """
    if asked is not None:
        record = asked.audited.record
    state = _State(file, roots, now, expectation, record, asked)
    findings = run_steps(REPLAYED_STEPS, state, subject="replay result")
    everything = (*findings, *state.nested)
    if any(finding.status is not Status.PASS for finding in findings):
        raise TrainingRejected(everything)
    return VerifiedResult(
        established(state.result),
        file.result.digest,
        established(state.expectation),
        established(state.node),
        everything,
        seal=_SEAL,
    )


def _step_1(state: _State) -> str:
    state.result = result = parse_replay_result(state.file.result.payload)
    covered = result.covered
    for step in result.sample.drawn:
        at = bisect_right(covered, (step, math.inf)) - 1
        if at < 0 or step > covered[at][1]:
            raise Refused(Reason.REPLAY_RESULT, f"step {step} was drawn and lies in no window")
    whole = sum(last - first + 1 for first, last in covered)
    if result.divergence is None and result.executed != whole:
        raise Refused(Reason.REPLAY_RESULT, "it agrees, and other steps were executed")
    if result.states > result.executed or (result.tolerance is not None and result.states):
        raise Refused(Reason.REPLAY_RESULT, "states were compared that cannot have been")
    if result.divergence is not None and result.made is not None:
        raise Refused(Reason.REPLAY_RESULT, "the end was made again after a step that differs")
    if result.tolerance is not None and (result.located or len(result.made or ()) > 1):
        raise Refused(Reason.REPLAY_RESULT, "within a tolerance, more was found than can be")
    return f"{len(result.sample.drawn)} of {result.sample.steps} steps drawn"


def _step_2(state: _State) -> str:
    state.expectation = require_expectation(
        state.file.expectation,
        named=established(state.result).expectation,
        wanted=state.wanted,
        what="replay result",
    )
    return state.expectation.digest.hex()


def _step_3(state: _State) -> str:
    result = established(state.result)
    if state.asked is not None and state.asked.nonce != result.nonce:
        raise Refused(Reason.NONCE_MISMATCH, "the result answers another nonce")
    state.node = appraise_held(
        state,
        state.file.evidence,
        subject="replaying node",
        role="model",
        purpose="claim",
        nonce=result.nonce,
        claim=state.file.result.digest,
        now=result.at if state.now is None else state.now,
    )
    return "fresh evidence of CPU and GPU over this result"


def _step_4(state: _State) -> str:
    keyset = established(state.node).keyset
    if keyset.digest != established(state.result).keyset:
        raise Refused(Reason.KEYSET_MISMATCH, "the result names another keyset")
    require_signed(state.file.result, keyset)
    return keyset.digest.hex()


def _step_5(state: _State) -> str:
    node, result = established(state.node), established(state.result)
    if node.events.node.software != result.software:
        raise Refused(Reason.NODE_SOFTWARE_MISMATCH, "the node runs other software")
    model = node.events.model
    if model is None or model.weights != result.base:
        raise Refused(Reason.MODEL_MISMATCH, "the node measured another base model")
    if hardware_of(node).machine != result.machine:
        raise Refused(Reason.TRAINING_MACHINE, "another machine than the result names")
    return result.machine.hex()


def _step_6(state: _State) -> str:
    result, asked = established(state.result), state.asked
    sample = result.sample
    beacon = replay_beacon(result.head, challenge=result.challenge, checkpoint=result.note)
    if beacon != sample.beacon:
        raise Refused(Reason.REPLAY_RESULT, "the beacon does not follow from head and challenge")
    if draw_steps(beacon, sample.steps, len(sample.drawn)) != sample.drawn:
        raise Refused(Reason.REPLAY_RESULT, "the steps do not follow from the beacon")
    if asked is None:
        return "drawn from a challenge that the verifier did not choose"
    if asked.sample != sample:
        raise Refused(Reason.REPLAY_RESULT, "other steps were drawn than were asked for")
    if asked.tolerance != result.tolerance:
        raise Refused(Reason.REPLAY_RESULT, "compared in another mode than was asked for")
    return "the steps that were asked for"


def _step_7(state: _State) -> str:
    result, record = established(state.result), state.record
    if record is None:
        return "no record at hand to compare"
    said = record.record
    stated = (result.record, result.plan, result.base, result.head, result.sample.steps)
    if stated != (record.digest, said.plan.digest, said.plan.base, said.head, said.steps):
        raise Refused(Reason.REPLAY_RESULT, "the result is about another record")
    if result.same_machine != (result.machine in record.machines):
        raise Refused(Reason.TRAINING_MACHINE, "whether it is a machine of the record is not so")
    starts = {1, *(each.step + 1 for each in said.checkpoints)}
    if any(first not in starts for first, _ in result.windows):
        raise Refused(Reason.REPLAY_RESULT, "a window begins where no checkpoint is listed")
    if set(result.made or ()) - {*said.outputs, EVALUATION, PRIVACY}:
        raise Refused(Reason.REPLAY_RESULT, "an output was made again that the record has not")
    differences = environment_differences(said.environment, result.environment)
    left = [name for name in differences if name not in HARMLESS]
    if result.tolerance is None and left:
        raise Refused(Reason.REPLAY_RESULT, f"exact in another environment: {', '.join(left)}")
    return record.digest.hex()


def _step_8(state: _State) -> str:
    result, asked = established(state.result), state.asked
    if asked is None:
        return "no log at hand to compare"
    replay = Replay(asked.audited, asked.sample, tolerance=asked.tolerance)
    if result.windows != tuple((each.first, each.last) for each in replay.windows):
        raise Refused(Reason.REPLAY_RESULT, "other windows than the drawn steps ask for")
    recorded = sum(
        each.record.state is not None
        for first, last in result.covered
        for each in asked.audited.log.steps[first - 1 : last]
    )
    compared = recorded if result.tolerance is None else 0
    if result.divergence is None and result.states != compared:
        raise Refused(Reason.REPLAY_RESULT, "other states were compared than were recorded")
    due = set(parts_due(asked.audited, asked.tolerance)) if asked.ended else set[str]()
    if result.divergence is None and set(result.made or ()) != due:
        raise Refused(Reason.REPLAY_RESULT, "another end was made again than was asked for")
    return f"{len(result.windows)} windows"


def _steps() -> tuple[Step[_State], ...]:
    def step(number: int, run: Callable[[_State], str], *needs: int) -> Step[_State]:
        return Step(f"replayed/{number}", _DOC, run, tuple(f"replayed/{need}" for need in needs))

    return (
        step(1, _step_1),
        step(2, _step_2, 1),
        step(3, _step_3, 2),
        step(4, _step_4, 3),
        step(5, _step_5, 3),
        step(6, _step_6, 4),
        step(7, _step_7, 1),
        step(8, _step_8, 6, 7),
    )


REPLAYED_STEPS: Final = _steps()
