"""The policy for evidence of any service: sections of plain values, complete and frozen.

Clauses: docs/protocols/policy.md §3, which lists every field. A policy has no defaults: it is
written in full, or starts from a named profile (`service_profiles`) and says what it changes.
`relaxations` names everything that was left open; every result repeats it.
"""
# ruff: noqa: RUF009 - the calls declare fields: each carries its rule and has no default

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, TypeVar

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.policy_rules import (
    Allowed,
    Kind,
    Rule,
    Values,
    combine,
    rule_of,
    ruled,
    to_json,
)
from confide.appraisal.tdx_policy import PlatformFlag, TdAttribute, UnsafeAny
from confide.wire.collateral import TcbStatus
from confide.wire.json import jcs

if TYPE_CHECKING:
    from datetime import datetime

    from confide.wire.json import JsonValue

__all__ = [
    "NO_VALUE",
    "ClaimSection",
    "NvidiaSection",
    "Policy",
    "ProvenanceSection",
    "SnpSection",
    "TdxSection",
    "WorkloadSection",
    "rules_of",
]

Section = TypeVar("Section")

# A required claim is proven by these lists. One that is open could never prove it; were that
# allowed, adding a second policy could turn a refusal into acceptance.
_RESTS_ON: Final = {
    ClaimName.LAUNCH: (
        "tdx.mrtd",
        "tdx.rtmr0",
        "tdx.rtmr1",
        "tdx.rtmr2",
        "snp.measurements",
    ),
    ClaimName.WORKLOAD_EXPECTED: ("workload.documents",),
    ClaimName.PLATFORM: ("tdx.platforms", "snp.chips"),
}

_REGISTER = Values("96 hex digits", r"[0-9a-f]{96}")
# `none` accepts no value at all, not even one that follows from something that was judged.
NO_VALUE: Final = "none"
_FOLLOWING = Values("96 hex digits, or none", rf"[0-9a-f]{{96}}|{NO_VALUE}")
_FOLLOWING_DIGEST = Values("64 hex digits, or none", rf"[0-9a-f]{{64}}|{NO_VALUE}")
_DIGEST = Values("64 hex digits", r"[0-9a-f]{64}")
_PLATFORM = Values("32 hex digits", r"[0-9a-f]{32}")
_CLAIM = Values("names of claims", words=tuple(name.value for name in ClaimName))
_STATUS = Values(
    "TCB statuses", words=tuple(s.value for s in TcbStatus if s is not TcbStatus.REVOKED)
)
_FLAG = Values("platform flags", words=tuple(flag.value for flag in PlatformFlag))
_ATTRIBUTE = Values("TD attributes", words=tuple(item.value for item in TdAttribute))
_PRODUCT = Values("AMD products", words=("Milan", "Genoa", "Turin"))
# product:boot loader.TEE.SNP.microcode, and for Turin product:FMC.boot loader.TEE.SNP.microcode
_CHIP_ID = Values("128 hex digits", r"[0-9a-f]{128}")
_GUEST = Values("guest policy bits", words=("SMT", "CXL_ALLOW"))
_TCB = Values(
    "floors like Genoa:7.0.23.72",
    r"(?:(?:Milan|Genoa):[0-9]{1,3}(?:\.[0-9]{1,3}){3}|Turin:[0-9]{1,3}(?:\.[0-9]{1,3}){4})",
)
_CHIP = Values("chip names", r"[A-Z]{2}[0-9]{3}")
_MODE = Values("modes", words=("SPT", "MPT", "PPCIE"))
_COUNT = Values("numbers of GPUs", r"[1-9]|1[0-6]")
_VERSION = Values("versions", r"[0-9A-Fa-f]{1,4}(\.[0-9A-Fa-f]{1,4}){1,7}")
_PROVIDER = Values("key providers", words=("none", "local-sgx", "kms", "tpm"))
# issuer and identity of a certificate, with one space between them
_IDENTITY = Values("`ISSUER IDENTITY`", r"https://\S{1,256} \S{1,512}")


def _allow(says: str, values: Values) -> Allowed:
    found: Allowed = ruled(Rule(Kind.ALLOW, says, values))
    return found


def _grant(says: str, values: Values) -> frozenset[str]:
    found: frozenset[str] = ruled(Rule(Kind.GRANT, says, values))
    return found


def _also(says: str, values: Values) -> frozenset[str]:
    found: frozenset[str] = ruled(Rule(Kind.ALSO, says, values))
    return found


def _floor(says: str) -> int:
    found: int = ruled(Rule(Kind.FLOOR, says))
    return found


def _since(says: str) -> datetime:
    found: datetime = ruled(Rule(Kind.FLOOR, says, moment=True))
    return found


