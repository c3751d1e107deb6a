"""A layout is what its digest says, or it is not read. Wheels are what the lock says."""

from __future__ import annotations

import hashlib
import zipfile
from typing import TYPE_CHECKING

import pytest

from confide.adapters.oci_store import BlobSink, StoredImage, read_image, write_image
from confide.adapters.wheels import _select, unpack_wheels
from confide.agents.layer import LayerEntry, write_layer
from confide.agents.lockfile import LockedRequirement
from confide.agents.oci import MEDIA_CONFIG, Descriptor, ImageConfig, build_config, build_manifest
from confide.errors import FormatError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

_EMPTY = ImageConfig("amd64", "linux", "", (), ())


def _store(root: Path) -> StoredImage:
    root.mkdir(exist_ok=True)
    blob = root / "blob"
    with BlobSink(blob) as sink:
        write_layer([LayerEntry("agent/a.py", b"print(1)\n")], sink)
        layer = sink.finish()
    config = build_config(
        _EMPTY, diff_ids=(layer.digest,), entry=("python3",), environment=(), labels=()
    )
    manifest = build_manifest(Descriptor.of(MEDIA_CONFIG, config), (layer,))
    return write_image(root / "s", manifest=manifest, config=config, layers={layer.digest: blob})


def test_equal_content_gives_one_digest_in_any_place(tmp_path: Path) -> None:
    one, two = _store(tmp_path / "one"), _store(tmp_path / "two")
    assert one.manifest.digest == two.manifest.digest
    assert one.path.name == one.manifest.digest


def test_every_flipped_blob_is_found(tmp_path: Path) -> None:
    stored = _store(tmp_path)
    blobs = list((stored.path / "blobs" / "sha256").iterdir())
    assert len(blobs) == 3
    for blob in blobs:
        raw = blob.read_bytes()
        blob.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        with pytest.raises(FormatError):
            read_image(stored.path, stored.manifest.digest)
        blob.write_bytes(raw)
    assert read_image(stored.path, stored.manifest.digest) == stored


def test_a_missing_blob_is_unavailable(tmp_path: Path) -> None:
    stored = _store(tmp_path)
    stored.blob(stored.manifest.layers[0].digest).unlink()
    with pytest.raises(Unavailable):
        read_image(stored.path, stored.manifest.digest)


def _wheel(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_wheel_is_unpacked_without_scripts_and_bytecode(tmp_path: Path) -> None:
    wheel = _wheel(
        tmp_path,
        {"demo/__init__.py": b"", "demo/__pycache__/x.cpython-311.pyc": b"",
         "demo-1.0.data/purelib/p.py": b"",
         "demo-1.0.data/scripts/run": b"", "demo-1.0.data/data/share/x": b""},
    )  # fmt: skip
    assert sorted(entry.path for entry in unpack_wheels((wheel,))) == [
        "opt/site-packages/demo/__init__.py",
        "opt/site-packages/p.py",
    ]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\b", "a//b"])
def test_a_wheel_stays_inside_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError):
        unpack_wheels((_wheel(tmp_path, {name: b""}),))


def test_a_wheel_that_is_not_the_locked_one_is_refused(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, {"demo.py": b""})
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    locked = LockedRequirement("demo", "1.0", (digest,))
    assert _select(tmp_path, (locked,)) == (wheel,)
    for other in (
        LockedRequirement("demo", "1.0", ("0" * 64,)),
        LockedRequirement("x", "1", (digest,)),
    ):
        with pytest.raises(FormatError):
            _select(tmp_path, (other,))
