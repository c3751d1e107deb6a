"""The NVIDIA chips that are known, and how their certificates name them.

Clauses: docs/protocols/nvidia.md 6 to 8 and 12a. Everything that differs between a Hopper GPU, a
Blackwell GPU and an LS10 switch stands in one table, so that the steps are the same for all. A
name outside the table is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from confide.wire.dice import COMPOSITE_DEVICE_ID, TCB_INFO
from confide.wire.rim import Edition
from confide.wire.spdm import GPU, DeviceProfile
from confide.wire.spdm_switch import SWITCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.crypto.x509 import Certificate

__all__ = ["CHIPS", "KINDS", "Chip", "Kind", "certified_names"]

Kind = Literal["gpu", "switch"]


class _KindFacts(NamedTuple):
    """What one kind of device has in common: report, manifest, names, serial number prefix."""

    profile: DeviceProfile
    edition: str
    unit: str
    brom_prefix: int


# From: nvidia.md §1.2, §2.1, §2.3: GSP is the unit that attests in a GPU, FSP in a switch.
KINDS: Final[dict[Kind, _KindFacts]] = {
    "gpu": _KindFacts(GPU, Edition.GPU, "GSP", 0x41),
    "switch": _KindFacts(SWITCH, Edition.SWITCH, "FSP", 0x50),
}


class Chip(NamedTuple):
    """
    One chip; `certified` is its name in certificates, `identity` the common name of certificate 3.

    `mpt` and `ppcie` say which modes it can be in. `least_active` is the least number of active
    entries of its driver and of its firmware manifest.
    """

    kind: Kind
    certified: str
    identity: str
    dice_oid: str
    mpt: bool
    ppcie: bool
    least_active: tuple[int, int]


# From: nvidia.md §2.1, §2.2, §3.1, §9.1. Keys are the names that manifests and policies use. For
# GB100 no manifest is published: one active entry is the least that means anything.
CHIPS: Final = {
    "GH100": Chip(
        kind="gpu",
        certified="GH100",
        identity="NVIDIA GH100 Identity",
        dice_oid=COMPOSITE_DEVICE_ID,
        mpt=False,
        ppcie=True,
        least_active=(21, 12),
    ),
    "GB100": Chip(
        kind="gpu",
        certified="GB100",
        identity="NVIDIA GB100 Identity",
        dice_oid=TCB_INFO,
        mpt=True,
        ppcie=False,
        least_active=(1, 1),
    ),
    "LS10": Chip(
        kind="switch",
        certified="LS_10",
        identity="NVIDIA GH100 Identity",
        dice_oid=COMPOSITE_DEVICE_ID,
        mpt=False,
        ppcie=True,
        least_active=(0, 31),
    ),
}

_PROVISIONER: Final = re.compile(r"NVIDIA ([A-Z0-9_]{2,8}) Provisioner ICA [0-9]{1,8}\Z")
_DEVICE: Final = re.compile(r"([A-Z0-9_]{2,8}) A[0-9]{2} (GSP|FSP) (FMC LF|BROM)\Z")


def certified_names(chain: Sequence[Certificate], kind: Kind) -> tuple[str, ...] | None:
    """
    Return the chip names in the common names of certificates 0, 1 and 2 of a `kind` of device.

    None where a name has another form: another unit, another role, or something unknown.
    """
    found = []
    for certificate, role in zip(chain[:2], ("FMC LF", "BROM"), strict=True):
        match = _DEVICE.match(certificate.subject)
        if match is None or match.group(2, 3) != (KINDS[kind].unit, role):
            return None
        found.append(match.group(1))
    provisioner = _PROVISIONER.match(chain[2].subject)
    if provisioner is None:
        return None
    return (*found, provisioner.group(1))
