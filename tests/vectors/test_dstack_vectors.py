"""Every shared dstack vector through the judge of its conformance stage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conformance.runner import case_of, compare, read_index
from conformance.stages.dstack import judge

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"
ROOT = Path(os.environ.get("CONFIDE_VECTORS", BESIDE)) / "dstack"


def _cases() -> list[Any]:
    if not (ROOT / "index.json").is_file():
        return [pytest.param(None, marks=pytest.mark.skip("SHARED VECTORS ABSENT"))]
    return [pytest.param(case, id=case["id"]) for case in read_index(ROOT).cases]


@pytest.mark.parametrize("data", _cases())
def test_a_sample_is_read_and_judged_as_the_vector_says(data: dict[str, Any]) -> None:
    case = case_of(read_index(ROOT), data)
    assert case.stage == "dstack"
    assert compare(data, judge(case.data, ROOT)) == ""


def test_no_vector_was_left_out(vectors: Path) -> None:
    assert (vectors / "dstack").is_dir()
    assert len(_cases()) == 11


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("event-log-cases-derived.json", lambda v: v["cases"][0].update(expect="accept")),
        ("event-digests-derived.json", lambda v: v["cases"][2].update(v1_digest="00" * 48)),
        ("app-compose-cases-derived.json", lambda v: v.update(mrconfigid_v1="00" * 48)),
        ("app-compose-cases-derived.json", lambda v: v["mrconfigid_v3"].update(document="{}")),
        ("guest-api-v1-keys.json", lambda v: v["vectors"][1].update(key="00" * 32)),
        ("guest-api-v1-keys.json", lambda v: v["link0"].update(domain="", algorithm="secp256k1")),
        ("guest-api-v1-keys.json", lambda v: v["v0"][0].update(path="vms")),
    ],
)
def test_a_file_with_one_wrong_value_is_not_accepted(
    name: str, edit: Any, vectors: Path, tmp_path: Path
) -> None:
    value = json.loads((vectors / "dstack" / name).read_text())
    edit(value)
    (tmp_path / name).write_text(json.dumps(value))
    (data,) = (
        dict(case)
        for case in read_index(ROOT).cases
        if [item["file"] for item in case["files"]] == [name]
    )
    data["files"] = [{"file": name}]
    assert judge(data, tmp_path).outcome == "reject"
