"""What a relying party accepts of an authentic SEV-SNP report. Pure data, refusing by default.

Clauses: docs/protocols/snp.md, "Policy". Every field that has no safe default is required; what
weakens a check is called `Unsafe…` or `unsafe_…` and is listed by `relaxations`, which every
result repeats.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final

from confide.appraisal.tdx_policy import UnsafeAny
from confide.wire.json import jcs
from confide.wire.snp import Firmware, GuestPolicy, PlatformInfo, Product, SnpTcb

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

__all__ = ["Digests", "SnpFloors", "SnpPolicy"]

Digests = frozenset[bytes] | UnsafeAny
_ZERO_DIGEST: Final = frozenset({bytes(48)})
# From: docs/protocols/snp.md#9: what a guest may be allowed, and what may be asked of it.
_ALLOWABLE: Final = GuestPolicy.SMT | GuestPolicy.CXL_ALLOW
_REQUIRABLE: Final = (
    GuestPolicy.SINGLE_SOCKET
    | GuestPolicy.MEM_AES_256_XTS
    | GuestPolicy.RAPL_DIS
    | GuestPolicy.CIPHERTEXT_HIDING_DRAM
    | GuestPolicy.PAGE_SWAP_DISABLE
)
_MAX_VMPL: Final = 3
_NOTHING: Final = GuestPolicy(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpFloors:
    """The least security versions accepted for one product."""

    product: Product
    reported: SnpTcb
    committed: SnpTcb
    launch: SnpTcb


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPolicy:
    """
    The appraisal policy for one SEV-SNP guest.

    `floors` has one entry for each product in `products`. Digests are sets of accepted values, 48
    bytes (`host_data`: 32); an empty set accepts nothing; the two key digests accept only "no key"
    unless set. `chips` are chip ids (64 bytes; under a VLEK zero). `guest_allowed` may hold SMT and
    CXL_ALLOW, `guest_required` the demands; `min_abi` is the least (major, minor) that the guest's
    own policy asks for, `min_firmware` the least committed firmware.

    Derived: `digest` is SHA-256 (hex) over the RFC 8785 bytes of `document()`; `relaxations` names
    everything that was switched off, sorted.
    """

    products: frozenset[Product]
    floors: tuple[SnpFloors, ...]
    min_firmware: Firmware
    min_abi: tuple[int, int]
    measurement: Digests
    host_data: Digests
    chips: Digests
    platform_required: PlatformInfo
    guest_required: GuestPolicy
    guest_allowed: GuestPolicy = _NOTHING
    max_vmpl: int = 0
    allow_vlek: bool = False
    require_crl: bool = True
    id_key_digest: Digests = _ZERO_DIGEST
    author_key_digest: Digests = _ZERO_DIGEST
    blocked_chips: frozenset[bytes] = frozenset()
    unsafe_debug: bool = False
    unsafe_migration_agent: bool = False
    unsafe_simulated: bool = False
    digest: str = field(init=False, repr=False)
    relaxations: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a policy that cannot mean what it says (`ValueError`)."""
        if sorted(floors.product for floors in self.floors) != sorted(self.products):
            raise ValueError("one entry of floors for each accepted product")
        if self.guest_allowed & ~_ALLOWABLE:
            raise ValueError("only SMT and CXL_ALLOW can be allowed")
        if self.guest_required & ~_REQUIRABLE:
            raise ValueError("a guest policy bit that cannot be required")
        if not 0 <= self.max_vmpl <= _MAX_VMPL:
            raise ValueError("VMPL is 0 to 3")
        # Computed once: every verdict repeats them.
        object.__setattr__(self, "relaxations", self._relaxations())
        digest = hashlib.sha256(jcs(self.document())).hexdigest()
        object.__setattr__(self, "digest", digest)

    def floors_of(self, product: Product) -> SnpFloors | None:
        """Return the floors for `product`, None where the policy does not accept it."""
        return next((found for found in self.floors if found.product is product), None)

    def _relaxations(self) -> tuple[str, ...]:
        found = {
            f"{item.name}: any"
            for item in fields(self)
            if item.init and isinstance(getattr(self, item.name), UnsafeAny)
        }
        for name, is_on in (
            ("debug: allowed", self.unsafe_debug),
            ("migration-agent: allowed", self.unsafe_migration_agent),
            ("anchor: simulated", self.unsafe_simulated),
            ("crl: not required", not self.require_crl),
            ("vlek: allowed", self.allow_vlek),
        ):
            if is_on:
                found.add(name)
        return tuple(sorted(found))

    def document(self) -> dict[str, JsonValue]:
        """Return the policy as JSON, every field present."""
        digests = ("measurement", "host_data", "chips", "id_key_digest", "author_key_digest")
        plain = ("max_vmpl", "allow_vlek", "require_crl")
        unsafe = ("unsafe_debug", "unsafe_migration_agent", "unsafe_simulated")
        bits = ("platform_required", "guest_required", "guest_allowed")
        return {
            "products": [*sorted(self.products)],
            "floors": {str(found.product): _floors(found) for found in self.floors},
            "min_firmware": str(self.min_firmware),
            "min_abi": [*self.min_abi],
            "blocked_chips": _digests(self.blocked_chips),
            **{name: _digests(getattr(self, name)) for name in digests},
            **{name: _names(getattr(self, name)) for name in bits},
            **{name: getattr(self, name) for name in (*plain, *unsafe)},
        }


def _digests(accepted: Digests) -> JsonValue:
    if isinstance(accepted, UnsafeAny):
        return "unsafe-any"
    return [*sorted(value.hex() for value in accepted)]


def _names(bits: GuestPolicy | PlatformInfo) -> JsonValue:
    return [*sorted(str(bit.name) for bit in bits)]


def _floors(found: SnpFloors) -> JsonValue:
    return {
        "reported": _tcb(found.reported),
        "committed": _tcb(found.committed),
        "launch": _tcb(found.launch),
    }


def _tcb(tcb: SnpTcb) -> JsonValue:
    # Named, because their order differs between products.
    return {item.name: getattr(tcb, item.name) for item in fields(tcb) if item.name != "other"}
