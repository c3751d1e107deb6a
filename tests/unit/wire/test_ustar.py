"""Archives of results: read as written by anybody, and nothing but plain files is taken."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import FormatError
from confide.wire.ustar import TarBegin, TarData, TarEnd, UstarReader

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = st.sampled_from((0, 1, 511, 512, 513, 1500))
FILES = st.lists(SIZES, max_size=4).map(
    lambda sizes: {f"folder/{at}.bin": bytes([at + 1]) * size for at, size in enumerate(sizes)}
)


def archive(files: dict[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=kind) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def read(raw: bytes, step: int = 1 << 20) -> dict[str, bytes]:
    reader, found, name = UstarReader(), dict[str, bytes](), ""
    ends = 0
    for at in range(0, len(raw), step):
        for event in reader.feed(raw[at : at + step]):
            match event:
                case TarBegin(name=name, size=_):
                    found[name] = b""
                case TarData(data=data):
                    found[name] += data
                case TarEnd():
                    ends += 1
    reader.end()
    assert ends == len(found)
    return found


@given(FILES, st.integers(1, 700))
def test_what_was_put_in_comes_out_however_it_is_cut(files: dict[str, bytes], step: int) -> None:
    assert read(archive(files), step) == files


@given(FILES, st.data())
def test_a_cut_archive_is_refused_wherever_it_is_cut(
    files: dict[str, bytes], data: st.DataObject
) -> None:
    raw = archive(files)
    # What follows the two blocks of the end fills a record, and may be missing.
    ends = len(raw.rstrip(b"\0")) if files else 0
    whole = -(-ends // 512) * 512
    with pytest.raises(FormatError, match="cut"):
        read(raw[: data.draw(st.integers(0, max(0, whole - 1)))])


def entry(change: Callable[[tarfile.TarInfo], None], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    info = tarfile.TarInfo("file")
    change(info)
    return info.tobuf(kind, "utf-8", "surrogateescape") + bytes(1024)


def typed(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    return lambda info: setattr(info, "type", kind)


def linked(info: tarfile.TarInfo) -> None:
    info.linkname = "elsewhere"


@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE),
        *(tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE),
        *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.AREGTYPE),
    ],
)
def test_whatever_is_no_regular_file_is_refused(kind: bytes) -> None:
    with pytest.raises(FormatError, match="no regular file"):
        read(entry(typed(kind)))


def test_a_file_that_also_names_a_link_is_refused() -> None:
    with pytest.raises(FormatError, match="no regular file"):
        read(entry(linked))


def test_other_forms_of_tar_are_refused() -> None:
    with pytest.raises(FormatError, match="not ustar"):
        read(archive({"file": b"x"}, tarfile.GNU_FORMAT))
    with pytest.raises(FormatError, match="no regular file"):
        read(archive({"n" * 120: b"x"}, tarfile.PAX_FORMAT))


@given(st.integers(0, 511), st.integers(0, 7))
def test_a_header_with_one_bit_changed_is_refused(at: int, bit: int) -> None:
    raw = bytearray(archive({"file": b"x"}))
    raw[at] ^= 1 << bit
    with pytest.raises(FormatError):
        read(bytes(raw))


def test_what_stands_between_or_behind_is_refused() -> None:
    raw = archive({"file": b"x"})
    with pytest.raises(FormatError, match="behind a file"):
        read(raw[:600] + b"y" + raw[601:])
    with pytest.raises(FormatError, match="follows its end"):
        read(raw + archive({"more": b""}))
    with pytest.raises(FormatError, match="does not end"):
        read(raw + bytes(512 * 64))
    with pytest.raises(FormatError, match="cut"):
        read(b"")


def test_names_are_given_as_they_stand() -> None:
    assert list(read(archive({"../up": b""}))) == ["../up"]
    with pytest.raises(FormatError, match="UTF-8"):
        read(entry(lambda info: setattr(info, "name", "\udcff")))
