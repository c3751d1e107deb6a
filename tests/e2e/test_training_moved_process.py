"""A training that changes its machine: real nodes, real processes, one of them killed.

docs/protocols/training-node.md §7, training-record.md 1.4. Two simulated machines with a GPU each;
everything else is what an owner types.
"""

from __future__ import annotations

import json
import shutil
import signal
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

from deployment import WAIT_SECONDS, until
from training_desk import (
    LONG,
    Desk,
    Said,
    node_words,
    record_in,
    training_installation,
    undisturbed,
)

from confide.training.boots import turns_head
from confide.training.chain import chain_start
from confide.training.record_file import parse_record_file
from confide.training.record_parse import parse_training_record
from confide.wire.dsse import Envelope
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deployment import Installation

pytestmark = [pytest.mark.model, pytest.mark.slow]


@dataclass
class Moved:
    """What an owner has whose job moved from one machine to another; `folder` is the job's."""

    desk: Desk
    folder: Path
    resumed: Said

    @property
    def record(self) -> Path:
        return self.folder / "tuned" / "record.json"

    def verify(self, record: Path, *more: object) -> Said:
        roots = self.desk.installation.root / "roots.json"
        return self.desk.confide("verify", record, "--simulated-roots", roots, *more)


def stranded(desk: Desk) -> Path:
    """Begin a job at the desk's node and kill that node after a checkpoint; return its folder."""
    recipe = LONG.replace("num_epochs = 60", "num_epochs = 20\neval_steps = 10")
    desk.write("long.toml", recipe.encode())
    words = ("train", "long.toml", "--data", "rows.jsonl", *desk.at, "-o", "moved")
    process = subprocess.Popen(
        desk.command(*words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=desk.folder,
        env=desk.installation.environment,
    )
    folder = desk.folder / "moved"
    try:
        until((folder / "handover" / "handover.json").is_file, "something of the job is kept")
    finally:
        desk.node.process.kill()
        desk.node.process.wait()
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 130
    return folder


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    installation = training_installation(tmp_path_factory.mktemp("moved"))
    words = node_words(installation)
    first = installation.start("train", *words, "--simulate-machine", "first")
    desk = Desk(installation, first, tmp_path_factory.mktemp("desk"))
    folder = stranded(desk)
    shutil.copytree(folder, desk.folder / "stranded")
    desk.node = installation.start("train", *words, "--simulate-machine", "second")
    try:
        seen = desk.confide("train", "resume", "moved", "--node", desk.node.url)
        yield Moved(desk, folder, seen)
    finally:
        desk.node.stop()


@contextmanager
def silent_node(installation: Installation, label: str) -> Iterator[str]:
    """A node that says nothing of a move."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program, log = Path(__file__).with_name("silent_node.py"), installation.root / "silent.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(program), str(port), str(installation.root / "base"), label],
            env=installation.environment,
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


def test_the_record_tells_of_both_machines_and_of_the_step_between(moved: Moved) -> None:
    assert moved.resumed.code == 0, moved.resumed.err
    record = record_in(moved.folder)
    assert [turn.kind for turn in record.turns] == ["started", "moved"]
    step = record.turns[1].step
    assert 0 < step < record.steps
    seen = moved.verify(moved.record)
    assert seen.code == 0, seen.out + seen.err
    assert "ACCEPTED (SIMULATED)" in seen.out
    assert "2 boots, on 2 machines, each proven before it began" in seen.out
    assert f"moved to another machine after step {step}" in seen.out
    [result] = moved.verify(moved.record, "--json").events
    assert [turn["kind"] for turn in result["turns"]] == ["started", "moved"]
    log = json.loads((moved.folder / "tuned" / "owner-log.json").read_bytes())
    told = [event for event in log["events"] if event["kind"] != "checkpoint"]
    assert [(event["kind"], event["step"]) for event in told] == [
        ("restarted", step),
        ("machine", step),
    ]
    assert told[1]["facts"]["boot"] == 1


def evaluated_in(folder: Path) -> Any:
    """What was found on held-out rows on the way."""
    return json.loads((folder / "tuned" / "owner-log.json").read_bytes())["evaluated"]


def test_the_weights_are_those_of_a_training_that_never_moved(moved: Moved) -> None:
    desk = moved.desk
    straight = undisturbed(desk, desk.folder / "stranded")
    done = desk.confide("train", "resume", straight)
    assert done.code == 0, done.err
    mine, other = record_in(moved.folder), record_in(straight)
    assert [turn.kind for turn in other.turns] == ["started"]
    assert (mine.outputs, mine.head) == (other.outputs, other.head)
    judged = [evaluated_in(folder) for folder in (moved.folder, straight)]
    assert judged[0] == judged[1]
    assert [step for step, _, _ in judged[0]] == list(range(10, mine.steps + 1, 10))
    for kind in ("adapter", "merged"):
        there = sorted((straight / "tuned" / kind).iterdir())
        assert there
        for path in there:
            assert path.read_bytes() == (moved.folder / "tuned" / kind / path.name).read_bytes()


def test_a_node_that_hides_the_move_is_refused_by_the_owner(moved: Moved) -> None:
    desk = moved.desk
    folder = desk.folder / "hidden"
    shutil.copytree(desk.folder / "stranded", folder)
    with silent_node(desk.installation, "second") as url:
        seen = desk.confide("train", "resume", "hidden", "--node", url)
    assert seen.code == 10, seen.out + seen.err
    assert "training-machine" in seen.err
    assert not (folder / "tuned").exists(), "nothing of it is opened"
    refused = moved.verify(folder / "record.refused.json", "--explain")
    assert refused.code == 10
    assert "record/9" in refused.out
    assert "another machine came in as restarted" in refused.out


def silenced(document: Any) -> None:
    """Make the move a restart."""
    turns(document)["annotations"]["turns"][1]["kind"] = "restarted"


def left_out(document: Any) -> None:
    """Leave the move out."""
    del turns(document)["annotations"]["turns"][1]


def turns(document: Any) -> Any:
    found = document["predicate"]["runDetails"]["byproducts"]
    return next(entry for entry in found if entry["name"] == "turns")


@pytest.mark.parametrize("edit", [silenced, left_out])
def test_a_file_that_was_edited_to_hide_it_is_refused(
    moved: Moved, edit: Callable[[Any], None]
) -> None:
    raw = json.loads(moved.record.read_bytes())
    file = parse_record_file(moved.record.read_bytes())
    document = json.loads(file.record.payload)
    edit(document)
    payload = jcs(document)
    # As consistent as somebody without the keys can make it.
    said = parse_training_record(payload)
    head = turns_head(chain_start(said.plan.digest), said.turns)
    turns(document)["digest"]["sha256"] = head.hex()
    raw["record"] = Envelope(jcs(document), file.record.signatures).document()
    forged = moved.desk.write(f"{edit.__name__}.json", jcs(raw))
    seen = moved.verify(forged)
    assert seen.code == 10, seen.out + seen.err
    assert "REJECTED" in seen.out


def test_evidence_of_one_machine_does_not_stand_for_both(moved: Moved) -> None:
    raw = json.loads(moved.record.read_bytes())
    assert len(raw["evidence"]["boots"]) == 2
    raw["evidence"]["boots"][0] = raw["evidence"]["boots"][1]
    seen = moved.verify(moved.desk.write("one.json", jcs(raw)), "--explain")
    assert seen.code == 10
    assert "record/6" in seen.out
