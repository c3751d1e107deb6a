"""An owner's desk for the tests of `confide train`: keys, rows, recipe, and a node that trains."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataset_rows import lines
from deployment import Installation
from tiny_models import make_model
from training_jobs import chat_rows

from confide.adapters.clock import SystemClock
from confide.adapters.software import running_kernel
from confide.client.expect import inference_expectation_for
from confide.client.local import local_reference
from confide.training.record_file import parse_record_file
from confide.training.record_parse import parse_training_record
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from pathlib import Path

    from deployment import Node

    from confide.training.record import TrainingRecord

RECIPE = (
    'base_model = "tiny"\nlearning_rate = 1e-2\nsequence_len = 128\nlora_r = 2\n'
    "micro_batch_size = 2\nval_set_size = 2\ncheckpoint_every = 4\n"
)
LONG = RECIPE.replace("micro_batch_size = 2", "micro_batch_size = 1") + "num_epochs = 60\n"


def training_installation(root: Path) -> Installation:
    """A machine with a base to train, and what a training node on it has to prove."""
    installation = Installation(root, "")
    installation.paths.make_private()
    base = make_model(root / "base", size=16)
    reference = local_reference(
        seed=installation.engine.seed(),
        roots=installation.roots,
        software=installation.software,
        kernel=running_kernel(),
        model="tiny",
        weights=base,
        now=SystemClock().now(),
    )
    (root / "expectation.json").write_bytes(inference_expectation_for(reference).canonical())
    (root / "roots.json").write_bytes(encode_roots_file(installation.roots))
    return installation


def node_words(installation: Installation) -> list[str]:
    """What `confide node train` is told of that base."""
    base = str(installation.root / "base")
    return ["--model", "tiny", "--weights", base, "--threads", "1"]


@dataclass
class Said:
    """What one command left."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def result(self) -> dict[str, Any]:
        last = self.events[-1]
        assert last["event"] == "result", last
        return last


@dataclass
class Desk:
    """An owner's machine, and the node that trains."""

    installation: Installation
    node: Node
    folder: Path

    def __post_init__(self) -> None:
        self.write("recipe.toml", RECIPE.encode())
        self.write("rows.jsonl", lines(*chat_rows(18)))

    def write(self, name: str, raw: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(raw)
        return path

    @property
    def at(self) -> list[str]:
        """The words that name the node."""
        home = self.installation.root
        words = ["--node", self.node.url, "--expectation", str(home / "expectation.json")]
        return [*words, "--roots", str(home / "roots.json")]

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "confide", *(str(word) for word in words)]

    def confide(self, *words: object) -> Said:
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=self.installation.environment,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def train(self, *words: object, recipe: str = "recipe.toml", rows: str = "rows.jsonl") -> Said:
        return self.confide("train", recipe, "--data", rows, *self.at, *words)


def record_in(folder: Path) -> TrainingRecord:
    raw = (folder / "tuned" / "record.json").read_bytes()
    return parse_training_record(parse_record_file(raw).record.payload)


def undisturbed(desk: Desk, moved: Path) -> Path:
    """The folder of the same training on the same rows and salt, that is not begun yet."""
    straight = desk.folder / "straight"
    shutil.copytree(moved, straight, ignore=shutil.ignore_patterns("handover"))
    state = json.loads((straight / "job.json").read_bytes())
    state |= {"run": "ab" * 16, "node": desk.node.url, "job": None}
    state["data"] |= {"file": None, "upload": None}
    (straight / "job.json").write_text(json.dumps(state))
    (straight / "nonce").write_text("cd" * 32 + "\n")
    return straight
