"""Training on one node process and replay on another, as a person types it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

pytest.importorskip("torch", reason="NO TRAINING IS RUN: no torch")
pytest.importorskip("peft", reason="NO TRAINING IS RUN: no peft")

from dataset_rows import lines
from deployment import WAIT_SECONDS, Installation, until
from tiny_models import make_model
from training_jobs import chat_rows

from confide.adapters.clock import SystemClock
from confide.adapters.software import running_kernel
from confide.client.expect import inference_expectation_for
from confide.client.local import local_reference
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.model

RECIPE = (
    'base_model = "tiny"\nlearning_rate = 1e-2\nsequence_len = 128\nlora_r = 2\n'
    "micro_batch_size = 2\nmax_steps = 12\ncheckpoint_every = 3\nstate_every = 1\n"
    "lora_dropout = 0.1\neval_steps = 5\n"
)
FALSE_STEP = 8


@dataclass
class Desk:
    """An owner's machine, the base, and the node that replays."""

    installation: Installation
    base: Path
    replaying: str

    def confide(self, *words: object) -> tuple[int, dict[str, Any], str]:
        """Run a command; return exit code, result and errors."""
        done = subprocess.run(
            [sys.executable, "-m", "confide", *(str(word) for word in words), "--json"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.installation.root,
            env=self.installation.environment,
        )
        events = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, events[-1] if events else {}, done.stdout + done.stderr

    def at(self, url: str) -> list[str]:
        return ["--node", url, "--expectation", "expectation.json", "--roots", "roots.json"]

    def train(self, url: str, folder: str) -> None:
        """Train there, with validation rows, and fetch everything."""
        code, _, told = self.confide(
            *("train", "recipe.toml", "--data", "rows.jsonl", "--validation", "apart.jsonl"),
            *("-o", folder, "--checkpoints"),
            *self.at(url),
        )
        assert code == 0, told

    def replay(self, folder: str, *more: str) -> tuple[int, dict[str, Any], str]:
        """Have drawn steps executed on the other node."""
        return self.confide(
            *("train", "replay", f"{folder}/tuned/record.json"),
            *("--owner-log", f"{folder}/tuned/owner-log.json"),
            *("--salt", f"{folder}/dataset.salt", "--data", "rows.jsonl"),
            *("--validation", "apart.jsonl", "--validation-salt", f"{folder}/validation.salt"),
            *("--checkpoints", f"{folder}/tuned/checkpoints"),
            *("--checkpoint-key", f"{folder}/checkpoint.key"),
            *("--simulated-roots", "roots.json"),
            *more,
        )


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    installation = Installation(tmp_path_factory.mktemp("replay"), "")
    installation.paths.make_private()
    root = installation.root
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
    (root / "recipe.toml").write_text(RECIPE)
    (root / "rows.jsonl").write_bytes(lines(*chat_rows(18)))
    (root / "apart.jsonl").write_bytes(lines(*chat_rows(25)[18:]))
    node = installation.start("train", "--model", "tiny", "--weights", str(base), "--threads", "1")
    try:
        yield Desk(installation, base, node.url)
    finally:
        node.stop()


@contextmanager
def lying_node(desk: Desk) -> Iterator[str]:
    """A node whose record is false in one step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program, log = Path(__file__).with_name("lying_trainer.py"), desk.base.with_name("lying.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(program), str(port), str(desk.base), str(FALSE_STEP)],
            env=desk.installation.environment,
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{port}"

    def serves() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx2.get(f"{url}/confide/v1/health", trust_env=False).is_success
        except httpx2.HTTPError:
            return False

    try:
        until(serves, "the node serves")
        yield url
    finally:
        process.terminate()
        assert process.wait(WAIT_SECONDS) == 0, log.read_text()


def test_what_one_process_trained_another_one_executes_bit_for_bit(desk: Desk) -> None:
    # A node that is gone when its training is replayed.
    words = ("--model", "tiny", "--weights", str(desk.base), "--threads", "1")
    trained = desk.installation.start("train", *words)
    try:
        desk.train(trained.url, "honest")
    finally:
        trained.stop()
    said = ("--steps", "3", "-o", "result.json", *desk.at(desk.replaying))
    code, result, told = desk.replay("honest", *said)
    assert code == 0, told
    assert (result["verdict"], result["tolerance"], len(result["drawn"])) == ("accepted", None, 3)
    assert result["states"] == result["executed"] >= 3
    # One user's nodes are one simulated machine; the result does not hide it.
    assert result["executor"]["same_machine"] is True
    kept = json.loads((desk.installation.root / "result.json").read_bytes())
    assert kept["type"] == "confide/training-replay/v1"
    code, _, told = desk.replay("honest", *said, "--another-machine")
    assert code == 2
    assert "same_machine" in told


def test_a_false_record_is_found_by_another_process_and_the_step_is_named(desk: Desk) -> None:
    with lying_node(desk) as url:
        # Every proof of this record holds: keys, hardware, chain, order and rates.
        desk.train(url, "false")
    code, _, told = desk.replay("false", "--steps", "12", "--bisect", *desk.at(desk.replaying))
    assert code == 10, told
    assert f"step {FALSE_STEP} is another: loss" in told
    assert "training-replay" in told
