"""`confide train replay` of a real training: a process with torch trained, another one executes.

The record is that of simulated hardware; rows, steps, checkpoints, weights and their digests are of
a model with a few thousand parameters that was really tuned.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import log_world
import pytest
from trainings import Job, sha, train

from confide.adapters.weights_dir import measure_weights
from confide.inference.weights import WeightsManifest, weights_manifest
from confide.tlog.leaf import LeafOpening
from confide.trainer.frames import Frame
from confide.trainer.order_form import OrderForm, data_name
from confide.trainer.process import TrainingProcess, worker_environment
from confide.trainer.reports import read_step
from confide.training.chain import TrainingEvent, event_link, event_start, links
from confide.training.checkpoints import CheckpointEntry, parse_checkpoint_entry
from confide.training.dataset import Commitment, commit_rows
from confide.training.draw import replay_beacon
from confide.training.job import Evaluation, TrainingData, TrainingJob
from confide.training.lines import Line
from confide.training.owner_log import OwnerLog, SaltedEvaluation
from confide.training.plan import TrainingPlan, parse_plan
from confide.training.recipe_file import parse_recipe_toml
from confide.training.record import environment_texts
from confide.training.rows import parse_row
from confide.wire.json import jcs

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

    from confide.training.steplog import LoggedStep

# Of the libraries, about each other.
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore::FutureWarning")]
pytest.importorskip("torch")
pytest.importorskip("peft")

SALT, KEY = sha("salt"), sha("key")
RECIPE = parse_recipe_toml(
    "base_model = 'tiny'\nlearning_rate = 0.01\nlora_r = 4\nsequence_len = 64\n"
    "micro_batch_size = 2\nmax_steps = 12\nval_set_size = 2\ncheckpoint_every = 3\n"
    "state_every = 1\nlora_dropout = 0.1\n"
)
WORDS = ("red", "blue", "green", "nine", "six", "shop", "when", "how", "opens", "closes")
ROWS = tuple(
    parse_row(Line(number, jcs({"prompt": f"where is {word}", "completion": f"{word} is here"})))
    for number, word in enumerate(WORDS, start=1)
)


@dataclass(frozen=True)
class Told:
    """What a training process told of one job."""

    plan: TrainingPlan
    environment: tuple[tuple[str, str], ...]
    steps: tuple[LoggedStep, ...]
    checkpoints: tuple[CheckpointEntry, ...]
    evaluations: tuple[Evaluation, Evaluation]
    files: tuple[tuple[str, str, bytes], ...]


def train_for_real(base: Path, folder: Path) -> Told:
    """Train in a process of its own, as a node does."""
    commitment = commit_rows(ROWS, SALT)
    records = tuple(row.record for row in ROWS)
    data = TrainingData(commitment.kind, commitment.digest, commitment.root, SALT, records)
    weights = measure_weights(base).digest
    form = OrderForm(
        recipe=RECIPE,
        data=data_name(data),
        validation=None,
        base=weights,
        folder=base,
        checkpoints=folder,
        resume=None,
        outputs=("adapter", "merged"),
        threads=1,
        device="cpu",
    )
    prepared: dict[str, Any] = {}
    steps, checkpoints, evaluations = [], [], []
    files: list[tuple[str, str, bytes]] = []
    with TrainingProcess(form) as process:
        process.begin(TrainingJob(RECIPE, data, None, weights), key=KEY, session=sha("session"))
        for kind, payload in process.frames():
            match kind:
                case Frame.PREPARED:
                    prepared = json.loads(payload)
                    process.go()
                case Frame.STEP:
                    steps.append(read_step(json.loads(payload))[0])
                case Frame.CHECKPOINT:
                    checkpoints.append(parse_checkpoint_entry(json.loads(payload)))
                case Frame.EVALUATION:
                    said = json.loads(payload)
                    named = (said["rows"], said["count"], said["loss"], said["accuracy"])
                    evaluations.append(Evaluation(*named))
                case Frame.FILE:
                    said = json.loads(payload)
                    files.append((said["output"], said["name"], b""))
                case Frame.DATA:
                    output, name, before = files[-1]
                    files[-1] = (output, name, before + payload)
                case Frame.FAILED:
                    raise AssertionError(payload)
                case _:
                    assert kind is Frame.ENDED
    return Told(
        parse_plan(prepared["plan"]),
        tuple(environment_texts(prepared["environment"]).items()),
        tuple(steps),
        tuple(checkpoints),
        (evaluations[0], evaluations[1]),
        tuple(files),
    )


@dataclass(frozen=True)
class RealJob(Job):
    """The job of `told`: its record names what a process with torch really did."""

    told: Told | None = None
    poisoned: int = 0

    @property
    def said(self) -> Told:
        assert self.told is not None
        return self.told

    @property
    def plan(self) -> TrainingPlan:
        return self.said.plan

    @cached_property
    def log(self) -> OwnerLog:
        """What the owner opens; of a dishonest node where a step is `poisoned`."""
        steps = list(self.said.steps)
        if self.poisoned:
            logged = steps[self.poisoned - 1]
            # A better loss than there was, and a chain that agrees with it.
            record = replace(logged.record, loss=logged.record.loss * 0.9)
            steps[self.poisoned - 1] = replace(logged, record=record)
        chain = tuple(links(self.plan.digest, (each.record for each in steps)))
        events = tuple(
            TrainingEvent(
                "checkpoint",
                each.step,
                chain[each.step],
                {"state": each.state.hex(), "sealed": each.sealed.hex()},
            )
            for each in self.said.checkpoints
        )
        base, tuned = (
            SaltedEvaluation(sha("salt", str(number)), each)
            for number, each in enumerate(self.said.evaluations)
        )
        return OwnerLog(
            salt=sha("log salt"),
            recipe=RECIPE,
            dataset=self.commitment,
            validation=None,
            steps=tuple(steps),
            events=events,
            evaluations=(base, tuned),
        )

    @property
    def commitment(self) -> Commitment:
        return commit_rows(ROWS, SALT)

    def chain(self, step: int) -> bytes:
        return tuple(links(self.plan.digest, (each.record for each in self.log.steps)))[step]

    @property
    def checkpoints(self) -> tuple[CheckpointEntry, ...]:
        return self.log.checkpoints

    @property
    def manifests(self) -> dict[str, WeightsManifest]:
        return {
            kind: weights_manifest(
                (name, hashlib.sha256(data).hexdigest())
                for output, name, data in self.said.files
                if output == kind
            )
            for kind in ("adapter", "merged")
        }

    @property
    def digests(self) -> dict[str, bytes]:
        head = event_start(self.plan.digest)
        for event in self.log.events:
            head = event_link(head, event)
        assert self.log.evaluations is not None
        base, tuned = self.log.evaluations
        return {
            "dataset-root": self.commitment.root,
            "event chain": head,
            "owner-log": hashlib.sha256(self.log.encode()).digest(),
            "base metrics": base.commitment,
            "tuned metrics": tuned.commitment,
        }


@dataclass(frozen=True)
class Place:
    """The owner's folder."""

    folder: Path
    job: RealJob

    def write(self, job: RealJob) -> None:
        file = train(job).file
        (self.folder / "record.json").write_bytes(file.encode())
        (self.folder / "roots.json").write_bytes(file.roots)
        (self.folder / "log.json").write_bytes(job.log.encode())

    def words(self, *words: str, **instead: str) -> list[str]:
        """The command of an owner; `instead` names other files."""
        named = {
            "owner_log": "log.json",
            "salt": "salt",
            "data": "data.jsonl",
            "base": "base",
            "checkpoints": "checkpoints",
            "checkpoint_key": "key",
            "simulated_roots": "roots.json",
            **instead,
        }
        options = [
            word
            for name, value in named.items()
            for word in (f"--{name.replace('_', '-')}", str(self.folder / value))
        ]
        return ["train", "replay", str(self.folder / "record.json"), *options, *words]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets in its own process is put back."""
    for name, value in worker_environment(1).items():
        if name not in ("HOME", "LANG", "PATH"):
            monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A training that was really done, its record, and everything that the owner keeps."""
    from tiny_models import make_model  # noqa: PLC0415 - needs torch

    folder = tmp_path_factory.mktemp("owner")
    base = make_model(folder / "base")
    (folder / "checkpoints").mkdir()
    told = train_for_real(base, folder / "checkpoints")
    for name, secret in (("salt", SALT), ("key", KEY)):
        path = folder / name
        path.write_text(f"{secret.hex()}\n")
        path.chmod(0o600)
    (folder / "data.jsonl").write_bytes(b"".join(row.record + b"\n" for row in ROWS))
    weights = measure_weights(base).digest
    better = told.evaluations[1].loss < told.evaluations[0].loss
    job = RealJob(
        "real",
        steps=12,
        planned=12,
        base=weights,
        held=weights,
        better=better,
        environment=told.environment,
        told=told,
    )
    return Place(folder, job)


