"""Layers and documents that depend on their content alone; hostile documents are refused."""

from __future__ import annotations

import io
import tarfile

import pytest

from confide.agents.layer import LayerEntry, layer_bytes
from confide.agents.oci import (
    MEDIA_CONFIG,
    MEDIA_LAYER,
    Descriptor,
    ImageConfig,
    build_config,
    build_manifest,
    parse_config,
    parse_manifest,
)
from confide.errors import FormatError, Reason
from confide.wire.json import jcs

_BASE = ImageConfig("amd64", "linux", "", ("PATH=/usr/bin", "A=1"), ("11" * 32,))


def _config(environment: tuple[str, ...] = ("A=2",)) -> bytes:
    return build_config(
        _BASE, diff_ids=("22" * 32,), entry=("python3",), environment=environment, labels=()
    )


def test_a_layer_does_not_depend_on_the_order_of_its_entries() -> None:
    entries = [LayerEntry("b/c/d.py", b"1"), LayerEntry("a", b"2", executable=True),
               LayerEntry("b/l", b"c/d.py", kind="link"),
               LayerEntry("é" * 120, b"x" * 513)]  # fmt: skip
    assert layer_bytes(entries) == layer_bytes(reversed(entries))


def test_a_layer_is_a_plain_archive_without_traces_of_its_builder() -> None:
    raw = layer_bytes([LayerEntry("a/b.py", b"1"), LayerEntry("a/run", b"2", executable=True)])
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
        found = [(i.name, i.mode, i.mtime, i.uid, i.gid, i.uname, i.gname) for i in archive]
    assert found == [
        ("a", 0o755, 0, 0, 0, "", ""),
        ("a/b.py", 0o644, 0, 0, 0, "", ""),
        ("a/run", 0o755, 0, 0, 0, "", ""),
    ]


def test_one_path_cannot_be_two_things() -> None:
    with pytest.raises(ValueError, match="two different entries"):
        layer_bytes([LayerEntry("a", b"1"), LayerEntry("a", b"2")])


def test_a_config_inherits_and_replaces() -> None:
    config = parse_config(_config())
    assert config.environment == ("A=2", "PATH=/usr/bin")
    assert config.diff_ids == ("11" * 32, "22" * 32)
    assert b'"created":"1970-01-01T00:00:00Z"' in _config()
    assert b'"User":"65532:65532"' in _config()


def test_every_part_of_an_image_moves_its_digest() -> None:
    layers = (Descriptor(MEDIA_LAYER, "33" * 32, 5),)
    digests = {
        parse_manifest(build_manifest(Descriptor.of(MEDIA_CONFIG, config), found)).digest
        for config in (_config(), _config(("A=3",)))
        for found in (layers, layers * 2, (Descriptor(MEDIA_LAYER, "33" * 32, 6),))
    }
    assert len(digests) == 6


def _descriptor(**changes: object) -> dict[str, object]:
    return {"mediaType": "x", "digest": f"sha256:{'0' * 64}", "size": 1, **changes}


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"schemaVersion": 1, "config": _descriptor(), "layers": [_descriptor()]},
        {"schemaVersion": 2, "config": _descriptor(), "layers": []},
        {"schemaVersion": 2, "config": _descriptor(), "layers": [_descriptor()] * 128},
        {"schemaVersion": 2, "config": _descriptor(size=-1), "layers": [_descriptor()]},
        {"schemaVersion": 2, "config": _descriptor(size=True), "layers": [_descriptor()]},
        {"schemaVersion": 2, "config": _descriptor(digest="sha256:../x"),
         "layers": [_descriptor()]},
        {"schemaVersion": 2, "config": _descriptor(digest="sha512:00"), "layers": [_descriptor()]},
        {"schemaVersion": 2, "layers": [_descriptor()]},
        {"schemaVersion": 2, "manifests": [], "config": _descriptor(), "layers": [_descriptor()]},
    ],
)  # fmt: skip
def test_a_hostile_manifest_is_refused(document: object) -> None:
    with pytest.raises(FormatError) as refused:
        parse_manifest(jcs(document))  # type: ignore[arg-type]
    assert refused.value.reason is Reason.IMAGE_FORMAT


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "squash", "diff_ids": []}},
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["x"]}},
        {"architecture": 1, "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}},
        {"architecture": "amd64", "os": "linux", "config": {"Env": [1]},
         "rootfs": {"type": "layers", "diff_ids": []}},
    ],
)  # fmt: skip
def test_a_hostile_config_is_refused(document: object) -> None:
    with pytest.raises(FormatError):
        parse_config(jcs(document))  # type: ignore[arg-type]
