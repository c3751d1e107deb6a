"""Every shared TDX vector gets the expected verdict, for an accepted reason, with equal claims."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conformance.runner import case_of, compare, find_judge, read_index

_ROOT = Path(
    os.environ.get(
        "CONFIDE_VECTORS", Path(__file__).resolve().parents[2].parent / "shared" / "vectors"
    )
)
_INDEX = _ROOT / "tdx" / "index.json"
_CASES: list[dict[str, Any]] = json.loads(_INDEX.read_text())["cases"] if _INDEX.is_file() else []
# Two policies refuse it at once; the index names the second in step order.
_SECOND = {"real-azure-sept-ve-clear"}


def test_the_vectors_are_there(vectors: Path) -> None:
    assert (vectors / "tdx" / "index.json").is_file()
    assert len(_CASES) == 106


@pytest.mark.parametrize("data", _CASES, ids=[case["id"] for case in _CASES])
def test_verdict_reason_and_claims(data: dict[str, Any]) -> None:
    case = case_of(read_index(_INDEX), data)
    assert case.stage == "tdx"
    verdict = find_judge("tdx")(case.data, case.folder)
    assert compare(data, verdict) == ""
    if data["outcome"] == "reject" and data["id"] not in _SECOND:
        # The first failing step is the one that the index means, not just any.
        assert compare(data, replace(verdict, reasons=())) == ""