def test_drawn_steps_of_a_real_training_are_executed_again_bit_for_bit(
    cli: Cli, place: Place
) -> None:
    place.write(place.job)
    seen = cli(*place.words("--steps", "4", "--challenge", "11" * 32, "--json"))
    assert seen.code == 0, seen.err
    result = seen.result
    assert (result["verdict"], result["simulated"]) == ("accepted", True)
    assert result["tolerance"] is None
    assert len(result["drawn"]) == 4
    assert result["states"] == result["executed"] >= 4
    assert result["made"] == {"adapter": True, "evaluation": True, "merged": True}
    # 1 of 12 false steps, 4 drawn: two thirds of all draws miss it.
    assert result["missed"] == pytest.approx(8 / 12)


def test_a_person_reads_what_the_replay_would_have_missed(cli: Cli, place: Place) -> None:
    place.write(place.job)
    seen = cli(*place.words("--fraction", "50%"))
    assert seen.code == 0, seen.err
    assert seen.out.startswith("ACCEPTED (SIMULATED)")
    assert "exact: bit for bit" in seen.out
    assert "would have missed them with probability" in seen.out


def test_a_step_that_was_recorded_otherwise_is_found_and_named(cli: Cli, place: Place) -> None:
    # A dishonest node: its record and its log agree with each other in every step.
    place.write(replace(place.job, name="poisoned", poisoned=7))
    seen = cli(*place.words("--steps", "12"))
    assert seen.code == 10
    assert "training-replay" in seen.err
    assert "step 7 is another: loss" in seen.err


