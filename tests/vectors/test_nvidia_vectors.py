"""Genuine NVIDIA evidence, manifests and OCSP answers, each to the verdict its index states."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conformance.stages.nvidia import judge

from confide.crypto.x509 import parse_pem_chain
from confide.errors import Reason
from confide.trust.nvidia import NVIDIA_ROOTS

Case = dict[str, Any]

_DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "vectors"
_FOLDER = Path(os.environ.get("CONFIDE_VECTORS", _DEFAULT)) / "nvidia"


def _load() -> list[Case]:
    path = _FOLDER / "index.json"
    if not path.is_file():
        return []
    index = json.loads(path.read_text())
    cases: list[Case] = index.pop("cases")
    return [{**case, "_index": index} for case in cases]


CASES = _load()
LOCAL = [case for case in CASES if case["kind"] != "token"]


@pytest.mark.usefixtures("vectors")
def test_the_index_is_whole() -> None:
    assert len(CASES) == 107
    assert len(LOCAL) == 101


@pytest.mark.parametrize("case", LOCAL, ids=lambda case: case["id"])
def test_the_verdict_is_the_one_that_is_stated(case: Case) -> None:
    verdict = judge(case, _FOLDER)
    expect = case["expect"]
    assert (verdict.outcome, verdict.differences) == (expect["outcome"], ()), verdict
    if expect["outcome"] == "reject":
        listed = expect.get("acceptable_reasons", [expect["reason"]])
        assert verdict.reason in {reason.replace("_", "-") for reason in listed}, verdict


def test_roots_are_those_of_the_vectors(vectors: Path) -> None:
    index = json.loads((vectors / "nvidia" / "index.json").read_text())
    for name, der in (("device", NVIDIA_ROOTS.device), ("rim", NVIDIA_ROOTS.rim)):
        pem = (vectors / "nvidia" / index["roots"][name]).read_bytes()
        (root,) = parse_pem_chain(
            pem, max_certificates=1, what="root", reason=Reason.CHAIN_MALFORMED
        )
        assert root.der == der
    assert NVIDIA_ROOTS.sha256 == (
        "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48",
        "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1",
    )
    assert not NVIDIA_ROOTS.simulated
