"""A second opinion: dcap-qvl 0.7.0, over every TDX quote at hand, ours and the shared ones.

Wherever the two differ the reason stands in `EXPLAINED` and, in words, in docs/differential.md; any
other difference fails. Its network code is never called. Skipped loudly where it is not installed.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from confide.appraisal.tdx import appraise_tdx
from confide.appraisal.tdx_policy import PlatformFlag, UnsafeAny
from confide.errors import FormatError, Rejected
from confide.simulator.tdx import QuoteKind, SimulatedLaunch, SimulatedTdxPlatform, TdxFault
from confide.trust.anchors import TdxAnchor
from confide.trust.intel import INTEL_TDX_ANCHOR
from confide.trust.roots import SIMULATED_TDX_NAMES
from confide.wire.collateral import TcbStatus
from confide.wire.tdx import parse_quote

dcap_qvl = pytest.importorskip("dcap_qvl", reason="SECOND OPINION ABSENT: pip install dcap-qvl")

# By the reason we give: what the other library accepts on purpose or does not look at.
EXPLAINED = {
    "quote-version",
    "trailing-bytes",
    "outer-cert-type",
    "pck-role",
    "pck-extension",
    "crl-not-yet-valid",
    "collateral-signer-role",
    "tcb-type",
    "pceid-mismatch",
    "td-attributes",
    "xfam",
}
# By the check, what it refuses and we accept.
STRICTER = {"qe-auth-length"}
# The faults that fall under the same checks.
_FAULTS = (
    TdxFault.TRUNCATED_QUOTE,
    TdxFault.OTHER_QUOTE_VERSION,
    TdxFault.SGX_QUOTE,
    TdxFault.FOREIGN_QE_VENDOR,
    TdxFault.PATCHED_REPORT_DATA,
    TdxFault.PATCHED_USER_DATA,
    TdxFault.WRONG_ROOT,
    TdxFault.FOREIGN_QUOTE_ROOT,
    TdxFault.FORGED_PCK,
    TdxFault.FORGED_PCK_CA,
    TdxFault.EXPIRED_PCK,
    TdxFault.FUTURE_PCK,
    TdxFault.EXPIRED_PCK_CA,
    TdxFault.EXPIRED_SIGNER,
    TdxFault.REVOKED_PCK,
    TdxFault.REVOKED_CA,
    TdxFault.REVOKED_SIGNER,
    TdxFault.MISSING_ROOT_CRL,
    TdxFault.MISSING_PCK_CRL,
    TdxFault.BROKEN_CRL,
    TdxFault.FORGED_ROOT_CRL,
    TdxFault.EXPIRED_ROOT_CRL,
    TdxFault.EXPIRED_PCK_CRL,
    TdxFault.ALTERED_TCB_INFO,
    TdxFault.ALTERED_QE_IDENTITY,
    TdxFault.SHORT_COMPONENTS,
    TdxFault.EXPIRED_COLLATERAL,
    TdxFault.EXPIRED_QE_IDENTITY,
    TdxFault.FUTURE_COLLATERAL,
    TdxFault.OTHER_FMSPC,
    TdxFault.FORGED_QE_REPORT,
    TdxFault.FORGED_QUOTE,
    TdxFault.UNBOUND_ATTESTATION_KEY,
    TdxFault.QE_DEBUG,
    TdxFault.QE_PRODUCT,
    TdxFault.QE_SIGNER,
    TdxFault.QE_MISCSELECT,
    TdxFault.OLD_QE,
    TdxFault.ANCIENT_QE,
    TdxFault.FOREIGN_MODULE,
    TdxFault.SEAM_ATTRIBUTES,
    TdxFault.UNKNOWN_MODULE,
    TdxFault.OLD_TCB_MODULE,
    TdxFault.ANCIENT_MODULE,
    TdxFault.OLD_TCB_PLATFORM,
    TdxFault.ANCIENT_PLATFORM,
    TdxFault.REVOKED_TCB,
    TdxFault.SW_HARDENING_NEEDED,
    TdxFault.CONFIGURATION_NEEDED,
    TdxFault.CONFIGURATION_AND_SW_HARDENING_NEEDED,
    TdxFault.OUT_OF_DATE_CONFIGURATION_NEEDED,
    TdxFault.RELAUNCH,
    TdxFault.DEBUG_TD,
    TdxFault.SEPT_VE_CLEAR,
    TdxFault.SERVICE_TD,
)
_NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
_REPORT_DATA = hashlib.sha512(b"report data").digest()
_LAUNCH = SimulatedLaunch(mr_td=b"\1" * 48, rtmr=(b"\2" * 48, b"\3" * 48, b"\4" * 48, b"\5" * 48))
_ROOT = Path(__file__).resolve().parents[2]
_SHARED = Path(os.environ.get("CONFIDE_VECTORS", _ROOT.parent / "shared" / "vectors"))
_FOLDERS = (_SHARED / "tdx", _ROOT / "conformance" / "vectors" / "tdx")
_CASES: list[tuple[Path, dict[str, Any]]] = [
    (folder, case)
    for folder in _FOLDERS
    if (folder / "index.json").is_file()
    for case in json.loads((folder / "index.json").read_text())["cases"]
]
_HONEST = SimulatedTdxPlatform(b"test", _NOW)
_ANY = UnsafeAny()
_LAX = replace(
    _HONEST.policy(_LAUNCH),
    accepted_status=frozenset(TcbStatus) - {TcbStatus.REVOKED},
    mr_td=_ANY,
    rtmr0=_ANY,
    rtmr1=_ANY,
    rtmr2=_ANY,
    rtmr3=_ANY,
    mr_seam=_ANY,
    mr_config_id=_ANY,
    mr_owner=_ANY,
    mr_owner_config=_ANY,
    platforms=_ANY,
    platform_flags=frozenset(PlatformFlag),
    min_evaluation=0,
    min_root_crl_issued=datetime(1970, 1, 1, tzinfo=UTC),
    min_pck_crl_issued=datetime(1970, 1, 1, tzinfo=UTC),
    max_collateral_age=_NOW - datetime(1970, 1, 1, tzinfo=UTC),
)


def _theirs(quote: bytes, collateral: bytes, anchor: TdxAnchor, now: datetime) -> str:
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
        verified = dcap_qvl.verify_with_root_ca(quote, parsed, anchor.der, int(now.timestamp()))
    except ValueError:
        return "rejected"
    return str(verified.status)


def _ours(quote: bytes, collateral: bytes, anchor: TdxAnchor, now: datetime) -> str:
    try:
        report_data = parse_quote(quote).body.report_data
        return appraise_tdx(
            quote, collateral, roots=(anchor,), policy=_LAX, report_data=report_data, now=now
        ).claims.tcb_status
    except (FormatError, Rejected):
        return "rejected"


def _both(folder: Path, case: dict[str, Any]) -> tuple[str, str]:
    def read(name: str) -> bytes:
        return (folder / str(case[name])).read_bytes()

    anchor = INTEL_TDX_ANCHOR
    if case["anchor"] != "intel":
        anchor = TdxAnchor(read("root"), SIMULATED_TDX_NAMES, simulated=True)
    inputs = read("quote"), read("collateral"), anchor, datetime.fromtimestamp(case["now"], UTC)
    return _ours(*inputs), _theirs(*inputs)


@pytest.mark.parametrize(
    ("folder", "case"), _CASES, ids=[f"{folder.parts[-3]}-{case['id']}" for folder, case in _CASES]
)
def test_every_quote(folder: Path, case: dict[str, Any]) -> None:
    ours, theirs = _both(folder, case)
    if ours == theirs:
        return
    if theirs == "rejected":
        assert case["check"] in STRICTER
    else:
        assert ours == "rejected"
        assert EXPLAINED & set(case["reason"])


def test_the_shared_quotes_were_compared(vectors: Path) -> None:
    assert (vectors / "tdx").is_dir()
    assert len(_CASES) > 150


def test_every_explanation_is_needed_and_written_down() -> None:
    needed: set[str] = set()
    for folder, case in _CASES:
        ours, theirs = _both(folder, case)
        if ours != theirs:
            needed |= {case["check"]} if theirs == "rejected" else set(case["reason"])
    document = (_ROOT / "docs" / "differential.md").read_text()
    assert needed <= EXPLAINED | STRICTER
    if _SHARED.is_dir():
        assert needed == EXPLAINED | STRICTER
    assert not [name for name in EXPLAINED | STRICTER if f"| `{name}` |" not in document]


@pytest.mark.parametrize("kind", QuoteKind)
def test_honest_quotes(kind: QuoteKind) -> None:
    quote = _HONEST.quote(_LAUNCH, report_data=_REPORT_DATA, kind=kind)
    inputs = quote, _HONEST.collateral(), _HONEST.anchor(), _NOW
    assert _ours(*inputs) == _theirs(*inputs) == "UpToDate"


@pytest.mark.parametrize("fault", _FAULTS)
def test_faults(fault: TdxFault) -> None:
    platform = SimulatedTdxPlatform(b"test", _NOW, fault)
    quote = platform.quote(_LAUNCH, report_data=_REPORT_DATA)
    inputs = quote, platform.collateral(), _HONEST.anchor(), _NOW
    assert _ours(*inputs) == _theirs(*inputs)