@pytest.mark.parametrize("output", ["adapter", "merged"])
def test_weights_that_are_not_those_of_the_last_state_are_found(
    cli: Cli, place: Place, output: str
) -> None:
    # Every step, state and checkpoint is right: what came out was exchanged at the end.
    files = tuple(
        (kind, name, data + b"\0" if kind == output and name.endswith("tensors") else data)
        for kind, name, data in place.job.said.files
    )
    told = replace(place.job.said, files=files)
    place.write(replace(place.job, name=f"exchanged {output}", told=told))
    seen = cli(*place.words("--steps", "12"))
    assert seen.code == 10
    assert "training-replay" in seen.err
    assert f"made again from the last checkpoint, {output} came out otherwise" in seen.err


def test_metrics_that_the_models_do_not_have_are_found(cli: Cli, place: Place) -> None:
    base, tuned = place.job.said.evaluations
    told = replace(place.job.said, evaluations=(base, replace(tuned, loss=tuned.loss / 2)))
    place.write(replace(place.job, name="praised", told=told, better=True))
    seen = cli(*place.words("--steps", "1"))
    assert seen.code == 10
    assert "evaluation came out otherwise" in seen.err


def test_without_the_last_checkpoint_it_is_said_that_the_weights_were_not_made_again(
    cli: Cli, place: Place
) -> None:
    place.write(place.job)
    last = place.folder / "checkpoints" / f"checkpoint-{12:09}.sealed"
    kept = last.read_bytes()
    last.unlink()
    try:
        seen = cli(*place.words("--steps", "1"))
    finally:
        last.write_bytes(kept)
    assert seen.code == 0, seen.err
    assert "the last checkpoint was not there" in seen.out
    assert "are those of the last state: they were not made again" in seen.out


