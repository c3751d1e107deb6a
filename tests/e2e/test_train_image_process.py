"""`confide train train.toml`, whole: a training node as a process, Podman, one verdict."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch", reason="NO TRAINING NODE IS STARTED: no torch")

from deployment import Installation

from confide.adapters.clock import SystemClock
from confide.adapters.engine import probe_engine
from confide.adapters.image_build import build_agent
from confide.adapters.software import running_kernel
from confide.client.expect import inference_expectation_for
from confide.client.local import local_reference
from confide.training.limits import COARSER
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.agents.sandbox import AgentImage

pytestmark = pytest.mark.container

ROWS = b'{"completion":"1","prompt":"one"}\n{"completion":"2","prompt":"two"}\n'
PROGRAM = (
    "import hashlib,os;"
    "rows=open(os.environ['CONFIDE_ROWS'],'rb').read();"
    "base=open(os.environ['CONFIDE_BASE']+'/config.json','rb').read();"
    "open(os.environ['CONFIDE_OUTPUT']+'/weights','wb').write(hashlib.sha256(base+rows).digest());"
    "print('learnt', rows.count(b'\\n'), os.environ['WORD'])"
)


class Desk:
    """An owner's machine, and a training node that runs images."""

    def __init__(self, installation: Installation, image: AgentImage, folder: Path) -> None:
        self.installation = installation
        self.folder = folder
        weights = folder / "base"
        weights.mkdir()
        # As strict as a machine may be: the node's own copy is what the image reads.
        (weights / "config.json").write_bytes(b'{"model_type":"llama"}')
        (weights / "config.json").chmod(0o600)
        self.base = weights
        reference = local_reference(
            seed=installation.engine.seed(),
            roots=installation.roots,
            software=installation.software,
            kernel=running_kernel(),
            model="tiny",
            weights=weights,
            now=SystemClock().now(),
        )
        wanted = inference_expectation_for(reference)
        (folder / "expectation.json").write_bytes(wanted.canonical())
        (folder / "roots.json").write_bytes(encode_roots_file(installation.roots))
        layout = Path(image.layout)
        assert layout.name == image.digest
        self.node = installation.start(
            "train", "--model", "tiny", "--weights", str(weights), "--threads", "1",
            "--images", str(layout.parent),
        )  # fmt: skip
        self.write("rows.jsonl", ROWS)

    def write(self, name: str, raw: bytes) -> None:
        (self.folder / name).write_bytes(raw)

    def confide(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "confide", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={**self.installation.environment, "COLUMNS": "400"},
        )

    def train(self, toml: str, output: str) -> subprocess.CompletedProcess[str]:
        self.write("train.toml", toml.encode())
        at = ("--node", self.node.url, "--expectation", "expectation.json", "--roots", "roots.json")
        return self.confide("train", "train.toml", "--data", "rows.jsonl", *at, "-o", output)


@pytest.fixture
def image(tmp_path: Path) -> AgentImage:
    """The default base with a trivial program, in a store of its own."""
    if os.geteuid() != 0 or shutil.which("podman") is None:
        pytest.skip("CONTAINER TESTS NOT RUN: they need root and Podman")
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "agent.toml").write_text(
        'name="probe"\nmode="batch"\nentry=["python3","/agent/agent.py"]\nmodel="tiny"\n'
    )
    (folder / "agent.py").write_text("print('ready')\n")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confide"

    async def build() -> AgentImage:
        made = await build_agent(
            await probe_engine("podman"), folder, store=tmp_path / "images", cache=cache,
            progress=lambda _line: None,
        )  # fmt: skip
        return made.image

    return asyncio.run(build())


@pytest.fixture
def desk(
    image: AgentImage, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Iterator[Desk]:
    installation = Installation(tmp_path_factory.mktemp("own"), "")
    installation.paths.make_private()
    desk = Desk(installation, image, tmp_path)
    try:
        yield desk
    finally:
        desk.node.stop()


def toml(image: AgentImage, program: str) -> str:
    """A `train.toml` for the image of these tests."""
    pinned = f"oci:{image.layout}@sha256:{image.digest}"
    words = json.dumps(["python3", "-c", program])
    return (
        f'base_model = "tiny"\nimage = "{pinned}"\ncommand = {words}\n'
        '[environment]\nWORD = "well"\n[limits]\nmemory_bytes = 134217728\ncpus_milli = 1000\n'
        "wall_seconds = 60\noutput_bytes = 1048576\nscratch_bytes = 1048576\n"
    )


def test_from_a_train_toml_to_weights_and_a_verdict(desk: Desk, image: AgentImage) -> None:
    text = toml(image, PROGRAM)
    seen = desk.train(text, "mine")
    assert seen.returncode == 0, seen.stderr
    assert "ACCEPTED (SIMULATED)" in seen.stdout
    assert COARSER in " ".join(seen.stdout.split())
    tuned = desk.folder / "mine" / "tuned"
    learnt = hashlib.sha256((desk.base / "config.json").read_bytes() + ROWS).digest()
    assert (tuned / "output" / "weights").read_bytes() == learnt
    assert (tuned / "stdout.txt").read_text() == "learnt 2 well\n"
    commands = [line.strip() for line in seen.stdout.splitlines() if "confide verify" in line]
    done = desk.confide(*shlex.split(commands[0])[1:])
    assert done.returncode == 0, done.stdout
    assert "output: measured and compared" in done.stdout
    audit = desk.confide(
        "train", "audit", str(tuned / "record.json"), "--owner-log", "rows.jsonl",
        "--salt", "mine/dataset.salt", "--simulated-roots", "roots.json",
    )  # fmt: skip
    assert audit.returncode == 10
    assert "training-granularity" in audit.stderr
    # An image that fails tells its owner why, and nobody else.
    failed = desk.train(text.replace("print(", "raise SystemExit(3) or print("), "failed")
    assert failed.returncode == 2
    assert "image_failed" in failed.stderr
    assert not (desk.folder / "failed" / "tuned").exists()
    assert (desk.folder / "failed" / "printed" / "stderr.txt").exists()
