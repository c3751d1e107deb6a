"""The owner's side of a training, against a genuine training node that lies on demand."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import stat
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from arithmetic import RECIPE
from dataset_rows import lines
from nodes import NOW, FixedClock
from train_world import OUTPUTS, ROWS
from training_owners import TrainingOwners, run, running_training_node

from confide.client.train import Watcher
from confide.client.train_folder import OwnerFolder
from confide.client.train_node import NodeRefused
from confide.client.train_results import REFUSED
from confide.client.train_upload import PartSizes
from confide.errors import (
    ConfideError,
    ConfigurationError,
    DatasetRejected,
    FormatError,
    Reason,
    Rejected,
    RemoteProtocolError,
    SealedFileRejected,
    TrainingRejected,
    Unavailable,
)
from confide.training.rows import RowError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class World:
    """A node, rows, and two trainings that have ended there and wait to be opened."""

    place: TrainingOwners
    rows: Path
    ended: tuple[Path, Path]

    def fresh(self, tmp: Path, which: int = 0) -> OwnerFolder:
        """The folder of an ended training, as if nobody had opened it."""
        shutil.copytree(self.ended[which], tmp / "job")
        return OwnerFolder.open(tmp / "job")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp = tmp_path_factory.mktemp("training")
    rows = tmp / "rows.jsonl"
    rows.write_bytes(ROWS)
    with running_training_node(tmp / "node") as place:

        async def train(name: str) -> Path:
            async with place.owner(place.folder(tmp / name)) as training:
                training.commit(rows, None)
                await training.send()
                await training.start()
                job = await training.follow()
                assert job.status == "succeeded", job
                return training.folder.path

        async def both() -> tuple[Path, Path]:
            first, second = await asyncio.gather(train("first"), train("second"))
            return first, second

        yield World(place, rows, run(both()))


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    liar = shared.place.liar
    liar.asked.clear()
    yield shared
    liar.answer, liar.break_at, liar.cutting = None, lambda _method, _path: False, False


def collected(world: World, folder: OwnerFolder, **wishes: Any) -> Any:
    async def work() -> Any:
        async with world.place.owner(folder) as training:
            return await training.collect(**wishes)

    return run(work())


def refused(world: World, folder: OwnerFolder, kind: type[ConfideError]) -> Any:
    """Collect, which has to be refused; nothing may be there that looks like a result."""
    before = {path.name for path in folder.path.iterdir()}
    with pytest.raises(kind) as caught:
        collected(world, folder)
    left = {path.name for path in folder.path.iterdir()} - before
    assert left <= {REFUSED}
    assert not folder.done
    return caught.value


# --- from rows to results -------------------------------------------------------------------------


def test_a_training_is_opened_whole_and_private(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    opened = collected(world, folder, checkpoints=True)
    assert opened.folder == folder.path / "tuned"
    assert sorted(path.name for path in opened.folder.iterdir()) == [
        "adapter",
        "checkpoints",
        "merged",
        "owner-log.json",
        "record.json",
    ]
    for kind, place in (("adapter", opened.adapter), ("merged", opened.merged)):
        there = {path.name: path.read_bytes() for path in place.iterdir()}
        assert OUTPUTS[kind].items() < there.items()
    steps = [each.step for each in opened.record.record.checkpoints]
    names = sorted(path.name for path in (opened.folder / "checkpoints").iterdir())
    assert names == [f"checkpoint-{step:09}.sealed" for step in steps]
    for path in folder.path.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert [path for path in folder.path.iterdir() if path.name.startswith(".")] == []


def test_the_record_is_about_what_the_owner_asked_for(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    said = collected(world, folder).record.record
    assert said.nonce == folder.nonce
    assert said.expectation == folder.expectation.digest
    assert said.plan.recipe == RECIPE.digest
    assert folder.state.data is not None
    assert said.plan.dataset == folder.state.data.commitment.digest


def test_what_goes_on_is_told_in_order(world: World, tmp_path: Path) -> None:
    losses: dict[float, float] = {}
    evaluated: list[dict[str, float]] = []

    def news(each: Any) -> None:
        if "train_loss" in each.numbers:
            losses[each.numbers["step"]] = each.numbers["train_loss"]
        elif "valid_loss" in each.numbers:
            evaluated.append(dict(each.numbers))

    async def work() -> None:
        folder = world.fresh(tmp_path)
        async with world.place.owner(folder, watcher=Watcher(news=news)) as training:
            await training.follow()

    run(work())
    assert list(losses) == list(range(1, 33))
    assert {"base_loss", "valid_loss", "base_accuracy", "valid_accuracy"} <= evaluated[0].keys()


# --- refused, with nothing left behind ------------------------------------------------------------


def test_a_record_that_was_changed_is_refused_and_kept_as_refused(
    world: World, tmp_path: Path
) -> None:
    folder = world.fresh(tmp_path)

    def change(path: str, body: bytes) -> bytes:
        if not path.endswith("/attestation"):
            return body
        document = json.loads(body)
        payload = document["record"]["payload"]
        document["record"]["payload"] = payload[:400] + "AAAA" + payload[404:]
        return json.dumps(document).encode()

    world.place.liar.answer = change
    with pytest.raises((TrainingRejected, FormatError)):
        collected(world, folder)
    assert not folder.done
    assert (folder.path / REFUSED).is_file()
    # Nothing was fetched for a record that does not hold.
    assert not [path for _, path in world.place.liar.asked if path.endswith("/content")]


def contents(world: World, folder: OwnerFolder) -> dict[str, str]:
    """The paths of the results of a job, by file name."""

    async def work() -> dict[str, str]:
        async with world.place.owner(folder) as training:
            job = await training.jobs.retrieve(training.job)
            table = world.place.world.files.table
            found = {each: table._files[each].filename for each in job.result_files}
            return {name: f"/v1/files/{each}/content" for each, name in found.items()}

    return run(work())  # type: ignore[no-any-return]


def stored(world: World, path: str) -> bytes:
    """What the node has at the path of a file's content."""
    from confide.node.train_store import read_file  # noqa: PLC0415 - of the node

    file = world.place.world.files.table._files[path.split("/")[3]]
    return b"".join(read_file(world.place.world.files.store, file))