def test_validation_rows_of_a_plan_that_names_none_are_to_be_left_out(
    cli: Cli, place: Place
) -> None:
    place.write(place.job)
    seen = cli(*place.words(validation="data.jsonl"))
    assert (seen.code, "names no validation rows; leave them out" in seen.err) == (2, True)


def test_a_checkpoint_that_was_exchanged_is_not_taken_up(cli: Cli, place: Place) -> None:
    place.write(place.job)
    oldest, second = sorted((place.folder / "checkpoints").iterdir())[:2]
    kept = second.read_bytes()
    second.write_bytes(oldest.read_bytes())
    try:
        seen = cli(*place.words("--steps", "12"))
    finally:
        second.write_bytes(kept)
    assert seen.code == 10
    assert "checkpoint-rollback" in seen.err


def test_another_base_is_refused(cli: Cli, place: Place, tmp_path: Path) -> None:
    place.write(place.job)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"another")
    seen = cli(*place.words("--steps", "1", base=str(tmp_path / "weights")))
    assert seen.code == 10
    assert "model-mismatch" in seen.err


def test_another_environment_asks_for_a_tolerance(cli: Cli, place: Place) -> None:
    changed = {**dict(place.job.environment), "isa": "AVX9"}
    place.write(replace(place.job, name="elsewhere", environment=tuple(changed.items())))
    seen = cli(*place.words("--steps", "3"))
    assert seen.code == 2
    assert "(isa)" in seen.err
    near = cli(*place.words("--steps", "3", "--tolerance", "1e-3", "--json"))
    assert near.code == 0, near.err
    assert near.result["states"] == 0
    # Merging and judging are arithmetic, which rounds elsewhere; the adapter is a copy.
    assert near.result["made"] == {"adapter": True}


def test_a_newer_checkpoint_of_the_log_goes_into_the_draw_and_an_older_one_does_not(
    cli: Cli, place: Place
) -> None:
    place.write(place.job)
    file = train(place.job).file
    opening, witness = LeafOpening(b"b" * 32, file.record.digest), log_world.WITNESSES[0]
    keeper = log_world.open_log(log_world.MemoryDisk())
    keeper.append([log_world.entry(0), opening.entry])
    now = int(datetime.now(UTC).timestamp())
    first = log_world.signed(keeper.head.head, witness, seconds=now)
    proof = replace(keeper.prove(1, first), extra=opening.blinding)
    keeper.append([log_world.entry(2)])
    second = log_world.signed(keeper.head.head, witness, seconds=now)
    (place.folder / "record.json").write_bytes(replace(file, log=proof).encode())
    (place.folder / "first").write_bytes(first.encode())
    (place.folder / "second").write_bytes(second.encode())
    keys = log_world.LOG.key.encode(), witness.key.encode()
    (place.folder / "policy").write_text("log {}\nwitness w {}\nquorum w\n".format(*keys))
    named = {"log_policy": "policy"}
    seen = cli(*place.words("--steps", "1", "--json", beacon="second", **named))
    assert seen.code == 0, seen.err
    challenge = bytes.fromhex(seen.result["challenge"])
    head = place.job.chain(12)
    beacon = replay_beacon(head, challenge=challenge, checkpoint=second.encode())
    assert seen.result["beacon"] == beacon.hex()
    assert seen.result["checkpoint"].encode() == second.encode()
    older = cli(*place.words("--steps", "1", beacon="first", **named))
    assert older.code == 10
    assert "replay/0" in older.err


@pytest.mark.parametrize(
    "words",
    [
        ("--steps", "0"),
        ("--steps", "13"),
        ("--steps", "all"),
        ("--miss", "0%"),
        ("--fraction", "1/20"),
        ("--challenge", "11"),
        ("--device", "tpu"),
        ("--beacon", "note"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_executed(
    cli: Cli, place: Place, words: tuple[str, str]
) -> None:
    place.write(place.job)
    assert cli(*place.words(*words)).code == 2
