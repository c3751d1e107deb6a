"""One folder, one digest: whenever, wherever, by whomever it is built."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from confide.adapters.engine import probe_engine
from confide.adapters.engine_images import describe_tag, find_existing, load_image
from confide.adapters.image_build import BuiltAgent, build_agent
from confide.adapters.oci_store import read_image, write_image
from confide.agents.oci import MEDIA_CONFIG, Descriptor, build_manifest
from confide.agents.reference import parse_reference
from confide.errors import ConfigurationError, FormatError, Unavailable

if TYPE_CHECKING:
    from probing import Probe

    from confide.adapters.engine import EngineName

pytestmark = pytest.mark.container

_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "analyst"


def _build(
    name: EngineName, folder: Path, store: Path, cache: Path
) -> tuple[BuiltAgent, list[str]]:
    said: list[str] = []

    async def go() -> BuiltAgent:
        engine = await probe_engine(name)
        return await build_agent(engine, folder, store=store, cache=cache, progress=said.append)

    return asyncio.run(go()), said


def _copy(source: Path, target: Path, *, mask: int, mtime: int) -> Path:
    before = os.umask(mask)
    try:
        for path in (source, *sorted(source.rglob("*"))):
            copy = target / path.relative_to(source)
            if path.is_dir():
                copy.mkdir(parents=True)
            else:
                copy.write_bytes(path.read_bytes())
            os.utime(copy, (mtime, mtime))
    finally:
        os.umask(before)
    return target


def test_two_builders_get_one_digest(probe: Probe, tmp_path: Path, build_cache: Path) -> None:
    one = _copy(_EXAMPLE, tmp_path / "one", mask=0o022, mtime=1)
    two = _copy(_EXAMPLE, tmp_path / "a" / "Second Place", mask=0o077, mtime=1_900_000_000)
    (two / "__pycache__").mkdir()
    (two / "__pycache__" / "agent.cpython-311.pyc").write_bytes(b"x")
    (two / ".hidden").write_text("x")
    (two / "sample" / "more.csv").write_text("x")
    # The second builder also makes the layer of packages itself, from its own cache.
    fresh = tmp_path / "cache"
    shutil.copytree(build_cache / "base", fresh / "base")
    first, said = _build(probe.engine, one, tmp_path / "store-one", build_cache)
    second, _said = _build(probe.engine, two, tmp_path / "store-two", fresh)
    assert first.image.digest == second.image.digest
    assert first.image.config == second.image.config
    assert first.base == probe.built.base
    assert any(f"{first.base_origin}, sha256:{first.base}" in line for line in said)

    (two / "agent.py").write_text("print(1)\n")
    third, _said = _build(probe.engine, two, tmp_path / "store-two", fresh)
    assert third.image.digest != first.image.digest
    assert third.base == first.base


def test_the_base_stays_below_unchanged(probe: Probe, build_cache: Path) -> None:
    image = read_image(Path(probe.image.layout), probe.image.digest)
    (base,) = [
        read_image(path.parent.parent.parent, probe.built.base)
        for path in (build_cache / "base").glob(
            f"*/{probe.built.base}/blobs/sha256/{probe.built.base}"
        )
    ]
    assert image.manifest.layers[: len(base.manifest.layers)] == base.manifest.layers
    assert len(image.manifest.layers) == len(base.manifest.layers) + 1


def test_links_do_not_enter_an_image(probe: Probe, tmp_path: Path, build_cache: Path) -> None:
    assert probe.image.digest
    folder = _copy(_EXAMPLE, tmp_path / "folder", mask=0o022, mtime=1)
    (folder / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(FormatError):
        _build(probe.engine, folder, tmp_path / "store", build_cache)


def test_a_pinned_layout_is_accepted_and_a_changed_one_is_not(probe: Probe, tmp_path: Path) -> None:
    layout = tmp_path / "Other Place" / "layout"
    shutil.copytree(probe.image.layout, layout)
    pin = parse_reference(f"oci:{layout}@sha256:{probe.image.digest}")

    async def go() -> None:
        engine = await probe_engine(probe.engine)
        found = await find_existing(engine, pin)
        assert (found.digest, found.config) == (probe.image.digest, probe.image.config)
        await load_image(engine, found)
        with pytest.raises(Unavailable):
            await find_existing(engine, parse_reference(f"oci:{layout}@sha256:{'0' * 64}"))
        blob = max((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
        raw = bytearray(blob.read_bytes())
        raw[len(raw) // 2] ^= 1
        blob.write_bytes(raw)
        with pytest.raises(FormatError):
            await find_existing(engine, pin)

    asyncio.run(go())


def test_a_tag_is_refused_with_the_digest_to_pin(probe: Probe) -> None:
    tag = f"localhost/confide/image:{probe.image.digest}"

    async def go() -> tuple[str, str, bool]:
        engine = await probe_engine(probe.engine)
        await load_image(engine, probe.image)
        # Docker's classic store forgets the manifest of an image that no registry gave it.
        forgetful = engine.name == "Docker" and engine.image_id(probe.image).endswith(
            probe.image.config
        )
        known = await describe_tag(engine, tag)
        return known, await describe_tag(engine, "localhost/nowhere:latest"), forgetful

    known, unknown, forgetful = asyncio.run(go())
    if forgetful:
        assert "Docker knows no digest to pin" in known
    else:
        assert known.endswith(f"localhost/confide/image@sha256:{probe.image.digest}")
    assert "pin it as name@sha256:" in unknown


def test_volumes_of_an_image_never_reach_a_disk(probe: Probe, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    shutil.copytree(probe.image.layout, layout)
    stored = read_image(layout, probe.image.digest)
    document = json.loads(stored.blob(stored.manifest.config.digest).read_bytes())
    document["config"]["Volumes"] = {"/data with space": {}}
    config = json.dumps(document).encode()
    described = Descriptor.of(MEDIA_CONFIG, config)
    changed = write_image(
        tmp_path / "store",
        manifest=build_manifest(described, stored.manifest.layers),
        config=config,
        layers={layer.digest: stored.blob(layer.digest) for layer in stored.manifest.layers},
    )

    async def go() -> None:
        engine = await probe_engine(probe.engine)
        if probe.engine == "docker":
            # Docker cannot be told to leave them out.
            with pytest.raises(ConfigurationError, match="volumes"):
                await load_image(engine, changed.image)
        else:
            await load_image(engine, changed.image)
            program = "import os; print(os.path.exists('/data with space'))"
            assert await engine.run_tool(changed.image, "-c", program) == b"False\n"

    asyncio.run(go())
