"""Reference manifests of SIMULATED NVIDIA hardware, in the bytes of the genuine ones.

Form: docs/protocols/nvidia.md "Manifest documents". Golden values come from the caller: they are
computed from what the simulated GPU runs, and published for what it ought to run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.crypto.xmldsig import sign_enveloped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.crypto.ecdsa import SigningKey

__all__ = ["BIOS_INDEXES", "DRIVER_INDEXES", "VBIOS_INDEXES", "RimContent", "signed_rim"]

# From: docs/protocols/nvidia.md 12a: active indexes of every published GH100 manifest. For GB100
# none is published; the same ones are used.
DRIVER_INDEXES = (7, *range(21, 41))
VBIOS_INDEXES = (*range(7), *range(8, 13))
BIOS_INDEXES = tuple(range(31))
_ENTRIES = 64
# Genuine manifests list several values at these indexes; the one in use is not the first.
_ALTERNATIVES = {
    "GPU": {12: 4, 23: 2, 24: 2, 32: 2, 34: 2, 35: 4, 36: 2},
    "SWITCH": dict.fromkeys(range(9, 26), 4),
}
_SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_TCG = (
    "https://trustedcomputinggroup.org/resource/"
    "tcg-reference-integrity-manifest-rim-information-model/"
)
_SHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"


@dataclass(frozen=True, slots=True)
class RimContent:
    """`golden` maps each active manifest index to its value of 48 bytes."""

    version: str
    product: str
    golden: Mapping[int, bytes]
    edition: str = "GPU"


def _resource(index: int, value: bytes | None, edition: str) -> str:
    values = [value or bytes(48)]
    if value is not None:
        for number in range(1, _ALTERNATIVES[edition].get(index, 1)):
            values.insert(0, hashlib.sha384(b"SIMULATED alternative %d" % number + value).digest())
    hashes = " ".join(f'ns2:Hash{n}="{each.hex()}"' for n, each in enumerate(values))
    active = "False" if value is None else "True"
    return (
        f'        <ns0:Resource type="Measurement" index="{index}" active="{active}" '
        f'alternatives="{len(values)}" {hashes} name="Measurement_{index}" size="48"/>\n'
    )


def _document(content: RimContent) -> bytes:
    resources = "".join(
        _resource(index, content.golden.get(index), content.edition) for index in range(_ENTRIES)
    )
    tag_id = hashlib.sha384(f"SIMULATED {content.product} {content.version}".encode()).hexdigest()
    product = content.product
    return (
        f'<SoftwareIdentity xmlns="{_SWID}" xmlns:ns0="{_SWID}" xmlns:ns2="{_SHA384}" '
        f'corpus="false" name="{product}" patch="false" supplemental="false" tagId="{tag_id}" '
        'version="1.0" tagVersion="0">\n'
        '    <ns0:Entity name="SIMULATED" role="softwareCreator tagCreator"/>\n'
        f'    <ns0:Meta xmlns:ns1="{_TCG}" colloquialVersion="{content.version}" '
        f'edition="{content.edition}" product="{product}" revision="r1" PayloadType="direct" '
        'ns1:BindingSpec="RIMIM" ns1:BindingSpecVersion="1.01" ns1:PlatformManufacturerId="5703" '
        f'ns1:PlatformManufacturerStr="SIMULATED" ns1:PlatformModel="{product}" '
        'ns1:FirmwareManufacturer="SIMULATED" ns1:FirmwareManufacturerId="5703"/>\n'
        f'    <ns0:Payload xmlns:SHA384="{_SHA384}">\n{resources} </ns0:Payload>\n'
        "</SoftwareIdentity>"
    ).encode()


def signed_rim(content: RimContent, key: SigningKey, certificates: tuple[bytes, ...]) -> bytes:
    """Return the manifest of `content`, signed with `key`; `certificates` are signer first."""
    return sign_enveloped(_document(content), key, certificates)
