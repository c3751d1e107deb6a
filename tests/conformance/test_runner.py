"""The runner: what it recognises, what it compares, what it prints and how it exits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conformance.__main__ import main
from conformance.runner import (
    Case,
    UnknownStage,
    UnreadableIndex,
    case_of,
    compare,
    find_judge,
    read_index,
    run_case,
)
from conformance.verdict import Verdict

OWN = Path(__file__).resolve().parents[2] / "conformance" / "vectors"
STAGES = sorted(path.name for path in OWN.iterdir())


@pytest.mark.parametrize("stage", STAGES)
def test_our_own_vectors_pass(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(OWN / stage)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    passed = len(read_index(OWN / stage).cases)
    assert line == f"{passed} passed, 0 failed"


def test_a_wrong_expectation_is_one_line_and_exit_10(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = json.loads((OWN / "tdx" / "index.json").read_text())
    first, second = index["cases"][0], next(c for c in index["cases"] if "reason" in c)
    for name in ("quote", "collateral", "root"):
        for case in (first, second):
            (tmp_path / case[name]).write_bytes((OWN / "tdx" / case[name]).read_bytes())
    first |= {"outcome": "reject", "reason": ["td-debug"]}
    second["reason"] = ["xfam"]
    index["cases"] = [first, second]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert main([str(tmp_path)]) == 10
    one, two, last = capsys.readouterr().out.splitlines()
    assert one.startswith(f"{first['id']}: expected reject td-debug, got accept")
    assert two.startswith(f"{second['id']}: expected reject xfam, got ")
    assert last == "0 passed, 2 failed"
    assert main([str(tmp_path), "--case", first["id"], "--json"]) == 10
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[0])["passed"] is False
    assert printed[1] == "0 passed, 1 failed"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cases": 1}', '{"cases": [{}]}', "\xff"])
def test_what_is_no_index_exits_30(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "index.json"
    path.write_text(text, encoding="latin-1")
    assert main([str(path), str(OWN / "eventlog")]) == 30
    out, err = capsys.readouterr()
    assert str(path) in err
    assert out.splitlines()[-1].endswith(" passed, 0 failed"), "the other index still ran"


def test_running_no_case_at_all_is_no_success(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text('{"format": 1, "cases": []}')
    assert main([str(path)]) == 30
    assert main([str(path), str(OWN / "eventlog")]) == 0
    assert main([str(OWN / "eventlog"), "--case", "none-of-this-name"]) == 30


def test_two_cases_of_one_id_are_no_index(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"cases": [{"id": "a"}, {"id": "a"}]}))
    with pytest.raises(UnreadableIndex):
        read_index(path)


def test_an_unknown_stage_exits_20(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"cases": [{"id": "a", "outcome": "accept"}]}))
    assert main([str(path)]) == 20
    assert "no stage" in capsys.readouterr().err
    with pytest.raises(UnknownStage):
        find_judge("sgx")


SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"quote": "q", "collateral": "c"}, "tdx"),
    ({"report": "r", "leaf": "l"}, "snp"),
    ({"kind": "device", "files": {"evidence": "e"}}, "nvidia"),
    ({"kind": "token", "files": {"token": "t"}}, "nras"),
    ({"files": {"ccel": "c"}}, "eventlog"),
    ({"files": [{"file": "f"}], "kind": "quote", "expected": {}}, "dstack"),
    ({"stage": "snp", "quote": "q", "collateral": "c"}, "snp"),
]


@pytest.mark.parametrize(("members", "stage"), SHAPES, ids=[stage for _, stage in SHAPES])
def test_a_stage_is_recognised_by_the_members(
    tmp_path: Path, members: dict[str, Any], stage: str
) -> None:
    path = tmp_path / "any-name.json"
    path.write_text(json.dumps({"cases": [{"id": "a", **members}]}))
    index = read_index(path)
    assert case_of(index, index.cases[0]).stage == stage


def test_an_exception_is_a_failure_and_no_end() -> None:
    def judge(_case: dict[str, Any], _folder: Path) -> Verdict:
        raise ZeroDivisionError("oops")

    outcome = run_case(Case("a", "tdx", {"outcome": "reject"}, Path()), judge)
    assert not outcome.passed
    assert "ZeroDivisionError: oops" in outcome.difference


@pytest.mark.parametrize(
    ("case", "verdict", "passes"),
    [
        ({"outcome": "accept"}, Verdict("accept"), True),
        ({"outcome": "accept"}, Verdict("accept", differences=("mrtd is 1, not 2",)), False),
        ({"outcome": "accept"}, Verdict("unsupported"), False),
        ({"outcome": "reject"}, Verdict("unsupported"), False),
        ({"outcome": "reject", "reason": ["a-b"]}, Verdict("reject", "a-b"), True),
        ({"outcome": "reject", "reason": "a_b"}, Verdict("malformed", "a-b"), True),
        ({"outcome": "reject", "reason": ["a"]}, Verdict("reject", "b", ("b", "a")), True),
        ({"outcome": "reject", "reason": ["a"]}, Verdict("reject", "b", ("b",)), False),
        ({"outcome": "reject", "reason": ["a"]}, Verdict("accept"), False),
        ({"expect": {"outcome": "reject", "reason": "a"}}, Verdict("reject", "a"), True),
        (
            {"expect": {"outcome": "reject", "reason": "a", "acceptable_reasons": ["a", "b"]}},
            Verdict("reject", "b"),
            True,
        ),
        ({"expect": "accept-structure"}, Verdict("accept"), True),
        ({"expect": "equal"}, Verdict("reject"), False),
        ({"expect": "malformed"}, Verdict("malformed"), True),
    ],
)
def test_what_counts_as_equal(case: dict[str, Any], verdict: Verdict, passes: bool) -> None:
    assert (compare(case, verdict) == "") is passes
