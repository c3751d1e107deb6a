"""DICE extensions are decoded by structure; the first firmware id is taken, not the last bytes."""

from __future__ import annotations

import pytest

from confide.errors import FormatError, Reason
from confide.wire.dice import parse_composite_device_id, parse_tcb_info

POINT = bytes(range(96))
FWID = b"\x5f" * 48
# From: docs/protocols/nvidia.md 7 and the layouts that genuine leaves carry.
COMPOSITE = (
    bytes.fromhex("3081ba0201013076301006072a8648ce3d020106052b8104002203620004")
    + POINT
    + bytes.fromhex("303d06096086480165030402020430")
    + FWID
)
ENTRY = bytes.fromhex("303d06096086480165030402020430")
TCB = (
    bytes.fromhex("3081b180064e5649444941810d")
    + b"GB100 A01 GSP"
    + bytes.fromhex("8202303183010184010085 0100a67e".replace(" ", ""))
    + ENTRY
    + FWID
    + ENTRY
    + bytes(48)
    + bytes.fromhex("870500800000018801c0890100")
)


def test_hopper() -> None:
    identity = parse_composite_device_id(COMPOSITE)
    assert identity.fwid == FWID
    assert identity.key == POINT


def test_blackwell_takes_the_first_of_two() -> None:
    identity = parse_tcb_info(TCB)
    assert identity.fwid == FWID
    assert identity.key is None


@pytest.mark.parametrize("raw", [COMPOSITE, TCB])
def test_the_other_layout_is_refused(raw: bytes) -> None:
    parse = parse_tcb_info if raw is COMPOSITE else parse_composite_device_id
    with pytest.raises(FormatError):
        parse(raw)


@pytest.mark.parametrize("raw", [COMPOSITE, TCB])
def test_no_prefix_and_no_suffix_parses(raw: bytes) -> None:
    parse = parse_composite_device_id if raw is COMPOSITE else parse_tcb_info
    for candidate in (*(raw[:size] for size in range(len(raw))), raw + b"\0"):
        with pytest.raises(FormatError) as caught:
            parse(candidate)
        assert caught.value.reason is Reason.FWID_MISSING


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("020101", "020100"),  # version
        ("2b81040022", "2b81040023"),  # curve
        ("03620004", "03620003"),  # compressed point
        ("608648016503040202", "608648016503040201"),  # SHA-256
    ],
)
def test_versions_curves_and_digests_are_closed(old: str, new: str) -> None:
    raw = COMPOSITE.hex().replace(old, new, 1)
    assert raw != COMPOSITE.hex()
    with pytest.raises(FormatError):
        parse_composite_device_id(bytes.fromhex(raw))
