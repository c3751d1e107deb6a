"""A state as an archive: equal files give equal bytes, and nothing else is read. state.md §3."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.agents.state_files import (
    MAX_STATE_ENTRIES,
    StateEntry,
    fits_state,
    pack_state,
    packed_bytes,
    unpack_state,
)
from confide.agents.state_seal import open_state, seal_state
from confide.errors import FormatError, Reason, RunRefused
from confide.wire.release_receipt import NO_STATE

LONG = "d" * 90 + "/" + "e" * 60 + "/" + "f" * 60
ENTRIES = (
    StateEntry("a", None),
    StateEntry("a/memory.json", b'{"seen": 3}'),
    StateEntry("a-b", b""),
    StateEntry("notes é.txt", b"x" * 513),
    StateEntry("d" * 90, None),
    StateEntry("d" * 90 + "/" + "e" * 60, None),
    StateEntry(LONG, b"deep"),
)
ROOM = 1 << 20
# Changes only together with the form: it is that of every state ever sealed.
GOLDEN = "009976b036395ca3b834fc9229bd1b35fab3a1681c857eda8e7c97773cab0f0d"
KEY, SALT, RESOURCE = b"k" * 32, b"s" * 32, "records/state/notes"


def by_path(entries: tuple[StateEntry, ...]) -> tuple[StateEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.path.encode()))


def test_what_was_packed_comes_back_sorted() -> None:
    raw = pack_state(ENTRIES)
    assert unpack_state(raw, max_bytes=len(raw)) == by_path(ENTRIES)
    assert pack_state(tuple(reversed(ENTRIES))) == raw
    assert len(raw) == packed_bytes(ENTRIES)


def test_its_digest_is_stable() -> None:
    """Equal files, equal bytes: on every machine and in every version."""
    assert hashlib.sha256(pack_state(ENTRIES)).hexdigest() == GOLDEN


def test_others_read_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(pack_state(ENTRIES))) as archive:
        found = {
            member.name: None if member.isdir() else archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive.getmembers()
        }
        assert {(m.uid, m.gid, m.mtime, m.uname) for m in archive.getmembers()} == {(0, 0, 0, "")}
    assert found == {entry.path: entry.data for entry in ENTRIES}


_PARTS = st.text(
    st.characters(categories=("L", "N", "P"), exclude_characters="/\\"), min_size=1, max_size=12
).filter(lambda part: part not in {".", ".."} and part.isprintable())


@given(st.dictionaries(st.tuples(_PARTS, _PARTS), st.binary(max_size=1500), max_size=8))
def test_packing_and_reading_are_inverse(files: dict[tuple[str, str], bytes]) -> None:
    folders = {StateEntry(folder, None) for folder, _ in files}
    entries = (*folders, *(StateEntry(f"{a}/{b}", data) for (a, b), data in files.items()))
    assert unpack_state(pack_state(entries), max_bytes=ROOM) == by_path(entries)


@given(st.integers(0, 8 * len(pack_state(ENTRIES)) - 1))
def test_a_flipped_bit_is_refused_or_only_content(bit: int) -> None:
    raw = bytearray(pack_state(ENTRIES))
    raw[bit // 8] ^= 1 << bit % 8
    try:
        found = unpack_state(bytes(raw), max_bytes=ROOM)
    except FormatError:
        return
    # What is read is exactly what stands there: nothing was overlooked.
    assert pack_state(found) == bytes(raw)
    assert [entry.path for entry in found] == [entry.path for entry in by_path(ENTRIES)]


def test_no_state_is_an_empty_archive() -> None:
    assert unpack_state(pack_state(()), max_bytes=1024) == ()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1023, 1024, 1536])
def test_an_archive_that_is_cut_is_refused(size: int) -> None:
    with pytest.raises(FormatError):
        unpack_state(pack_state(ENTRIES)[:size], max_bytes=ROOM)


# From: POSIX.1-2017 pax, "ustar Interchange Format": where a field of a header begins.
_FIELDS = {"name": 0, "mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136, "type": 156}
_FIELDS |= {"link": 157, "magic": 257, "uname": 265, "gname": 297, "devmajor": 329, "prefix": 345}


def crafted(**fields: bytes) -> bytes:
    """One file whose header somebody edited, with a checksum that fits."""
    raw = bytearray(pack_state((StateEntry("memory", b"data"),)))
    for name, value in fields.items():
        raw[_FIELDS[name] : _FIELDS[name] + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("type", kind)
            for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"L", b"x", b"g", b"\0")
        ),
        ("link", b"x"),
        ("name", b"/etc/x\0"),
        ("name", b"../memory"),
        ("name", b"a//b\0\0"),
        ("name", b"a\nb\0\0\0"),
        ("name", b"memory/"),
        ("name", b"\xff\xfe\0\0\0\0"),
        ("name", b"me\0ory"),
        ("name", bytes(6)),
        ("prefix", b"a"),
        ("mode", b"0004755"),
        ("uid", b"0000001"),
        ("gid", b"0000001"),
        ("mtime", b"00000000001"),
        ("uname", b"root"),
        ("gname", b"root"),
        ("devmajor", b"0000001"),
        ("magic", b"ustar  \0"),
        ("size", b"00000001130"),
        ("size", b"77777777777"),
        ("size", b"0000000000 "),
        ("size", b"-0000000004"),
        ("size", b"\x80\0\0\0\0\0\0\0\0\0\4"),
    ],
)
def test_what_is_no_plain_file_is_refused(field: str, value: bytes) -> None:
    assert unpack_state(crafted(), max_bytes=ROOM) == (StateEntry("memory", b"data"),)
    with pytest.raises(FormatError) as error:
        unpack_state(crafted(**{field: value}), max_bytes=ROOM)
    assert error.value.reason is Reason.BROKER_FORMAT


def test_a_wrong_checksum_and_dirt_behind_a_file_are_refused() -> None:
    raw = bytearray(crafted())
    for at in (150, 512 + 4):
        dirty = bytearray(raw)
        dirty[at] ^= 1
        with pytest.raises(FormatError):
            unpack_state(bytes(dirty), max_bytes=ROOM)


def joined(*entries: StateEntry) -> bytes:
    """The archive of `entries` in this order, whatever it is."""
    return b"".join(pack_state((entry,))[:-1024] for entry in entries) + bytes(1024)


@pytest.mark.parametrize(
    "paths", [("b", "a"), ("a", "a"), ("no/parent",), ("a", "a/b"), ("a/", "a"), ("a/b", "a/")]
)
def test_order_and_parents_are_as_they_are_written(paths: tuple[str, ...]) -> None:
    entries = [
        StateEntry(path.removesuffix("/"), None if path.endswith("/") else b"") for path in paths
    ]
    with pytest.raises(FormatError) as error:
        unpack_state(joined(*entries), max_bytes=ROOM)
    assert error.value.reason is Reason.BROKER_FORMAT
    good = joined(StateEntry("a", None), StateEntry("a/b", b""), StateEntry("c", b""))
    assert len(unpack_state(good, max_bytes=ROOM)) == 3


def test_the_bounds_hold() -> None:
    raw = pack_state(ENTRIES)
    with pytest.raises(FormatError, match="at most"):
        unpack_state(raw, max_bytes=len(raw) - 1)
    many = tuple(StateEntry(f"{number:06}", b"") for number in range(MAX_STATE_ENTRIES))
    assert len(unpack_state(pack_state(many), max_bytes=1 << 30)) == MAX_STATE_ENTRIES
    with pytest.raises(FormatError, match="more than"):
        unpack_state(pack_state((*many, StateEntry("z", b""))), max_bytes=1 << 30)


@pytest.mark.parametrize("tail", [b"\0", bytes(512), b"more"])
def test_nothing_follows_the_end(tail: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_state(pack_state(ENTRIES) + tail, max_bytes=ROOM)


@pytest.mark.parametrize(
    ("path", "fits"),
    [("a" * 100, True), ("a" * 101, False), (LONG, True), ("a" * 156 + "/b", False)],
)
def test_names_that_the_format_can_say(path: str, fits: bool) -> None:
    assert fits_state(path, folder=False) is fits
    if not fits:
        with pytest.raises(ValueError, match="cannot say"):
            pack_state((StateEntry(path, b""),))
    assert fits_state("a" * 100, folder=True) is False


# Sealed


def sealed(counter: int = 1, resource: str = RESOURCE) -> bytes:
    return seal_state(KEY, b"archive", resource=resource, counter=counter, salt=SALT)


def opened(raw: bytes, *, counter: int = 1, digest: bytes | None = None) -> bytes | None:
    named = hashlib.sha256(raw).digest() if digest is None else digest
    return open_state(KEY, raw, resource=RESOURCE, counter=counter, digest=named)


def rolled_back(raw: bytes, **how: object) -> None:
    with pytest.raises(RunRefused) as error:
        opened(raw, **how)  # type: ignore[arg-type]
    assert error.value.reason is Reason.STATE_ROLLBACK


def test_a_state_opens_as_the_counter_that_it_was_saved_as() -> None:
    assert opened(sealed()) == b"archive"
    rolled_back(sealed(), counter=2)
    rolled_back(sealed(counter=2))
    rolled_back(sealed(resource="records/state/other"))


def test_other_bytes_than_the_broker_names_are_refused() -> None:
    rolled_back(sealed(), digest=bytes(32))
    rolled_back(sealed() + b"\0")
    rolled_back(b"")


def test_the_first_run_finds_nothing() -> None:
    assert opened(b"", counter=0, digest=NO_STATE) is None
    rolled_back(sealed(), counter=0, digest=NO_STATE)
    rolled_back(b"", counter=0)


def test_counters_begin_with_one() -> None:
    with pytest.raises(ValueError, match="begin"):
        sealed(counter=0)
