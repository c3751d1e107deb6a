"""Every shared TDX vector gets the expected verdict, for an accepted reason, with equal claims."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conformance.runner import case_of, compare, find_judge, read_index
from conformance.verdict import Unclear, Verdict

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


def _judge(name: str, **change: Any) -> Verdict:
    (data,) = (case for case in _CASES if case["id"] == name)
    case = case_of(read_index(_INDEX), {**data, **change})
    return find_judge("tdx")(case.data, case.folder)


def _file(name: str, role: str) -> Path:
    (case,) = (case for case in _CASES if case["id"] == name)
    return _INDEX.parent / str(case[role])


@pytest.mark.usefixtures("vectors")
def test_a_part_that_is_longer_than_its_whole_fails_two_rules(tmp_path: Path) -> None:
    quote = bytearray(_file("sim-good-v4", "quote").read_bytes())
    # From: tdx.md §A.2: the length of the authentication data.
    quote[636 + 582 : 636 + 584] = b"\xff\xff"
    (tmp_path / "quote.bin").write_bytes(quote)
    verdict = _judge("sim-good-v4", quote=str(tmp_path / "quote.bin"))
    assert verdict.reasons == ("quote-format", "quote-truncated")


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"ppid_block_list": ["PPID"]}, "platform-not-allowed"),
        ({"ppid_allow_list": ["00" * 16]}, "platform-not-allowed"),
        ({"ppid_allow_list": ["PPID"]}, ""),
        ({"mrseam_allow_list": ["00" * 48]}, "mrseam-not-allowed"),
        ({"expected_report_data": "00" * 32}, "report-data-mismatch"),
    ],
)
def test_policies_may_say_list(policy: dict[str, Any], reason: str) -> None:
    ppid = _judge("sim-good-v4").claims["ppid"]
    filled = {
        name: [item.replace("PPID", ppid) for item in value] if isinstance(value, list) else value
        for name, value in policy.items()
    }
    assert _judge("sim-good-v4", policy=filled).reason == reason


@pytest.mark.usefixtures("vectors")
def test_a_list_of_what_is_blocked_is_about_platforms_alone() -> None:
    with pytest.raises(Unclear):
        _judge("sim-good-v4", policy={"mrtd_block_list": ["00" * 48]})


@pytest.mark.usefixtures("vectors")
def test_an_sgx_document_of_intel_is_refused_by_its_name(tmp_path: Path) -> None:
    own = json.loads(_file("real-v4-uptodate", "collateral").read_text())
    sgx = json.loads(_file("real-sgx-v3", "collateral").read_text())
    own |= {name: value for name, value in sgx.items() if name.startswith("tcb_info")}
    (tmp_path / "c.json").write_text(json.dumps(own))
    verdict = _judge("real-v4-uptodate", collateral=str(tmp_path / "c.json"))
    assert (verdict.outcome, verdict.reason) == ("reject", "tcb-info-id")
