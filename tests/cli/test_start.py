"""What `confide verify` loads: the verifier that the evidence in hand needs, and no other."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import near_service
import pytest

from confide.cli.parameters import spare_coercion
from confide.simulator.near import encode_report
from confide.trust.roots import encode_roots_file
from confide.wire.bundle import encode_bundle
from confide.wire.service import Capture

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

# Each is a family that this bundle (TDX, NVIDIA, dstack, near) has nothing of.
_NOT_NEEDED = (
    "pydantic",
    "asyncio",
    "httpx2",
    "confide.appraisal.firmware_log",
    "confide.appraisal.nras",
    "confide.appraisal.snp",
    "confide.expectation",
    "confide.formats.bare",
    "confide.formats.trustee",
    "confide.receipts.verify",
    "confide.simulator",
    "confide.wire.init_data",
)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command that verifies one SIMULATED machine out of a bundle."""
    near = near_service.service()
    capture = Capture(
        documents={"report": encode_report(near.direct_report(near_service.NONCE))},
        format="near",
        at=near_service.NOW,
        url="https://near.example/v1/attestation/report",
    )
    bundle, roots = tmp_path / "bundle.json", tmp_path / "roots.json"
    bundle.write_bytes(encode_bundle(capture, near.endorsements(near_service.NOW)))
    roots.write_bytes(encode_roots_file(near.roots()))
    at = f"{near_service.NOW:%Y-%m-%dT%H:%M:%SZ}"
    options = ["--policy", "audit", "--simulated-roots", str(roots), "--at", at]
    return ["verify", str(bundle), *options]


def test_verifying_a_bundle_loads_no_other_family(words: list[str]) -> None:
    program = (
        "import sys; from confide.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        "assert {'confide.appraisal.nvidia', 'confide.appraisal.tdx'} <= set(sys.modules)\n"
        f"sys.exit(', '.join(set({_NOT_NEEDED}) & set(sys.modules)) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_entry_points_load_no_verifier_before_there_is_evidence() -> None:
    program = (
        "import sys, confide; confide.verify, confide.parse_policy\n"
        "sys.exit(', '.join({'cryptography', 'lxml', 'yaml'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_values_that_need_coercion_are_still_coerced(cli: Cli) -> None:
    seen = cli("up", "--idle-seconds", "soon")
    assert seen.code == 2
    assert "valid integer" in seen.err
    assert cli("up", "--idle-seconds", "0").code == 2


def test_a_model_whose_name_is_no_unicode_is_nobodys(cli: Cli, words: list[str]) -> None:
    seen = cli(*words, "--model", "\udcff")
    assert seen.code == 10
    assert "model-mismatch" in seen.out


def test_another_typer_is_left_alone() -> None:
    foreign = object()
    assert spare_coercion([foreign]) == [foreign]
