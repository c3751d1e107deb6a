"""The owner's side of a job that goes on elsewhere: kept while it runs, brought to another node.

docs/protocols/training-node.md §7. Two genuine nodes over HTTP, on two machines.
"""

from __future__ import annotations

import shutil
import stat
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from train_world import ROWS, FakeProcess, Gate
from training_owners import TrainingOwners, run, running_training_node

from confide.client.train import Watcher
from confide.client.train_folder import OwnerFolder
from confide.client.train_handover import kept_state
from confide.client.train_node import NodeRefused
from confide.client.train_upload import PartSizes
from confide.errors import ConfigurationError, RemoteProtocolError, SealedFileRejected
from confide.node.train_store import FileLimits, file_document

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[TrainingOwners, TrainingOwners]]:
    with ExitStack() as stack:
        first = stack.enter_context(running_training_node(tmp_path / "one"))
        second = stack.enter_context(
            running_training_node(tmp_path / "two", gpu="another", keys=b"another boot")
        )
        yield first, second


async def begun(place: TrainingOwners, folder: OwnerFolder, rows: Path, step: int) -> OwnerFolder:
    """A job that stands in the middle of `step`, and what its owner kept of it by then."""
    gate = Gate(step)
    place.world.fate.after = gate
    async with place.owner(folder) as training:
        await training.prove()
        training.commit(rows, None)
        await training.send()
        await training.start()
        await gate.wait()
        await training.keep(await training.jobs.retrieve(training.job))
        return training.folder


async def ended(place: TrainingOwners, folder: OwnerFolder, **wishes: Any) -> Any:
    """The opened results of the training in `folder`, followed to its end."""
    watcher = Watcher(kept=lambda step: wishes.get("kept", []).append(step))
    async with place.owner(folder, watcher=watcher) as training:
        await training.prove()
        await training.send()
        await training.start()
        await training.follow()
        return await training.collect(checkpoints=wishes.get("checkpoints", False))


def test_a_training_goes_on_at_another_node_when_its_own_is_gone(
    places: tuple[TrainingOwners, TrainingOwners], tmp_path: Path
) -> None:
    first, second = places
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS)

    async def scenario() -> None:
        folder = await begun(first, first.folder(tmp_path / "job"), rows, 11)
        kept = kept_state(folder)
        assert kept is not None
        assert kept.step == 8
        assert stat.S_IMODE(kept.handover.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(kept.handover.stat().st_mode) == 0o600
        moved = folder.moved(second.url)
        found = await ended(second, OwnerFolder.open(moved.path), checkpoints=True)
        record = found.record.record
        assert [(turn.kind, turn.step) for turn in record.turns] == [("started", 0), ("moved", 8)]
        assert len(set(found.record.machines)) == 2
        # The same training, to which nothing happened.
        second.world.fate.after = lambda _process, _step: None
        again = second.folder(tmp_path / "straight")
        shutil.copy(folder.path / "dataset.salt", again.path)
        again = OwnerFolder.open(again.path)
        async with second.owner(again) as training:
            await training.prove()
            training.commit(rows, None)
            straight = await ended(second, training.folder)
        assert straight.record.record.outputs == record.outputs
        assert straight.record.record.head == record.head

    run(scenario())


# Of what is here nothing is larger than a request; it goes as if much were.
SMALL = PartSizes(whole_bytes=64, part_bytes=100, max_parts=20)


async def ends_elsewhere(second: TrainingOwners, folder: OwnerFolder) -> Any:
    """The opened results of what goes on at another node in small parts."""
    async with second.owner(folder, sizes=SMALL) as training:
        await training.prove()
        await training.send()
        await training.start()
        await training.follow()
        return await training.collect()


def test_a_state_that_is_larger_than_one_request_goes_in_parts(
    places: tuple[TrainingOwners, TrainingOwners], tmp_path: Path
) -> None:
    first, second = places
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS)

    async def scenario() -> None:
        folder = await begun(first, first.folder(tmp_path / "job"), rows, 11)
        whole = kept_state(folder)
        assert whole is not None
        before = whole.checkpoint.read_bytes()
        shutil.rmtree(whole.handover.parent)
        first.liar.asked.clear()
        async with first.owner(folder, sizes=SMALL) as training:
            await training.keep(await training.jobs.retrieve(training.job))
        ranges = [path for _, path in first.liar.asked if path.endswith("/checkpoints/8/content")]
        assert len(ranges) == -(-len(before) // SMALL.part_bytes) > 1
        assert whole.checkpoint.read_bytes() == before
        found = await ends_elsewhere(second, folder.moved(second.url))
        turns = [(turn.kind, turn.step) for turn in found.record.record.turns]
        assert turns == [("started", 0), ("moved", 8)]
        completed = [path for _, path in second.liar.asked if path.endswith("/complete")]
        assert len(completed) == 3, "the rows, the handover, the checkpoint"
        purposes = {
            file_document(each)["purpose"] for each in second.world.files.table._files.values()
        }
        assert purposes == {"fine-tune", "fine-tune-results"}, "what was brought is gone"

    run(scenario())


def test_a_range_that_is_cut_or_another_is_no_checkpoint(
    places: tuple[TrainingOwners, TrainingOwners], tmp_path: Path
) -> None:
    first, _ = places
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS)

    async def scenario() -> None:
        folder = await begun(first, first.folder(tmp_path / "job"), rows, 11)
        shutil.rmtree(folder.path / "handover")
        async with first.owner(folder, sizes=SMALL) as training:
            job = await training.jobs.retrieve(training.job)
            for lie in (lambda body: body[:-1], lambda body: body + b"x"):
                first.liar.answer = lambda path, body, lie=lie: (
                    lie(body) if path.endswith("content") else body
                )
                with pytest.raises(RemoteProtocolError, match="a range has another length"):
                    await training.keep(job)
                assert kept_state(folder) is None
            first.liar.answer = None
            await training.keep(job)
        assert kept_state(folder) is not None

    run(scenario())


