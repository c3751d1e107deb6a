"""Bytes of DER, SGX extension, collateral container and documents: what is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from confide.crypto.x509 import parse_certificate_der
from confide.errors import FormatError, Reason
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.trust.intel import INTEL_TDX_ANCHOR
from confide.wire.collateral import (
    encode_collateral,
    parse_collateral,
    parse_qe_identity,
    parse_tcb_info,
)
from confide.wire.der import (
    SEQUENCE,
    DerReader,
    encode_boolean,
    encode_integer,
    encode_oid,
    encode_tlv,
)
from confide.wire.pck import (
    SGX_EXTENSION_OID,
    PckExtension,
    encode_pck_extension,
    parse_pck_extension,
)
from confide.wire.tdx import QeReport, TdBody10, encode_body, encode_qe_report

COLLATERAL = SimulatedTdxPlatform(b"test", datetime(2026, 11, 22, tzinfo=UTC)).collateral()
REASON = Reason.PCK_EXTENSION


def _der(raw: bytes) -> DerReader:
    return DerReader(raw, what="test", reason=REASON)


def test_the_vendor_root_is_the_one_it_says() -> None:
    root = parse_certificate_der(INTEL_TDX_ANCHOR.der, what="root", reason=Reason.ROOT_MISMATCH)
    assert INTEL_TDX_ANCHOR.sha256 == (
        "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    )
    assert hashlib.sha256(root.public_key.spki()).hexdigest() == (
        "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"
    )
    assert (root.subject, root.issuer) == (INTEL_TDX_ANCHOR.names.root,) * 2
    assert not INTEL_TDX_ANCHOR.simulated


@pytest.mark.parametrize(
    "raw",
    ["", "02", "0280", "028100", "02810101", "0282007f", "0284000000", "0201", "0401"],
)
def test_lengths_that_are_not_der_are_refused(raw: str) -> None:
    with pytest.raises(FormatError) as refused:
        _der(bytes.fromhex(raw) + b"\0" * (raw == "02810101")).read(0x02)
    assert refused.value.reason is REASON


@pytest.mark.parametrize("raw", ["0200", "020180", "02020001", "020300ffff", "0a0105"])
def test_integers_that_are_not_minimal_unsigned_or_too_large_are_refused(raw: str) -> None:
    with pytest.raises(FormatError):
        _der(bytes.fromhex(raw)).unsigned(255)


@pytest.mark.parametrize("raw", ["010101", "0100", "01020000"])
def test_booleans_are_00_or_ff(raw: str) -> None:
    with pytest.raises(FormatError):
        _der(bytes.fromhex(raw)).boolean()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 256, 65535])
def test_integers_survive(value: int) -> None:
    assert _der(encode_integer(value)).unsigned(65535) == value


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 65535, 65536])
def test_lengths_survive(size: int) -> None:
    reader = _der(encode_tlv(0x04, bytes(size)))
    assert reader.octets(size) == bytes(size)
    reader.finish()


PLATFORM = PckExtension(
    ppid=bytes(range(16)),
    components=bytes([3, 3, 2, 2, 4, 1, 0, 200, *[0] * 8]),
    pce_svn=13,
    cpu_svn=bytes([3, 3, 2, 2, 4, 1, 0, 200, *[0] * 8]),
    pce_id=bytes(2),
    fmspc=bytes.fromhex("5300000000aa"),
    sgx_type=1,
    platform_instance=bytes(16),
    dynamic_platform=True,
    cached_keys=False,
    smt_enabled=True,
)


def _split(der: bytes) -> list[bytes]:
    """The items of a SEQUENCE OF SEQUENCE, whole."""
    reader, found = DerReader(der, what="test", reason=REASON).sequence(), list[bytes]()
    while reader.remaining:
        found.append(encode_tlv(SEQUENCE, reader.read(SEQUENCE)))
    return found


def _item(suffix: str, *value: bytes) -> bytes:
    return encode_tlv(SEQUENCE, encode_oid(f"{SGX_EXTENSION_OID}.{suffix}"), *value)


def _joined(items: list[bytes]) -> bytes:
    return encode_tlv(SEQUENCE, *items)


ITEMS = _split(encode_pck_extension(PLATFORM))
FLAGS = [_item(f"7.{number}", encode_boolean(number == 1)) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (ITEMS, PLATFORM),
        (ITEMS[::-1], PLATFORM),
        ([*ITEMS, _item("9", encode_boolean(True))], PLATFORM),
        ([*ITEMS[:5], ITEMS[6]], replace(PLATFORM, platform_instance=None)),
        (
            [*ITEMS[:6], _item("7", _joined(FLAGS[:1]))],
            replace(PLATFORM, cached_keys=None, smt_enabled=None),
        ),
        ([*ITEMS[:6], _item("7", _joined(FLAGS[::-1]))], replace(PLATFORM, smt_enabled=False)),
    ],
)
def test_a_platform_is_read_in_any_order(items: list[bytes], expected: PckExtension) -> None:
    assert parse_pck_extension(_joined(items)) == expected


@pytest.mark.parametrize(
    "items",
    [
        *[ITEMS[:at] + ITEMS[at + 1 :] for at in range(5)],
        *[[*ITEMS, item] for item in ITEMS],
        [*ITEMS, _item("9", encode_boolean(True)), _item("9", encode_boolean(True))],
        [*ITEMS[:5], _item("6", encode_integer(1)), ITEMS[6]],
        [*ITEMS[:6], _item("7", _joined([FLAGS[0], FLAGS[0], FLAGS[2]]))],
        [_item("1", encode_integer(1)), *ITEMS[1:]],
        [*ITEMS[:4], _item("5", encode_integer(1)), *ITEMS[5:]],
        [],
    ],
)
def test_a_platform_with_an_item_missing_twice_or_mistyped_is_refused(items: list[bytes]) -> None:
    with pytest.raises(FormatError) as refused:
        parse_pck_extension(_joined(items))
    assert refused.value.reason is REASON


def test_bytes_left_over_are_refused() -> None:
    reader = _der(encode_boolean(True) + b"\0")
    assert reader.boolean()
    with pytest.raises(FormatError):
        reader.finish()


def test_object_identifiers_are_written_in_base_128() -> None:
    assert encode_oid("1.2.840.113741.1.13.1").hex() == "06092a864886f84d010d01"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("root_ca_crl", "0"),
        ("root_ca_crl", "zz"),
        ("pck_crl", 5),
        ("tcb_info", {}),
        ("tcb_info", "\ud800"),
        ("tcb_info_signature", "00"),
        ("tcb_info_issuer_chain", "é"),
        ("qe_identity_signature", "0" * 126),
        ("qe_identity", 1),
        ("pck_certificate_chain", 1),
    ],
)
def test_a_container_with_a_wrong_member_is_refused(name: str, value: object) -> None:
    document = {**json.loads(COLLATERAL), name: value}
    with pytest.raises(FormatError) as refused:
        parse_collateral(json.dumps(document).encode())
    assert refused.value.reason is Reason.COLLATERAL_FORMAT


# Absent, these have a step that says so, or mean nothing.
OPTIONAL = {"root_ca_crl", "pck_crl", "pck_crl_issuer_chain"}


@pytest.mark.parametrize("name", sorted(json.loads(COLLATERAL).keys() - OPTIONAL))
def test_a_container_without_a_member_is_refused(name: str) -> None:
    document = json.loads(COLLATERAL)
    del document[name]
    with pytest.raises(FormatError):
        parse_collateral(json.dumps(document).encode())


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_an_absent_list_is_an_empty_one(name: str) -> None:
    document = json.loads(COLLATERAL)
    empty = parse_collateral(json.dumps({**document, name: ""}).encode())
    assert parse_collateral(json.dumps({**document, name: None}).encode()) == empty
    del document[name]
    assert parse_collateral(json.dumps(document).encode()) == empty


def test_harmless_differences_between_writers_are_none() -> None:
    document = json.loads(COLLATERAL)
    other = {
        name: value.upper() if name.endswith(("crl", "signature")) else value
        for name, value in document.items()
    }
    other |= {"pck_certificate_chain": None, "tee_type": 129, "by": {"whom": [{"ever": 1}]}}
    assert parse_collateral(json.dumps(other, indent=4).encode()) == parse_collateral(COLLATERAL)


def test_a_document_may_come_as_the_service_wrote_it() -> None:
    document = json.loads(COLLATERAL)
    for name, wrapper in (("tcb_info", "tcbInfo"), ("qe_identity", "enclaveIdentity")):
        signature = document.pop(f"{name}_signature")
        document[name] = f'{{"{wrapper}":{document[name]},"signature":"{signature}"}}'
    assert parse_collateral(json.dumps(document).encode()) == parse_collateral(COLLATERAL)


def test_a_container_survives_with_the_signed_bytes() -> None:
    collateral = parse_collateral(COLLATERAL)
    assert parse_collateral(encode_collateral(collateral)) == collateral
    assert collateral.tcb_info.decode() == json.loads(COLLATERAL)["tcb_info"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("issueDate",), "2026-11-22T00:00:00+00:00"),
        (("issueDate",), "2026-13-22T00:00:00Z"),
        (("nextUpdate",), 5),
        (("fmspc",), "00"),
        (("tcbType",), True),
        (("tcbLevels", 0, "tcbStatus"), "TDRelaunchAdvised"),
        (("tcbLevels", 0, "tcbStatus"), "Fine"),
        (("tcbLevels", 0, "tcb", "pcesvn"), -1),
        (("tcbLevels", 0, "tcb", "tdxtcbcomponents", 3), {"svn": 256}),
        (("tcbLevels", 0, "tcb", "tdxtcbcomponents", 3), {"svn": True}),
        (("tcbLevels", 0, "tcb", "tdxtcbcomponents", 3), 1),
        (("tdxModule", "mrsigner"), "00"),
        (("tdxModuleIdentities", 0, "tcbLevels", 0, "tcb"), {}),
    ],
)
def test_a_tcb_info_with_a_wrong_value_is_refused(
    path: tuple[str | int, ...], value: object
) -> None:
    document = json.loads(json.loads(COLLATERAL)["tcb_info"])
    parse_tcb_info(json.dumps(document).encode())
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(FormatError) as refused:
        parse_tcb_info(json.dumps(document).encode())
    assert refused.value.reason is Reason.COLLATERAL_FORMAT


@pytest.mark.parametrize(
    "path",
    [
        ("added",),
        ("tdxModule", "added"),
        ("tdxModuleIdentities", 0, "added"),
        ("tdxModuleIdentities", 0, "tcbLevels", 0, "tcb", "added"),
        ("tcbLevels", 0, "added"),
        ("tcbLevels", 0, "tcb", "added"),
        ("tcbLevels", 0, "tcb", "tdxtcbcomponents", 3, "added"),
    ],
)
def test_what_intel_adds_within_a_version_changes_nothing(path: tuple[str | int, ...]) -> None:
    document = json.loads(json.loads(COLLATERAL)["tcb_info"])
    before = parse_tcb_info(json.dumps(document).encode())
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = {"x": [1]}
    assert parse_tcb_info(json.dumps(document).encode()) == before


@pytest.mark.parametrize("change", [{"id": "SGX"}, {"version": 4}, {"version": 2, "id": None}])
def test_a_tcb_info_of_another_kind_is_refused_by_its_name(change: dict[str, object]) -> None:
    document = {**json.loads(json.loads(COLLATERAL)["tcb_info"]), **change}
    document = {name: value for name, value in document.items() if value is not None}
    found = parse_tcb_info(json.dumps(document).encode())
    assert (found.id, found.version) == (document.get("id", ""), document["version"])
    # As SGX documents are: without TDX components.
    for level in document["tcbLevels"]:
        del level["tcb"]["tdxtcbcomponents"]
    with pytest.raises(FormatError) as refused:
        parse_tcb_info(json.dumps(document).encode())
    assert refused.value.reason is Reason.TCB_INFO_ID


def test_each_document_in_place_of_the_other_is_refused_by_its_name() -> None:
    document = json.loads(COLLATERAL)
    with pytest.raises(FormatError) as refused:
        parse_tcb_info(document["qe_identity"].encode())
    assert refused.value.reason is Reason.TCB_INFO_ID
    with pytest.raises(FormatError) as refused:
        parse_qe_identity(document["tcb_info"].encode())
    assert refused.value.reason is Reason.QE_IDENTITY_ID


@pytest.mark.parametrize("name", ["miscselect", "mrsigner", "isvprodid", "tcbLevels"])
def test_a_qe_identity_without_a_member_is_refused(name: str) -> None:
    document = json.loads(json.loads(COLLATERAL)["qe_identity"])
    parse_qe_identity(json.dumps(document).encode())
    del document[name]
    with pytest.raises(FormatError):
        parse_qe_identity(json.dumps(document).encode())


def test_writers_refuse_fields_of_the_wrong_size() -> None:
    register = bytes(48)
    body = TdBody10(
        tee_tcb_svn=bytes(15),
        mr_seam=register,
        mr_signer_seam=register,
        seam_attributes=bytes(8),
        td_attributes=bytes(8),
        xfam=bytes(8),
        mr_td=register,
        mr_config_id=register,
        mr_owner=register,
        mr_owner_config=register,
        rtmr=(register,) * 4,
        report_data=bytes(64),
    )
    with pytest.raises(ValueError, match="size"):
        encode_body(4, body)
    report = QeReport(b"", bytes(16), bytes(4), bytes(16), bytes(32), bytes(32), 0, 0, bytes(63))
    with pytest.raises(ValueError, match="size"):
        encode_qe_report(report)
