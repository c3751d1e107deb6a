"""A model trained in a node, served by another under its name, asked, and walked back to a row.

Every part is a process that people start, on one SIMULATED machine; the base has a few thousand
parameters. Without containers: what an agent does with such a model is in `test_demo_train.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from deployment import Installation
from tiny_models import make_model
from training_jobs import chat_rows

import confide
from confide.adapters.clock import SystemClock
from confide.adapters.software import running_kernel
from confide.client.expect import inference_expectation_for
from confide.client.local import local_reference
from confide.errors import Rejected
from confide.reasons import Reason
from confide.training.record_file import parse_record_file
from confide.training.record_parse import parse_training_record
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import openai
    from deployment import Node

    from confide.client.answer import Receipt
    from confide.expectation import Expectation
    from confide.training.record import TrainingRecord

pytestmark = [
    pytest.mark.model,
    # The engine lets its training node go; whoever runs `down` may be another process.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
RECIPE = """
base_model = "tiny"
learning_rate = 1e-2
lora_r = 2
sequence_len = 128
micro_batch_size = 4
max_steps = 4
val_set_size = 4
"""
ASKED: Any = [{"role": "user", "content": "question 1 blue"}]


@dataclass
class Trained:
    """A training that was asked for with `confide train`, and what its owner has of it."""

    installation: Installation
    folder: Path
    name: str

    @property
    def merged(self) -> Path:
        return self.folder / "training" / "tuned" / "merged"

    @property
    def record(self) -> Path:
        return self.folder / "training" / "tuned" / "record.json"

    @property
    def said(self) -> TrainingRecord:
        return parse_training_record(parse_record_file(self.record.read_bytes()).record.payload)

    @property
    def roots(self) -> Path:
        path = self.folder / "roots.json"
        path.write_bytes(encode_roots_file(self.installation.roots))
        return path

    def expectation(self, weights: Path, *, model: str = "") -> Expectation:
        """What honest nodes that serve `weights` prove."""
        reference = local_reference(
            seed=self.installation.engine.seed(), roots=self.installation.roots,
            software=self.installation.software, kernel=running_kernel(),
            model=model or self.name, weights=weights, now=SystemClock().now(),
        )  # fmt: skip
        return inference_expectation_for(reference)

    def confide(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run the command line in the owner's folder."""
        return subprocess.run(
            [sys.executable, "-m", "confide", *(str(word) for word in words)],
            env=self.installation.environment, cwd=self.folder,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def client(self, node: Node, wanted: Expectation) -> openai.OpenAI:
        """The SDK over `node`, which has to be what is wanted."""
        return confide.openai_client(
            node.url, policy=wanted, roots=self.installation.roots,
            receipts=self.folder / "receipts", max_retries=0,
        )  # fmt: skip

    def ask(self, node: Node, wanted: Expectation) -> tuple[Any, Receipt]:
        """Ask `node` once, as any program for OpenAI's API does."""
        with self.client(node, wanted) as client:
            answer = client.chat.completions.create(
                model=self.name, messages=ASKED, max_tokens=4, temperature=0
            )
            return answer, confide.receipt_of(answer)

    def verify(self, *words: object) -> tuple[int, str]:
        """`confide verify RECORD …`: exit code and screen."""
        done = self.confide("verify", self.record, "--simulated-roots", self.roots, *words)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    installation = Installation(tmp_path_factory.mktemp("tuned"), "")
    folder = installation.root / "owner"
    folder.mkdir()
    base = make_model(folder / "base")
    (folder / "recipe.toml").write_text(RECIPE)
    lines = (json.dumps(row) + "\n" for row in chat_rows(20))
    (folder / "rows.jsonl").write_text("".join(lines))
    owner = Trained(installation, folder, "")
    try:
        made = owner.confide(
            *("train", "recipe.toml", "--data", "rows.jsonl", "--base", base),
            *("--suffix", "walk", "-o", "training", "--json"),
        )
        assert made.returncode == 0, made.stderr
        owner.name = json.loads(made.stdout.splitlines()[-1])["model"]
        yield owner
    finally:
        installation.engine.down()


@pytest.fixture(scope="module")
def node(trained: Trained) -> Iterator[Node]:
    words = ("--model", trained.name, "--weights", str(trained.merged))
    running = trained.installation.start("model", *words, "--record", str(trained.record))
    yield running
    running.stop()


@pytest.fixture
def changed(trained: Trained, tmp_path: Path) -> Path:
    """The trained directory with one byte of one file changed."""
    folder = shutil.copytree(trained.merged, tmp_path / "changed")
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    return folder


def test_what_answers_has_the_digest_of_what_was_trained(trained: Trained, node: Node) -> None:
    assert trained.name.startswith("ft:tiny:confide:walk:")
    answer, receipt = trained.ask(node, trained.expectation(trained.merged))
    assert answer.model == trained.name
    # What it says is chance: it was trained for four steps.
    assert answer.choices[0].message.role == "assistant"
    stated = receipt.inference.statement.model
    assert stated.name == trained.name
    assert stated.weights == trained.said.outputs["merged"]


def test_callers_see_the_name_and_get_the_record(trained: Trained, node: Node) -> None:
    with trained.client(node, trained.expectation(trained.merged)) as client:
        listed = [model.id for model in client.models.list()]
        entry: Any = client.models.retrieve(trained.name)
        given = client.models.with_raw_response.retrieve(f"{trained.name}/training_record").content
    assert (listed, entry.id) == ([trained.name], trained.name)
    assert given == trained.record.read_bytes()
    assert entry.training_record == parse_record_file(given).record.digest.hex()


def test_a_program_that_cannot_change_asks_at_the_proxy(trained: Trained, node: Node) -> None:
    wanted = trained.folder / "wanted.json"
    wanted.write_bytes(trained.expectation(trained.merged).canonical())
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "confide", "proxy", "--node", node.url, "--port", "0"),
            *("--expectation", str(wanted), "--roots", str(trained.roots), "--json"),
        ],
        env=trained.installation.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        answer = httpx2.post(
            f"{ready['url']}/v1/chat/completions",
            json={"model": trained.name, "messages": ASKED, "max_tokens": 4},
            headers={"authorization": f"Bearer {ready['token']}"},
            timeout=None,
        )
        assert answer.json()["model"] == trained.name
        assert json.loads(process.stdout.readline())["model"] == trained.name
    finally:
        process.terminate()
        process.communicate()


