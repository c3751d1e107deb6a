"""Every shared event-log vector through the judge of its conformance stage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conformance.stages.eventlog import judge

from confide.wire.ccel import encode_ccel, parse_ccel

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"
ROOT = Path(os.environ.get("CONFIDE_VECTORS", BESIDE)) / "eventlog"


def _cases() -> list[Any]:
    index = ROOT / "index.json"
    if not index.is_file():
        return [pytest.param(None, marks=pytest.mark.skip("SHARED VECTORS ABSENT"))]
    document = json.loads(index.read_text())
    rest = {name: value for name, value in document.items() if name != "cases"}
    return [pytest.param({**case, "_index": rest}, id=case["id"]) for case in document["cases"]]


@pytest.mark.parametrize("case", _cases())
def test_a_log_is_judged_as_the_vector_says(case: dict[str, Any]) -> None:
    verdict = judge(case, ROOT)
    assert verdict.outcome == case["outcome"], verdict.detail
    if case["outcome"] == "reject":
        assert verdict.reason in case["reason"]
    assert verdict.differences == ()


def test_no_vector_was_left_out(vectors: Path) -> None:
    assert (vectors / "eventlog").is_dir()
    assert len(_cases()) == 35


def test_firmware_logs_survive_being_written_again(vectors: Path) -> None:
    for name in ("ccel-cos113", "ccel-ovmf", "ccel-dstack-sample"):
        events = parse_ccel((vectors / "eventlog" / f"{name}.bin").read_bytes())
        assert parse_ccel(encode_ccel(events)) == events
