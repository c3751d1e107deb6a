"""Laws of the TDX verifier: no flipped bit is believed, parsing inverts writing, merging joins."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.appraisal.tdx import appraise_tdx
from confide.appraisal.tdx_tcb import find_platform_level, merge_status
from confide.errors import FormatError, Rejected
from confide.simulator.tdx import QuoteKind, SimulatedLaunch, SimulatedTdxPlatform
from confide.wire.collateral import (
    PlatformLevel,
    TcbStatus,
    encode_collateral,
    parse_collateral,
    parse_qe_identity,
    parse_tcb_info,
)
from confide.wire.pck import PckExtension, encode_pck_extension, parse_pck_extension
from confide.wire.tdx import encode_quote, parse_quote

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
REPORT_DATA = hashlib.sha512(b"report data").digest()
LAUNCH = SimulatedLaunch(mr_td=b"\1" * 48, rtmr=(b"\2" * 48, b"\3" * 48, b"\4" * 48, b"\5" * 48))
PLATFORM = SimulatedTdxPlatform(b"test", NOW)
ANCHOR = PLATFORM.anchor()
POLICY = PLATFORM.policy(LAUNCH)
COLLATERAL = PLATFORM.collateral()
QUOTES = {kind: PLATFORM.quote(LAUNCH, report_data=REPORT_DATA, kind=kind) for kind in QuoteKind}


def _appraise(quote: bytes, collateral: bytes) -> None:
    appraise_tdx(
        quote, collateral, roots=(ANCHOR,), policy=POLICY, report_data=REPORT_DATA, now=NOW
    )


def _flip(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("kind", QuoteKind)
@settings(max_examples=150)
@given(data=st.data())
def test_a_flipped_bit_in_a_quote_is_never_believed(kind: QuoteKind, data: st.DataObject) -> None:
    quote = QUOTES[kind]
    bit = data.draw(st.integers(0, 8 * len(quote) - 1))
    with pytest.raises((FormatError, Rejected)):
        _appraise(_flip(quote, bit), COLLATERAL)


@pytest.mark.parametrize(
    "part", ["root_crl", "pck_crl", "tcb_info", "qe_identity", "tcb_info_signature"]
)
@settings(max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_in_collateral_is_never_believed(part: str, data: st.DataObject) -> None:
    collateral = parse_collateral(COLLATERAL)
    raw: bytes = getattr(collateral, part)
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    edits: dict[str, Any] = {part: _flip(raw, bit)}
    try:
        changed = encode_collateral(replace(collateral, **edits))
    except UnicodeDecodeError:
        return  # JSON text cannot carry these bytes.
    with pytest.raises((FormatError, Rejected)):
        _appraise(QUOTES[QuoteKind.V4], changed)


@settings(max_examples=200)
@given(raw=st.binary(max_size=900))
def test_garbage_is_a_format_error_and_nothing_else(raw: bytes) -> None:
    for parse in (
        parse_quote,
        parse_collateral,
        parse_tcb_info,
        parse_qe_identity,
        parse_pck_extension,
    ):
        with pytest.raises(FormatError):
            parse(raw)


@settings(max_examples=200)
@given(cut=st.integers(0, 10_000), kind=st.sampled_from(QuoteKind))
def test_a_cut_quote_is_a_format_error(cut: int, kind: QuoteKind) -> None:
    quote = QUOTES[kind]
    with pytest.raises(FormatError):
        parse_quote(quote[: cut % len(quote)])


@pytest.mark.parametrize("kind", QuoteKind)
@given(padding=st.integers(0, 200))
def test_parsing_inverts_writing(kind: QuoteKind, padding: int) -> None:
    raw = QUOTES[kind] + bytes(padding)
    quote = parse_quote(raw)
    assert quote.padding == padding
    assert encode_quote(quote) == raw


_BYTES16 = st.binary(min_size=16, max_size=16)
_PLATFORM = st.tuples(_BYTES16, st.tuples(st.booleans(), st.booleans(), st.booleans()) | st.none())


def _extension(
    platform: tuple[bytes, tuple[bool, bool, bool] | None] | None, **items: Any
) -> PckExtension:
    instance, flags = platform or (None, None)
    dynamic, cached, smt = flags or (None, None, None)
    return PckExtension(
        **items,
        platform_instance=instance,
        dynamic_platform=dynamic,
        cached_keys=cached,
        smt_enabled=smt,
    )


@given(
    extension=st.builds(
        _extension,
        platform=st.none() | _PLATFORM,
        ppid=_BYTES16,
        components=_BYTES16,
        pce_svn=st.integers(0, 0xFFFF),
        cpu_svn=_BYTES16,
        pce_id=st.binary(min_size=2, max_size=2),
        fmspc=st.binary(min_size=6, max_size=6),
        sgx_type=st.integers(0, 127),
    )
)
def test_parsing_inverts_writing_an_sgx_extension(extension: PckExtension) -> None:
    assert parse_pck_extension(encode_pck_extension(extension)) == extension


_DOCUMENT_STATUSES = [s for s in TcbStatus if not s.value.startswith("TDRelaunch")]


def test_merging_is_associative_commutative_idempotent_and_never_improves() -> None:
    for a, b in itertools.product(_DOCUMENT_STATUSES, repeat=2):
        merged = merge_status((a, b))
        assert merged is merge_status((b, a))
        assert merge_status((a, a)) is a
        assert merge_status((merged, a)) is merged
        if merged is TcbStatus.UP_TO_DATE:
            assert a is b is TcbStatus.UP_TO_DATE
    for a, b, c in itertools.product(_DOCUMENT_STATUSES, repeat=3):
        together = merge_status((a, b, c))
        assert together is merge_status((merge_status((a, b)), c))


def test_nothing_merges_to_revoked() -> None:
    assert merge_status(()) is TcbStatus.REVOKED


@given(
    levels=st.permutations(range(5)),
    have=st.integers(0, 6),
)
def test_the_order_of_levels_does_not_matter(levels: list[int], have: int) -> None:
    made = [
        PlatformLevel(bytes([n] * 16), n, bytes([n] * 16), NOW, TcbStatus.UP_TO_DATE, ())
        for n in levels
    ]
    found = find_platform_level(made, bytes([have] * 16), have, bytes([have] * 16))
    assert found is not None
    assert found.pce_svn == min(have, 4)