def test_the_record_of_another_job_is_refused(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    other = OwnerFolder.open(world.ended[1])
    record = stored(world, contents(world, other)["record.json"])
    world.place.liar.answer = lambda path, body: record if path.endswith("/attestation") else body
    error = refused(world, folder, TrainingRejected)
    assert Reason.NONCE_MISMATCH in {finding.reason for finding in error.failures}


@pytest.mark.parametrize("name", ["adapter.tar.sealed", "merged.tar.sealed", "owner-log.sealed"])
def test_results_swapped_between_jobs_do_not_open(world: World, tmp_path: Path, name: str) -> None:
    folder = world.fresh(tmp_path)
    place = contents(world, folder)[name]
    other = stored(world, contents(world, OwnerFolder.open(world.ended[1]))[name])
    world.place.liar.answer = lambda path, body: other if path == place else body
    error = refused(world, folder, SealedFileRejected)
    assert error.reason is Reason.SEALED_KEY


def test_one_result_in_the_place_of_another_does_not_open(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    places = contents(world, folder)
    merged = stored(world, places["merged.tar.sealed"])

    def swap(path: str, body: bytes) -> bytes:
        return merged if path == places["adapter.tar.sealed"] else body

    world.place.liar.answer = swap
    assert refused(world, folder, SealedFileRejected).reason is Reason.SEALED_KEY


@pytest.mark.parametrize("at", [700, 5000, -1])
def test_a_sealed_file_with_one_bit_changed_does_not_open(
    world: World, tmp_path: Path, at: int
) -> None:
    folder = world.fresh(tmp_path)
    place = contents(world, folder)["merged.tar.sealed"]

    def change(path: str, body: bytes) -> bytes:
        if path != place:
            return body
        raw = bytearray(body)
        raw[at] ^= 1
        return bytes(raw)

    world.place.liar.answer = change
    with pytest.raises((SealedFileRejected, FormatError)):
        collected(world, folder)
    assert not folder.done


def test_a_sealed_file_that_is_cut_does_not_open(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    place = contents(world, folder)["merged.tar.sealed"]
    meant = place.removesuffix("/content")
    size = len(stored(world, place)) - 100

    def cut(path: str, body: bytes) -> bytes:
        if path == meant:
            return json.dumps({**json.loads(body), "bytes": size}).encode()
        return body[:size] if path == place else body

    world.place.liar.answer = cut
    assert refused(world, folder, SealedFileRejected).reason in (
        Reason.SEALED_OPEN,
        Reason.SEALED_CUT,
    )


def test_a_file_that_comes_short_again_and_again_is_no_result(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    place = contents(world, folder)["merged.tar.sealed"]
    world.place.liar.answer = lambda path, body: body[:-100] if path == place else body
    refused(world, folder, RemoteProtocolError)
    assert world.place.liar.asked.count(("GET", place)) == 6


def test_a_connection_that_breaks_while_results_come_is_made_again(
    world: World, tmp_path: Path
) -> None:
    folder = world.fresh(tmp_path)
    place = contents(world, folder)["merged.tar.sealed"]
    left = [3]

    def cut(path: str, body: bytes) -> bytes | None:
        if path == place and left[0]:
            left[0] -= 1
            return None
        return body

    world.place.liar.answer = cut
    assert collected(world, folder).merged.is_dir()
    assert world.place.liar.asked.count(("GET", place)) == 4


def test_what_came_before_a_connection_broke_is_not_fetched_again(
    world: World, tmp_path: Path
) -> None:
    folder, liar = world.fresh(tmp_path), world.place.liar
    place = contents(world, folder)["merged.tar.sealed"]
    sizes: list[int] = []

    def half(path: str, body: bytes) -> bytes:
        liar.cutting = path == place and len(sizes) < 2
        if path == place:
            sizes.append(len(body))
        return body[: len(body) // 2] if liar.cutting else body

    liar.answer = half
    assert collected(world, folder).merged.is_dir()
    assert sizes == [sizes[0], -(-sizes[0] // 2), -(-sizes[0] // 4)]


@pytest.mark.parametrize("name", ["adapter.tar.sealed", "owner-log.sealed"])
def test_a_result_that_is_missing_is_not_passed_over(
    world: World, tmp_path: Path, name: str
) -> None:
    folder = world.fresh(tmp_path)
    lost = contents(world, folder)[name].split("/")[3]

    def lose(path: str, body: bytes) -> bytes:
        if path != f"/v1/fine_tuning/jobs/{folder.state.job}":
            return body
        document = json.loads(body)
        document["result_files"].remove(lost)
        return json.dumps(document).encode()

    world.place.liar.answer = lose
    error = refused(world, folder, TrainingRejected)
    assert error.failures[0].step == "owner/2"
    assert name in error.failures[0].detail


def test_a_training_by_another_recipe_is_refused(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    wanted = replace(RECIPE, learning_rate=RECIPE.learning_rate * 1.001)
    folder = folder.now_at(replace(folder.state, recipe=wanted))
    error = refused(world, folder, TrainingRejected)
    assert (error.failures[0].step, error.reason) == ("owner/1", Reason.TRAINING_PLAN)


def test_a_training_that_another_engine_linked_is_refused(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    folder = folder.now_at(replace(folder.state, engine="ray"))
    error = refused(world, folder, TrainingRejected)
    assert (error.failures[0].step, error.reason) == ("owner/1", Reason.TRAINING_MACHINE)
    assert "not linked by ray" in error.failures[0].detail


@pytest.mark.parametrize("which", ["data", "validation"])
def test_a_training_on_other_rows_is_refused(world: World, tmp_path: Path, which: str) -> None:
    folder = world.fresh(tmp_path)
    assert folder.state.data is not None
    other = replace(folder.state.data.commitment, root=bytes(32))
    owned = replace(folder.state.data, commitment=other)
    state = folder.state
    if which == "data":
        folder = folder.now_at(replace(state, data=owned))
    else:
        folder = folder.now_at(replace(state, validation=owned))
    error = refused(world, folder, TrainingRejected)
    assert (error.failures[0].step, error.reason) == ("owner/1", Reason.DATASET_MISMATCH)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk on which no file grows beyond `size`: EFBIG stands for ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing_and_the_results_can_be_opened_later(
    world: World, tmp_path: Path
) -> None:
    folder = world.fresh(tmp_path)
    with files_of_at_most(8192):
        assert "cannot be written" in str(refused(world, folder, Unavailable))
    assert collected(world, folder).merged.is_dir()


def test_a_disk_without_room_is_found_before_anything_comes(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    place = contents(world, folder)["merged.tar.sealed"].removesuffix("/content")

    def swell(path: str, body: bytes) -> bytes:
        return (
            json.dumps({**json.loads(body), "bytes": 1 << 52}).encode() if path == place else body
        )

    world.place.liar.answer = swell
    assert "make room" in str(refused(world, folder, Unavailable))
    assert not [path for _, path in world.place.liar.asked if path.endswith("/content")]


# --- before anything is sent ----------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
BROKEN = {
    "nothing": (b"", 0, "there is no row"),
    "broken": (ROWS + b'{"messages": [\n' + ROWS, 21, "not JSON"),
    "unknown": (lines({"prompt": "a", "completion": "b", "label": 1}), 1, "unknown member"),
    "utf-16": (ROWS.decode().encode("utf-16"), 1, "UTF-16"),
    "latin-1": (ROWS + b'{"prompt": "caf\xe9", "completion": "x"}\n', 21, "UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00 rows", 1, "gzip"),
    "ten megabytes": (ROWS + lines({"prompt": "a" * 10_000_000, "completion": "b"}), 21, "longer"),
    "two kinds": (ROWS + lines({"messages": MESSAGES}), 21, "chat row after"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rows_that_are_none_are_named_by_line_and_nothing_is_sent(
    world: World, tmp_path: Path, name: str
) -> None:
    raw, line, words = BROKEN[name]
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(raw)

    async def work() -> None:
        async with world.place.owner(world.place.folder(tmp_path / "job")) as training:
            training.commit(rows, None)

    with pytest.raises(RowError, match=words) as caught:
        run(work())
    assert caught.value.line == line
    assert world.place.liar.asked == []


def test_a_node_with_another_base_is_not_asked_for_anything(world: World, tmp_path: Path) -> None:
    fitting = world.place.world.expectation
    other = replace(fitting, model=replace(fitting.model, weights="00" * 32))
    folder = world.place.folder(tmp_path / "job", expectation=other)

    async def work() -> None:
        async with world.place.owner(folder) as training:
            training.commit(world.rows, None)
            with pytest.raises(Rejected) as caught:
                await training.send()
            assert caught.value.reason is Reason.MODEL_MISMATCH

    run(work())
    assert world.place.liar.asked == []


def test_a_node_that_read_other_rows_is_refused(world: World, tmp_path: Path) -> None:
    def lie(path: str, body: bytes) -> bytes:
        document = json.loads(body)
        if path == "/v1/files":
            document["dataset"]["commitment"] = "00" * 32
        return json.dumps(document).encode()

    async def work() -> None:
        async with world.place.owner(world.place.folder(tmp_path / "job")) as training:
            training.commit(world.rows, None)
            world.place.liar.answer = lie
            with pytest.raises(DatasetRejected):
                await training.send()
            assert training.folder.state.data is not None
            assert training.folder.state.data.file is None

    run(work())


# --- interrupted, and taken up --------------------------------------------------------------------

PARTS = PartSizes(whole_bytes=100, part_bytes=100)


def parts_sent(world: World) -> int:
    return sum(path.endswith("/parts") for _, path in world.place.liar.asked)


def test_a_broken_upload_goes_on_with_the_parts_that_are_missing(
    world: World, tmp_path: Path
) -> None:
    liar, told = world.place.liar, list[int]()
    parts = len(PARTS.cut(len(ROWS)))
    assert parts > 5

    async def first() -> None:
        folder = world.place.folder(tmp_path / "job")
        async with world.place.owner(folder, sizes=PARTS) as training:
            training.commit(world.rows, None)
            liar.break_at = lambda _, path: path.endswith("/parts") and parts_sent(world) > 3
            with pytest.raises((Unavailable, RemoteProtocolError)):
                await training.send()

    async def second() -> None:
        folder = OwnerFolder.open(tmp_path / "job")
        watcher = Watcher(sent=lambda sent, _: told.append(sent))
        async with world.place.owner(folder, sizes=PARTS, watcher=watcher) as training:
            training.commit(world.rows, None)
            liar.break_at = lambda _, _path: False
            liar.asked.clear()
            await training.send()
            assert training.folder.state.data is not None
            assert training.folder.state.data.file is not None

    run(first())
    run(second())
    assert parts_sent(world) == parts - 3
    assert told == sorted(told)
    assert told[-1] == len(ROWS)


def test_a_file_sent_in_parts_is_the_same_data_set(world: World, tmp_path: Path) -> None:
    async def work() -> None:
        folder = world.place.folder(tmp_path / "job")
        async with world.place.owner(folder, sizes=PARTS) as training:
            training.commit(world.rows, None)
            await training.send()
            data = training.folder.state.data
            assert data is not None
            there = world.place.world.files.table._files[data.file or ""]
            assert there.commitment == data.commitment  # type: ignore[union-attr]

    run(work())


def test_rows_that_changed_meanwhile_are_not_taken_for_the_same(
    world: World, tmp_path: Path
) -> None:
    async def work() -> None:
        rows = tmp_path / "rows.jsonl"
        rows.write_bytes(ROWS)
        async with world.place.owner(world.place.folder(tmp_path / "job")) as training:
            training.commit(rows, None)
            rows.write_bytes(ROWS + lines({"prompt": "one", "completion": "more"}))
            with pytest.raises(ConfigurationError, match="other rows"):
                training.commit(rows, None)

    run(work())


def test_a_job_whose_answer_was_lost_is_found_and_not_asked_for_twice(
    world: World, tmp_path: Path
) -> None:
    def lose(path: str, body: bytes) -> bytes | None:
        lost = path == "/v1/fine_tuning/jobs" and b'"object":"list"' not in body
        return None if lost else body

    jobs = world.place.world.jobs

    async def work() -> None:
        async with world.place.owner(world.place.folder(tmp_path / "job")) as training:
            training.commit(world.rows, None)
            await training.send()
            world.place.liar.answer = lose
            before = set(jobs._entries)
            with pytest.raises((Unavailable, RemoteProtocolError)):
                await training.start()
            world.place.liar.answer = None
            assert training.folder.state.job is None
            job = await training.start()
            assert set(jobs._entries) - before == {job.id}
            assert (await training.start()).id == job.id
            await training.jobs.change(job.id, "cancel")
            assert (await training.follow()).status == "cancelled"

    run(work())


def test_watching_survives_lost_connections(world: World, tmp_path: Path) -> None:
    lost = [4]

    def breaks(_method: str, path: str) -> bool:
        if not path.startswith("/v1/fine_tuning") or not lost[0]:
            return False
        lost[0] -= 1
        return True

    silent: list[float] = []

    async def work() -> None:
        watcher = Watcher(silent=silent.append)
        async with world.place.owner(world.fresh(tmp_path), watcher=watcher) as training:
            world.place.liar.break_at = breaks
            assert (await training.follow()).status == "succeeded"

    run(work())
    assert len(silent) == 4


@dataclass
class MovingSleeper:
    """Waiting is what moves the clock."""

    clock: FixedClock

    async def sleep(self, seconds: float) -> None:
        self.clock.time += timedelta(seconds=seconds)


def test_a_node_that_stays_silent_is_left_after_a_quarter_of_an_hour(
    world: World, tmp_path: Path
) -> None:
    clock = FixedClock(NOW)

    async def work() -> None:
        sleeper = MovingSleeper(clock)
        folder = world.fresh(tmp_path)
        async with world.place.owner(folder, clock=clock, sleeper=sleeper) as training:
            world.place.liar.break_at = lambda _method, path: "fine_tuning" in path
            with pytest.raises(Unavailable, match="has not answered"):
                await training.follow()

    run(work())
    assert 900 < (clock.now() - NOW).total_seconds() < 1000


def test_a_node_that_forgot_the_job_says_so(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    folder = folder.now_at(replace(folder.state, job="ftjob-" + "0" * 32))

    async def work() -> None:
        async with world.place.owner(folder) as training:
            with pytest.raises(NodeRefused, match="No such job") as caught:
                await training.follow()
            assert caught.value.status == 404

    run(work())


def test_a_token_of_somebody_else_sees_nothing(world: World, tmp_path: Path) -> None:
    folder = replace(world.fresh(tmp_path), token="another-owner-entirely")
    refused(world, folder, NodeRefused)


# --- the folder -----------------------------------------------------------------------------------


def test_keys_are_never_written_over_something(world: World, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "mine").write_text("mine")
    with pytest.raises(ConfigurationError, match="not an empty directory"):
        world.place.folder(tmp_path / "job")
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["mine"]


def test_a_folder_that_others_may_read_is_refused(world: World, tmp_path: Path) -> None:
    folder = world.fresh(tmp_path)
    folder.path.chmod(0o755)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        OwnerFolder.open(folder.path)


@pytest.mark.parametrize("name", ["nonce", "recipient.key", "checkpoint.key", "dataset.salt"])
def test_a_broken_key_is_named(world: World, tmp_path: Path, name: str) -> None:
    folder = world.fresh(tmp_path)
    (folder.path / name).write_text("00" * 31 + "\n")
    with pytest.raises(ConfigurationError, match=name):
        OwnerFolder.open(folder.path)


def test_a_folder_that_cannot_be_written_is_not_left_half(world: World, tmp_path: Path) -> None:
    with files_of_at_most(16), pytest.raises(Unavailable, match="cannot be written"):
        world.place.folder(tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_every_training_has_keys_of_its_own(world: World, tmp_path: Path) -> None:
    one, two = (world.place.folder(tmp_path / name) for name in ("one", "two"))
    secrets = [
        each
        for folder in (one, two)
        for each in (folder.nonce, folder.checkpoint_key, folder.salt, folder.validation_salt)
    ]
    assert len(set(secrets)) == 8
    assert one.token != two.token
