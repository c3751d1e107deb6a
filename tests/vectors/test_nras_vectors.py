"""Tokens of the genuine service, each to the verdict its index states."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conformance.stages.nras import judge

_DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "vectors"
_FOLDER = Path(os.environ.get("CONFIDE_VECTORS", _DEFAULT)) / "nvidia"


def _cases() -> list[Any]:
    index = _FOLDER / "index.json"
    if not index.is_file():
        return []
    cases = json.loads(index.read_text())["cases"]
    return [pytest.param(case, id=case["id"]) for case in cases if case["kind"] == "token"]


def test_there_are_cases(vectors: Path) -> None:
    assert (vectors / "nvidia" / "index.json").is_file()
    assert len(_cases()) >= 6


@pytest.mark.parametrize("case", _cases())
def test_a_token_gets_the_verdict_of_its_index(case: dict[str, Any]) -> None:
    verdict, expected = judge(case, _FOLDER), case["expect"]
    assert verdict.outcome == expected["outcome"], verdict.detail
    assert verdict.reason.replace("-", "_") == expected.get("reason", "")
