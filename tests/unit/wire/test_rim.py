"""Manifest values: closed, counted, and read from a plain tree."""

from __future__ import annotations

from dataclasses import replace

import pytest

from confide.errors import FormatError, Reason
from confide.wire.rim import (
    SWID,
    XmlElement,
    parse_payload,
    parse_rim,
    rim_driver_id,
    rim_vbios_id,
)

NS = f"{{{SWID}}}"
HASH = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
META = {"colloquialVersion": "550.90.07", "edition": "GPU", "product": "GH100"}
ENTRY = {
    "type": "Measurement",
    "index": "9",
    "active": "True",
    "alternatives": "2",
    "size": "48",
    f"{HASH}0": "00" * 48,
    f"{HASH}1": "aB" * 48,
}


def element(name: str, attributes: dict[str, str], *children: XmlElement) -> XmlElement:
    return XmlElement(NS + name, tuple(attributes.items()), children)


def tree(
    *entries: dict[str, str], meta: dict[str, str] | None = None, root: str = "SoftwareIdentity"
) -> XmlElement:
    resources = tuple(element("Resource", entry) for entry in entries)
    return element(root, {}, element("Meta", meta or META), element("Payload", {}, *resources))


def without(entry: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in entry.items() if key != name}


def refused(root: XmlElement) -> None:
    with pytest.raises(FormatError) as caught:
        parse_rim(root)
    assert caught.value.reason is Reason.RIM_MALFORMED


def test_a_manifest_is_read() -> None:
    inactive = ENTRY | {"index": "63", "active": "False"}
    rim = parse_rim(tree(ENTRY, inactive))
    assert (rim.version, rim.edition, rim.product) == ("550.90.07", "GPU", "GH100")
    assert [golden.index for golden in rim.measurements] == [9, 63]
    assert [golden.index for golden in rim.active] == [9]
    assert rim.active[0].values == (bytes(48), b"\xab" * 48)


@pytest.mark.parametrize("name", sorted(ENTRY))
def test_every_attribute_of_an_entry_is_required(name: str) -> None:
    refused(tree(without(ENTRY, name)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("index", "64"),
        ("index", "-1"),
        ("index", "9 "),
        ("index", "٣"),
        ("index", ""),
        ("size", "47"),
        ("size", "480"),
        ("alternatives", "0"),
        ("alternatives", "3"),
        ("alternatives", "65"),
        ("alternatives", "x"),
        ("active", "true"),
        ("active", "1"),
        ("type", "Other"),
        (f"{HASH}0", "00" * 47),
        (f"{HASH}0", "zz" * 48),
        (f"{HASH}1", "00" * 48 + "\n"),
    ],
)
def test_every_attribute_of_an_entry_is_closed(name: str, value: str) -> None:
    refused(tree(ENTRY | {name: value}))


def test_an_index_twice_is_refused() -> None:
    refused(tree(ENTRY, ENTRY))


def test_an_empty_payload_is_refused() -> None:
    refused(tree())


@pytest.mark.parametrize("name", sorted(META))
def test_meta_is_complete(name: str) -> None:
    refused(tree(ENTRY, meta=without(META, name)))


@pytest.mark.parametrize(
    "change",
    [
        {"edition": "CPU"},
        {"edition": "gpu"},
        {"product": ""},
        {"product": "GH 100"},
        {"colloquialVersion": "../1"},
        {"colloquialVersion": "5" * 33},
    ],
)
def test_meta_is_closed(change: dict[str, str]) -> None:
    refused(tree(ENTRY, meta=META | change))


def test_another_root_is_refused() -> None:
    refused(tree(ENTRY, root="Other"))


def test_elements_in_another_namespace_do_not_count() -> None:
    good = tree(ENTRY)
    bare = replace(good.children[0], tag="Meta")
    refused(replace(good, children=(bare, good.children[1])))


@pytest.mark.parametrize("which", [0, 1])
def test_a_second_meta_or_payload_is_refused(which: int) -> None:
    good = tree(ENTRY)
    refused(replace(good, children=(*good.children, good.children[which])))


def test_a_foreign_element_in_the_payload_is_refused() -> None:
    payload = element("Payload", {}, element("Directory", ENTRY))
    with pytest.raises(FormatError):
        parse_payload(element("SoftwareIdentity", {}, payload))


def test_ids_are_those_of_the_service() -> None:
    assert rim_driver_id("GH100", "550.90.07") == "NV_GPU_DRIVER_GH100_550.90.07"
    assert rim_driver_id("GB100", "590.48.01") == "NV_GPU_CC_DRIVER_GB100_590.48.01"
    assert (
        rim_vbios_id("1010", "0200", "882", "96.00.9f.00.01")
        == "NV_GPU_VBIOS_1010_0200_882_96009F0001"
    )
