"""`confide demo train` as somebody sees it who types `make demo-train`, and what it leaves."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from confide.receipts.file import parse_receipt_file
from confide.training.owner_log import parse_owner_log
from confide.training.record_file import parse_record_file
from confide.training.record_parse import parse_training_record

if TYPE_CHECKING:
    from newcomer import Newcomer

pytestmark = [pytest.mark.container, pytest.mark.model, pytest.mark.slow]


@dataclass(frozen=True)
class Played:
    """The demo, played once: what was on the screen, and the folder that it left."""

    newcomer: Newcomer
    screen: str

    @property
    def work(self) -> Path:
        found = re.search(r"^  cd (.*)$", self.screen, re.MULTILINE)
        assert found is not None
        return Path(found[1])

    def section(self, title: str) -> str:
        """What stands under a heading, up to the next one."""
        return self.screen.partition(f"\n{title}")[2].partition("\n\n")[0]

    def verify(self, *beside: str, receipt: str = "receipt.json") -> tuple[int, str]:
        """`confide verify` of the run again, with other documents beside it."""
        words = [word for name in beside for word in ("--with", self.work / name)]
        roots = self.newcomer.home / ".config/confide/simulated-roots.json"
        command = ("verify", self.work / receipt, "--simulated-roots", roots, *words)
        process = self.newcomer.start(*command)
        out, err = process.communicate()
        return process.returncode, out + err


@pytest.fixture(scope="module")
def played(newcomer: Newcomer) -> Played:
    process = newcomer.start("demo", "train")
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    return Played(newcomer, out)


def test_it_says_what_was_learnt_and_it_is_a_gain(played: Played) -> None:
    evaluations = parse_owner_log(
        (played.work / "training" / "tuned" / "owner-log.json").read_bytes()
    ).evaluations
    assert evaluations is not None
    base, tuned = (each.metrics for each in evaluations)
    assert (base.rows, base.accuracy < 0.2, tuned.accuracy > 0.8) == (80, True, True)
    learnt = played.section("What was learnt")
    assert f"{base.accuracy:.1%} of them right" in learnt
    assert f"{tuned.accuracy:.1%} of them right" in learnt
    right = re.search(r"(\d+) of 12 new notes", learnt)
    assert right is not None
    # A desk at random would be right once or twice.
    assert int(right[1]) >= 7


def test_the_agent_was_answered_by_what_was_trained(played: Played) -> None:
    record = parse_record_file((played.work / "training/tuned/record.json").read_bytes()).record
    made = parse_training_record(record.payload).outputs["merged"].hex()
    receipt = parse_receipt_file((played.work / "receipt.json").read_bytes())
    model = json.loads(receipt.expectation)["model"]
    assert model["name"].startswith("ft:support-notes:confide:desks:")
    assert model["weights"] == made
    assert f"{made}  says the receipt of the run: the same" in played.section("Weights")


def test_one_verification_walked_the_whole_chain(played: Played) -> None:
    verdicts = [line for line in played.screen.splitlines() if " of a model with training" in line]
    assert [line.partition("  ")[0] for line in verdicts] == ["ACCEPTED (SIMULATED)"]
    kinds = ["agent run", "weights", "training", "base", "dataset", "dataset root", "row"]
    lineage = [line.split("  ")[1].strip() for line in played.section("Lineage").splitlines()[1:]]
    assert lineage == kinds
    assert "17 of 600" in played.section("Lineage")
    assert played.screen.count("there since") >= 3


def test_it_says_simulated_and_what_is_not_proven(played: Played) -> None:
    assert "SIMULATED" in played.screen.splitlines()[2]
    for words in ("genuine hardware: it is SIMULATED", "nobody replayed one here", "memorised"):
        assert words in played.section("What was not")
    for step in ("train", "run", "verify"):
        part = played.screen.partition(f"\n$ confide {step} ")[2].partition("\n$ ")[0]
        assert "SIMULATED" in part, step


def test_rows_and_results_are_the_owners_alone(played: Played) -> None:
    assert played.work.stat().st_mode & 0o077 == 0
    assert (played.work / "training").stat().st_mode & 0o077 == 0


def test_the_chain_breaks_where_a_stone_is_another(played: Played) -> None:
    made = parse_record_file((played.work / "training/tuned/record.json").read_bytes())
    # Rows are packed in the order of their salt: no two demos have quite as many steps.
    steps = parse_training_record(made.record.payload).steps
    payload = made.record.payload.replace(b'"steps":%d' % steps, b'"steps":%d' % (steps + 1))
    assert payload != made.record.payload
    forged = replace(made, record=replace(made.record, payload=payload)).encode()
    (played.work / "forged.json").write_bytes(forged)
    code, seen = played.verify("forged.json")
    assert code == 10
    assert seen.startswith("REJECTED (SIMULATED)")
    proof = json.loads((played.work / "row.proof").read_bytes())
    proof["index"] += 1
    (played.work / "moved.proof").write_text(json.dumps(proof))
    code, seen = played.verify("training/tuned/record.json", "moved.proof")
    assert code == 10
    assert "dataset-inclusion" in seen