def test_one_verification_walks_from_an_answer_to_a_row(
    trained: Trained, node: Node, tmp_path: Path
) -> None:
    _, receipt = trained.ask(node, trained.expectation(trained.merged))
    answer, proof = tmp_path / "answer.json", tmp_path / "row.proof"
    answer.write_bytes(receipt.file.encode())
    salt = ("--salt", "training/dataset.salt")
    proved = trained.confide("data", "prove", "rows.jsonl", 3, *salt, "-o", proof)
    assert proved.returncode == 0, proved.stderr
    code, seen = trained.verify("--with", answer, "--with", proof, "--outputs", trained.merged)
    assert code == 0, seen
    said = trained.said
    walk = [
        ("answer", receipt.file.envelope.digest),
        ("weights", said.outputs["merged"]),
        ("base", said.plan.base),
        ("dataset", said.plan.dataset),
        ("dataset root", said.dataset_root),
    ]
    places = [seen.index(f"{kind:<12}  {digest.hex()}") for kind, digest in walk]
    assert places == sorted(places)
    assert "3 of 20" in seen
    assert "question 2 green" in seen


def test_served_weights_differ_from_trained(trained: Trained, changed: Path) -> None:
    """One byte: the node does not start with the record, no client takes it, no walk goes over."""
    words = ("--model", trained.name, "--weights", str(changed))
    launched = trained.installation.launch("model", *words, "--record", str(trained.record))
    assert launched.process.wait() == 10
    assert "model-mismatch" in launched.log.read_text()
    assert "served weights differ from trained" in launched.log.read_text()

    node = trained.installation.start("model", *words)
    try:
        with pytest.raises(Rejected) as refused:
            trained.ask(node, trained.expectation(trained.merged))
        assert Reason.MODEL_MISMATCH in {each.reason for each in refused.value.failures}
        _, receipt = trained.ask(node, trained.expectation(changed))
    finally:
        node.stop()
    answer = trained.folder / "changed.json"
    answer.write_bytes(receipt.file.encode())
    code, seen = trained.verify("--with", answer)
    assert code == 10
    assert "lineage/1 model-mismatch  answer: served weights differ from trained" in seen
    code, seen = trained.verify("--outputs", changed)
    assert code == 10
    assert "record/11 output-mismatch" in seen


def test_a_record_that_was_edited_is_no_link(trained: Trained, node: Node, tmp_path: Path) -> None:
    _, receipt = trained.ask(node, trained.expectation(trained.merged))
    answer, edited = tmp_path / "answer.json", tmp_path / "record.json"
    answer.write_bytes(receipt.file.encode())
    file = parse_record_file(trained.record.read_bytes())
    root = trained.said.dataset_root.hex().encode()
    payload = file.record.payload.replace(root, b"00" * 32)
    assert payload != file.record.payload
    forged = replace(file, record=replace(file.record, payload=payload))
    edited.write_bytes(forged.encode())
    done = trained.confide("verify", edited, "--simulated-roots", trained.roots, "--with", answer)
    assert done.returncode == 10
    assert "record/4 claim-mismatch" in done.stdout


def test_a_record_that_cannot_be_held_to_anything_starts_no_node(trained: Trained) -> None:
    beside = ("--upstream", "http://127.0.0.1:1")
    served = ("--weights", str(trained.merged))
    for words, record in ((beside, trained.record), (served, trained.roots)):
        more = ("--model", trained.name, "--record", str(record))
        launched = trained.installation.launch("model", *words, *more)
        assert launched.process.wait() == 2
        assert "--record" in launched.log.read_text()


def test_a_training_node_in_use_is_not_replaced_by_one_for_another_base(
    trained: Trained, changed: Path
) -> None:
    words = ("train", "recipe.toml", "--data", "rows.jsonl", "--base", changed, "-o", "other")
    refused = trained.confide(*words)
    assert refused.returncode == 20
    assert "one for tiny" in refused.stderr
    assert "confide down" in refused.stderr
    assert not (trained.folder / "other").exists()