def test_a_checkpoint_that_no_node_would_take_is_not_kept_and_the_training_goes_on(
    tmp_path: Path,
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS)
    with running_training_node(tmp_path / "one", limits=FileLimits(max_state_bytes=100)) as place:

        async def scenario() -> None:
            folder = await begun(place, place.folder(tmp_path / "job"), rows, 11)
            assert kept_state(folder) is None
            gate = place.world.fate.after
            assert isinstance(gate, Gate)
            gate.opened.set()
            done = await ended(place, folder)
            assert done.record.record.steps == 32

        run(scenario())


def test_a_node_says_that_a_state_is_larger_than_it_takes(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS)
    small = FileLimits(max_state_bytes=1000)
    with (
        running_training_node(tmp_path / "one") as first,
        running_training_node(tmp_path / "two", gpu="another", limits=small) as second,
    ):

        async def scenario() -> None:
            folder = await begun(first, first.folder(tmp_path / "job"), rows, 11)
            with pytest.raises(NodeRefused) as caught:
                await ends_elsewhere(second, folder.moved(second.url))
            assert (caught.value.status, caught.value.code) == (413, "file_too_large")

        run(scenario())


def test_each_newer_checkpoint_takes_the_place_of_the_one_before(
    places: tuple[TrainingOwners, TrainingOwners], tmp_path: Path
) -> None:
    first, _ = places
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS)
    kept: list[int] = []
    fetched = threading.Event()

    def after(_process: FakeProcess, step: int) -> None:
        # The job waits until its owner has what it had before: no step is too quick for him.
        if step in (6, 10):
            fetched.wait(30)
            fetched.clear()

    def keeps(step: int) -> None:
        kept.append(step)
        fetched.set()

    async def scenario() -> OwnerFolder:
        first.world.fate.after = after
        watcher = Watcher(kept=keeps)
        async with first.owner(first.folder(tmp_path / "job"), watcher=watcher) as training:
            await training.prove()
            training.commit(rows, None)
            await training.send()
            await training.start()
            await training.follow()
            return training.folder

    folder = run(scenario())
    assert kept[:2] == [4, 8]
    found = sorted(path.name for path in (folder.path / "handover").iterdir())
    assert found == [f"checkpoint-{kept[-1]:09}.sealed", "handover.json"]


def test_a_node_that_lies_about_what_is_kept_changes_nothing_here(
    places: tuple[TrainingOwners, TrainingOwners], tmp_path: Path
) -> None:
    first, _ = places
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS)

    async def scenario() -> None:
        folder = await begun(first, first.folder(tmp_path / "job"), rows, 11)
        whole = kept_state(folder)
        assert whole is not None
        before = (whole.handover.read_bytes(), whole.checkpoint.read_bytes())
        whole.handover.rename(tmp_path / "away")
        async with first.owner(folder) as training:
            job = await training.jobs.retrieve(training.job)
            for end, error in (("content", RemoteProtocolError), ("handover", SealedFileRejected)):
                first.liar.answer = lambda path, body, end=end: (
                    body[:-1] + bytes([body[-1] ^ 1]) if path.endswith(end) else body
                )
                with pytest.raises(error):
                    await training.keep(job)
                assert kept_state(folder) is None
            first.liar.answer = None
            await training.keep(job)
        assert kept_state(folder) is not None
        assert whole.checkpoint.read_bytes() == before[1]

    run(scenario())


def test_a_node_refuses_what_was_changed_in_the_folder(
    places: tuple[TrainingOwners, TrainingOwners], tmp_path: Path
) -> None:
    first, second = places
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS)

    async def scenario() -> None:
        folder = await begun(first, first.folder(tmp_path / "job"), rows, 11)
        shutil.copytree(folder.path, tmp_path / "other")
        kept = kept_state(folder)
        assert kept is not None
        raw = bytearray(kept.checkpoint.read_bytes())
        raw[-1] ^= 1
        kept.checkpoint.write_bytes(raw)
        with pytest.raises(NodeRefused) as caught:
            await ended(second, folder.moved(second.url))
        assert caught.value.code == "checkpoint_mismatch"
        other = OwnerFolder.open(tmp_path / "other").moved(second.url)
        place = tmp_path / "other" / "handover" / "handover.json"
        place.write_bytes(place.read_bytes()[:-1])
        with pytest.raises(ConfigurationError, match="is broken"):
            kept_state(other)

    run(scenario())
