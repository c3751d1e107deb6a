"""Handovers: a genuine one is accepted, every edited or misplaced one is refused, by its own step.

docs/protocols/training-node.md §7. Without any one of the steps, some bad handover is accepted.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from arithmetic import ComputedJob
from handovers import HANDED, asked_of, edited, handed, log_until, refusals, told, verify
from hypothesis import given
from hypothesis import strategies as st
from mutants import without
from nodes import NOW
from runs import expectation_and_roots
from trainings import Happening, sha, train

from confide.appraisal.binding import parse_statement
from confide.errors import FormatError, Reason, TrainingRejected
from confide.expectation import parse_expectation
from confide.rats import Status
from confide.receipts.held import appraise_held
from confide.training import handover_verify as procedure
from confide.training.account import Account
from confide.training.boots import Turn
from confide.training.handover import parse_handover, parse_handover_file
from confide.training.owner_log import parse_owner_log
from confide.training.recipe_file import parse_recipe_toml
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.dsse import Envelope
from confide.wire.json import jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.training.handover import HandoverFile
    from confide.training.handover_verify import Asked

    Bad = tuple[HandoverFile, Asked]

OTHER = ComputedJob("another")
FLIP = bytes(32)


# What is accepted


def test_a_genuine_handover_is_accepted_in_every_step() -> None:
    verified = verify(handed())
    steps = [f.step for f in verified.findings if f.step.startswith("handover/")]
    assert steps == [f"handover/{number}" for number in range(1, 11)]
    assert {finding.status for finding in verified.findings} == {Status.PASS}
    assert verified.handover == told(HANDED)
    account = verified.account
    assert account.newest == verified.handover.checkpoint
    assert (len(account.steps), account.head) == (16, HANDED.chain(16))
    assert account.turns == list(verified.handover.turns)


def test_a_job_that_rests_or_moved_before_is_handed_over_too() -> None:
    turns = (Happening("moved", 4, "other"), Happening("paused", 16))
    verified = verify(handed(moved := ComputedJob("moved before", turns=turns)), asked_of(moved))
    assert [turn.kind for turn in verified.handover.turns] == ["started", "moved", "paused"]


JUDGED = ComputedJob("judged on the way", recipe=replace(HANDED.recipe, eval_steps=6))


def test_evaluations_on_the_way_go_along() -> None:
    verified = verify(handed(JUDGED), asked_of(JUDGED))
    assert verified.account.evaluated == list(JUDGED.log.evaluated[:2])


@pytest.mark.parametrize("kept", [slice(1), slice(1, 2), slice(3)])
def test_evaluations_that_are_not_those_of_the_recipe_do_not(kept: slice) -> None:
    log = replace(log_until(JUDGED, 16), evaluated=JUDGED.log.evaluated[kept])
    found = refusals(handed(JUDGED, log=log), asked_of(JUDGED))
    assert found["8"] is Reason.TRAINING_EVALUATION


def test_evidence_is_judged_by_the_clock_of_its_boot_and_the_word_by_its_age() -> None:
    late = NOW + timedelta(days=29)
    assert verify(handed(), now=late).handover.checkpoint.step == 16


def test_what_is_written_is_what_is_read() -> None:
    file = handed()
    assert parse_handover_file(file.encode()).encode() == file.encode()
    assert parse_handover(file.envelope.payload) == told(HANDED)


# What is refused


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"checkpoint": replace(told(HANDED).checkpoint, sealed=FLIP)}, "checkpoint"),
        ({"checkpoint": replace(told(HANDED).checkpoint, state=FLIP)}, "checkpoint"),
        ({"checkpoint": told(HANDED, 12).checkpoint}, "an older checkpoint"),
        ({"environment": {"isa": "another"}}, "environment"),
        ({"planned": 33}, "steps"),
        ({"events": FLIP}, "events"),
        ({"root": FLIP}, "rows"),
        ({"software": FLIP}, "software"),
        ({"plan": replace(HANDED.plan, tokenizer=FLIP)}, "plan"),
        ({"job": FLIP}, "job"),
        ({"keyset": FLIP}, "keyset"),
        ({"turns": told(HANDED).turns[:0]}, "turns"),
        ({"at": NOW + timedelta(seconds=1)}, "time"),
        ({"log": FLIP}, "log"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_an_owner_edits_is_refused(said: dict[str, Any], reason: str) -> None:
    assert refusals(edited(handed(), **said)), reason


def test_a_log_with_another_loss_is_not_the_one_that_was_signed() -> None:
    log = log_until(HANDED, 16)
    first = replace(log.steps[0], record=replace(log.steps[0].record, loss=0.5))
    forged = replace(log, steps=(first, *log.steps[1:]))
    assert refusals(replace(handed(), log=forged.encode())) == {"1": Reason.TRAINING_LOG}
    # Even a node that signs it does not reach the chain value that its steps do not give.
    assert refusals(handed(log=forged))["8"] is Reason.TRAINING_CHAIN


def test_steps_without_the_last_one_are_no_handover() -> None:
    log = log_until(HANDED, 16)
    short = replace(log, steps=log.steps[:15])
    assert refusals(handed(log=short)) == {"8": Reason.TRAINING_CHAIN}
    longer = replace(log, steps=HANDED.log.steps[:17])
    assert refusals(handed(log=longer)) == {"8": Reason.TRAINING_CHAIN}


def test_the_handover_of_another_job_is_refused() -> None:
    found = refusals(handed(OTHER))
    assert found["2"] is Reason.NONCE_MISMATCH


def test_the_boots_of_another_job_prove_nothing() -> None:
    assert "3" in refusals(replace(handed(), boots=train(OTHER).file.boots))


def test_a_handover_that_names_an_older_checkpoint_of_its_job_is_refused() -> None:
    """Going back: the signed log tells of a newer one."""
    older = told(HANDED, 12).checkpoint
    assert refusals(handed(checkpoint=older)) == {"8": Reason.CHECKPOINT_MISMATCH}


def test_a_handover_from_behind_a_turn_is_refused() -> None:
    """A job that was taken up at step 8 cannot be handed over as it stood at step 4."""
    job = ComputedJob("went on", turns=(Happening("restarted", 8),))
    assert refusals(handed(job, 4), asked_of(job))["9"] is Reason.CHECKPOINT_MISMATCH
    turns = told(job).turns
    back = Turn("paused", 1, 4, job.chain(4), NOW)
    assert refusals(handed(job, turns=(*turns, back)), asked_of(job)) == {
        "9": Reason.CHECKPOINT_ROLLBACK
    }


def test_evidence_that_another_expectation_would_not_accept_is_refused() -> None:
    known = HANDED.expectation
    stricter = replace(known, hardware=replace(known.hardware, min_tcb_evaluation=99))
    file = replace(handed(), expectation=stricter.canonical())
    # The record names one Expectation: a handover under another one is of another job.
    assert refusals(file, asked_of(expectation=stricter)) == {"2": Reason.EXPECTATION_MISMATCH}
    said = handed(expectation=stricter.digest)
    file = replace(said, expectation=stricter.canonical())
    assert "3" in refusals(file, asked_of(expectation=stricter))


def test_evidence_of_a_simulator_is_nothing_to_a_node_of_real_machines() -> None:
    assert "3" in refusals(handed(), roots=VENDOR_ROOTS)


def test_a_word_that_is_too_old_or_of_the_future_is_refused() -> None:
    stale = {"4": Reason.EVIDENCE_STALE}
    assert refusals(handed(), now=NOW + timedelta(days=31)) == stale
    assert refusals(handed(), now=NOW - timedelta(minutes=6)) == stale
    assert verify(handed(), now=NOW - timedelta(minutes=4)).account.planned == 32


def test_keys_that_ended_sign_nothing() -> None:
    late = handed(at=NOW + timedelta(days=2))
    assert refusals(late, now=NOW + timedelta(days=2)) == {"4": Reason.KEYSET_EXPIRED}


def test_other_rows_or_validation_rows_are_another_job() -> None:
    rows = replace(HANDED.commitment, root=FLIP)
    assert refusals(handed(), asked_of(dataset=rows)) == {"7": Reason.DATASET_MISMATCH}
    apart = asked_of(validation=HANDED.commitment)
    assert refusals(handed(), apart) == {"7": Reason.DATASET_MISMATCH}
    assert refusals(handed(root=FLIP)) == {"7": Reason.DATASET_MISMATCH}


def test_another_base_or_other_software_here_is_refused() -> None:
    assert refusals(handed(), asked_of(base=FLIP)) == {"7": Reason.MODEL_MISMATCH}
    assert refusals(handed(), asked_of(software=FLIP)) == {"6": Reason.NODE_SOFTWARE_MISMATCH}


def test_turns_do_not_go_back_in_time() -> None:
    (started,) = told(HANDED).turns
    later = Turn("paused", 0, 16, HANDED.chain(16), NOW + timedelta(minutes=1))
    assert refusals(handed(turns=(started, later))) == {"9": Reason.TRAINING_CHAIN}


@given(st.data())
def test_no_bit_of_a_payload_can_be_flipped(data: st.DataObject) -> None:
    file = handed()
    payload = bytearray(file.envelope.payload)
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    assert refusals(replace(file, envelope=Envelope(bytes(payload), file.envelope.signatures)))


@given(st.binary(max_size=300))
def test_garbage_is_refused_in_words_of_ours(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_handover_file(raw)
    with pytest.raises(TrainingRejected):
        procedure.verify_handover(raw, asked_of(), roots=expectation_and_roots()[1], now=NOW)


def test_members_are_closed() -> None:
    document = parse_json(handed().encode(), what="x", reason=Reason.TRAINING_FORMAT)
    assert isinstance(document, dict)
    with pytest.raises(FormatError):
        parse_handover_file(jcs(document | {"more": 1}))
    with pytest.raises(FormatError):
        parse_handover_file(jcs({name: document[name] for name in document if name != "log"}))


# Every step carries weight


def _forged_log() -> Bad:
    log = log_until(HANDED, 16)
    return replace(handed(), log=replace(log, salt=FLIP).encode()), asked_of()


def _other_nonce() -> Bad:
    return handed(), asked_of(nonce=FLIP)


def _other_hardware() -> Bad:
    (boot,) = told(HANDED).boots
    return handed(boots=(replace(boot, gpus=2),)), asked_of()


def _unsigned() -> Bad:
    return edited(handed(), environment={"isa": "another"}), asked_of()


def _not_measured() -> Bad:
    job = ComputedJob("nothing measured", measured="nothing")
    return handed(job), asked_of(job)


def _other_base() -> Bad:
    job = ComputedJob("other base", held=sha("other base model"))
    return handed(job), asked_of(job)


def _other_recipe() -> Bad:
    return handed(), asked_of(recipe=parse_recipe_toml("base_model='x'\nlearning_rate=1.0\n"))


def _other_events() -> Bad:
    return handed(events=FLIP), asked_of()


def _machine_swapped() -> Bad:
    job = ComputedJob("swapped", turns=(Happening("restarted", 8, "other"),))
    return handed(job), asked_of(job)


def _too_many_turns() -> Bad:
    pairs = (Happening("paused", 4), Happening("resumed", 4)) * 60
    job = ComputedJob("restless", turns=pairs)
    return handed(job), asked_of(job)


def _take_document(state: Any) -> None:
    state.file = parse_handover_file(state.raw)
    state.handover = parse_handover(state.file.envelope.payload)
    state.log = parse_owner_log(state.file.log)


def _take_expectation(state: Any) -> None:
    state.expectation = parse_expectation(state.file.expectation)


def _take_boots(state: Any) -> None:
    for bundle in state.file.boots:
        said = parse_statement(bundle.statement)
        state.boots.append(
            appraise_held(
                state,
                bundle,
                subject="any",
                role="model",
                purpose="claim",
                nonce=said.nonce,
                claim=said.claim,
                now=NOW,
            )
        )


def _take_account(state: Any) -> None:
    said = state.handover
    state.account = Account(said.plan, said.root, said.planned, said.environment)
    state.account.take_up(steps=state.log.steps, events=state.log.events, turns=said.turns)


BAD: dict[int, tuple[Callable[[], Bad], Callable[[Any], None] | None]] = {
    1: (_forged_log, _take_document),
    2: (_other_nonce, _take_expectation),
    3: (_other_hardware, _take_boots),
    4: (_unsigned, None),
    5: (_not_measured, None),
    6: (_other_base, None),
    7: (_other_recipe, None),
    8: (_other_events, _take_account),
    9: (_machine_swapped, None),
    10: (_too_many_turns, None),
}


def test_every_step_is_here() -> None:
    assert [f"handover/{number}" for number in BAD] == [s.id for s in procedure.HANDOVER_STEPS]


@pytest.mark.parametrize("number", BAD)
def test_without_this_step_a_bad_handover_is_accepted(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, blind = BAD[number]
    file, asked = make()
    assert set(refusals(file, asked)) == {str(number)}
    steps = without(procedure.HANDOVER_STEPS, f"handover/{number}", blind)
    monkeypatch.setattr(procedure, "HANDOVER_STEPS", steps)
    verify(file, asked)
