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


def _case(name: str, **change: Any) -> Case:
    (case,) = (case for case in CASES if case["id"] == name)
    return {**case, **change}


_DRIVER_RIM = {"rim": "rims/NV_GPU_DRIVER_GH100_550.90.07.xml"}


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        # Edits may stand alone or in a list, and concern every manifest of an appraisal.
        ("hopper-550.90.07", {"patch": {"op": "xor", "offset": 60, "hex": "01"}}, "signature"),
        ("appraise-h100-550.90.07", {"patch_text": {"find": "True", "replace": "False"}}, "digest"),
        # A list of certificates that nobody signed, and an element that is another one.
        (
            "rim-driver-550.90.07",
            {"patch_text": [{"find": "<ds:X509Certificate>", "replace": "<ds:x>", "count": 1}]},
            "rim-malformed",
        ),
        (
            "rim-driver-550.90.07",
            {"patch_text": [{"find": "SoftwareIdentity", "replace": "Other"}]},
            "rim-malformed",
        ),
        # Whatever else is wrong is told too.
        (
            "rim-version-mismatch",
            {"now": "2026-11-22T00:00:00Z"},
            ("rim-identity-mismatch", "rim-expired"),
        ),
        (
            "appraise-h100-missing-vbios-rim",
            {"now": "2026-11-22T00:00:00Z"},
            ("rim-missing", "rim-expired"),
        ),
        (
            "appraise-h100-570-vbios-only",
            {"now": "2026-11-22T00:00:00Z"},
            ("rim-expired", "measurement-mismatch"),
        ),
        (
            "ocsp-nonce-required",
            {"now": "2025-08-23T00:00:00Z"},
            ("ocsp-stale", "ocsp-nonce-mismatch"),
        ),
        ("hopper-550.90.07", {"nonce": "00"}, "nonce-mismatch"),
        ("set-mpt-b200", {"select": [[]]}, ("gpu-missing", "evidence-unavailable")),
        ("set-ppcie-h200", {"mode": "mpt"}, "mode-mismatch"),
    ],
)
def test_edits_and_every_reason(
    name: str, change: dict[str, Any], reason: str | tuple[str, ...]
) -> None:
    verdict = judge(_case(name, **change), _FOLDER)
    assert verdict.outcome == "reject"
    if isinstance(reason, str):
        assert reason in verdict.reason
    else:
        assert verdict.reason == reason[0]
        assert set(reason) <= set(verdict.reasons)


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_shorter_list_of_certificates_is_no_chain(count: int) -> None:
    text = (_FOLDER / _DRIVER_RIM["rim"]).read_text("utf-8")
    start, end = text.index("<ds:X509Certificate>"), text.index("</ds:X509Data>")
    closing = "</ds:X509Certificate>"
    kept = closing.join(text[start:end].split(closing)[:count]) + closing
    edit = {"find": text[start:end], "replace": kept, "count": 1}
    verdict = judge(_case("rim-driver-550.90.07", patch_text=[edit]), _FOLDER)
    assert (verdict.outcome, verdict.reason) == ("reject", "rim-chain-invalid")


@pytest.mark.usefixtures("vectors")
def test_a_manifest_with_other_line_ends_is_the_same_document() -> None:
    edit = {"find": "\n", "replace": "\r\n"}
    assert judge(_case("rim-driver-550.90.07", patch_text=edit), _FOLDER).outcome == "accept"
