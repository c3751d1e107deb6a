"""Stage `snp`: claims of an index in each of the ways in which they may be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conformance.runner import case_of, read_index
from conformance.stages.snp import judge

OWN = Path(__file__).resolve().parents[2] / "conformance" / "vectors" / "snp"
INDEX = read_index(OWN)


def _differences(slug: str, claims: dict[str, Any], **more: Any) -> tuple[str, ...]:
    (data,) = (case for case in INDEX.cases if case["id"].endswith(slug))
    verdict = judge(case_of(INDEX, {**data, "claims": claims, **more}).data, OWN)
    assert verdict.outcome == "accept", verdict.detail
    return verdict.differences


# The simulated machines' levels: boot loader, TEE, SNP, microcode, and on Turin FMC.
MILAN, TURIN = [4, 0, 24, 219], [1, 1, 4, 74, 1]


@pytest.mark.parametrize(
    ("slug", "claims"),
    [
        ("-honest", {"product": "Milan", "key": "VCEK", "vmpl": 0, "version": 3}),
        ("-honest", {"reported_tcb": MILAN, "committed_tcb": MILAN, "launch_tcb": MILAN}),
        ("-honest", {"reported_tcb": {"bl": 4, "ucode": 219}, "current_tcb": [4, 0, 24, 220]}),
        ("-honest", {"reported_tcb": "04000000000018db"}),
        ("-honest", {"policy": 0x30133, "platform_info": 0x25}),
        ("-honest", {"policy": "0x30133"}),
        ("-honest", {"platform_info": ["alias-check-complete", "ecc-en", "smt-en"]}),
        ("-honest-turin", {"reported_tcb": TURIN, "launch_tcb": TURIN[:4]}),
        ("-honest-turin", {"reported_tcb": {"fmc": 1, "boot_loader": 1}}),
    ],
)
def test_what_was_read_is_compared_as_it_is_written(slug: str, claims: dict[str, Any]) -> None:
    assert _differences(slug, claims) == ()


@pytest.mark.parametrize(
    "claims",
    [
        {"reported_tcb": [4, 0, 24, 218]},
        {"reported_tcb": {"bl": 5}},
        {"reported_tcb": {"nothing": 1}},
        {"reported_tcb": "04000000000018dc"},
        {"policy": 1},
        {"policy": "debug"},
        {"platform_info": []},
        {"nothing": 1},
    ],
)
def test_what_differs_is_said(claims: dict[str, Any]) -> None:
    assert len(_differences("-honest", claims)) == 1


def test_a_case_may_have_an_order_of_its_own() -> None:
    order = ["fmc", "boot_loader", "tee", "snp", "microcode"]
    claims = {"reported_tcb": [1, 1, 1, 4, 74]}
    assert _differences("-honest-turin", claims, tcb_order=order) == ()
