"""Ranks as processes: dropout and all, the bits of one process; killed, they end and go on."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from seat_links import two_seats
from training_jobs import KEY, SESSION, chat_rows, order_form, training_job
from training_stories import Story, follow

from confide.errors import Unavailable
from confide.trainer.frames import Frame
from confide.trainer.group import TrainingGroup
from confide.trainer.loop import TorchTrainer
from confide.training.steplog import verify_step_log

if TYPE_CHECKING:
    from pathlib import Path

    from confide.training.job import TrainingJob

TOML = (
    "micro_batch_size = 2\ngradient_accumulation_steps = 3\nlora_dropout = 0.1\nmax_steps = 10\n"
    "checkpoint_every = 3\nstate_every = 2\nval_set_size = 3\neval_steps = 2\n"
)


@pytest.fixture(scope="module")
def job(tiny: Path) -> TrainingJob:
    return replace(training_job(tiny, TOML, chat_rows(30)), world=2)


@pytest.fixture(scope="module")
def alone(tiny: Path, job: TrainingJob, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One process that does the work of both ranks."""
    folder = tmp_path_factory.mktemp("alone")
    return follow(order_form(tiny, folder, job, outputs=("adapter", "merged")), job, Story())


@pytest.mark.parametrize(
    "via", ["sockets", pytest.param("gloo", marks=pytest.mark.slow, id="gloo")]
)
def test_two_ranks_end_at_the_bits_of_one_process(
    tiny: Path, job: TrainingJob, alone: Story, tmp_path: Path, via: Any
) -> None:
    form = order_form(tiny, tmp_path, job, outputs=("adapter", "merged"))
    story = follow(form, job, Story(), via=via)
    assert story.last == alone.last
    assert story.steps == alone.steps
    assert story.checkpoints == alone.checkpoints, "the same run seals the same checkpoints"
    assert story.result == alone.result
    assert len(story.steps) == 10
    # Rank 0 judges the model while the other waits.
    assert set(story.evaluations) == {2, 4, 6, 8, 10, "base", "tuned"}


PRIVATE = (
    "micro_batch_size = 3\nlora_dropout = 0.1\nmax_steps = 8\nstate_every = 2\n"
    "[privacy]\nnoise_multiplier = 0.8\nmax_grad_norm = 0.5\ndelta = 1e-4\n"
)


def test_two_private_ranks_do_so_too_and_the_owner_finds_their_rows(
    tiny: Path, tmp_path: Path
) -> None:
    job = replace(training_job(tiny, PRIVATE, chat_rows(14)), world=2)
    stories = []
    for name, via in (("one", None), ("two", "sockets")):
        form = order_form(tiny, tmp_path / name, job, outputs=("adapter",))
        form.checkpoints.mkdir()
        stories.append(follow(form, job, Story(), via=via))  # type: ignore[arg-type]
    one, two = stories
    assert one.result == two.result
    assert one.last == two.last
    trainer = TorchTrainer(tiny)
    plan = trainer.prepare(job).plan
    assert plan.world == 2
    verify_step_log(
        [two.steps[number] for number in range(1, 9)],
        recipe=job.recipe,
        plan=plan,
        root=job.data.root,
        rows=14,
        dataset_salt=job.data.salt,
        head=two.head,
    )


def test_a_killed_rank_ends_all_and_they_go_on_where_they_were(
    tiny: Path, job: TrainingJob, alone: Story, tmp_path: Path
) -> None:
    form = order_form(tiny, tmp_path, job, outputs=("adapter", "merged"))

    def kill(step: int, group: TrainingGroup) -> None:
        if step == 4:
            os.kill(group.pids[1], signal.SIGKILL)

    story = Story()
    with pytest.raises(Unavailable, match="one of the ranks is gone"):
        follow(form, job, story, at_step=kill, via="sockets")
    assert story.last is None
    assert story.newest is not None
    follow(form, job, story, session=hashlib.sha256(b"again").digest(), via="sockets")
    assert story.result == alone.result


@pytest.mark.slow
def test_a_pause_lets_the_others_leave(
    tiny: Path, job: TrainingJob, alone: Story, tmp_path: Path
) -> None:
    form = order_form(tiny, tmp_path, job, outputs=("adapter", "merged"))

    def pause(step: int, group: TrainingGroup) -> None:
        if step == 2:
            group.pause()

    story = follow(form, job, Story(), at_step=pause, via="sockets")
    assert story.last is not None
    assert story.last[1]["outcome"] == "paused"
    # What ranks made goes on in one process, and the other way round.
    follow(form, job, story, session=hashlib.sha256(b"again").digest())
    assert story.result == alone.result


