"""What was measured and then changed: the image on disk, the weights behind a running engine."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from deployment import MODEL, Deployment

from confide.client.local import bundled_weights
from confide.errors import Reason, RunRefused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stub_openai import StubOpenAI

pytestmark = pytest.mark.container


@pytest.fixture
def fresh(deployment: Deployment) -> Iterator[Deployment]:
    """An agent node that has not loaded any image yet, and a store that a test may break."""
    images = deployment.installation.paths.images
    kept = images.with_name("kept")
    shutil.copytree(images, kept, symlinks=True)
    try:
        with deployment.installation.agent_node(deployment.model_url) as node:
            yield replace(deployment, agent_url=node.url)
    finally:
        shutil.rmtree(images)
        kept.rename(images)


def _layout(place: Deployment) -> Path:
    return place.installation.paths.images / place.built.image.digest / "blobs" / "sha256"


def _rewrite(path: Path, raw: bytes) -> None:
    # A new file: the blobs of a layout may be links into the cache of base images.
    path.unlink()
    path.write_bytes(raw)


@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
def test_an_image_that_was_changed_on_disk_is_not_run(fresh: Deployment, what: str) -> None:
    blobs, image = _layout(fresh), fresh.built.image
    name = {"manifest": image.digest, "config": image.config}.get(what)
    path = blobs / name if name else min(_layers(fresh), key=lambda layer: layer.stat().st_size)
    raw = path.read_bytes()
    _rewrite(path, raw[:-2] + bytes((raw[-2] ^ 1,)) + raw[-1:])
    with pytest.raises(RunRefused) as refusal:
        fresh.run([{"do": "say", "text": "never"}])
    assert refusal.value.reason is Reason.IMAGE_FORMAT
    fresh.nothing_left()
    # Put back, it runs: nothing but the change was refused.
    _rewrite(path, raw)
    fresh.still_works()


def _layers(place: Deployment) -> list[Path]:
    named = {place.built.image.digest, place.built.image.config}
    return [path for path in _layout(place).iterdir() if path.name not in named]


@pytest.mark.model
@pytest.mark.slow
def test_weights_that_change_behind_the_engine_end_all_evidence(
    deployment: Deployment, stub: StubOpenAI
) -> None:
    """The engine maps its files: who changes them changes the model. No evidence from then on."""
    del stub
    weights = bundled_weights()
    if weights is None or importlib.util.find_spec("torch") is None:
        pytest.skip("CHANGED WEIGHTS NOT TESTED: needs the bundled model and torch")
    at = deployment.installation
    expectation = at.expectation(deployment.built, weights=weights)
    model = at.start("model", "--model", MODEL, "--weights", str(weights))
    try:
        with at.agent_node(model.url) as agent:
            order = [{"do": "call", "text": "I was charged twice"}]
            assert deployment.run(order, url=agent.url, expectation=expectation).failure is None
            (served,) = at.paths.state.glob(f"engine/engine-*/models/{MODEL}/model.safetensors")
            served.chmod(0o600)
            with served.open("r+b") as file:
                file.seek(-1, 2)
                last = file.read(1)
                file.seek(-1, 2)
                file.write(bytes((last[0] ^ 1,)))
            with pytest.raises(Unavailable):
                deployment.run(order, url=agent.url, expectation=expectation)
    finally:
        model.stop()
    deployment.nothing_left()
