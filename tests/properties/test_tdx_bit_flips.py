"""No single bit of a quote can change without a refusal: all of them when asked, a sample always.

The collateral is verified once; what is flipped is the quote alone, so that only the quote's own
steps can notice.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from confide.appraisal.tdx import appraise_quote, verify_collateral, verify_quote
from confide.errors import FormatError, Rejected
from confide.simulator.tdx import QuoteKind, SimulatedLaunch, SimulatedTdxPlatform
from confide.wire.collateral import parse_collateral
from confide.wire.tdx import parse_quote

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
REPORT_DATA = hashlib.sha512(b"report data").digest()
LAUNCH = SimulatedLaunch(mr_td=b"\1" * 48, rtmr=(b"\2" * 48, b"\3" * 48, b"\4" * 48, b"\5" * 48))
PLATFORM = SimulatedTdxPlatform(b"test", NOW)
POLICY = PLATFORM.policy(LAUNCH)
COLLATERAL = verify_collateral(
    parse_collateral(PLATFORM.collateral()), roots=(PLATFORM.anchor(),), now=NOW
)
# Header and body; the QE report, which stands behind length, signature, key, type and size.
SIGNED = range(8 * 632)
QE_REPORT = range(8 * (636 + 134), 8 * (636 + 134 + 384))


def _is_refused(quote: bytes, bit: int) -> bool:
    changed = bytearray(quote)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        verified = verify_quote(parse_quote(bytes(changed)), COLLATERAL, now=NOW)
        appraise_quote(verified, POLICY, expected_report_data=REPORT_DATA, now=NOW)
    except (FormatError, Rejected):
        return True
    return False


def _accepted(quote: bytes, bits: range) -> list[int]:
    return [bit for bit in bits if not _is_refused(quote, bit)]


def test_the_ranges_are_what_is_signed() -> None:
    raw = PLATFORM.quote(LAUNCH, report_data=REPORT_DATA)
    quote = parse_quote(raw)
    assert raw[: SIGNED.stop // 8] == quote.signed
    assert raw[QE_REPORT.start // 8 : QE_REPORT.stop // 8] == quote.qe_report.raw


@pytest.mark.parametrize("kind", QuoteKind)
def test_a_sample_of_all_bits(kind: QuoteKind) -> None:
    quote = PLATFORM.quote(LAUNCH, report_data=REPORT_DATA, kind=kind)
    # A step that meets every position in a byte and every region of the quote.
    assert _accepted(quote, range(0, 8 * len(quote), 61)) == []


@pytest.mark.slow
@pytest.mark.parametrize("bits", [SIGNED, QE_REPORT], ids=["header-and-body", "qe-report"])
def test_every_signed_bit(bits: range) -> None:
    assert _accepted(PLATFORM.quote(LAUNCH, report_data=REPORT_DATA), bits) == []


@pytest.mark.slow
def test_every_bit_of_a_quote() -> None:
    quote = PLATFORM.quote(LAUNCH, report_data=REPORT_DATA)
    assert _accepted(quote, range(8 * len(quote))) == []
