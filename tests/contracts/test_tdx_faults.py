"""What a kernel, a host or a neighbour can do to quotes and RTMR3: hardware.md §2 to §4."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from td_stand_in import MEASUREMENTS, REPORTS, KernelTree, Td, ccel_table

from confide.adapters.tdx_register import RtmrRegister
from confide.adapters.tdx_tsm import TdxGuest, open_tdx_guest
from confide.adapters.tsm_files import KernelFiles
from confide.errors import ConfigurationError, Unavailable
from confide.wire.ccel import CcelEvent, encode_ccel, parse_ccel
from confide.wire.rtmr_log import RuntimeEvent
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(64))
EVENT = RuntimeEvent("confide-node", b"{}")


def _open(tree: KernelTree, **more: Any) -> TdxGuest:
    return open_tdx_guest(tree, name="test", pause=lambda _seconds: None, **more)


def _quote(guest: TdxGuest) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
    return asyncio.run(guest.quote(DATA))


def test_what_passes_is_waited_for_longer_each_time() -> None:
    tree = KernelTree(refusals=deque([errno.EBUSY, errno.EINTR, errno.ETIMEDOUT]))
    waited: list[float] = []
    guest = open_tdx_guest(tree, name="test", pause=waited.append)
    quote, _ = _quote(guest)
    assert parse_quote(quote).body.report_data == DATA
    assert waited == sorted(set(waited))
    assert len(waited) == 3


def test_what_does_not_pass_is_given_up() -> None:
    tree = KernelTree(refusals=deque([errno.EBUSY] * 50))
    guest = _open(tree)
    with pytest.raises(Unavailable, match="busy"):
        _quote(guest)
    assert len(tree.refusals) == 45


def test_an_error_of_the_host_is_not_tried_again() -> None:
    tree = KernelTree(refusals=deque([errno.EIO] * 2))
    with pytest.raises(Unavailable):
        _quote(_open(tree))
    assert len(tree.refusals) == 1


def test_a_neighbour_in_our_report_is_noticed_and_the_quote_made_again() -> None:
    tree = KernelTree(overtaken=2)
    quote, _ = _quote(_open(tree))
    assert parse_quote(quote).body.report_data == DATA
    assert tree.asked == [bytes(64), bytes(64), DATA]


def test_a_neighbour_who_does_not_stop_costs_the_quote() -> None:
    with pytest.raises(Unavailable, match="somebody else"):
        _quote(_open(KernelTree(overtaken=99)))


def test_a_quote_over_other_report_data_is_noticed() -> None:
    guest = _open(KernelTree(answered=b"x" * 64))
    with pytest.raises(Unavailable, match="other report data"):
        _quote(guest)


@pytest.mark.parametrize("refusals", [[], [errno.EBUSY], [errno.EIO]])
def test_no_report_is_left_behind(refusals: list[int]) -> None:
    tree = KernelTree()
    guest = _open(tree)
    tree.refusals = deque(refusals)
    try:
        _quote(guest)
    except Unavailable:
        assert refusals == [errno.EIO]
    assert tree.reports == {}


def test_report_data_of_another_length_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="64"):
        asyncio.run(_open(KernelTree()).quote(bytes(32)))


LACKING: dict[str, tuple[dict[str, Any], str]] = {
    "configfs": ({"configfs": False}, "kernel 6.7"),
    "module": ({"provided": False}, "load the module tdx_guest"),
    "provider": ({"provider": b"sev_guest\n"}, "no TDX guest"),
    "rights on reports": ({"denied": frozenset({REPORTS})}, "run as root"),
    "registers": ({"measured": False}, "kernel 6.16"),
    "rights on registers": ({"denied": frozenset({MEASUREMENTS})}, "run as root"),
    "firmware log": ({"table": None}, "keeps no log"),
    "table of another machine": ({"table": ccel_table(cc_type=1)}, "another kind"),
    "table cut": ({"table": ccel_table()[:-1]}, "is not one"),
    "table damaged": ({"table": ccel_table()[:-1] + b"\1"}, "checksum"),
    "log that cannot be read": ({"log": b"\0" * 8}, "cannot be read"),
    "log too large": ({"log": bytes(2 << 20)}, "cannot be read"),
}


@pytest.mark.parametrize(("faults", "words"), LACKING.values(), ids=LACKING)
def test_a_machine_that_lacks_something_is_refused_in_words(
    faults: dict[str, Any], words: str
) -> None:
    tree = KernelTree(**faults)
    with pytest.raises((ConfigurationError, Unavailable), match=words):
        _open(tree)
    assert tree.asked == [], "refused only after a quote"
    assert tree.reports == {}


def test_a_firmware_log_of_another_boot_is_refused() -> None:
    td = Td()
    events = parse_ccel(td.boot.firmware_log)
    for wrong, words in (
        (events[1:], "RTMR0"),
        (events[:-1], "RTMR2"),
        ((*events, CcelEvent(4, 1, bytes(48), b"")), "extends RTMR3"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            _open(KernelTree(td, log=encode_ccel(wrong)))


def test_a_register_that_somebody_extended_before_is_refused_without_its_log() -> None:
    tree = KernelTree()
    tree.td.extend(EVENT.digest())
    with pytest.raises(ConfigurationError, match="extended before"):
        _open(tree)
    with pytest.raises(ConfigurationError, match="extended before"):
        _open(tree, log=(EVENT, EVENT))
    _, events = _quote(_open(tree, log=(EVENT,)))
    assert events == (EVENT,)


def test_an_extension_that_the_register_does_not_show_is_in_no_log() -> None:
    tree = KernelTree(ignored=1)
    guest = _open(tree)
    with pytest.raises(Unavailable, match="same value"):
        asyncio.run(guest.extend(EVENT))
    assert _quote(guest)[1] == ()
    asyncio.run(guest.extend(EVENT))
    assert _quote(guest)[1] == (EVENT,)


def test_an_extension_that_happened_counts_whatever_the_write_said() -> None:
    guest = _open(KernelTree(write_fails_after_extending=True))
    asyncio.run(guest.extend(EVENT))
    assert _quote(guest)[1] == (EVENT,)


def test_a_write_that_is_refused_is_in_no_log() -> None:
    tree = KernelTree()
    guest = _open(tree)
    tree.denied = frozenset({f"{MEASUREMENTS}/rtmr3"})
    with pytest.raises(ConfigurationError, match="run as root"):
        asyncio.run(guest.extend(EVENT))
    tree.denied = frozenset()
    assert _quote(guest)[1] == ()


def test_a_second_writer_ends_all_evidence() -> None:
    tree = KernelTree(spoiled=1)
    guest = _open(tree)
    with pytest.raises(Unavailable, match="other software"):
        asyncio.run(guest.extend(EVENT))
    for _ in range(2):
        with pytest.raises(Unavailable, match="other software"):
            asyncio.run(guest.extend(EVENT))
    with pytest.raises(Unavailable, match="not that of this node"):
        _quote(guest)


def test_a_second_writer_between_two_events_is_noticed_by_the_next_quote() -> None:
    tree = KernelTree()
    guest = _open(tree)
    asyncio.run(guest.extend(EVENT))
    tree.td.extend(bytes(48))
    with pytest.raises(Unavailable, match="not that of this node"):
        _quote(guest)


def test_a_register_that_moved_is_not_extended_any_more() -> None:
    tree = KernelTree()
    guest = _open(tree)
    tree.td.extend(bytes(48))
    moved = tree.td.rtmr3
    for _ in range(2):
        with pytest.raises(Unavailable, match="other software"):
            asyncio.run(guest.extend(EVENT))
    assert tree.td.rtmr3 == moved


def test_an_extension_waits_for_the_quote_that_is_being_made() -> None:
    tree, asked, extended = KernelTree(), threading.Event(), threading.Event()
    register = RtmrRegister(tree)

    def slow(data: bytes) -> bytes:
        quote = tree.td.quote(data)
        asked.set()
        # An extension that does not wait would come here; one that waits does not.
        extended.wait(0.2)
        return quote

    guest = TdxGuest(slow, register, b"")

    async def extend() -> None:
        await asyncio.to_thread(asked.wait)
        await guest.extend(EVENT)
        extended.set()

    async def race() -> tuple[RuntimeEvent, ...]:
        (_, events), _ = await asyncio.gather(guest.quote(DATA), extend())
        return events

    assert asyncio.run(race()) == ()
    assert register.events == (EVENT,)


def test_the_files_of_the_kernel_are_written_once_and_read_whole(tmp_path: Path) -> None:
    files, folder = KernelFiles(), str(tmp_path / "report")
    files.make_directory(folder)
    with pytest.raises(FileExistsError):
        files.make_directory(folder)
    path = f"{folder}/inblob"
    with pytest.raises(FileNotFoundError):
        files.write(path, DATA)
    (tmp_path / "report" / "inblob").write_bytes(b"")
    files.write(path, DATA)
    assert files.read(path, 64) == DATA
    with pytest.raises(OSError, match="too large"):
        files.read(path, 63)
    assert files.exists(path)
    (tmp_path / "report" / "inblob").unlink()
    assert not files.exists(path)
    files.remove_directory(folder)
    assert not files.exists(folder)


def test_a_short_write_is_an_error_and_not_continued(tmp_path: Path) -> None:
    # A limit on the size of files makes the kernel take ten of 64 bytes.
    path = tmp_path / "inblob"
    path.write_bytes(b"")
    program = (
        "import resource, sys\n"
        "from confide.adapters.tsm_files import KernelFiles\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try:\n    KernelFiles().write(sys.argv[1], bytes(64))\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) == errno.EIO
    assert path.stat().st_size == 10
