"""No byte of a receipt file can be changed into the acceptance of something else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from runs import tell, verify

from confide.errors import FormatError, ReceiptRejected
from confide.receipts.file import parse_receipt_file

RAW = tell().encode()
# Most of a file is base64 in blobs; half of the flips go to what is not.
STRUCTURE = [at for at, byte in enumerate(RAW) if byte in b'{}[]":,']
PLACES = st.integers(0, len(RAW) - 1) | st.sampled_from(STRUCTURE)


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(PLACES, st.integers(1, 255))
@example(RAW.index(b'"roots":"') + 100, 1)
@example(RAW.index(b'"keyid":"3"') + 9, 1)
def test_flipping_any_byte_is_refused_or_means_the_same(at: int, flip: int) -> None:
    raw = RAW[:at] + bytes((RAW[at] ^ flip,)) + RAW[at + 1 :]
    try:
        file = parse_receipt_file(raw)
    except FormatError:
        return
    # The roots are a hint that verification does not read (receipt.md §6); all else is content.
    if replace(file, roots=tell().roots).encode() == RAW:
        return
    with pytest.raises((FormatError, ReceiptRejected)):
        verify(file)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(PLACES, st.integers(0, 40))
@example(len(RAW) - 1, 1)
def test_cutting_any_piece_out_is_refused(at: int, size: int) -> None:
    raw = RAW[:at] + RAW[at + size :]
    if raw == RAW:
        return
    with pytest.raises((FormatError, ReceiptRejected)):
        verify(parse_receipt_file(raw))