def _ceiling(says: str) -> int:
    found: int = ruled(Rule(Kind.CEILING, says))
    return found


def _need(says: str) -> bool:
    found: bool = ruled(Rule(Kind.NEED, says))
    return found


def _unsafe(says: str) -> bool:
    found: bool = ruled(Rule(Kind.UNSAFE, says))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimSection:
    """Which claims decide. A claim that is neither required nor tolerated may stay unproven."""

    require: frozenset[str] = _also("proven must be", _CLAIM)
    unsafe_tolerate: Allowed = _allow("allowed to fail, contradicted by the evidence, are", _CLAIM)


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxSection:
    """
    Intel TDX. A register that follows from a launch the policy knows need not be listed.

    Known launches are OS images (`workload.os_images`) and signed references of the publisher;
    RTMR3 follows from a log, MRCONFIGID from the launch document (docs/protocols/policy.md §4).
    """

    tcb_status: Allowed = _allow("the merged TCB status is one of", _STATUS)
    mrtd: Allowed = _allow("MRTD, the firmware, is one of", _FOLLOWING)
    rtmr0: Allowed = _allow("RTMR0, firmware configuration, is one of", _FOLLOWING)
    rtmr1: Allowed = _allow("RTMR1, boot loader and kernel, is one of", _FOLLOWING)
    rtmr2: Allowed = _allow("RTMR2, command line and initial file system, is one of", _FOLLOWING)
    rtmr3: Allowed = _allow("RTMR3, what was started, is one of", _FOLLOWING)
    mrconfigid: Allowed = _allow("MRCONFIGID, the launch document, is one of", _FOLLOWING)
    mrowner: Allowed = _allow("MROWNER is one of", _REGISTER)
    mrownerconfig: Allowed = _allow("MROWNERCONFIG is one of", _REGISTER)
    mrseam: Allowed = _allow("MRSEAM, the TDX module, is one of", _REGISTER)
    service_td: Allowed = _allow("MRSERVICETD is one of", _REGISTER)
    platforms: Allowed = _allow("the PPID or platform instance is one of", _PLATFORM)
    blocked_platforms: frozenset[str] = _also("the PPID or platform instance is none of", _PLATFORM)
    platform_flags: Allowed = _allow("the platform certificate may say", _FLAG)
    attributes: Allowed = _allow(
        "beside SEPT_VE_DISABLE these TD attributes may be set", _ATTRIBUTE
    )
    min_tcb_evaluation: int = _floor("Intel's TCB evaluation number is at least")
    max_collateral_days: int = _ceiling("the age of Intel's statements in days is at most")
    min_root_crl_issued: datetime = _since("the list of the root was issued not before")
    min_pck_crl_issued: datetime = _since("the list of the PCK CA was issued not before")
    unsafe_sept_ve_clear: bool = _unsafe("SEPT_VE_DISABLE may be clear")
    unsafe_debug: bool = _unsafe("debug TDs are accepted: the host can read their memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpSection:
    """AMD SEV-SNP. AMD publishes no TCB levels, so floors are the caller's."""

    products: Allowed = _allow("the product is one of", _PRODUCT)
    measurements: Allowed = _allow("the launch measurement is one of", _FOLLOWING)
    host_data: Allowed = _allow("HOST_DATA, the launch document, is one of", _FOLLOWING_DIGEST)
    chips: Allowed = _allow("the chip id is one of", _CHIP_ID)
    blocked_chips: frozenset[str] = _also("the chip id is none of", _CHIP_ID)
    id_keys: Allowed = _allow("the digest of the id key is one of", _REGISTER)
    author_keys: Allowed = _allow("the digest of the author key is one of", _REGISTER)
    guest_allowed: Allowed = _allow("the guest policy may allow", _GUEST)
    min_tcb: frozenset[str] = _also("reported, committed and launch TCB are at least", _TCB)
    max_vmpl: int = _ceiling("the VMPL that asked for the report is at most")
    require_crl: bool = _need("AMD's revocation list must be at hand")
    require_alias_check: bool = _need("the platform must have completed the alias check")
    require_single_socket: bool = _need("the guest policy must ask for a single socket")
    unsafe_vlek: bool = _unsafe("keys that a cloud provider holds (VLEK) are accepted")
    unsafe_migration: bool = _unsafe("a migration agent is accepted")
    unsafe_debug: bool = _unsafe("debug guests are accepted: the host can read their memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaSection:
    """NVIDIA devices. `min_driver` and `min_vbios` are lists: a version must reach all of them."""

    chips: Allowed = _allow("the chip is one of", _CHIP)
    modes: Allowed = _allow("the mode is one of", _MODE)
    counts: Allowed = _allow("the number of GPUs in one machine is one of", _COUNT)
    drivers: Allowed = _allow("the driver is one of", _VERSION)
    vbios: Allowed = _allow("the VBIOS is one of", _VERSION)
    switch_bios: Allowed = _allow("the BIOS of switches is one of", _VERSION)
    min_driver: frozenset[str] = _also("the driver is at least", _VERSION)
    min_vbios: frozenset[str] = _also("the VBIOS is at least", _VERSION)
    max_ocsp_hours: int = _ceiling(
        "the age of NVIDIA's answers about certificates in hours is at most"
    )
    unsafe_rim_hold: bool = _unsafe("signers of manifests may be on hold")
    unsafe_expired_rim: bool = _unsafe("signers of manifests may have expired while OCSP is good")
    unsafe_missing_fwid: bool = _unsafe("reports without a firmware id (driver 535) are accepted")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSection:
    """What may have been started: SHA-256 of launch documents and of OS images."""

    documents: Allowed = _allow("SHA-256 of the launch document is one of", _DIGEST)
    os_images: frozenset[str] = _grant("a known launch is one from the dstack OS images", _DIGEST)
    key_providers: Allowed = _allow("the key provider is one of", _PROVIDER)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenanceSection:
    """Who may have built the images, as Sigstore certificates say it."""

    identities: frozenset[str] = _grant(
        "images and registers may be vouched for by (issuer and identity)", _IDENTITY
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """
    What a relying party accepts of one service.

    Derived: `digest` is SHA-256 (hex) over the RFC 8785 bytes of `document()`; `relaxations` names
    everything that was left open or switched off, sorted.
    """

    name: str
    claims: ClaimSection
    tdx: TdxSection
    snp: SnpSection
    nvidia: NvidiaSection
    workload: WorkloadSection
    provenance: ProvenanceSection
    unsafe_simulated: bool

    def __post_init__(self) -> None:
        """Refuse a policy that requires what it leaves open (`ValueError`)."""
        for claim, paths in _RESTS_ON.items():
            for path in paths if claim in self.claims.require else ():
                section, _, field = path.partition(".")
                if getattr(getattr(self, section), field) == UnsafeAny():
                    raise ValueError(f"{path} is open, and claims.require names {claim}")

    def sections(self) -> dict[str, object]:
        """Return the sections by name, in the order of the document."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in {"name", "unsafe_simulated"}
        }

    def document(self) -> dict[str, JsonValue]:
        """Return the policy as JSON, every field present."""
        found: dict[str, JsonValue] = {
            "type": "confide/policy/v1",
            "name": self.name,
            "unsafe_simulated": self.unsafe_simulated,
        }
        for name, section in self.sections().items():
            found[name] = {item: to_json(getattr(section, item)) for item in rules_of(section)}
        return found

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the canonical document."""
        return hashlib.sha256(jcs(self.document())).hexdigest()

    @property
    def relaxations(self) -> tuple[str, ...]:
        """Everything that was left open or switched off, sorted."""
        found = ["simulated roots"] if self.unsafe_simulated else []
        for name, section in self.sections().items():
            for item, rule in rules_of(section).items():
                value = getattr(section, item)
                if isinstance(value, UnsafeAny):
                    found.append(f"{name}.{item}: any")
                elif rule.kind is Kind.UNSAFE and value:
                    found.append(f"{name}.{item}")
                elif item == "unsafe_tolerate" and value:
                    found.append(f"{name}.{item}: {', '.join(sorted(value))}")
        return tuple(sorted(found))

    def both(self, other: Policy) -> Policy:
        """Return the policy that accepts only what this one and `other` both accept."""
        return Policy(
            name=f"{self.name} + {other.name}",
            claims=_both(self.claims, other.claims),
            tdx=_both(self.tdx, other.tdx),
            snp=_both(self.snp, other.snp),
            nvidia=_both(self.nvidia, other.nvidia),
            workload=_both(self.workload, other.workload),
            provenance=_both(self.provenance, other.provenance),
            unsafe_simulated=self.unsafe_simulated and other.unsafe_simulated,
        )


def rules_of(section: object) -> dict[str, Rule]:
    """Return the rule of every field of a section, by name, in order."""
    return {item.name: rule_of(item.metadata) for item in fields(section)}  # type: ignore[arg-type]


def _both(one: Section, other: Section) -> Section:
    values = {}
    for name, rule in rules_of(one).items():
        pair = getattr(one, name), getattr(other, name)
        values[name] = combine(rule, *pair)
        if rule.values in (_FOLLOWING, _FOLLOWING_DIGEST) and not values[name] and any(pair):
            # An empty list leaves the value to what it follows from, which one of the two does not.
            values[name] = frozenset({NO_VALUE})
    return type(one)(**values)