@pytest.mark.slow
def test_only_rank_0_has_keys_and_another_one_leaves_in_peace(
    tiny: Path, job: TrainingJob, tmp_path: Path
) -> None:
    """Two seats of one rank each, linked by us: what the second is told, and what it tells."""
    there, back = socket.socketpair(), socket.socketpair()
    form = order_form(tiny, tmp_path, job)
    with (
        TrainingGroup(form, ranks=range(1), outer=(back[1], there[0])) as first,
        TrainingGroup(form, ranks=range(1, 2), outer=(there[1], back[0])) as second,
    ):
        first.begin(job, key=KEY, session=SESSION)
        second.begin(
            replace(job, data=replace(job.data, salt=bytes(32))), key=bytes(32), session=bytes(32)
        )
        story = Story()
        for kind, payload in first.frames():
            story.hear(kind, payload)
            if kind is Frame.PREPARED:
                first.go()
        left = list(second.frames())
    assert story.last is not None
    assert story.last[1]["outcome"] == "finished"
    assert left == [(Frame.ENDED, b'{"outcome":"followed"}')]


def test_the_reason_of_another_rank_is_told_and_not_its_echo(
    tiny: Path, job: TrainingJob, tmp_path: Path
) -> None:
    form = order_form(tiny, tmp_path, job)
    short = replace(job, data=replace(job.data, rows=job.data.rows[:-1]))
    with TrainingGroup(form, ranks=range(2)) as group:
        first, second = group._processes
        first.begin(job, key=KEY, session=SESSION)
        second.begin(short, key=bytes(32), session=bytes(32))
        story = Story()
        for kind, payload in group.frames():
            story.hear(kind, payload)
            if kind is Frame.PREPARED:
                group.go()
    assert story.last is not None
    kind, said = story.last
    assert kind is Frame.FAILED
    assert said["message"].startswith("this rank prepared another job than rank 0")
    assert said["resumable"] is False


@pytest.mark.parametrize(
    ("ranks", "more"),
    [(range(1), {}), (range(0), {}), (range(3), {}), (range(2), {"outer": True})],
)
def test_a_group_is_all_ranks_or_some_with_links(
    tiny: Path, job: TrainingJob, tmp_path: Path, ranks: range, more: dict[str, bool]
) -> None:
    a, b = socket.socketpair()
    with a, b, pytest.raises(ValueError, match="all ranks of several"):
        TrainingGroup(order_form(tiny, tmp_path, job), ranks=ranks, outer=(a, b) if more else None)


def test_between_machines_there_are_sockets(tiny: Path, job: TrainingJob, tmp_path: Path) -> None:
    a, b = socket.socketpair()
    with a, b, pytest.raises(ValueError, match="linked by sockets"):
        TrainingGroup(order_form(tiny, tmp_path, job), ranks=range(1), via="nccl", outer=(a, b))


def test_seats_on_two_machines_train_through_tls_and_the_wire_shows_nothing(
    tiny: Path, job: TrainingJob, alone: Story, tmp_path: Path
) -> None:
    form = order_form(tiny, tmp_path, job, outputs=("adapter", "merged"))
    captured = bytearray()
    story = Story()
    with (
        two_seats(captured) as links,
        TrainingGroup(form, ranks=range(1), outer=links[0].outer) as first,
        TrainingGroup(form, ranks=range(1, 2), outer=links[1].outer) as second,
    ):
        first.begin(job, key=KEY, session=SESSION)
        second.begin(job, key=bytes(32), session=bytes(32))
        for kind, payload in first.frames():
            story.hear(kind, payload)
            if kind is Frame.PREPARED:
                first.go()
        assert [kind for kind, _ in second.frames()] == [Frame.ENDED]
        assert [each.refused for each in links] == [0, 0]
    assert story.result == alone.result
    # Ten openings with the adapter and ten sums went over it.
    trainer = TorchTrainer(tiny)
    trainer.prepare(job)
    adapter = [each.detach().numpy().tobytes() for each in trainer._policy.parameters.values()]
    assert len(captured) > 20 * len(b"".join(adapter))
    patterns = [values[:16] for values in adapter if any(values)]
    assert patterns
    assert not any(pattern in captured for pattern in patterns)
