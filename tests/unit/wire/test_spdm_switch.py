"""Reports of switches: another profile, other fields, the same strictness."""

from __future__ import annotations

from dataclasses import replace

import pytest

from confide.errors import FormatError, Reason
from confide.wire.spdm import GPU, MeasurementReport, encode_report, parse_report, read_gpu_fields
from confide.wire.spdm_switch import SWITCH, read_switch_fields

GPUS = tuple(bytes([number]) * 8 for number in range(1, 9))
ENTRIES = {
    6: b"96.10.6d.00.01",
    22: bytes.fromhex("8f979938e67797d6"),
    12: bytes(104),
    26: b"".join(GPUS) + bytes(64),
    23: b"\xec\x00",
    24: b"\x02\x00",
    25: b"\x01\x00",
}
REPORT = MeasurementReport(
    nonce=b"\x01" * 32,
    blocks=tuple(bytes([index]) * 48 for index in range(31)),
    responder_nonce=b"\x02" * 32,
    opaque=tuple(ENTRIES.items()),
    signature=b"\x03" * 96,
)


def made(changes: dict[int, bytes | None]) -> bytes:
    entries = {**ENTRIES, **changes}
    opaque = tuple((name, value) for name, value in entries.items() if value is not None)
    return encode_report(replace(REPORT, opaque=opaque))


def refused(raw: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        read_switch_fields(parse_report(raw, SWITCH))
    assert caught.value.reason is Reason.REPORT_MALFORMED
    return caught.value.what


def test_header_and_fields_are_those_of_the_specification() -> None:
    raw = encode_report(REPORT)
    # From: nvidia.md §1.2: 31 blocks, record of 1705 bytes, 2168 bytes in all.
    assert raw[37:45].hex() == "116000001fa90600"
    assert len(raw) == 2168
    report = parse_report(raw, SWITCH)
    assert report == REPORT
    fields = read_switch_fields(report)
    assert fields.bios_version == "96.10.6D.00.01"
    assert fields.pdi.hex() == "8f979938e67797d6"
    assert fields.gpu_pdis == GPUS
    assert fields.locked


@pytest.mark.parametrize("value", ["0000", "0001", "0101", "ffff", "0200"])
def test_only_one_value_is_locked(value: str) -> None:
    report = parse_report(made({25: bytes.fromhex(value)}), SWITCH)
    assert not read_switch_fields(report).locked


@pytest.mark.parametrize("field_id", [6, 22, 25, 26])
def test_required_fields_are_required(field_id: int) -> None:
    assert f"[{field_id}] are missing" in refused(made({field_id: None}))


@pytest.mark.parametrize("field_id", [6, 12, 22, 23, 24, 25, 26])
@pytest.mark.parametrize("change", [-1, 1])
def test_sizes_are_fixed(field_id: int, change: int) -> None:
    value = ENTRIES[field_id]
    refused(made({field_id: value[:-1] if change < 0 else value + b"\0"}))


@pytest.mark.parametrize(
    "text", [b"96.10.6D.00.0g", b"96.10.6D.00.0\n", b"96/10/6D/00/01", b"\xff" * 14, bytes(14)]
)
def test_the_version_has_one_form(text: bytes) -> None:
    refused(made({6: text}))


def test_an_unknown_layout_is_refused() -> None:
    read_switch_fields(parse_report(made({34: b"\x01\x00"}), SWITCH))
    refused(made({34: b"\x02\x00"}))


def test_a_field_twice_is_refused() -> None:
    twice = (*REPORT.opaque, (22, b"SOMEBODY"))
    refused(encode_report(replace(REPORT, opaque=twice)))


@pytest.mark.parametrize("count", [0, 30, 32, 64])
def test_the_number_of_blocks_is_exact(count: int) -> None:
    refused(encode_report(replace(REPORT, blocks=(bytes(48),) * count)))


def test_neither_kind_reads_as_the_other() -> None:
    with pytest.raises(FormatError):
        parse_report(encode_report(REPORT), GPU)
    with pytest.raises(FormatError):
        parse_report(encode_report(replace(REPORT, blocks=(bytes(48),) * 64)), SWITCH)


def test_a_gpu_names_the_switches_at_its_links_once_each_and_reversed() -> None:
    entries = {
        3: b"570.124.06\0",
        6: bytes.fromhex("00cf009602000000"),
        11: b"\x55",
        12: bytes(256),
        15: b"882\0",
        17: b"G520\0",
        18: b"0200\0",
        22: bytes.fromhex("d69777e63899978f") * 2 + bytes(8 * 15) + b"\x01" * 8,
    }
    report = replace(REPORT, blocks=(bytes(48),) * 64, opaque=tuple(entries.items()))
    fields = read_gpu_fields(parse_report(encode_report(report), GPU))
    assert fields.switch_pdis == {bytes.fromhex("8f979938e67797d6"), b"\x01" * 8}
