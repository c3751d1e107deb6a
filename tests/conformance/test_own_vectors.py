"""Our own vectors are what the generator writes, and the coverage table says what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conformance.coverage import GAP
from conformance.generate import STAGES, write_vectors
from conformance.runner import read_index

from confide.reasons import Reason

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "conformance" / "vectors"
TABLE = (ROOT / "conformance" / "SPEC_COVERAGE.md").read_text("utf-8")
_ROW = r"^\| `([a-z0-9-]+)` \| (.*?) \| (.*?) \|$"
ROWS = {name: (vectors, other) for name, vectors, other in re.findall(_ROW, TABLE, re.MULTILINE)}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stage", STAGES)
def test_the_generator_writes_them_byte_for_byte(stage: str, tmp_path: Path) -> None:
    assert write_vectors(stage, tmp_path / stage) == len(read_index(OWN / stage).cases)
    assert _files(tmp_path / stage) == _files(OWN / stage)


@pytest.mark.parametrize("stage", STAGES)
def test_they_are_numbered_and_say_that_they_are_simulated(stage: str) -> None:
    index = read_index(OWN / stage)
    assert index.document["simulated"] is True
    assert [case["id"][:3] for case in index.cases] == [
        f"{number:03}" for number in range(1, len(index.cases) + 1)
    ]


def test_the_table_has_every_reason_and_every_vector() -> None:
    assert list(ROWS) == [reason.value for reason in Reason]
    stated = set(re.findall(r"`([a-z]+/\d{3}-[a-z0-9-]+)`", TABLE))
    there = {
        f"{stage}/{case['id']}"
        for stage in STAGES
        for case in read_index(OWN / stage).cases
        if "reason" in case
    }
    assert stated == there


def test_what_the_table_says_of_tests_is_true() -> None:
    for reason in Reason:
        vectors, other = ROWS[reason.value]
        if other == GAP or vectors:
            continue
        text = (ROOT / other.strip("`")).read_text("utf-8")
        assert f"Reason.{reason.name}" in text or f'"{reason.value}"' in text, reason


def test_few_gaps_are_left() -> None:
    assert sum(other == GAP for _, other in ROWS.values()) <= 3
