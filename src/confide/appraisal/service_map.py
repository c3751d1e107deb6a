"""From the sections of a policy to the policies of each kind of evidence. Pure.

Clauses: docs/protocols/policy.md §4. One place decides how a field becomes a check.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from confide.appraisal.snp_policy import SnpFloors, SnpPolicy
from confide.appraisal.tdx_policy import PlatformFlag, TdAttribute, TdxPolicy, UnsafeAny
from confide.wire.collateral import TcbStatus
from confide.wire.snp import Firmware, GuestPolicy, PlatformInfo, Product, SnpTcb

if TYPE_CHECKING:
    from collections.abc import Iterable
    from enum import StrEnum

    from confide.appraisal.policy_rules import Allowed
    from confide.appraisal.service_policy import Policy
    from confide.appraisal.tdx_policy import Registers

    Member = TypeVar("Member", bound=StrEnum)

__all__ = ["allows", "registers", "snp_policy_of", "tdx_policy_of"]


def registers(allowed: Allowed) -> Registers:
    """Return a list of hex values as bytes."""
    if isinstance(allowed, UnsafeAny):
        return allowed
    return frozenset(bytes.fromhex(value) for value in allowed)


def allows(allowed: Allowed, value: str) -> bool:
    """Whether `value` is on the list, or everything is."""
    return isinstance(allowed, UnsafeAny) or value in allowed


def _members(kind: type[Member], allowed: Allowed) -> frozenset[Member]:
    if isinstance(allowed, UnsafeAny):
        return frozenset(member for member in kind if member.value != TcbStatus.REVOKED.value)
    return frozenset(kind(value) for value in allowed)


def tdx_policy_of(policy: Policy) -> TdxPolicy:
    """Return the TDX policy that the section `tdx` writes down."""
    section = policy.tdx
    return TdxPolicy(
        accepted_status=_members(TcbStatus, section.tcb_status),
        mr_td=registers(section.mrtd),
        rtmr0=registers(section.rtmr0),
        rtmr1=registers(section.rtmr1),
        rtmr2=registers(section.rtmr2),
        rtmr3=registers(section.rtmr3),
        mr_seam=registers(section.mrseam),
        mr_config_id=registers(section.mrconfigid),
        platforms=registers(section.platforms),
        platform_flags=_members(PlatformFlag, section.platform_flags),
        min_evaluation=section.min_tcb_evaluation,
        min_root_crl_issued=section.min_root_crl_issued,
        min_pck_crl_issued=section.min_pck_crl_issued,
        max_collateral_age=timedelta(days=section.max_collateral_days),
        mr_owner=registers(section.mrowner),
        mr_owner_config=registers(section.mrownerconfig),
        service_td=registers(section.service_td),
        blocked_platforms=frozenset(bytes.fromhex(name) for name in section.blocked_platforms),
        unsafe_attributes=_members(TdAttribute, section.attributes),
        unsafe_debug=section.unsafe_debug,
        unsafe_sept_ve_clear=section.unsafe_sept_ve_clear,
        unsafe_simulated=policy.unsafe_simulated,
    )


def _floor(product: Product, texts: Iterable[str]) -> SnpTcb:
    """Return the component-wise greatest of the floors written down for `product`."""
    size = 5 if product is Product.TURIN else 4
    least = [0] * size
    for text in texts:
        name, _, numbers = text.partition(":")
        parts = [int(part) for part in numbers.split(".")]
        if name == product.value and len(parts) == size:
            least = [max(pair) for pair in zip(least, parts, strict=True)]
    fmc = least.pop(0) if product is Product.TURIN else 0
    boot_loader, tee, snp, microcode = least
    return SnpTcb(boot_loader=boot_loader, tee=tee, snp=snp, microcode=microcode, fmc=fmc)


def _guest_allowed(allowed: Allowed) -> GuestPolicy:
    found = GuestPolicy(0)
    for name in ("SMT", "CXL_ALLOW"):
        if allows(allowed, name):
            found |= GuestPolicy[name]
    return found


def snp_policy_of(policy: Policy) -> SnpPolicy:
    """Return the SEV-SNP policy that the section `snp` writes down."""
    section = policy.snp
    products = frozenset(item for item in Product if allows(section.products, item.value))
    floors = {product: _floor(product, section.min_tcb) for product in products}
    return SnpPolicy(
        products=products,
        floors=tuple(
            SnpFloors(product=product, reported=least, committed=least, launch=least)
            for product, least in floors.items()
        ),
        min_firmware=Firmware(0, 0, 0),
        min_abi=(0, 0),
        measurement=registers(section.measurements),
        host_data=registers(section.host_data),
        chips=registers(section.chips),
        blocked_chips=frozenset(bytes.fromhex(name) for name in section.blocked_chips),
        id_key_digest=registers(section.id_keys),
        author_key_digest=registers(section.author_keys),
        platform_required=PlatformInfo.ALIAS_CHECK_COMPLETE
        if section.require_alias_check
        else PlatformInfo(0),
        guest_required=GuestPolicy.SINGLE_SOCKET
        if section.require_single_socket
        else GuestPolicy(0),
        guest_allowed=_guest_allowed(section.guest_allowed),
        max_vmpl=min(section.max_vmpl, 3),
        allow_vlek=section.unsafe_vlek,
        require_crl=section.require_crl,
        unsafe_debug=section.unsafe_debug,
        unsafe_migration_agent=section.unsafe_migration,
        unsafe_simulated=policy.unsafe_simulated,
    )
