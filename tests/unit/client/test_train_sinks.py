"""What becomes of the bytes of results: plain files in their folder, or nothing at all."""

from __future__ import annotations

import hashlib
import io
import tarfile
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from confide.adapters.sealed_store import create_private
from confide.client.train_sinks import Hashed, Opened, Stored, Unpacked
from confide.crypto.kem import load_private_key
from confide.crypto.sealed_file import open_file_for, seal_file_to
from confide.errors import FormatError, SealedFileRejected
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

OWNER = load_private_key(Kem.X_WING, bytes(range(32)))
NAME = "ftjob-1/adapter.tar.sealed"


def sealed(raw: bytes) -> bytes:
    sealer = seal_file_to(OWNER.public_key, name=NAME, ephemeral=bytes(32))
    return b"".join([*sealer.write(raw), *sealer.finish()])


def tar(*files: tuple[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


class Creating:
    """Creates files, and closes what nobody closed."""

    def __init__(self) -> None:
        self.files: list[BinaryIO] = []

    def __call__(self, place: Path) -> BinaryIO:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.files.append(create_private(place))
        return self.files[-1]

    def close(self) -> None:
        for file in self.files:
            file.close()


def create(place: Path) -> BinaryIO:
    return Creating()(place)


def unpack(folder: Path, raw: bytes, step: int = 1000) -> dict[str, bytes]:
    with closing(Creating()) as creating:
        sink = Unpacked(open_file_for(OWNER, name=NAME), folder, creating)
        for at in range(0, len(raw), step):
            sink.write(raw[at : at + step])
        sink.finish()
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("step", [53, 777, 1 << 20])
def test_files_come_out_as_they_went_in(tmp_path: Path, step: int) -> None:
    files = {"config.json": b"{}", "deep/model.safetensors": b"m" * 70_000, "empty": b""}
    assert unpack(tmp_path / "adapter", sealed(tar(*files.items())), step) == files


@pytest.mark.parametrize(
    "name",
    [
        *("../adapter_model.safetensors", "/etc/passwd", "a/../../b", "./a", "a//b"),
        *("back\\slash", "new\nline", "x" * 90 + "/" + "\u202e"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError):
        unpack(tmp_path / "inside" / "adapter", sealed(tar((name, b"x"))))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", [".git", ".git/hooks/post-checkout", ".gitignore"])
def test_what_no_digest_covers_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="no digest covers"):
        unpack(tmp_path, sealed(tar((name, b"x"))))


def test_of_two_files_with_one_name_none_wins(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        unpack(tmp_path, sealed(tar(("a", b"1"), ("a", b"2"))))


def test_an_archive_that_is_cut_before_it_was_sealed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cut"):
        unpack(tmp_path, sealed(tar(("a", b"x" * 600))[:1024]))


def test_a_sealed_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    raw = sealed(tar(("a", b"x" * 100_000)))
    with pytest.raises(SealedFileRejected):
        unpack(tmp_path, raw[:-200])


def test_what_came_is_told_by_its_digest(tmp_path: Path) -> None:
    told: list[bytes] = []
    sink = Hashed(Stored(create(tmp_path / "file")), told.append)
    sink.write(b"one")
    sink.write(b"two")
    sink.finish()
    assert told == [hashlib.sha256(b"onetwo").digest()]
    assert (tmp_path / "file").read_bytes() == b"onetwo"


def test_one_file_is_opened_as_it_comes(tmp_path: Path) -> None:
    sink = Opened(open_file_for(OWNER, name=NAME), create(tmp_path / "log"))
    raw = sealed(b"log" * 50_000)
    sink.write(raw[:90_000])
    sink.write(raw[90_000:])
    sink.finish()
    assert (tmp_path / "log").read_bytes() == b"log" * 50_000
