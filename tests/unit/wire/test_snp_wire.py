"""Bytes of an SNP report: what is refused, what each version holds, what each product means."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from confide.errors import FormatError, Reason
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine
from confide.wire.snp import (
    REPORT_BYTES,
    SIGNED_BYTES,
    Firmware,
    Product,
    SigningKeyKind,
    SnpTcb,
    Tcb,
    encode_report,
    encode_tcb,
    parse_report,
    product_of_cpuid,
    reserved_not_zero,
)

REPORT_DATA = hashlib.sha512(b"report data").digest()
LAUNCH = SimulatedSnpLaunch(measurement=b"\1" * 48)
NOW = datetime(2026, 11, 22, tzinfo=UTC)
RAW = {
    version: SimulatedSnpMachine(b"wire", NOW, version=version).report(
        LAUNCH, report_data=REPORT_DATA
    )
    for version in (2, 3, 4, 5)
}


def _put(raw: bytes, at: int, value: bytes) -> bytes:
    return raw[:at] + value + raw[at + len(value) :]


@pytest.mark.parametrize("size", [0, 1, 52, 671, 1183, 1185, 1 << 20])
def test_any_other_length_is_refused(size: int) -> None:
    raw = (RAW[3] + bytes(1 << 20))[:size]
    with pytest.raises(FormatError) as refused:
        parse_report(raw)
    assert refused.value.reason is Reason.REPORT_LENGTH


@pytest.mark.parametrize("version", [0, 1, 6, 0x02000000, 0xFFFFFFFF])
def test_any_other_version_is_refused(version: int) -> None:
    with pytest.raises(FormatError) as refused:
        parse_report(_put(RAW[3], 0, version.to_bytes(4, "little")))
    assert refused.value.reason is Reason.REPORT_VERSION


@pytest.mark.parametrize("algorithm", [0, 2, 0x01000000, 0x101])
def test_any_other_signature_algorithm_is_refused(algorithm: int) -> None:
    with pytest.raises(FormatError) as refused:
        parse_report(_put(RAW[3], 52, algorithm.to_bytes(4, "little")))
    assert refused.value.reason is Reason.SIGNATURE_ALGORITHM
    assert refused.value.offset == 52


@pytest.mark.parametrize("version", RAW)
def test_reading_and_writing_are_inverse(version: int) -> None:
    report = parse_report(RAW[version])
    assert encode_report(report) == RAW[version] == report.raw
    assert report.signed == RAW[version][:SIGNED_BYTES]
    assert len(RAW[version]) == REPORT_BYTES


def test_fields_stand_where_the_specification_puts_them() -> None:
    raw = bytearray(RAW[5])
    places = {
        "guest_svn": (4, b"\x07\0\0\0", 7),
        "family_id": (16, b"F" * 16, b"F" * 16),
        "image_id": (32, b"I" * 16, b"I" * 16),
        "vmpl": (48, b"\2\0\0\0", 2),
        "current_tcb": (56, b"12345678", Tcb(b"12345678")),
        "platform_info": (64, b"\x27" + bytes(7), 0x27),
        "report_data": (80, b"R" * 64, b"R" * 64),
        "measurement": (144, b"M" * 48, b"M" * 48),
        "host_data": (192, b"H" * 32, b"H" * 32),
        "id_key_digest": (224, b"K" * 48, b"K" * 48),
        "author_key_digest": (272, b"A" * 48, b"A" * 48),
        "report_id": (320, b"r" * 32, b"r" * 32),
        "report_id_ma": (352, b"m" * 32, b"m" * 32),
        "reported_tcb": (384, b"87654321", Tcb(b"87654321")),
        "cpuid": (392, b"\x1a\2\1", (0x1A, 2, 1)),
        "chip_id": (416, b"C" * 64, b"C" * 64),
        "committed_tcb": (480, b"abcdefgh", Tcb(b"abcdefgh")),
        "current": (488, b"\x1d\x37\1\0", Firmware(1, 55, 29)),
        "committed": (492, b"\x1c\x37\1\0", Firmware(1, 55, 28)),
        "launch_tcb": (496, b"hgfedcba", Tcb(b"hgfedcba")),
        "launch_mitigations": (504, b"\5" + bytes(7), 5),
        "current_mitigations": (512, b"\x0d" + bytes(7), 13),
    }
    for at, value, _ in places.values():
        raw[at : at + len(value)] = value
    report = parse_report(bytes(raw))
    assert {name: getattr(report, name) for name in places} == {
        name: expected for name, (_, _, expected) in places.items()
    }
    assert encode_report(report) == bytes(raw)


def test_the_signature_is_turned_round_and_has_48_bytes() -> None:
    raw = _put(RAW[3], 672, bytes(range(1, 49)) + bytes(24) + bytes(range(101, 149)) + bytes(24))
    signature = parse_report(raw).signature
    assert signature == bytes(range(48, 0, -1)) + bytes(range(148, 100, -1))
    assert parse_report(_put(RAW[3], 672 + 48, b"\1")).signature == b""
    assert parse_report(_put(RAW[3], 672 + 72 + 71, b"\1")).signature == b""


@pytest.mark.parametrize(
    ("word", "author", "mask", "key"),
    [
        (0, False, False, SigningKeyKind.VCEK),
        (1, True, False, SigningKeyKind.VCEK),
        (2, False, True, SigningKeyKind.VCEK),
        (4, False, False, SigningKeyKind.VLEK),
        (7, True, True, SigningKeyKind.VLEK),
        (8, False, False, None),
        (0x18, False, False, None),
        (0x1C, False, False, None),
    ],
)
def test_the_key_word(word: int, *, author: bool, mask: bool, key: SigningKeyKind | None) -> None:
    report = parse_report(_put(RAW[3], 72, bytes((word,))))
    assert (report.author_key_enabled, report.mask_chip_key, report.signing_key) == (
        author,
        mask,
        key,
    )


RESERVED = {
    2: {*range(73, 80), *range(392, 416), 491, 495, *range(504, 672), *range(816, 1184)},
    3: {*range(73, 80), *range(395, 416), 491, 495, *range(504, 672), *range(816, 1184)},
    5: {*range(73, 80), *range(395, 416), 491, 495, *range(520, 672), *range(816, 1184)},
}


@pytest.mark.parametrize("version", RESERVED)
def test_exactly_the_reserved_bytes_are_named(version: int) -> None:
    # Behind the version, which says what is reserved.
    for at in range(4, REPORT_BYTES):
        raw = bytearray(RAW[version])
        raw[at] ^= 0x01
        try:
            report = parse_report(bytes(raw))
        except FormatError:
            assert 52 <= at < 56
            continue
        assert reserved_not_zero(report) == ((at,) if at in RESERVED[version] else ())


@pytest.mark.parametrize("bit", [5, 6, 7])
def test_reserved_bits_of_the_key_word_are_named(bit: int) -> None:
    assert reserved_not_zero(parse_report(_put(RAW[3], 72, bytes((1 << bit,))))) == (72,)


def test_each_product_reads_the_same_bytes_in_its_own_way() -> None:
    tcb = Tcb(bytes(range(10, 18)))
    older = SnpTcb(boot_loader=10, tee=11, snp=16, microcode=17, other=bytes((12, 13, 14, 15)))
    assert tcb.components(Product.MILAN) == tcb.components(Product.GENOA) == older
    assert tcb.components(Product.TURIN) == SnpTcb(
        fmc=10, boot_loader=11, tee=12, snp=13, microcode=17, other=bytes((14, 15, 16))
    )


@pytest.mark.parametrize("product", Product)
def test_a_tcb_reads_and_writes_alike(product: Product) -> None:
    tcb = Tcb(bytes(range(10, 18)))
    assert encode_tcb(tcb.components(product), product) == tcb


def test_a_component_without_a_place_is_not_written() -> None:
    with pytest.raises(ValueError, match="FMC"):
        encode_tcb(SnpTcb(fmc=1, boot_loader=1, tee=1, snp=1, microcode=1), Product.GENOA)


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x01, Product.MILAN),
        (0x19, 0x0F, Product.MILAN),
        (0x19, 0x11, Product.GENOA),
        (0x19, 0xA0, Product.GENOA),
        (0x19, 0x20, None),
        (0x19, 0x50, None),
        (0x1A, 0x02, Product.TURIN),
        (0x1A, 0x11, Product.TURIN),
        (0x1A, 0x50, None),
        (0x17, 0x31, None),
        (0, 0, None),
    ],
)
def test_products_by_cpuid(family: int, model: int, product: Product | None) -> None:
    assert product_of_cpuid(family, model) is product


def test_a_field_of_another_size_is_not_written() -> None:
    with pytest.raises(ValueError, match="size"):
        encode_report(replace(parse_report(RAW[3]), host_data=b""))


def test_a_level_is_below_a_floor_in_named_components() -> None:
    level = SnpTcb(boot_loader=3, tee=0, snp=8, microcode=115)
    assert level.below(level) == ()
    higher = SnpTcb(boot_loader=4, tee=0, snp=7, microcode=116, fmc=1)
    assert level.below(higher) == ("boot_loader", "microcode", "fmc")
