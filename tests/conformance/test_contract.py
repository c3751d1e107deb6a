"""The command-line contract: our own `check` keeps it, over pipes and in this process."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conformance.__main__ import main
from conformance.contract import EXITS, answer, make_request
from conformance.runner import case_of, compare, read_index
from conformance.verdict import Verdict

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "conformance" / "vectors"
STAGES = sorted(path.name for path in OWN.iterdir())


def _request(stage: str, number: int) -> dict[str, Any]:
    index = read_index(OWN / stage)
    return make_request(case_of(index, index.cases[number]))


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], int]:
    return answer(json.dumps(request).encode())


@pytest.mark.parametrize("stage", STAGES)
def test_every_vector_gets_its_verdict_from_a_request_alone(stage: str) -> None:
    index = read_index(OWN / stage)
    for data in index.cases:
        request = make_request(case_of(index, data))
        assert not {"outcome", "reason", "claims", "expect"} & request["case"].keys()
        document, status = _answer(request)
        verdict = Verdict(document["outcome"], document["reason"], tuple(document["reasons"]))
        assert compare(data, verdict) == "", data["id"]
        assert status == EXITS[document["outcome"]]


def test_our_check_is_an_implementation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = f"{sys.executable} -m conformance check"
    words = [str(OWN / "tdx"), "--case", "001-honest-v4", "--case", "004-truncated-quote"]
    assert main([*words, "--implementation", command]) == 0
    assert capsys.readouterr().out == "2 passed, 0 failed\n"


_ACCEPTS = (
    "import json; print(json.dumps(dict(outcome='accept', reason='', reasons=[], claims={})));"
)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("print('no')", "no answer"),
        (f"{_ACCEPTS} raise SystemExit(10)", "exited 10"),
        (_ACCEPTS, "expected reject quote-truncated, got accept"),
    ],
)
def test_an_implementation_that_lies_fails(
    program: str, why: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    words = [str(OWN / "tdx"), "--case", "004-truncated-quote"]
    assert main([*words, "--implementation", f"{sys.executable} {script}"]) == 10
    line, last = capsys.readouterr().out.splitlines()
    assert why in line
    assert last == "0 passed, 1 failed"


def _files(name: str) -> dict[str, Any]:
    return {**_request("tdx", 0), "files": {name: base64.b64encode(b"x").decode()}}


@pytest.mark.parametrize(
    "request_",
    [
        [],
        {},
        {**_request("tdx", 0), "extra": 1},
        {**_request("tdx", 0), "format": 2},
        {**_request("tdx", 0), "case": []},
        {**_request("tdx", 0), "case": {}},
        {**_request("tdx", 0), "files": {}},
        {**_request("tdx", 0), "files": {"q": "not base64!"}},
        {**_request("tdx", 0), "files": {str(n): "" for n in range(300)}},
        _files("../../../escape"),
        _files("/etc/escape"),
        _files("."),
        _files("nul\0"),
    ],
)
def test_a_bad_request_is_malformed_and_nothing_is_written_outside(
    request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    document, status = _answer(request_)
    assert (document["outcome"], document["reason"], status) == ("malformed", "request", 30)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - names alone


def test_bytes_that_are_no_json_are_a_malformed_request() -> None:
    for raw in (b"", b"\xff", b"{", b'{"a":1,"a":1}', b"[" * 5000):
        document, status = answer(raw)
        assert (document["reason"], status) == ("request", 30)


def test_what_nobody_knows_is_unsupported() -> None:
    stage = {**_request("tdx", 0), "stage": "sgx"}
    member = _request("tdx", 0)
    member["case"]["policy"] = {"allow_everything": True}
    anchor = _request("tdx", 0)
    anchor["case"]["anchor"] = "mine"
    for request in (stage, member, anchor):
        document, status = _answer(request)
        assert (document["outcome"], status) == ("unsupported", 20)


def test_an_accepted_quote_states_its_claims() -> None:
    document, status = _answer(_request("tdx", 0))
    assert status == 0
    assert document["claims"]["mrtd"] == "01" * 48
    assert document["claims"]["simulated"] is True
