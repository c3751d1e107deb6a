"""Reports: every length exact, every id once, every enumeration closed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from confide.errors import FormatError, Reason
from confide.wire.spdm import (
    GPU,
    MAX_REPORT_BYTES,
    FeatureFlag,
    MeasurementReport,
    Switchable,
    encode_report,
    parse_report,
    read_gpu_fields,
    vbios_bytes,
)

ENTRIES = {
    6: bytes.fromhex("009f009601000000"),
    15: b"882\0\0\0\0\0\0",
    17: b"1010\0",
    18: b"0200\0",
    3: b"550.90.07\0",
    12: bytes(256),
    11: b"\x55",
    20: b"\x07" * 48,
    21: b"\x55",
}
REPORT = MeasurementReport(
    nonce=b"\x01" * 32,
    blocks=tuple(bytes([index]) * 48 for index in range(64)),
    responder_nonce=b"\x02" * 32,
    opaque=tuple(ENTRIES.items()),
    signature=b"\x03" * 96,
)
RAW = encode_report(REPORT)


def _with(**changes: bytes | None) -> MeasurementReport:
    entries = dict(ENTRIES)
    for name, value in changes.items():
        field_id = int(name.removeprefix("f"))
        if value is None:
            del entries[field_id]
        else:
            entries[field_id] = value
    return replace(REPORT, opaque=tuple(entries.items()))


def refused(raw: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        read_gpu_fields(parse_report(raw, GPU))
    assert caught.value.reason is Reason.REPORT_MALFORMED
    return caught.value


def test_header_bytes_are_those_of_the_specification() -> None:
    assert RAW[:4].hex() == "11e001ff"
    assert RAW[36] == 0
    assert RAW[37:45].hex() == "1160000040c00d00"
    assert RAW[45:52].hex() == "01013300013000"
    assert len(RAW) == 37 + 8 + 64 * 55 + 32 + 2 + sum(4 + len(v) for v in ENTRIES.values()) + 96


def test_blocks_and_fields_are_read() -> None:
    report = parse_report(RAW, GPU)
    assert report == REPORT
    fields = read_gpu_fields(report)
    assert fields.vbios_version == "96.00.9F.00.01"
    assert fields.driver_version == "550.90.07"
    assert (fields.chip_sku, fields.project, fields.project_sku) == ("882", "1010", "0200")
    assert fields.nvdec0 is Switchable.OFF
    assert fields.protected_pcie is Switchable.OFF
    assert fields.opaque_version == 0
    assert fields.chip_info is None
    assert fields.feature_flag is None


def test_optional_fields_are_read() -> None:
    report = _with(f34=b"\x01\0", f35=b"GB100\0", f36=b"\x01\0", f11=b"\xaa", f20=None)
    fields = read_gpu_fields(parse_report(encode_report(report), GPU))
    assert fields.opaque_version == 1
    assert fields.chip_info == "GB100"
    assert fields.feature_flag is FeatureFlag.MPT
    assert fields.nvdec0 is Switchable.ON
    assert fields.fwid is None


# Every byte of every header is fixed: changing any of them is refused.
_FIXED = [0, 1, 2, 3, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 100, 3510]


@pytest.mark.parametrize("offset", _FIXED)
def test_a_fixed_byte_is_fixed(offset: int) -> None:
    raw = bytearray(RAW)
    raw[offset] ^= 0x01
    refused(bytes(raw))


@pytest.mark.parametrize("size", [0, 1, 36, 37, 44, 100, 3597, len(RAW) - 97, len(RAW) - 1])
def test_truncation_is_refused(size: int) -> None:
    refused(RAW[:size])


def test_trailing_bytes_are_refused() -> None:
    assert "after the end" in refused(RAW + b"\0").what


def test_size_is_capped_before_anything_is_read() -> None:
    assert "at most" in refused(bytes(MAX_REPORT_BYTES + 1)).what


@pytest.mark.parametrize("field_id", [0, 37, 255, 0xFFFF])
def test_unknown_ids_are_refused(field_id: int) -> None:
    refused(encode_report(replace(REPORT, opaque=(*REPORT.opaque, (field_id, b"\0")))))


@pytest.mark.parametrize("field_id", sorted(ENTRIES))
def test_an_id_twice_is_refused(field_id: int) -> None:
    again = (*REPORT.opaque, (field_id, ENTRIES[field_id]))
    assert "twice" in refused(encode_report(replace(REPORT, opaque=again))).what


@pytest.mark.parametrize("field_id", [3, 6, 11, 12, 15, 17, 18])
def test_required_ids_are_required(field_id: int) -> None:
    assert "missing" in refused(encode_report(_with(**{f"f{field_id}": None}))).what


@pytest.mark.parametrize("field_id", [4, 6, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22])
def test_sizes_are_fixed(field_id: int) -> None:
    for size in (0, 3, 300):
        refused(encode_report(_with(**{f"f{field_id}": bytes(size)})))


@pytest.mark.parametrize(
    ("field_id", "value"),
    [
        (11, b"\0"),
        (11, b"\xab"),
        (21, b"\0"),
        (34, b"\x02\0"),
        (34, b"\0\x01"),
        (36, b"\x03\0"),
        (36, b"\0\x01"),
    ],
)
def test_enumerations_are_closed(field_id: int, value: bytes) -> None:
    refused(encode_report(_with(**{f"f{field_id}": value})))


@pytest.mark.parametrize(
    "text", [b"", b"\0", b"550.90.07", b"../etc\0", b"a b\0", b"\xff\0", b"5\0" + b"5\0", b"5" * 33]
)
def test_texts_that_become_names_are_short_and_plain(text: bytes) -> None:
    refused(encode_report(_with(f3=text)))


def test_an_opaque_length_beyond_the_report_is_refused() -> None:
    at = 37 + 8 + 64 * 55 + 32
    raw = bytearray(RAW)
    raw[at : at + 2] = b"\xff\xff"
    refused(bytes(raw))


@pytest.mark.parametrize("version", ["96.00.9F.00.01", "97.00.D9.00.35", "00.00.00.00.00"])
def test_vbios_versions_round_trip(version: str) -> None:
    report = encode_report(_with(f6=vbios_bytes(version)))
    assert read_gpu_fields(parse_report(report, GPU)).vbios_version == version


def test_a_vbios_version_of_another_form_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="five pairs"):
        vbios_bytes("96.00")
