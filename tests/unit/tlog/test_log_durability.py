"""An acknowledged entry survives: the power is cut at every operation on the disk. log.md §8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import log_world as world
import pytest
from log_world import FOLDER, MemoryDisk, PowerCut

from confide.adapters.log_files import FileLog
from confide.adapters.witness_files import WitnessFiles
from confide.crypto.merkle import hash_leaf, verify_inclusion
from confide.errors import ConfigurationError, FormatError, LogRejected, Reason, Unavailable
from confide.node.log_keeper import LogKeeper
from confide.wire.checkpoint import Checkpoint
from confide.wire.tiles import parse_tile_path

if TYPE_CHECKING:
    from confide.wire.checkpoint import SignedCheckpoint

# Over two full tiles, and a batch that makes several at once.
BATCHES = (1, 2, 253, 1, 300, 4)


def _work(disk: MemoryDisk) -> tuple[int, list[SignedCheckpoint]]:
    """Append and publish until done or cut; return what was acknowledged and the heads shown."""
    acknowledged, shown = 0, []
    try:
        keeper = world.open_log(disk)
        for size in BATCHES:
            entries = [world.entry(acknowledged + n) for n in range(size)]
            keeper.append(entries)
            acknowledged += size
            shown.append(keeper.head)
            keeper.publish(keeper.head)
    except (PowerCut, Unavailable):
        pass
    return acknowledged, shown


def _holds(disk: MemoryDisk, acknowledged: int, shown: list[SignedCheckpoint]) -> None:
    keeper = world.open_log(disk)
    size = keeper.head.head.size
    assert size >= acknowledged
    entries = world.logged(disk, size)
    assert entries[:acknowledged] == [world.entry(n) for n in range(acknowledged)]
    leaves = [hash_leaf(entry) for entry in entries]
    assert world.tree_root(leaves) == keeper.head.head.root
    for head in shown:
        # Nobody holds a head that the log does not continue.
        assert world.tree_root(leaves[: head.head.size]) == head.head.root
    for index in {0, acknowledged // 2, acknowledged - 1} & set(range(acknowledged)):
        proof = keeper.prove(index, keeper.head)
        verify_inclusion(leaves[index], index, size, proof.hashes, root=keeper.head.head.root)
    # Whatever the cut left behind does not stand in the way of what comes next.
    keeper.append([world.entry(9000 + n) for n in range(300)])
    assert world.tree_root(hash_leaf(each) for each in world.logged(disk, size + 300)) == (
        keeper.head.head.root
    )


def _operations() -> int:
    disk = MemoryDisk()
    assert _work(disk)[0] == sum(BATCHES)
    return disk.operations


OPERATIONS = _operations()


@pytest.mark.parametrize("survives", [0.0, 0.3, 0.7, 1.0])
def test_every_acknowledged_entry_survives_a_cut_at_every_operation(survives: float) -> None:
    assert OPERATIONS > 80
    for cut in range(OPERATIONS + 1):
        disk = MemoryDisk(cut=cut)
        acknowledged, shown = _work(disk)
        _holds(
            disk.after_cut(world.chance((cut, survives)), survives=survives), acknowledged, shown
        )


def test_the_cuts_bite() -> None:
    # Without the sync of directories, or of files, the same cuts lose what was acknowledged.
    for forgotten in ("sync", "sync_directory"):
        lost = 0
        for cut in range(0, OPERATIONS, 7):
            disk = type(f"No_{forgotten}", (MemoryDisk,), {forgotten: lambda *_: None})(cut=cut)
            acknowledged, shown = _work(disk)
            try:
                _holds(disk.after_cut(world.chance(cut), survives=0.0), acknowledged, shown)
            except (AssertionError, LogRejected, FormatError, ConfigurationError):
                lost += 1
        assert lost, f"nothing notices that {forgotten} does nothing"


def test_a_disk_that_fails_acknowledges_nothing_and_ends_the_writer() -> None:
    for number in range(OPERATIONS):
        disk = MemoryDisk(fails=number)
        acknowledged, shown = _work(disk)
        disk.locked.clear()
        _holds(disk, acknowledged, shown)


def test_after_a_failed_write_nothing_more_is_taken() -> None:
    disk = MemoryDisk()
    keeper = world.open_log(disk)
    keeper.append([world.entry(0)])
    disk.fails = disk.operations + 2
    with pytest.raises(Unavailable, match="No space left"):
        keeper.append([world.entry(1)])
    with pytest.raises(Unavailable, match="start it again"):
        keeper.append([world.entry(2)])
    assert keeper.head.head.size == 1


def test_two_writers_are_excluded(tmp_path: Path) -> None:
    first = FileLog(tmp_path / "log")
    with pytest.raises(ConfigurationError, match="in use by another process"):
        FileLog(tmp_path / "log")
    first.close()
    FileLog(tmp_path / "log").close()


def test_two_witnesses_on_one_state_are_excluded(tmp_path: Path) -> None:
    first = WitnessFiles(tmp_path / "state")
    with pytest.raises(ConfigurationError, match="in use by another process"):
        WitnessFiles(tmp_path / "state")
    first.close()


def test_a_log_on_a_real_disk_goes_on_where_it_was(tmp_path: Path) -> None:
    for turn in range(3):
        store = FileLog(tmp_path / "log")
        keeper = LogKeeper.open(store, world.LOG)
        assert keeper.head.head.size == turn * 300
        keeper.append([world.entry(turn * 300 + n) for n in range(300)])
        keeper.publish(keeper.head)
        store.close()
    served = {
        path.relative_to(tmp_path / "log" / "public").as_posix()
        for path in (tmp_path / "log" / "public").rglob("*")
        if path.is_file()
    }
    # Partial tiles whose full one is there are gone; no temporary file is left.
    assert served == {
        "checkpoint",
        *(f"tile/{level}/{n:03}" for level in ("0", "entries") for n in range(3)),
        *(f"tile/{level}/003.p/132" for level in ("0", "entries")),
        *("tile/1/000.p/1", "tile/1/000.p/2", "tile/1/000.p/3"),
    }
    for name in served - {"checkpoint"}:
        parse_tile_path(name)


EDGE = ("tile/0/002.p/49", "tile/1/000.p/2", "tile/entries/002.p/49")


@pytest.mark.parametrize("name", EDGE)
@pytest.mark.parametrize("how", ["gone", "short", "changed"])
def test_a_corrupt_tile_at_the_edge_stops_the_start_and_is_named(name: str, how: str) -> None:
    disk = MemoryDisk()
    _work(disk)
    file = disk.names[FOLDER / "public" / name]
    if how == "gone":
        del disk.names[FOLDER / "public" / name]
    else:
        file.data = file.data[:-1] if how == "short" else b"\x00" * 40 + file.data[40:]
    disk.locked.clear()
    with pytest.raises(LogRejected) as caught:
        world.open_log(disk)
    assert caught.value.reason is Reason.TLOG_TILE
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["tile/0/000", "tile/0/001"])
def test_a_corrupt_tile_inside_is_named_when_a_proof_needs_it(name: str) -> None:
    disk = MemoryDisk()
    _work(disk)
    disk.locked.clear()
    file = disk.names[FOLDER / "public" / name]
    file.data = file.data[:100] + b"\x00" * 32 + file.data[132:]
    keeper = world.open_log(disk)
    with pytest.raises(LogRejected) as caught:
        keeper.prove(256 * int(name[-3:]), keeper.head)
    assert caught.value.reason is Reason.TLOG_TILE
    assert caught.value.failures[0].subject == name


def test_a_log_of_another_key_or_name_is_not_continued() -> None:
    disk = MemoryDisk()
    _work(disk)
    for other in (world.signer("log.example/other"),):
        disk.locked.clear()
        with pytest.raises(ConfigurationError, match="another name"):
            world.open_log(disk, other)
    disk.locked.clear()
    namesake = type(world.LOG)(world.ORIGIN, world.LOG.key.kind, b"x" * 32)
    with pytest.raises(ConfigurationError, match="another key"):
        world.open_log(disk, namesake)


def test_a_head_that_was_changed_on_the_disk_is_refused() -> None:
    disk = MemoryDisk()
    _work(disk)
    disk.locked.clear()
    file = disk.names[FOLDER / "head"]
    file.data = file.data.replace(b"\n561\n", b"\n560\n")
    with pytest.raises(LogRejected) as caught:
        world.open_log(disk)
    assert caught.value.reason is Reason.TLOG_SIGNATURE


def test_a_log_whose_head_is_gone_does_not_begin_anew() -> None:
    disk = MemoryDisk()
    _work(disk)
    disk.locked.clear()
    del disk.names[FOLDER / "head"]
    with pytest.raises(ConfigurationError, match="its head is gone"):
        world.open_log(disk)


def test_a_witness_that_is_cut_never_forgets_what_it_answered() -> None:
    heads = [
        world.signed(Checkpoint(world.ORIGIN, size, hash_leaf(b"%d" % size))) for size in (1, 5, 9)
    ]
    disk = MemoryDisk()
    counted = WitnessFiles(Path("/witness"), disk=disk)
    for head in heads:
        counted.remember(head)
    for cut in range(disk.operations + 1):
        for survives in (0.0, 0.5, 1.0):
            broken = MemoryDisk(cut=cut)
            answered = 0
            try:
                state = WitnessFiles(Path("/witness"), disk=broken)
                for head in heads:
                    state.remember(head)
                    answered = head.head.size
            except PowerCut:
                pass
            left = broken.after_cut(world.chance(cut), survives=survives)
            last = WitnessFiles(Path("/witness"), disk=left).last(world.ORIGIN)
            assert (0 if last is None else last.head.size) >= answered
