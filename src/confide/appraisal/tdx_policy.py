"""What a relying party accepts of an authentic TDX quote. Pure data, refusing by default.

Clauses: docs/protocols/tdx.md, "Policy". Every field that has no safe default is required; what
weakens a check is called `Unsafe…` or `unsafe_…` and is listed by `relaxations`, which every
result repeats.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from confide.wire.collateral import TcbStatus
from confide.wire.json import jcs

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

__all__ = [
    "XFAM_ALLOWED",
    "XFAM_REQUIRED",
    "ByEventLog",
    "LoggedRegisters",
    "PlatformFlag",
    "Registers",
    "TdAttribute",
    "TdxPolicy",
    "TrailingBytes",
    "UnsafeAny",
]

_ZERO_REGISTER: Final = frozenset({bytes(48)})
# From: Intel TDX Module Base Architecture Specification, XFAM: x87 and SSE are mandatory; the rest
# are the features that exist.
XFAM_REQUIRED: Final = 0x3
XFAM_ALLOWED: Final = 0x6DBE7
# From: RFC 7493 §2.2: what a JSON number can hold.
_MAX_SAFE_INTEGER: Final = 2**53 - 1
_MASK: Final = 2**64


@dataclass(frozen=True, slots=True)
class UnsafeAny:
    """Accept every value: the register or platform proves nothing."""


@dataclass(frozen=True, slots=True)
class ByEventLog:
    """
    The caller replays an event log against the verified register and judges the events.

    The step passes and says so; without that replay the register proves nothing.
    """


class TdAttribute(StrEnum):
    """Attributes that a policy may allow on top of SEPT_VE_DISABLE (docs/protocols/tdx.md#29)."""

    PKS = "pks"
    KEY_LOCKER = "key-locker"
    PERFMON = "perfmon"

    @property
    def bit(self) -> int:
        """Position in TDATTRIBUTES."""
        return {TdAttribute.PKS: 30, TdAttribute.KEY_LOCKER: 31, TdAttribute.PERFMON: 63}[self]


class TrailingBytes(StrEnum):
    """What may stand after the signature data, which nothing signs (docs/protocols/tdx.md#4)."""

    NONE = "none"
    ZERO_ONLY = "zero-only"
    UNSAFE_ANY = "unsafe-any"


class PlatformFlag(StrEnum):
    """Flags of the PCK certificate that a policy may allow to be set (docs/protocols/tdx.md#30)."""

    DYNAMIC = "dynamic"
    CACHED_KEYS = "cached-keys"
    SMT = "smt"


Registers = frozenset[bytes] | UnsafeAny
LoggedRegisters = frozenset[bytes] | UnsafeAny | ByEventLog


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPolicy:
    """
    The appraisal policy for one TDX guest.

    Registers are sets of accepted 48-byte values; an empty set accepts nothing. `platforms` are
    PPIDs or platform instance ids (16 bytes). `min_evaluation` is the floor for the lower of both
    TCB evaluation data numbers. The floors for revocation lists are times of issue;
    `max_collateral_age` runs from the issue of TCB info, QE identity and PCK list.

    `xfam_required` and `xfam_allowed` are masks; they can only narrow what the architecture allows
    unless `unsafe_xfam`. `unsafe_attributes_mask`, where given, is the whole set of TDATTRIBUTES
    bits that may be set, in place of SEPT_VE_DISABLE and the named ones; DEBUG and SEPT_VE_DISABLE
    still have steps of their own. `unsafe_debug` accepts a guest whose memory the host can read.

    Derived: `digest` is SHA-256 (hex) over the RFC 8785 bytes of `document()`; `relaxations` names
    everything that was switched off, sorted.
    """

    accepted_status: frozenset[TcbStatus]
    mr_td: Registers
    rtmr0: LoggedRegisters
    rtmr1: LoggedRegisters
    rtmr2: LoggedRegisters
    rtmr3: LoggedRegisters
    mr_seam: Registers
    mr_config_id: Registers
    platforms: frozenset[bytes] | UnsafeAny
    platform_flags: frozenset[PlatformFlag]
    min_evaluation: int
    min_root_crl_issued: datetime
    min_pck_crl_issued: datetime
    max_collateral_age: timedelta
    mr_owner: Registers = _ZERO_REGISTER
    mr_owner_config: Registers = _ZERO_REGISTER
    service_td: Registers = _ZERO_REGISTER
    blocked_platforms: frozenset[bytes] = frozenset()
    trailing_bytes: TrailingBytes = TrailingBytes.ZERO_ONLY
    xfam_required: int = XFAM_REQUIRED
    xfam_allowed: int = XFAM_ALLOWED
    unsafe_attributes: frozenset[TdAttribute] = frozenset()
    unsafe_attributes_mask: int | None = None
    unsafe_debug: bool = False
    unsafe_sept_ve_clear: bool = False
    unsafe_xfam: bool = False
    unsafe_simulated: bool = False
    digest: str = field(init=False, repr=False)
    relaxations: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a policy that cannot mean what it says (`ValueError`)."""
        if TcbStatus.REVOKED in self.accepted_status:
            raise ValueError("no policy accepts Revoked")
        if self.min_root_crl_issued.tzinfo is None or self.min_pck_crl_issued.tzinfo is None:
            raise ValueError("a floor needs a time zone")
        self._require_masks()
        # Computed once: every verdict repeats them.
        object.__setattr__(self, "relaxations", self._relaxations())
        digest = hashlib.sha256(jcs(self.document())).hexdigest()
        object.__setattr__(self, "digest", digest)

    def _require_masks(self) -> None:
        masks = (self.xfam_required, self.xfam_allowed, self.unsafe_attributes_mask or 0)
        if not all(0 <= mask < _MASK for mask in masks):
            raise ValueError("a mask has 64 bits")
        narrows = (
            self.xfam_required & XFAM_REQUIRED == XFAM_REQUIRED
            and not self.xfam_allowed & ~XFAM_ALLOWED
        )
        if not narrows and not self.unsafe_xfam:
            raise ValueError("XFAM masks wider than the architecture need unsafe_xfam")

    def _relaxations(self) -> tuple[str, ...]:
        found = {
            f"{item.name}: any"
            for item in fields(self)
            if item.init and isinstance(getattr(self, item.name), UnsafeAny)
        }
        found |= {f"attribute: {attribute}" for attribute in self.unsafe_attributes}
        if self.unsafe_attributes_mask is not None:
            found.add(f"attributes: mask {self.unsafe_attributes_mask:#x}")
        if self.unsafe_debug:
            found.add("debug: allowed")
        if self.unsafe_xfam:
            found.add(f"xfam: {self.xfam_required:#x} to {self.xfam_allowed:#x}")
        if self.trailing_bytes is TrailingBytes.UNSAFE_ANY:
            found.add("trailing bytes: any")
        if self.unsafe_sept_ve_clear:
            found.add("sept-ve-disable: clear")
        if self.unsafe_simulated:
            found.add("anchor: simulated")
        return tuple(sorted(found))

    def document(self) -> dict[str, JsonValue]:
        """Return the policy as JSON, every field present."""
        return {item.name: _json(getattr(self, item.name)) for item in fields(self) if item.init}


def _json(value: object) -> JsonValue:
    match value:
        case UnsafeAny():
            return "unsafe-any"
        case ByEventLog():
            return "by-event-log"
        case frozenset():
            names = (item.hex() if isinstance(item, bytes) else str(item) for item in value)
            return [*sorted(names)]
    return _plain(value)


def _plain(value: object) -> JsonValue:
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return int(value.total_seconds())
        case StrEnum() | bool() | None:
            return value
        case int():
            # A mask may have bits that a JSON number cannot hold.
            return value if value <= _MAX_SAFE_INTEGER else hex(value)
    raise TypeError("a policy field of an unknown type")
