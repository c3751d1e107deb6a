"""Reference integrity manifests (RIMs): the golden measurements NVIDIA publishes, as values.

Clauses: docs/protocols/nvidia.md "Manifest documents"; TCG RIM Information Model 1.01 in an
ISO/IEC 19770-2:2015 SWID tag. The input is a plain tree: `confide.crypto.xmldsig` reads the XML,
verifies the signature and hands over only what was signed. This module knows nothing about trust.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "SWID",
    "Edition",
    "GoldenMeasurement",
    "Rim",
    "XmlElement",
    "parse_payload",
    "parse_rim",
    "rim_driver_id",
    "rim_switch_id",
    "rim_vbios_id",
]

# From: ISO/IEC 19770-2:2015 §8.
SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
# From: W3C XML Security Algorithm Cross-Reference, SHA-384.
_SHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"

_CLAUSE = "docs/protocols/nvidia.md#manifest-documents"
_MAX_INDEX = 63
# Genuine manifests have up to four alternatives; a hostile one must not make us loop.
_MAX_ALTERNATIVES = 64
_HASH = re.compile(r"[0-9a-fA-F]{96}\Z")
_NUMBER = re.compile(r"[0-9]{1,3}\Z")
_TOKEN = re.compile(r"[0-9A-Za-z.]{1,32}\Z")


@dataclass(frozen=True, slots=True)
class XmlElement:
    """One element; names are in Clark notation (`{namespace}local`). Text is not kept."""

    tag: str
    attributes: tuple[tuple[str, str], ...]
    children: tuple[XmlElement, ...]

    def get(self, name: str) -> str | None:
        """Return the attribute `name`, None where it is absent."""
        return next((value for found, value in self.attributes if found == name), None)


@dataclass(frozen=True, slots=True)
class GoldenMeasurement:
    """The values that manifest index `index` (block index + 1) may have."""

    index: int
    active: bool
    values: tuple[bytes, ...]


class Edition:
    """What a manifest describes."""

    GPU = "GPU"
    SWITCH = "SWITCH"


@dataclass(frozen=True, slots=True)
class Rim:
    """One manifest: which `version` of which `product` it describes, and its measurements."""

    version: str
    edition: str
    product: str
    measurements: tuple[GoldenMeasurement, ...]

    @property
    def active(self) -> tuple[GoldenMeasurement, ...]:
        """The measurements that count."""
        return tuple(golden for golden in self.measurements if golden.active)


def _refuse(what: str) -> NoReturn:
    raise FormatError(f"manifest: {what}", reason=Reason.RIM_MALFORMED, clause=_CLAUSE)


def _one(parent: XmlElement, name: str) -> XmlElement:
    found = [child for child in parent.children if child.tag == f"{{{SWID}}}{name}"]
    if len(found) != 1:
        _refuse(f"{len(found)} elements {name}, exactly one expected")
    return found[0]


def _attribute(element: XmlElement, name: str, what: str) -> str:
    value = element.get(name)
    if value is None:
        _refuse(f"{what} is missing")
    return value


def parse_rim(root: XmlElement) -> Rim:
    """Read Meta and Payload of the signed tree `root`. Raises `FormatError`."""
    if root.tag != f"{{{SWID}}}SoftwareIdentity":
        _refuse("the root is not SoftwareIdentity")
    meta = _one(root, "Meta")
    version = _attribute(meta, "colloquialVersion", "colloquialVersion")
    product = _attribute(meta, "product", "product")
    edition = _attribute(meta, "edition", "edition")
    if not _TOKEN.match(version) or not _TOKEN.match(product):
        _refuse("version or product is not a short ASCII text")
    if edition not in {Edition.GPU, Edition.SWITCH}:
        _refuse("edition is neither GPU nor SWITCH")
    return Rim(version, edition, product, parse_payload(root))


def parse_payload(root: XmlElement) -> tuple[GoldenMeasurement, ...]:
    """Read the Payload of `root` alone: at least one measurement, each index once."""
    resources = _one(root, "Payload").children
    measurements = tuple(_measurement(resource) for resource in resources)
    if not measurements:
        _refuse("the payload is empty")
    if len({golden.index for golden in measurements}) != len(measurements):
        _refuse("an index appears twice")
    return measurements


def _number(attributes: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = attributes.get(name, "")
    if not _NUMBER.match(text) or not low <= int(text) <= high:
        _refuse(f"{name} is not a number from {low} to {high}")
    return int(text)


def _measurement(resource: XmlElement) -> GoldenMeasurement:
    attributes = dict(resource.attributes)
    if resource.tag != f"{{{SWID}}}Resource" or attributes.get("type") != "Measurement":
        _refuse("the payload holds something that is not a measurement")
    index = _number(attributes, "index", 0, _MAX_INDEX)
    _number(attributes, "size", 48, 48)
    alternatives = _number(attributes, "alternatives", 1, _MAX_ALTERNATIVES)
    active = attributes.get("active")
    if active not in {"True", "False"}:
        _refuse(f"active of index {index} is neither True nor False")
    values: list[bytes] = []
    for number in range(alternatives):
        text = attributes.get(f"{{{_SHA384}}}Hash{number}", "")
        if not _HASH.match(text):
            _refuse(f"Hash{number} of index {index} is not 96 hex digits")
        values.append(bytes.fromhex(text))
    return GoldenMeasurement(index, active == "True", tuple(values))


def rim_driver_id(chip: str, driver_version: str) -> str:
    """
    Return the id under which NVIDIA publishes the driver manifest of `chip` (`GH100`, `GB100`).

    From: docs/protocols/nvidia.md 11. Both parts were limited to letters, digits and dots when the
    report was parsed.
    """
    family = "GPU_DRIVER" if chip == "GH100" else "GPU_CC_DRIVER"
    return f"NV_{family}_{chip}_{driver_version}"


def rim_vbios_id(project: str, project_sku: str, chip_sku: str, vbios_version: str) -> str:
    """Return the id under which NVIDIA publishes the VBIOS manifest of a board."""
    version = vbios_version.replace(".", "")
    return f"NV_GPU_VBIOS_{project}_{project_sku}_{chip_sku}_{version}".upper()


def rim_switch_id(bios_version: str) -> str:
    """Return the id under which NVIDIA publishes the BIOS manifest of an LS10 switch."""
    # From: nvidia.md §3.3: one board is known.
    return f"NV_SWITCH_BIOS_5612_0002_890_{bios_version.replace('.', '')}".upper()
