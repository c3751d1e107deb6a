"""What a relying party accepts of NVIDIA devices: an explicit, frozen policy without an "any".

Clauses: docs/protocols/nvidia.md 9, 11 to 13, 15 and 16. Relaxations start with `unsafe_`, are
off by default and are part of the digest that every result names.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TypeAlias

from confide.wire.json import JsonValue, jcs

__all__ = [
    "AllowedVersions",
    "GpuMode",
    "MinimumVersion",
    "NvidiaPolicy",
    "VersionDemand",
    "VersionRule",
]

_VERSION = re.compile(r"[0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+){0,7}\Z")


class GpuMode(StrEnum):
    """How a GPU may be combined with others, from signed fields (docs/protocols/nvidia.md 10)."""

    SPT = "SPT"
    MPT = "MPT"
    PPCIE = "PPCIE"


def _version_key(version: str) -> tuple[int, ...]:
    if not _VERSION.match(version):
        raise ValueError("a version is groups of digits with dots")
    # Hexadecimal: VBIOS versions have hex groups, and decimal groups of up to the same length
    # keep their order when they are read as hex.
    return tuple(int(group, 16) for group in version.split("."))


@dataclass(frozen=True, slots=True)
class MinimumVersion:
    """Accept `version` and everything that sorts above it, group by group."""

    version: str

    def __post_init__(self) -> None:
        _version_key(self.version)

    def accepts(self, version: str) -> bool:
        """Whether `version` is at least the minimum; a version of another form is not."""
        return bool(_VERSION.match(version)) and _version_key(version) >= _version_key(self.version)

    def describe(self) -> JsonValue:
        """Return the JSON form that goes into the policy digest."""
        return {"minimum": self.version}


@dataclass(frozen=True, slots=True)
class AllowedVersions:
    """Accept exactly the versions listed, compared without regard to case."""

    versions: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.versions:
            raise ValueError("an empty allow-list accepts nothing")

    def accepts(self, version: str) -> bool:
        """Whether `version` is on the list."""
        return version.upper() in {allowed.upper() for allowed in self.versions}

    def describe(self) -> JsonValue:
        """Return the JSON form that goes into the policy digest."""
        return {"allowed": [version.upper() for version in sorted(self.versions)]}


@dataclass(frozen=True, slots=True)
class VersionDemand:
    """Accept what is on the list, where there is one, and reaches every minimum."""

    allowed: AllowedVersions | None
    minimums: tuple[MinimumVersion, ...]

    def accepts(self, version: str) -> bool:
        """Whether `version` meets the list and every minimum."""
        listed = self.allowed is None or self.allowed.accepts(version)
        return listed and all(minimum.accepts(version) for minimum in self.minimums)

    def describe(self) -> JsonValue:
        """Return the JSON form that goes into the policy digest."""
        return {
            "allowed": None if self.allowed is None else self.allowed.describe(),
            "minimums": [item.describe() for item in sorted(self.minimums, key=str)],
        }


VersionRule: TypeAlias = "MinimumVersion | AllowedVersions | VersionDemand"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaPolicy:
    """
    The GPUs a relying party accepts.

    `chips` are chip names as manifests spell them (`GH100`, `GB100`, and `LS10` for the NVSwitches
    of a protected PCIe system); `gpu_count` and `switch_count` are exact. Without a rule in
    `switch_bios` no switch is accepted. `uncovered_allowed` lists manifest indexes that may hold a
    value although no manifest covers them. OCSP answers are always required; `max_ocsp_age` can
    only shorten the life that their signer gave them.

    `unsafe_tolerate_rim_hold` accepts certificateHold for certificates of manifests, never of
    devices. `unsafe_tolerate_expired_rim_signer` accepts a manifest signer past its end while its
    OCSP answer is good. `unsafe_allow_missing_fwid` accepts drivers before 550, whose report has
    no firmware id.
    """

    chips: frozenset[str]
    mode: GpuMode
    gpu_count: int
    driver: VersionRule
    vbios: VersionRule
    max_ocsp_age: timedelta
    switch_count: int = 0
    switch_bios: VersionRule | None = None
    uncovered_allowed: tuple[int, ...] = ()
    unsafe_tolerate_rim_hold: bool = False
    unsafe_tolerate_expired_rim_signer: bool = False
    unsafe_allow_missing_fwid: bool = False

    def __post_init__(self) -> None:
        if not self.chips or self.gpu_count < 1 or self.max_ocsp_age <= timedelta(0):
            raise ValueError("a policy names a chip, a positive count and a positive age")
        if self.switch_count < 0 or (self.switch_count > 0) != (self.switch_bios is not None):
            raise ValueError("a policy has a rule for the BIOS of switches when it asks for some")

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical JSON of this policy."""
        return hashlib.sha256(
            jcs(
                {
                    "type": "confide/nvidia-policy/v2",
                    "chips": sorted(self.chips),
                    "mode": self.mode.value,
                    "gpu_count": self.gpu_count,
                    "driver": self.driver.describe(),
                    "vbios": self.vbios.describe(),
                    "switch_count": self.switch_count,
                    "switch_bios": self.switch_bios.describe() if self.switch_bios else None,
                    "max_ocsp_age_seconds": int(self.max_ocsp_age.total_seconds()),
                    "uncovered_allowed": sorted(self.uncovered_allowed),
                    "unsafe_tolerate_rim_hold": self.unsafe_tolerate_rim_hold,
                    "unsafe_tolerate_expired_rim_signer": self.unsafe_tolerate_expired_rim_signer,
                    "unsafe_allow_missing_fwid": self.unsafe_allow_missing_fwid,
                }
            )
        ).hexdigest()
