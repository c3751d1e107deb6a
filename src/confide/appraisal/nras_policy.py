"""What a relying party accepts of NVIDIA's remote service, and what an accepted token says.

Clauses: docs/protocols/nras.md 2b, 9 and "What acceptance means". Values only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from confide.appraisal.tdx_policy import UnsafeAny
from confide.wire.json import JsonValue, jcs

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.nvidia_policy import VersionRule
    from confide.rats import Claim, Finding

__all__ = ["NRAS_ISSUER", "NrasDevice", "NrasPolicy", "NrasResult", "ReportedDevice"]

# From: docs/protocols/nras.md 4b; the production service.
NRAS_ISSUER: Final = "https://nras.attestation.nvidia.com"


@dataclass(frozen=True, slots=True)
class ReportedDevice:
    """
    What the signed report of one device says: the other side of the comparison in step 9b.

    `ueid` is decimal; `driver_version` is empty for switches; `vbios_version` is a switch's BIOS.
    """

    kind: Literal["gpu", "switch"]
    ueid: str
    driver_version: str
    vbios_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NrasPolicy:
    """
    The tokens a relying party accepts.

    `device_count` is exact. `driver` is not asked of switches. `pinned_authorities` are SHA-256
    of the SubjectPublicKeyInfo of intermediates that may have issued the token's key; where it is
    empty, that the key is NVIDIA's rests on how the key set was fetched. `accept_warnings`
    accepts a token although the service attached a warning (a signer on hold, for instance).
    """

    device_count: int | UnsafeAny
    driver: VersionRule | UnsafeAny
    vbios: VersionRule | UnsafeAny
    pinned_authorities: frozenset[bytes] = frozenset()
    accept_warnings: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.device_count, int) and self.device_count < 1:
            raise ValueError("a policy asks for at least one device")
        if any(len(pin) != hashlib.sha256().digest_size for pin in self.pinned_authorities):
            raise ValueError("a pinned authority is named by 32 bytes")

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical JSON of this policy."""

        def rule(value: VersionRule | UnsafeAny) -> JsonValue:
            return "unsafe-any" if isinstance(value, UnsafeAny) else value.describe()

        count = self.device_count
        return hashlib.sha256(
            jcs(
                {
                    "type": "confide/nras-policy/v1",
                    "device_count": "unsafe-any" if isinstance(count, UnsafeAny) else count,
                    "driver": rule(self.driver),
                    "vbios": rule(self.vbios),
                    "pinned_authorities": sorted(pin.hex() for pin in self.pinned_authorities),
                    "accept_warnings": self.accept_warnings,
                }
            )
        ).hexdigest()


@dataclass(frozen=True, slots=True)
class NrasDevice:
    """
    What the service says about one device of an accepted token.

    `name` is its submodule (`GPU-0`). `warning` is the service's own text, empty where it gave
    none: show it as theirs. `vbios_version` is a switch's BIOS.
    """

    name: str
    kind: Literal["gpu", "switch"]
    ueid: str
    hwmodel: str
    driver_version: str
    vbios_version: str
    warning: str


@dataclass(frozen=True, slots=True)
class NrasResult:
    """
    An accepted token. `simulated` is true for every issuer but NVIDIA's production service.

    `version` is that of the claims. `keys` are the SHA-256 (hex) of the SubjectPublicKeyInfo of
    the keys that signed; `authorities` those of the issuers in their `x5c`. `authority_pinned`
    says whether the policy named one of these; where it did not, that they are NVIDIA's keys
    rests on how the key set was fetched. `not_after` is the earliest instant at which an input
    expires. `claims` are in the vocabulary of docs/protocols/services.md §4.
    """

    simulated: bool
    issuer: str
    policy_digest: str
    now: datetime
    not_after: datetime
    version: str
    keys: tuple[str, ...]
    authorities: tuple[str, ...]
    authority_pinned: bool
    devices: tuple[NrasDevice, ...]
    warnings: tuple[str, ...]
    claims: tuple[Claim, ...]
    findings: tuple[Finding, ...]
    limits: tuple[str, ...]
