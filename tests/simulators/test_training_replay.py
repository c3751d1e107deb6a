"""Replay: drawn steps are executed again, and a node that computed something else is found out."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from arithmetic import SALT, Arithmetic, ComputedJob
from trainings import train, verify

from confide.errors import Reason, TrainingRejected
from confide.training.audit import AuditedLog, audit_log
from confide.training.draw import Sample, draw_sample, draw_steps, replay_beacon
from confide.training.replay import (
    Replay,
    Stretch,
    Tolerance,
    VerifiedReplay,
    environment_differences,
    require_checkpoint,
)

if TYPE_CHECKING:
    from confide.training.chain import StepRecord

HONEST = ComputedJob("computed")
ALL = Fraction(1, 10)


@cache
def audited(job: ComputedJob = HONEST) -> AuditedLog:
    return audit_log(verify(train(job).file), job.log.encode(), dataset_salt=SALT, rows=None)


def sample(*drawn: int) -> Sample:
    return Sample(bytes(32), 32, drawn, ALL)


def execute(job: ComputedJob, trainer: Arithmetic, stretch: Stretch) -> list[StepRecord]:
    trainer.load(job.told[1][stretch.start.step if stretch.start else 0])
    return [trainer.run_step() for _ in range(stretch.first, stretch.last + 1)]


def replay(
    job: ComputedJob,
    *drawn: int,
    trainer: Arithmetic | None = None,
    tolerance: Tolerance | None = None,
) -> VerifiedReplay:
    """Replay `drawn` steps of `job` with an honest trainer, or with `trainer`."""
    run = Replay(audited(job), sample(*drawn), tolerance=tolerance)
    trainer = trainer or job.trainer()
    while (stretch := run.ask()) is not None:
        run.tell(execute(job, trainer, stretch))
    return run.conclude()


def found(job: ComputedJob, *drawn: int, **options: Any) -> str:
    with pytest.raises(TrainingRejected) as rejected:
        replay(job, *drawn, **options)
    (finding,) = rejected.value.failures
    assert finding.reason is Reason.TRAINING_REPLAY
    return finding.detail


def test_an_honest_job_is_replayed_bit_for_bit() -> None:
    verdict = replay(HONEST, 3, 17, 32)
    # Taken up at 0, 16 and 28; a state digest stands at every second step.
    assert verdict.executed == 4 + 2 + 4
    assert verdict.states == 2 + 1 + 2
    assert verdict.tolerance is None


def test_every_single_step_can_be_drawn() -> None:
    for step in range(1, 33):
        assert replay(HONEST, step).executed >= 1


def test_steps_behind_one_checkpoint_share_a_window() -> None:
    trainer = HONEST.trainer()
    replay(HONEST, 5, 6, 8, trainer=trainer)
    assert trainer.executed == [5, 6, 7, 8]


def test_a_step_without_a_state_digest_is_followed_to_one() -> None:
    # Step 5 records no state: a false update there shows in the state of step 6.
    trainer = HONEST.trainer()
    replay(HONEST, 5, trainer=trainer)
    assert trainer.executed == [5, 6]


@pytest.mark.parametrize("step", [1, 5, 6, 31])
def test_a_false_update_is_found_at_its_own_step(step: int) -> None:
    job = ComputedJob(f"poisoned at {step}", wrong=((step, 0.25),))
    detail = found(job, step)
    # A wrong update is not in the loss of its own step, but in the state after it.
    shown = step if step % 2 == 0 else step + 1
    assert f"step {shown} is another" in detail


def test_a_false_update_after_the_drawn_step_is_not_seen() -> None:
    job = ComputedJob("poisoned at 20", wrong=((20, 0.25),))
    assert replay(job, 3, 30).executed == 4 + 2


def test_where_everything_is_false_from_a_step_on_the_first_is_found_by_bisection() -> None:
    wrong = tuple((step, 0.01) for step in range(14, 33))
    job = ComputedJob("drifting from 14", wrong=wrong)
    trainer = job.trainer()
    detail = found(job, 30, trainer=trainer)
    assert detail.startswith("step 14 is another")
    # Eight segments: the window, and at most three more.
    assert len(trainer.executed) <= 2 + 3 * 4


def test_an_honest_beginning_is_not_executed_again_without_need() -> None:
    job = ComputedJob("poisoned at 2", wrong=((2, 0.25),))
    trainer = job.trainer()
    assert found(job, 1, trainer=trainer).startswith("step 2 is another")
    assert trainer.executed == [1, 2]


def test_another_machine_is_replayed_within_a_tolerance() -> None:
    near = Tolerance(abs=1e-6, rel=1e-6)
    trainer = HONEST.trainer(drift=1e-9)
    verdict = replay(HONEST, 3, 17, trainer=trainer, tolerance=near)
    assert verdict.states == 0
    assert "states are not" in verdict.findings[0].detail
    assert "loss" in found(HONEST, 3, 17, trainer=HONEST.trainer(drift=1e-9))


def test_a_tolerance_does_not_cover_another_computation() -> None:
    job = ComputedJob("poisoned at 5", wrong=((5, 0.25),))
    detail = found(job, 5, tolerance=Tolerance(abs=1e-6, rel=1e-6))
    assert detail.startswith("step 6 is another: loss")


@pytest.mark.parametrize("step", [4, 6, 16, 31])
def test_within_a_tolerance_a_false_update_shows_in_the_loss_of_the_next_step(step: int) -> None:
    # Steps 4 and 16 are those of checkpoints: what follows is taken up from the false state, and
    # the states themselves are not compared.
    job = ComputedJob(f"poisoned at {step}", wrong=((step, 0.25),))
    trainer = job.trainer()
    detail = found(job, step, trainer=trainer, tolerance=Tolerance(abs=1e-6, rel=1e-6))
    assert detail.startswith(f"step {step + 1} is another: loss")
    assert trainer.executed[-1] == step + 1


def test_within_a_tolerance_nothing_shows_the_update_of_the_last_step() -> None:
    job = ComputedJob("poisoned at 32", wrong=((32, 0.25),))
    assert "step 32 is another: state" in found(job, 32)
    assert replay(job, 32, tolerance=Tolerance(abs=1e-6, rel=1e-6)).executed == 4


@pytest.mark.parametrize("member", ["learning_rate", "tokens", "batch"])
def test_a_tolerance_is_for_loss_and_norm_alone(member: str) -> None:
    run = Replay(audited(), sample(3), tolerance=Tolerance(abs=0.1, rel=0.1))
    stretch = run.ask()
    assert stretch is not None
    records = execute(HONEST, HONEST.trainer(), stretch)
    value: Any = bytes(32) if member == "batch" else getattr(records[0], member) * 2
    run.tell([replace(records[0], **{member: value}), *records[1:]])
    with pytest.raises(TrainingRejected):
        run.conclude()


@pytest.mark.parametrize("values", [(-0.1, 0.0), (1.0, 0.0), (0.0, float("nan"))])
def test_a_tolerance_that_admits_everything_is_none(values: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        Tolerance(abs=values[0], rel=values[1])


def test_the_caller_has_to_execute_what_is_asked_for() -> None:
    run = Replay(audited(), sample(3), tolerance=None)
    with pytest.raises(RuntimeError):
        run.conclude()
    with pytest.raises(ValueError, match="stretch"):
        run.tell(())
    with pytest.raises(ValueError, match="other number"):
        Replay(audited(), Sample(bytes(32), 31, (3,), ALL), tolerance=None)


def test_only_a_replay_makes_a_verdict() -> None:
    with pytest.raises(TypeError):
        VerifiedReplay(sample(1), 1, 1, None, (), seal=object())


def test_a_checkpoint_is_taken_up_only_as_it_was_recorded() -> None:
    entry = HONEST.log.checkpoints[0]
    require_checkpoint(entry, sealed=entry.sealed, state=entry.state)
    for sealed, state in ((bytes(32), entry.state), (entry.sealed, bytes(32))):
        with pytest.raises(TrainingRejected) as rejected:
            require_checkpoint(entry, sealed=sealed, state=state)
        assert rejected.value.reason is Reason.CHECKPOINT_MISMATCH


def test_what_differs_between_environments_is_named() -> None:
    assert environment_differences({"isa": "avx512", "torch": "2"}, {"isa": "avx2"}) == (
        "isa",
        "torch",
    )
    assert environment_differences({"isa": "avx2"}, {"isa": "avx2"}) == ()


def test_the_draw_follows_from_head_challenge_and_checkpoint() -> None:
    head = audited().record.record.head
    challenge = bytes(range(32))
    beacon = replay_beacon(head, challenge=challenge, checkpoint=b"a note")
    others = {
        replay_beacon(bytes(32), challenge=challenge, checkpoint=b"a note"),
        replay_beacon(head, challenge=bytes(32), checkpoint=b"a note"),
        replay_beacon(head, challenge=challenge, checkpoint=b"another"),
        replay_beacon(head, challenge=challenge, checkpoint=None),
    }
    assert len(others) == 4
    assert beacon not in others
    drawn = draw_sample(beacon, 32, count=3, fraction=ALL, miss=Fraction(1, 20))
    assert drawn.drawn == draw_steps(beacon, 32, 3)
    assert replay(HONEST, *drawn.drawn).sample.drawn == drawn.drawn
